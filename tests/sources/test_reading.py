"""Windows of a source: every row in exactly one, the same bytes each time, whatever is killed between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines import cycle, lake, publish, tables
from pipelines.config import Home
from pipelines.errors import SourceError
from pipelines.features import build
from pipelines.sources import normalising, plan, reading
from pipelines.sources.request import Request, Source, World
from pipelines.validation import checkpoint
from pipelines.window import Window
from tests.sources.conftest import table

MAPPING = {
    "events": {"user_id": "user", "item_id": "item", "event_type": {"constant": "view"}, "event_at": "at"},
    "items": {"item_id": "item"},
}
SMALL = World(users=60, items=40, events_per_day=200)


@pytest.fixture
def request_of_file(tmp_path: Path) -> Request:
    """Thirty days, ten events a day at 02:00 to 11:00, in no order, and two without a time."""
    rows = [
        f"u{n % 7},i{n % 11},{datetime(2024, 3, 1, 2 + n % 10, tzinfo=UTC) + timedelta(days=n // 10):%Y-%m-%d %H:%M}" for n in range(300)
    ]
    rows = [*rows[::2], "u1,i1,never", *rows[1::2], "u2,i2,"]
    (tmp_path / "log.csv").write_text("user,item,at\n" + "\n".join(rows) + "\n")
    (tmp_path / "map.yml").write_text(yaml.safe_dump(MAPPING))
    return Request(source=Source.TABLE, path=tmp_path / "log.csv", mapping=tmp_path / "map.yml")


@pytest.mark.parametrize("days", [1, 7, 400])
def test_windows_read_every_row_once_and_undated_rows_with_the_first(home: Home, request_of_file: Request, days: int):
    windows = plan.windows(home, request_of_file, batch_days=days)
    batches = [table(home.landing / reading.stage_batch(home, request_of_file, window), "events") for window in windows]
    assert sorted(row["source_row"] for batch in batches for row in batch) == list(range(302))
    for window, batch in zip(windows, batches, strict=True):
        assert all(row["event_at"] is None or row["event_at"] in window for row in batch)
    assert [row["source_row"] for row in batches[0] if row["event_at"] is None] == [150, 301]


def test_staged_tables_have_the_schema_of_the_contract_and_the_manifest_its_facts(home: Home, request_of_file: Request):
    folder = home.landing / reading.stage_batch(home, request_of_file, Window.parse("2024-03-01", "2024-03-03"))
    for name in reading.TABLES:
        assert pq.read_schema(folder / f"{name}.parquet").equals(tables.staged(name))
    assert publish.manifest(folder, verify=True).facts == {
        "source": "table",
        "window": ["2024-03-01T00:00:00+00:00", "2024-03-03T00:00:00+00:00"],
        "rows": {"events": 22, "items": 11, "users": 0},
        "settings": {},
    }


def test_the_same_window_gives_the_same_bytes_also_from_a_fresh_reading(home: Home, request_of_file: Request, tmp_path: Path):
    window = Window.parse("2024-03-01", "2024-03-08")
    first = publish.manifest(home.landing / reading.stage_batch(home, request_of_file, window))
    again = publish.manifest(home.landing / reading.stage_batch(home, request_of_file, window))
    elsewhere = Home(tmp_path / "other")
    fresh = publish.manifest(elsewhere.landing / reading.stage_batch(elsewhere, request_of_file, window))
    assert first == again == fresh


def test_a_source_is_read_once_and_again_when_its_file_changed(home: Home, request_of_file: Request, monkeypatch: pytest.MonkeyPatch):
    first = normalising.normalised(home, request_of_file)
    with monkeypatch.context() as patch:
        patch.setattr(normalising, "_write", lambda *_: pytest.fail("read a second time"))
        assert normalising.normalised(home, request_of_file) == first
    assert request_of_file.path is not None
    with request_of_file.path.open("a") as file:
        file.write("u9,i9,2024-04-15 10:00\n")
    second = normalising.normalised(home, request_of_file)
    assert second.folder != first.folder
    assert second.last == datetime(2024, 4, 15, 10, tzinfo=UTC)


def test_a_reading_that_died_leaves_nothing_that_counts(home: Home, request_of_file: Request, monkeypatch: pytest.MonkeyPatch):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(normalising, "_ends", die)
        normalising.normalised(home, request_of_file)
    assert [path for path in home.landing.rglob("*") if path.is_file()] == []
    assert len(table(normalising.normalised(home, request_of_file).folder, "events")) == 302


def test_a_small_part_is_cut_out_of_many_row_groups(home: Home, tmp_path: Path):
    start = datetime(2024, 1, 1, tzinfo=UTC)
    lines = "".join(f"u,i,{start + timedelta(minutes=n):%Y-%m-%dT%H:%M:%S}\n" for n in range(40_000))
    (tmp_path / "log.csv").write_text("user,item,at\n" + lines)
    (tmp_path / "map.yml").write_text(yaml.safe_dump(MAPPING))
    request = Request(source=Source.TABLE, path=tmp_path / "log.csv", mapping=tmp_path / "map.yml")
    source = normalising.normalised(home, request)
    assert pq.read_metadata(source.folder / "events.parquet").num_row_groups > 3
    rows = table(home.landing / reading.stage_batch(home, request, Window.parse("2024-01-10", "2024-01-11")), "events")
    assert [row["source_row"] for row in rows] == list(range(9 * 1440, 10 * 1440))


@pytest.fixture
def request_with_prices(request_of_file: Request, tmp_path: Path) -> Request:
    """The thirty days, and items of which i0 has a price from 2023 on, i1 another one from 2024-03-12 on."""
    (tmp_path / "items.csv").write_text(
        "item,price,since\ni0,1,2023-01-01\ni0,2,2023-06-01\ni1,3,2024-03-02\ni1,4,2024-03-12\ni2,5,2024-03-20\n"
    )
    items = {"file": "items", "item_id": "item", "price": "price", "valid_from": "since"}
    files = {"log": "log.csv", "items": "items.csv"}
    (tmp_path / "map.yml").write_text(yaml.safe_dump({"files": files, "events": {"file": "log", **MAPPING["events"]}, "items": items}))
    return request_of_file.model_copy(update={"path": tmp_path})


def prices(home: Home, request: Request, start: str, end: str) -> list[float]:
    return [row["price"] for row in table(home.landing / reading.stage_batch(home, request, Window.parse(start, end)), "items")]


def test_the_first_window_brings_the_items_that_are_older_than_the_first_event(home: Home, request_with_prices: Request):
    assert prices(home, request_with_prices, "2024-03-01", "2024-03-08") == [1.0, 2.0, 3.0]


def test_a_later_window_brings_what_changed_and_what_stood_at_its_start(home: Home, request_with_prices: Request):
    assert prices(home, request_with_prices, "2024-03-08", "2024-03-15") == [2.0, 3.0, 4.0]
    assert prices(home, request_with_prices, "2024-03-15", "2024-03-22") == [2.0, 4.0, 5.0]


def test_windows_that_bring_the_same_items_land_each_once(home: Home, request_with_prices: Request):
    landed = []
    for window in plan.windows(home, request_with_prices, batch_days=7):
        batch = reading.stage_batch(home, request_with_prices, window)
        checkpoint.validate_batch(home, window.end, batch)
        landed.append(lake.land(home, window.end, batch).versions["items"])
    assert landed == [3, 1, 1, 0, 0]


def test_four_lines_of_mapping_and_nothing_but_events_reach_checked_features(home: Home, tmp_path: Path):
    """No items, no categories, no values, no views: what such a source lacks stops nothing."""
    rows = [f"u{n % 7},i{n % 11},{datetime(2024, 3, 1, tzinfo=UTC) + timedelta(hours=5 * n):%Y-%m-%d %H:%M}" for n in range(60)]
    (tmp_path / "orders.csv").write_text("customer,sku,ordered_at\n" + "\n".join([*rows, "u1,i1,never"]) + "\n")
    mapping = {"user_id": "customer", "item_id": "sku", "event_type": {"constant": "purchase"}, "event_at": "ordered_at"}
    (tmp_path / "map.yml").write_text(yaml.safe_dump({"events": mapping}))
    request = Request(source=Source.TABLE, path=tmp_path / "orders.csv", mapping=tmp_path / "map.yml")
    as_of = datetime(2024, 3, 14, tzinfo=UTC)
    read = 0
    for window in plan.windows(home, request, batch_days=7):
        batch = reading.stage_batch(home, request, window)
        checkpoint.validate_batch(home, as_of, batch)
        read += lake.land(home, as_of, batch).rows["read"]
    assert read == 61
    assert build.build(home, as_of)["features"] == {
        **dict.fromkeys(build.MARTS, 0),
        "user_daily": 7,
        "item_daily": 11,
        "user_session": 2,
    }
    checkpoint.validate_features(home, as_of)
    (record,) = cycle.records(home, as_of, "feature_validation")
    assert record["failed"]["critical"] == []


class TestPlan:
    def test_an_empty_lake_begins_with_the_sources_first_day(self, home: Home, request_of_file: Request):
        windows = plan.windows(home, request_of_file, batch_days=7)
        assert [str(window) for window in windows] == [
            "2024-03-01..2024-03-08",
            "2024-03-08..2024-03-15",
            "2024-03-15..2024-03-22",
            "2024-03-22..2024-03-29",
            "2024-03-29..2024-03-31",
        ]

    def test_a_lake_goes_on_where_it_ends_and_stops_at_the_sources_end(self, home: Home, request_of_file: Request):
        for window in ("['2024-03-01T00:00:00+00:00', '2024-03-08T00:00:00+00:00']", "2024-03-08T00:00:00Z..2024-03-29T00:00:00Z"):
            publish.write_json(home.lake / "_landings" / f"{hash(window)}.json", {"window": window})
        assert [str(window) for window in plan.windows(home, request_of_file)] == ["2024-03-29..2024-03-31"]
        publish.write_json(home.lake / "_landings" / "last.json", {"window": ["2024-03-29T00:00:00+00:00", "2024-03-31T00:00:00+00:00"]})
        assert plan.windows(home, request_of_file) == []

    def test_bounds_are_kept_inside_the_source(self, home: Home, request_of_file: Request):
        assert [str(window) for window in plan.windows(home, request_of_file, start="2024-03-05", end="2024-03-06")] == [
            "2024-03-05..2024-03-06"
        ]
        assert [str(window) for window in plan.windows(home, request_of_file, start="2023-01-01", end="2030-01-01", batch_days=100)] == [
            "2024-03-01..2024-03-31"
        ]
        assert plan.windows(home, request_of_file, start="2025-01-01") == []

    def test_the_simulated_shop_has_no_end_and_gives_one_window_unless_told(self, home: Home):
        assert [str(window) for window in plan.windows(home, Request())] == ["2025-01-06..2025-01-13"]
        assert len(plan.windows(home, Request(), end="2025-03-03", batch_days=7)) == 8

    def test_a_batch_has_at_least_a_day(self, home: Home):
        with pytest.raises(SourceError, match="batch_days: 0"):
            plan.windows(home, Request(), batch_days=0)


def test_the_simulated_shop_is_staged(home: Home):
    request = Request(world=SMALL)
    folder = home.landing / reading.stage_batch(home, request, Window.parse("2025-01-06", "2025-01-09"))
    events = table(folder, "events")
    assert len(events) > 100
    assert [row["source_row"] for row in events] == list(range(len(events)))
    assert "columns" in publish.manifest(folder).facts
    assert publish.manifest(folder).facts["columns"] == {}


def test_a_column_nobody_knows_is_reported_and_its_values_are_kept(home: Home):
    request = Request(world=SMALL.model_copy(update={"faults": ("schema_change@2025-01-07",)}))
    folder = home.landing / reading.stage_batch(home, request, Window.parse("2025-01-06", "2025-01-08"))
    facts = publish.manifest(folder).facts["columns"]["events"]
    assert "item_id" in facts["missing"]
    assert facts["unknown"] == ["product_id"]
    broken = [row for row in table(folder, "events") if row["item_id"] is None]
    assert broken
    assert all('"product_id": "i' in row["raw"] for row in broken)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(source=Source.ONLINE_RETAIL), "no path; expected where the data lies"),
        (Request(source=Source.TABLE, path=Path("x.csv")), "no mapping; expected a mapping, --map mapping.yml"),
        (Request(source=Source.MOVIELENS, path=Path("x"), mapping=Path("m.yml")), "this source has its own"),
        (Request(source=Source.ONLINE_RETAIL, path=Path("nowhere.csv")), "nowhere.csv: no such file or folder"),
    ],
)
def test_a_request_must_say_what_its_source_needs(home: Home, request_: Request, said: str):
    with pytest.raises(SourceError, match=said):
        reading.stage_batch(home, request_, Window.parse("2024-01-01", "2024-01-02"))
