"""May this batch enter? Faults that a shop has are caught by column and count; harmless changes pass."""

import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from small_shop import START, catalogue, shop, stage, with_column

from pipelines import cycle, lake
from pipelines.config import Home
from pipelines.errors import ValidationBlocked
from pipelines.validation import checkpoint, data_docs
from pipelines.validation.data_docs import gx, gxe

MONDAY = START + timedelta(days=14)
CLEAN = shop(7, first=MONDAY)
DAY = slice(200, 400)  # the rows of the Tuesday: a fault of one day in a batch of a week


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Home:
    """Return a state folder whose lake holds two clean weeks."""
    home = Home(tmp_path_factory.mktemp("filled"))
    for week in range(2):
        first = START + timedelta(days=7 * week)
        window = stage(home, f"week-{week}", 7, first=first, events=shop(7, first=first), items=catalogue())
        checkpoint.validate_batch(home, window.end, f"week-{week}")
        lake.land(home, window.end, f"week-{week}")
    return home


def on_tuesday(column: str, change, every: int = 1) -> pa.Table:
    """Return the clean week with a change to every so manieth row of the Tuesday that has a value."""
    values = CLEAN[column].to_pylist()
    rows = [row for row in range(DAY.start, DAY.stop) if values[row] is not None]
    for row in rows[::every]:
        values[row] = change(values[row])
    schema = CLEAN.schema.set(CLEAN.schema.get_field_index(column), pa.field(column, CLEAN.schema.field(column).type))
    return with_column(CLEAN.cast(schema), column, values)


def try_batch(home: Home, batch: str, **given):
    window = stage(home, batch, 7, first=MONDAY, **{"events": CLEAN, "items": catalogue(first=MONDAY), **given})
    try:
        checkpoint.validate_batch(home, window.end, batch)
    finally:
        records = cycle.records(home, window.end, "validation")
    return next(record for record in records if record["key"] == batch)


NO_ITEM = {"columns": {"events": {"missing": ["item_id"], "unknown": ["product_id"]}}}
BLOCKED = {
    "renamed column": (
        {"events": on_tuesday("item_id", lambda _: None), "facts": NO_ITEM},
        r"column 'item_id' is missing, 1,400 of 1,400.*'product_id'",
    ),
    "renamed column, one day": (
        {"events": on_tuesday("item_id", lambda _: None)},
        r"item_id is missing, 200 of 200 rows \(100.0%\) on 2025-01-21",
    ),
    "type change": (
        {"events": on_tuesday("event_at", lambda _: None)},
        r"event_at is missing, 200 of 200 rows \(100.0%\) on 2025-01-21",
    ),
    "new event type": (
        {"events": on_tuesday("event_type", lambda _: "wishlist", 20)},
        r"event_type 'wishlist' is new, column event_type, 10 of 200",
    ),
    "30% nulls in a required column": (
        {"events": on_tuesday("user_id", lambda _: None, 3)},
        r"user_id is missing, 67 of 200 rows \(33.5%\)",
    ),
    "30% nulls over two required columns": (
        {"events": with_column(on_tuesday("user_id", lambda _: None, 6), "item_id", on_tuesday("item_id", lambda _: None, 5)["item_id"])},
        r"refused for 2 reasons \(item_id is missing: 33, user_id is missing: 34\), 67 of 200 rows \(33.5%\)",
    ),
    "30% nulls in an optional column": (
        {"events": on_tuesday("device", lambda _: None, 3)},
        r"column 'device' is null in 67 of 200 rows \(33.5%\)",
    ),
    "nulls in the amounts": (
        {"events": on_tuesday("value", lambda _: None, 3)},
        r"column 'value' is null in 14 of 40 rows \(35.0%\) of the batch|column 'value'",
    ),
    "half the volume": (
        {"events": CLEAN.take([n for n in range(1400) if not (200 <= n < 400 and n % 2)])},
        r"100 rows with event_at on 2025-01-21, 50%",
    ),
    "a day that never came": (
        {"events": pa.concat_tables([CLEAN.slice(0, 200), CLEAN.slice(400)])},
        r"0 rows with event_at on 2025-01-21, 0%",
    ),
    "nothing at all": ({"events": CLEAN.slice(0, 0)}, r"the batch is empty, 0 rows"),
    "unit change of amounts": (
        {"events": on_tuesday("value", lambda v: v * 100)},
        r"column 'value' is at least 20 times off .* 40 of 40 rows",
    ),
    "another currency": (
        {"events": on_tuesday("value", lambda v: v * 7)},
        r"column 'value' is typically 7\.0 times off .* 40 rows on 2025-01-21",
    ),
    "unit change of half the amounts": ({"events": on_tuesday("value", lambda v: v / 100, 2)}, r"column 'value' is at least 20 times off"),
    "unit change of list prices": (
        {"items": catalogue(price=100.0, first=MONDAY)},
        r"items: column 'price' is at least 20 times off .* 30 of 30 rows",
    ),
    "an event_id that is no id": (
        {"events": with_column(CLEAN, "event_id", [f"order-{n // 4}" for n in range(1400)])},
        r"1,050 of 1,400 rows .* repeat an event_id",
    ),
}


