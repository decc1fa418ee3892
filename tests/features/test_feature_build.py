"""Building marts: the right rows, the same bytes on every road to them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from feature_world import (
    DAYS,
    END,
    brand_row,
    category_row,
    day,
    events,
    item_row,
    items,
    planted,
    planted_versions,
    table,
    together_row,
    user_row,
    users,
)

from pipelines import cycle, lake, publish
from pipelines.config import Home
from pipelines.errors import ReloopError, StateError
from pipelines.features import build
from pipelines.window import DAY

PUBLISHED = len(build.MARTS) * DAYS


def digests(home: Home) -> dict[str, str]:
    """Return the digest of every published day up to the world's end."""
    files = sorted(home.features.glob("*/as_of=*.parquet"))
    return {str(file.relative_to(home.features)): publish.digest(file) for file in files if file.stem <= f"as_of={END:%F}"}


def rows(home: Home, mart: str, as_of_day: int) -> list[dict]:
    """Return one published day."""
    return pq.read_table(home.features / mart / f"as_of={day(as_of_day):%F}.parquet").to_pylist()


def differences(found: dict, expected: dict) -> list[str]:
    """Return the features whose value is not the expected one, to nine digits."""
    return [
        f"{name}: {found[name]!r} is not {value!r}"
        for name, value in expected.items()
        if (found[name] != pytest.approx(value, rel=1e-9, abs=1e-9) if isinstance(value, float) else found[name] != value)
    ]


@pytest.mark.parametrize("n", [1, 9, 17, 32, 35, 40])
def test_a_mart_row_is_what_its_definition_says_of_the_events_known_by_then(built: Home, n: int):
    log = events()
    compared = 0
    for mart, keys, expect in (
        ("user_daily", ["user_id"], user_row),
        ("item_daily", ["item_id"], item_row),
        ("user_category_daily", ["user_id", "category"], category_row),
        ("user_brand_daily", ["user_id", "brand"], brand_row),
        ("item_pairs_daily", ["item_id", "other_item_id"], together_row),
    ):
        if day(n) <= END - build.RECENT.get(mart, DAYS) * DAY:
            assert rows(built, mart, n) == []
            continue
        found = {tuple(row[key] for key in keys): row for row in rows(built, mart, n)}
        names = {
            "user_id": [f"u{u}" for u in [*range(24), 99]],
            "item_id": [f"i{i}" for i in range(12)],
            "other_item_id": [f"i{i}" for i in range(12)],
            "category": [f"c{c}" for c in (0, 1, 2, 3, 9)],
            "brand": ["b0", "b1", "b2"],
        }
        expected = {key: row for key in product(*(names[key] for key in keys)) if (row := expect(log, *key, day(n))) is not None}
        assert sorted(found) == sorted(expected), mart
        for key, row in expected.items():
            assert differences(found[key], row) == [], (mart, key, n)
            compared += len(row)
    assert compared > 100


def test_every_mart_row_was_available_at_its_as_of_and_says_so_in_utc(built: Home):
    files = sorted(built.features.glob("*/as_of=*.parquet"))
    assert len(files) == PUBLISHED
    for file in files:
        published = pq.read_table(file)
        assert str(published.schema.field("as_of").type) == "timestamp[us, tz=UTC]"
        moments = set(published["as_of"].to_pylist()) | set(published["available_at"].to_pylist())
        assert {f"as_of={moment:%F}" for moment in moments} <= {file.stem}


def test_a_build_with_nothing_new_does_nothing(lived: Home, monkeypatch: pytest.MonkeyPatch):
    before = digests(lived)
    monkeypatch.setattr(build, "run_dbt", lambda *_: pytest.fail("dbt ran"))
    assert build.build(lived, END)["days"] == []
    assert digests(lived) == before


def test_only_the_days_that_a_landing_can_have_changed_are_built_again(lived: Home):
    manifest = json.loads((lived.features / build.MANIFEST).read_text())
    assert build.touched(lived, END, manifest) == []
    late = {**events()[0], "event_id": "late", "event_at": day(3), "received_at": day(35)}
    lake.land_tables(lived, events=table("events", [late]))
    assert build.touched(lived, END, manifest) == [day(n).date() for n in range(36, DAYS + 1)]
    assert build.touched(lived, day(42), manifest)[-1] == day(42).date()


