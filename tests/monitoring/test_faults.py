"""What is wrong with data that validation refused or let pass: each fault is found, named with column and count, and nothing else is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from small_shop import START, catalogue, shop, stage, with_column

from pipelines import lake
from pipelines.config import Home
from pipelines.errors import ValidationBlocked
from pipelines.monitoring import faults
from pipelines.validation import checkpoint

WEEKS = 5
AS_OF = START + timedelta(days=7 * WEEKS)
LAST = AS_OF - timedelta(days=1)
Broken = Callable[[pa.Table], pa.Table]


def changed(column: str, change: Callable[[int, Any], Any]) -> Broken:
    return lambda table: with_column(table, column, [change(row, value) for row, value in enumerate(table[column].to_pylist())])


def bots(table: pa.Table) -> pa.Table:
    """Return the day with 1,200 views of one user."""
    views = table.take(pa.array([0] * 1200))
    views = with_column(with_column(views, "user_id", ["bot"] * 1200), "event_id", [f"bot-{i}" for i in range(1200)])
    return pa.concat_tables([table, views])


def landed(home: Home, broken: Broken | None = None, **given: pa.Table) -> tuple[faults.Fault, ...]:
    """Return the faults of a lake whose last day was broken on its way past validation."""
    table = shop(7 * WEEKS)
    if broken is not None:
        last = pc.greater_equal(table["event_at"], pa.scalar(LAST, table["event_at"].type))
        table = pa.concat_tables([table.filter(pc.invert(last)), broken(table.filter(last))])
    lake.land_tables(home, events=table, **given)
    return faults.found(home, AS_OF)


def test_a_good_month_has_no_fault(home: Home) -> None:
    assert landed(home, items=catalogue()) == ()


PASSING: dict[str, tuple[Broken, str, str, int]] = {
    "half the values missing": (changed("session_id", lambda row, value: value if row % 2 else None), faults.NULL_BURST, "session_id", 100),
    "prices in cents": (changed("value", lambda _, value: value and 100 * value), faults.UNIT_CHANGE, "value", 40),
    "another currency": (changed("value", lambda _, value: value and 1.8 * value), faults.UNIT_CHANGE, "value", 40),
    "half the volume": (lambda table: table.slice(0, 100), faults.VOLUME_DROP, "event_at", 100),
    "nothing of a day": (lambda table: table.slice(0, 0), faults.UPSTREAM_GAP, "event_at", 0),
    "bots": (bots, faults.BOT_BURST, "user_id", 1200),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_slips_past_validation_is_found_and_names_column_and_count(home: Home, name: str) -> None:
    broken, cause, column, rows = PASSING[name]
    blocking = [fault for fault in landed(home, broken) if fault.blocks]
    assert {fault.cause for fault in blocking} <= {cause, faults.UPSTREAM_GAP}
    (fault,) = (fault for fault in blocking if (fault.cause, fault.column) == (cause, column))
    assert fault.rows == rows
    assert column in fault.says
    assert str(rows) in fault.says


@pytest.mark.parametrize(
    "harmless",
    [
        changed("value", lambda row, value: value and value * (0.7 if row % 3 else 1.0)),  # a sale
        changed("session_id", lambda row, value: value if row % 20 else None),
        lambda table: table.slice(0, 150),
        lambda table: table.select(table.column_names[::-1]).select(table.column_names),
    ],
)
def test_a_sale_a_few_holes_a_slow_day_and_another_order_are_no_fault(home: Home, harmless: Broken) -> None:
    assert landed(home, harmless) == ()


def test_a_catalogue_that_lost_its_prices_or_changed_its_unit_is_found(home: Home) -> None:
    many = pa.concat_tables([catalogue(1.0 + version / 1000, START + timedelta(days=version)) for version in range(5)])
    blind = with_column(catalogue(first=LAST), "price", [None] * 30)
    cents = catalogue(100.0, LAST)
    lake.land_tables(home, events=shop(7 * WEEKS), items=pa.concat_tables([many, cents]))
    (unit,) = faults.found(home, AS_OF)
    assert (unit.cause, unit.column, unit.rows) == (faults.UNIT_CHANGE, "price", 30)
    twice = pa.concat_tables([blind, with_column(blind, "valid_from", [LAST + timedelta(hours=1)] * 30)])
    twice = with_column(twice, "received_at", [LAST + timedelta(hours=1)] * 60)
    lake.land_tables(home, events=shop(0), items=twice)
    nulls = [fault for fault in faults.found(home, AS_OF) if fault.cause == faults.NULL_BURST]
    assert [(fault.column, fault.blocks) for fault in nulls] == [("price", True)]


# Every fault of promise 18 as a source would send it, and what must come of it: refused on the way in, or harmless.
SENT: dict[str, tuple[Broken, dict[str, Any], str | None, str]] = {
    "rename": (
        lambda t: with_column(t, "item_id", [None] * len(t)),
        {"columns": {"events": {"missing": ["item_id"], "unknown": ["product_id"]}}},
        faults.SCHEMA_CHANGE,
        "item_id",
    ),
    "type change": (changed("event_at", lambda row, value: value if row % 2 else None), {}, faults.NULL_BURST, "event_at"),
    "enum add": (changed("event_type", lambda row, value: value if row % 20 else "wishlist"), {}, faults.NEW_VALUE, "event_type"),
    "30% nulls": (changed("user_id", lambda row, value: value if row % 10 > 2 else None), {}, faults.NULL_BURST, "user_id"),
    "half volume": (lambda t: t.slice(0, 100), {}, faults.VOLUME_DROP, "event_at"),
    "unit x100": (changed("value", lambda _, value: value and 100 * value), {}, faults.UNIT_CHANGE, "value"),
    "currency swap": (changed("value", lambda _, value: value and 7.4 * value), {}, faults.UNIT_CHANGE, "value"),
    "reordered columns": (lambda t: t.select(t.column_names[::-1]), {}, None, ""),
}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return a lake of four weeks that came through validation."""
    home = Home(tmp_path_factory.mktemp("history") / "var")
    stage(home, "before", 28, events=shop(28), items=catalogue())
    checkpoint.validate_batch(home, START + timedelta(days=28), "before")
    lake.land(home, START + timedelta(days=28), "before")
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", SENT)
def test_what_a_source_may_break_is_stopped_before_features_or_changes_nothing(history: Home, tmp_path: Path, name: str) -> None:
    """Promise 18: named by column and count, before anything is landed; what is told is told by its cause."""
    broken, facts, cause, column = SENT[name]
    home = Home(tmp_path / "var")
    shutil.copytree(history.root, home.root)
    first, as_of = START + timedelta(days=28), START + timedelta(days=29)
    stage(home, "next", 1, first=first, facts=facts, events=broken(shop(1, first=first, seed=1)))
    before = lake.days(home)
    if cause is None:
        checkpoint.validate_batch(home, as_of, "next")
        lake.land(home, as_of, "next")
        assert [fault for fault in faults.found(home, as_of) if fault.blocks] == []
        return
    with pytest.raises(ValidationBlocked) as stopped:
        checkpoint.validate_batch(home, as_of, "next")
    assert column in str(stopped.value)
    assert any(word.strip("(),;.").replace(",", "").isdigit() for word in str(stopped.value).split())
    assert lake.days(home) == before
    assert cause in {fault.cause for fault in faults.found(home, as_of) if fault.blocks}