@pytest.mark.parametrize("fault", BLOCKED)
def test_a_fault_blocks_the_batch_and_names_column_and_count(filled, fault):
    given, message = BLOCKED[fault]
    before = sorted((file, file.stat().st_mtime_ns) for file in filled.lake.rglob("*") if file.is_file())
    with pytest.raises(ValidationBlocked, match=message):
        try_batch(filled, "faulty", **given)
    assert not (filled.landing / "faulty.judged").exists()
    assert sorted((file, file.stat().st_mtime_ns) for file in filled.lake.rglob("*") if file.is_file()) == before
    assert any(record["verdict"] == "blocked" for record in cycle.records(filled, MONDAY + timedelta(days=7), "validation"))


@pytest.mark.parametrize(
    "change", ["as it is", "columns in another order", "rows in another order", "some rows late", "few stray rows", "a new column"]
)
def test_what_is_harmless_passes(filled, change):
    rng = np.random.default_rng(0)
    late = pc.add(CLEAN["received_at"].cast(pa.int64()), pa.array(np.where(np.arange(1400) % 5 == 0, 2 * 86_400_000_000, 0)))
    stray = [None if n in (210, 211) else user for n, user in enumerate(CLEAN["user_id"].to_pylist())]
    events = {
        "columns in another order": CLEAN.select(sorted(CLEAN.column_names)),
        "rows in another order": CLEAN.take(rng.permutation(1400)),
        "some rows late": with_column(CLEAN, "received_at", late.cast(pa.timestamp("us", tz="UTC")).combine_chunks()),
        "few stray rows": with_column(on_tuesday("user_id", lambda user: user), "user_id", stray),
    }.get(change, CLEAN)
    facts = {"columns": {"events": {"missing": [], "unknown": ["colour"]}}} if change == "a new column" else {}
    record = try_batch(filled, "harmless", events=events, facts=facts)
    assert record["failed"]["critical"] == []
    assert record["tables"]["events"]["rows"]["accepted"] == (1398 if change == "few stray rows" else 1400)
    assert record["failed"]["warning"] == (["events: column 'colour' is unknown, 1,400 of 1,400 rows"] if change == "a new column" else [])


def test_a_first_batch_has_no_history_to_be_held_against(home):
    """A third of the rows may lack something: some shops are like that. Most of them may not."""
    users = [None if n % 3 == 0 else "u" for n in range(1400)]
    schema = CLEAN.schema.set(1, pa.field("user_id", pa.string()))
    record = try_batch(home, "first", events=with_column(CLEAN.cast(schema), "user_id", users))
    assert record["verdict"] == "passed"
    most = [None if n % 3 else "u" for n in range(1400)]
    with pytest.raises(ValidationBlocked, match=r"user_id is missing"):
        try_batch(home, "most", events=with_column(CLEAN.cast(schema), "user_id", most))


def test_a_window_without_events_passes_where_the_source_is_a_file(home):
    record = try_batch(home, "quiet", events=CLEAN.slice(0, 0), facts={"source": "online-retail"})
    assert record["failed"] == {"critical": [], "warning": ["events: the batch is empty, 0 rows"], "info": []}


def test_data_docs_are_files_that_fetch_nothing_and_old_ones_go(filled, monkeypatch):
    monkeypatch.setattr("pipelines.validation.data_docs.KEPT", 2)
    for number in range(3):
        try_batch(filled, f"page-{number}")
    record = try_batch(filled, "page-3")
    folder = filled.reports / "gx"
    pages = list(folder.rglob("*.html"))
    assert str(folder / "validations" / "events" / "page-3") in record["data_docs"]
    for page in pages:
        assert not re.search(r"(src|href)=[\"']?https?://|url\([\"']?https?:", page.read_text(encoding="utf-8")), page
    assert len(list((folder / "validations" / "events").iterdir())) == 2
    assert "null_share_above_usual" in (folder / "validations" / "events").rglob("*.html").__next__().read_text(encoding="utf-8")