def test_two_builds_at_once_take_turns(lived: Home):
    """A build by hand beside the scheduled one: the second waits for the warehouse, and finds nothing left to do."""
    with ThreadPoolExecutor(2) as both:
        records = [future.result() for future in [both.submit(build.build, lived, day(DAYS + 1)) for _ in range(2)]]
    assert sorted(len(record["days"]) for record in records) == [0, 1]
    assert rows(lived, "user_daily", DAYS + 1)


def test_the_record_counts_the_rows_of_the_day(built: Home):
    (record,) = cycle.records(built, END, "features")
    assert record["features"] == {mart: len(rows(built, mart, DAYS)) for mart in build.MARTS}
    assert record["days"] == [str(day(n).date()) for n in range(28, DAYS + 1)], "13 days of silence are caught up in one run"
    (second,) = cycle.records(built, day(27), "features")
    assert second["days"][0] == "2025-01-19", "the second landing held events received on the 18th"


def test_an_empty_lake_is_an_error_that_says_what_to_do(home: Home):
    with pytest.raises(StateError, match="ingest first"):
        build.build(home, END)


def test_a_broken_model_names_the_node_and_what_dbt_said(lived: Home, project: Path):
    model = project / "models" / "marts" / "item_daily.sql"
    model.write_text(model.read_text().replace("state.price,", "state.prise,"))
    with pytest.raises(ReloopError, match=r"(?s)model\.reloop\.item_daily.*prise"):
        build.run_dbt(lived, date(2025, 2, 1), date(2025, 2, 1), "--select", "item_daily")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the dbt project that `build` uses instead of the real one."""
    copy = shutil.copytree(build.PROJECT, tmp_path / "dbt", ignore=shutil.ignore_patterns("target", "logs"))
    monkeypatch.setattr(build, "PROJECT", copy)
    return copy


def everything_at_once(home: Home) -> None:
    """Land all events in another order together with the planted ones, the future among them; versions likewise."""
    log = [*planted(), *reversed(events())]
    versions = {name: [*planted_versions(rows), *reversed(rows)] for name, rows in (("items", items()), ("users", users()))}
    lake.land_tables(home, events=table("events", log), **{name: table(name, rows) for name, rows in versions.items()})


def test_killed_twice_and_fed_the_future_a_full_build_ends_in_the_bytes_of_the_days_lived_one_by_one(built: Home, home: Home):
    """The worst road and the best end alike.

    One landing in another order, with future-dated events, late arrivals and later corrections
    among it; one build that is killed in dbt and again while it publishes.
    """
    everything_at_once(home)
    call = f"from pipelines.config import Home; from pipelines.features.build import build; from pipelines.window import utc; build(Home.from_environment(), utc('{END.isoformat()}'))"
    environment = {**os.environ, "PYTHONHASHSEED": "3", "TZ": "America/New_York"}

    def until(reached) -> None:
        process = subprocess.Popen([sys.executable, "-c", call], env=environment, start_new_session=True)
        while process.poll() is None and not reached():
            time.sleep(0.01)
        assert process.poll() is None, "the build ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    until(lambda: home.warehouse.exists() and home.warehouse.stat().st_size > 1_000_000)
    until(lambda: len(list(home.features.glob("item_daily/*.parquet"))) > 3)
    assert not (home.features / build.MANIFEST).exists()
    subprocess.run([sys.executable, "-c", call], env=environment, check=True)
    assert digests(home) == digests(built)
    assert len(digests(home)) == PUBLISHED
    assert not list(home.features.rglob("*.tmp"))


GUARDS = {
    "receipt of an event": ("models/intermediate/int_known_events.sql", "greatest(event_at, received_at)", "event_at", "user_daily"),
    "receipt of a version": ("macros/versions.sql", "greatest(valid_from, received_at)", "valid_from", "item_daily"),
    "beginning of a version": ("macros/versions.sql", "greatest(valid_from, received_at)", "received_at", "user_daily"),
}


@pytest.mark.slow
@pytest.mark.parametrize("guard", GUARDS)
def test_without_a_guard_the_planted_rows_would_show(built: Home, home: Home, project: Path, guard: str):
    """The mutations that the test above must catch: models that believe what was not yet true, or not yet told."""
    file, honest, credulous, mart = GUARDS[guard]
    model = project / file
    before = model.read_text()
    model.write_text(before.replace(honest, credulous))
    assert model.read_text() != before
    everything_at_once(home)
    build.run_dbt(home, day(38).date(), END.date(), "--exclude-resource-type", "test")
    build.publish_days(home, [END.date()])
    name = f"{mart}/as_of={END:%F}.parquet"
    assert digests(home)[name] != digests(built)[name]
