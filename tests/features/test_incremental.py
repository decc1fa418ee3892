"""Building day by day, late, again and in another order: only what is touched changes, and it ends in the same bytes."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest
from feature_world import END, day, events, items, table, users

from pipelines import lake, publish
from pipelines.config import Home
from pipelines.features import build


def digests(home: Home) -> dict[str, str]:
    """Return the digest of every published day."""
    return {f"{file.parent.name}/{file.stem}": publish.digest(file) for file in sorted(home.features.glob("*/as_of=*.parquet"))}


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, set[str]]:
    """Return mart -> the days whose bytes are not what they were."""
    assert before.keys() == after.keys()
    found: dict[str, set[str]] = {}
    for name, digest in before.items():
        if digest != after[name]:
            mart, as_of = name.split("/as_of=")
            found.setdefault(mart, set()).add(as_of)
    return found


def days(first: int, last: int) -> set[str]:
    return {f"{day(n):%F}" for n in range(first, last + 1)}


@pytest.mark.slow
def test_an_event_heard_of_ten_days_late_rebuilds_the_days_since_and_ends_where_a_fresh_build_ends(lived: Home, tmp_path: Path):
    """It happened on day 25 and was received on day 35, but lands after day 40 was built: days 36 to 40 are stale, and no other."""
    late = {**events()[0], "event_id": "late", "user_id": "u1", "event_type": "purchase", "value": 7.0, "quantity": 1.0}
    late |= {"event_at": day(25).replace(hour=9), "received_at": day(35).replace(hour=9)}
    before = digests(lived)
    lake.land_tables(lived, events=table("events", [late]))
    record = build.build(lived, END)
    after = digests(lived)
    assert set(record["days"]) == days(36, 40)
    touched = changed(before, after)
    assert touched["user_daily"] == touched["item_daily"] == days(36, 40)
    assert set().union(*touched.values()) == days(36, 40)

    fresh = Home(tmp_path / "fresh")
    log = [late, *events()]
    lake.land_tables(fresh, events=table("events", log), items=table("items", items()), users=table("users", users()))
    build.build(fresh, END)
    assert digests(fresh) == after


def test_a_correction_of_a_profile_changes_the_users_of_the_days_since_its_receipt_and_no_other_mart(lived: Home):
    before = digests(lived)
    corrected = {**users()[0], "country": "IT", "received_at": day(37).replace(hour=1)}
    lake.land_tables(lived, events=table("events", []), users=table("users", [corrected]))
    build.build(lived, END)
    assert changed(before, digests(lived)) == {"user_daily": days(38, 40)}


@pytest.mark.slow
def test_incremental_backfilled_and_fully_refreshed_days_are_the_same_bytes(lived: Home):
    """What three incremental builds left equals one of ten days in the middle, built again, and one of all days from nothing."""
    before = digests(lived)
    for first, last, arguments in ((15, 24, ()), (1, 40, ("--full-refresh",))):
        span = [day(n).date() for n in range(first, last + 1)]
        build.run_dbt(lived, span[0], span[-1], "--exclude-resource-type", "test", *arguments)
        build.publish_days(lived, span)
        mine = {name: digest for name, digest in digests(lived).items() if not name.startswith("item_pairs_daily/") or last == 40}
        assert mine == {name: before[name] for name in mine}


def test_a_further_day_opens_its_own_file_and_those_in_which_something_was_received_since(lived: Home):
    """DuckDB says itself how many files of the lake it opened for the statement that dbt ran."""
    further = {**events()[0], "event_id": "further", "event_at": END.replace(hour=9), "received_at": END.replace(hour=9)}
    lake.land_tables(lived, events=table("events", [further]))
    build.build(lived, day(41))
    late = lake.received_since(lived, END.date())
    statement = lived.warehouse.parent / "dbt" / "compiled" / "reloop" / "models" / "intermediate" / "int_known_events.sql"
    with duckdb.connect(str(lived.warehouse), read_only=True) as warehouse:
        ((_, plan),) = warehouse.execute(f"explain analyze {statement.read_text()}").fetchall()
    opened = re.search(r"Scanning Files: (\d+)/(\d+)", plan)
    assert opened is not None, plan
    assert [int(count) for count in opened.groups()] == [1 + len(late), len(lake.days(lived))]
    assert 0 < len(late) < 10


def test_changed_models_make_every_day_stale(lived: Home, monkeypatch):
    monkeypatch.setattr(build, "definition", lambda: "another")
    stale = build.touched(lived, END, build._manifest(lived))
    assert {str(day) for day in stale} == days(1, 40)
