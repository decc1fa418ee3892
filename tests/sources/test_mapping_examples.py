"""The examples of docs/your-own-data.md run, and the page names every key there is."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import REPOSITORY, Home
from pipelines.sources import mapping, normalising, plan, reading
from pipelines.sources.request import Request, Source
from tests.sources.conftest import table

FOLDER = REPOSITORY / "docs" / "mappings"
PAGE = REPOSITORY / "docs" / "your-own-data.md"
PATHS = {"european": "european/verkauf.csv"}


def staged(home: Home, name: str) -> dict[str, list[dict[str, Any]]]:
    request = Request(source=Source.TABLE, path=FOLDER / PATHS.get(name, name), mapping=FOLDER / f"{name}.yml")
    windows = plan.windows(home, request, batch_days=1)
    batches = [home.landing / reading.stage_batch(home, request, window) for window in windows]
    read = {part: [row for batch in batches for row in table(batch, part)] for part in ("events", "items", "users")}
    for part in ("items", "users"):  # a window also brings those that stood at its start
        read[part] = [row for n, row in enumerate(read[part]) if row not in read[part][:n]]
    return read


def told(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def test_every_example_is_tested_here_and_linked_from_the_page():
    names = {file.stem for file in FOLDER.glob("*.yml")}
    assert names == {"orders-and-lines", "sessions", "european", "ratings"}
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in names if f"mappings/{name}.yml" not in text] == []


def test_orders_and_lines(home: Home):
    read = staged(home, "orders-and-lines")
    assert told(read["events"], "user_id", "item_id", "value", "reasons") == [
        ("c1", "MUG-BLUE", 17.0, []),
        ("c1", "SHIPPING", 4.99, ["non_product_code"]),
        ("c2", "LAMP", 39.0, []),
        ("c1", "MUG-BLUE", 8.5, ["cancellation"]),
        (None, "MUG-RED", 8.5, ["missing_user"]),
    ]
    assert read["events"][0]["event_at"] == datetime(2024, 2, 5, 14, 12, tzinfo=UTC)
    assert {row["item_id"]: row["price"] for row in read["items"]} == {"MUG-BLUE": 8.5, "MUG-RED": 8.5, "LAMP": 42.0}
    assert told(read["users"], "user_id", "country") == [("c1", "US"), ("c2", "CA")]


def test_sessions(home: Home):
    read = staged(home, "sessions")
    assert told(read["events"], "user_id", "item_id", "event_type", "reasons") == [
        ("s1", "no:17", "view", []),
        ("s1", "no:17", "add_to_cart", []),
        ("s2", "se:17", "view", []),
        ("s1", "no:17", "purchase", []),
        ("s3", "no:4", None, ["unknown event_type"]),
        ("s2", "se:9", "view", []),
    ]


def test_european(home: Home):
    read = staged(home, "european")
    assert told(read["events"], "user_id", "item_id", "value") == [("K1", "A-1", 1019.9), ("K2", "A-1", 19.9), ("K2", "B-2", 7.5)]
    assert told(read["items"], "item_id", "title") == [("A-1", "Käsebrett"), ("B-2", "Türstopper")]


def test_ratings(home: Home):
    read = staged(home, "ratings")
    days = [(row["user_id"], row["item_id"], row["event_at"].day) for row in read["events"]]
    assert sorted(days) == [("u1", "f1", 1), ("u1", "f2", 2), ("u1", "f3", 3), ("u2", "f1", 2), ("u2", "f3", 3)]
    assert {row["item_id"]: row["category"] for row in read["items"]} == {"f1": "Drama", "f2": "Comedy", "f3": None}


def test_settings_of_an_example_travel_with_its_batch(home: Home):
    request = Request(source=Source.TABLE, path=FOLDER / "ratings", mapping=FOLDER / "ratings.yml")
    assert normalising.normalised(home, request).settings == {"training": {"exclude_seen": True, "positive_rating": 4}}


@pytest.mark.parametrize(
    "kind",
    [
        mapping.Mapping,
        mapping.FileSpec,
        mapping.Explode,
        mapping.Value,
        mapping.Number,
        mapping.Currency,
        mapping.When,
        mapping.Skip,
        mapping.Join,
        mapping.EventsMap,
        mapping.ItemsMap,
        mapping.UsersMap,
    ],
    ids=lambda kind: kind.__name__,
)
def test_the_page_explains_every_key(kind: type[mapping.Frozen]):
    explained = set(re.findall(r"`([a-z_]+)`", PAGE.read_text(encoding="utf-8")))
    assert set(kind.model_fields) - explained == set()


def test_every_yaml_block_of_the_page_is_a_valid_mapping(tmp_path: Path):
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yml"
        file.write_text(block)
        mapping.load(file)