def test_every_page_that_data_docs_link_is_there_whatever_was_checked_last(home):
    for batch, tables in (("first", {"events": CLEAN}), ("second", {"events": CLEAN})):
        try_batch(home, batch, **tables)
    folder = home.reports / "gx"
    lines = pd.DataFrame({"day": ["2025-01-20"], "subject": ["mart"], "rows": [1], "count": [0], "not_built": [0.0]})
    suite = gx.ExpectationSuite(name="another", expectations=[gxe.ExpectColumnMaxToBeBetween(column="not_built", max_value=0)])
    data_docs.evaluate(folder, "features", MONDAY, [(suite, lines)])
    pages = list(folder.rglob("*.html"))
    links = [(page, link) for page in pages for link in re.findall(r'href="([^"#:]+\.html)', page.read_text(encoding="utf-8"))]
    assert {"events.html", "another.html"} <= {Path(link).name for page, link in links if page.name == "index.html"}
    assert [(page, link) for page, link in links if not (page.parent / link).exists()] == []


def test_a_dry_run_touches_nothing_of_a_real_one(home):
    week = {"events": on_tuesday("user_id", lambda _: None, 50), "items": catalogue(first=MONDAY)}
    try_batch(home, "week", **week)
    window = stage(home, "week", 7, first=MONDAY, **{**week, "events": on_tuesday("user_id", lambda _: None, 25)})
    kept = {file: file.read_bytes() for file in home.root.rglob("*") if file.is_file() and file.suffix in {".parquet", ".json"}}
    kept = {file: content for file, content in kept.items() if "reports/gx" not in str(file)}
    for _ in range(2):
        checkpoint.validate_batch(home, window.end, "week", dry_run=True)
    assert {file: file.read_bytes() for file in kept} == kept
    assert pq.read_table(home.quarantine / "_dry_run" / "week" / "events.parquet").num_rows == 8
    (record,) = cycle.records(home, window.end, "dry_run")
    assert record["tables"]["events"]["rows"]["quarantined"] == 8
    assert len(cycle.records(home, window.end, "validation")) == 1
    assert "dry-run-week" in record["data_docs"]


def few(n: int, **changes) -> pa.Table:
    """Return the first rows of the clean week with columns replaced, null where the schema would not have it."""
    rows = CLEAN.slice(0, n)
    rows = rows.cast(pa.schema([pa.field(field.name, field.type) for field in rows.schema]))
    for name, values in changes.items():
        rows = with_column(rows, name, values)
    return rows


def test_shares_of_a_handful_of_rows_block_nothing(home):
    """Nine of ten events refused, and one of two brands gone: of so few rows that is no share."""
    branded = with_column(catalogue(), "brand", ["b"] * 30)
    window = stage(home, "before", 7, events=shop(7), items=branded)
    checkpoint.validate_batch(home, window.end, "before")
    lake.land(home, window.end, "before")
    record = try_batch(
        home,
        "few",
        events=few(10, user_id=[None] * 10),
        items=with_column(catalogue(first=MONDAY), "brand", ["b", *[None] * 29]).slice(0, 2),
        facts={"source": "table"},
    )
    assert record["failed"]["critical"] == []
    assert record["tables"]["events"]["rows"]["quarantined"] == 10


def test_attributes_that_items_lost_are_a_warning(filled):
    record = try_batch(filled, "lost", items=with_column(catalogue(first=MONDAY), "category", [None] * 30))
    assert record["verdict"] == "passed with warnings"
    assert record["failed"]["warning"] == [
        "items: column 'category' is null in 30 of 30 rows (100.0%) of the batch; usual 0.0%, allowed 20% more"
    ]


def test_rows_without_any_time_are_accounted_for_and_no_share_of_the_first_window(home):
    timeless = [None] * 900
    events = few(1000, event_at=[*timeless, *CLEAN["event_at"].to_pylist()[900:1000]])
    events = with_column(events, "received_at", [*timeless, *CLEAN["received_at"].to_pylist()[900:1000]])
    record = try_batch(home, "undated", events=events, facts={"source": "table"})
    assert record["failed"]["critical"] == []
    assert record["tables"]["events"]["rows"] == {"read": 1000, "accepted": 100, "quarantined": 900, "duplicates": 0}
    half = with_column(events, "user_id", [*["u"] * 900, *[None] * 60, *["u"] * 40])
    with pytest.raises(ValidationBlocked, match=r"user_id is missing, 60 of 100 rows"):
        try_batch(home, "half", events=half, facts={"source": "table"})


def test_an_item_told_in_two_ways_at_once_is_a_warning(home):
    record = try_batch(home, "twice", items=pa.concat_tables([catalogue(first=MONDAY), catalogue(2.0, first=MONDAY).slice(0, 3)]))
    assert record["failed"]["warning"] == [
        "items: 3 of 33 rows (9.1%) repeat an id and its valid_from with other content; one of each was taken"
    ]
