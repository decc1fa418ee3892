"""Point-in-time joins and the online store, against rules worked out row by row."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_world import DAYS, END, day, events, planted, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stock_feast import StockStore

from pipelines import cycle, lake
from pipelines.config import REPOSITORY, Home
from pipelines.errors import StateError
from pipelines.features import build, historical, repository, store
from pipelines.tables import TIMESTAMP


def entity_rows(rows: list[tuple[str, str, datetime]]) -> pa.Table:
    user, item, at = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {"user_id": pa.array(user, pa.string()), "item_id": pa.array(item, pa.string()), "event_timestamp": pa.array(at, TIMESTAMP)}
    )


def some_rows(count: int, seed: int = 0) -> pa.Table:
    """Return rows with ties, duplicates, strangers, and moments on, before and after midnight."""
    rng = np.random.default_rng(seed)
    picks = [
        (
            f"u{rng.integers(0, 26)}",
            f"i{rng.integers(0, 13)}",
            day(int(rng.integers(-1, DAYS + 12))) + timedelta(microseconds=int(rng.choice([0, -1, 1, 43_200_000_000]))),
        )
        for _ in range(count)
    ]
    return entity_rows(picks)


def marts(home: Home) -> dict[str, list[dict]]:
    return {
        mart: [row for file in sorted((home.features / mart).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
        for mart in build.MARTS
    }


def oracle(home: Home, rows: pa.Table, service: str = "ranking_v1") -> list[dict]:
    """Return each row's features by scanning every mart row: the newest at or before the moment, within the ttl."""
    held, specs = marts(home), store.schema(home, service)
    answers = []
    for row in rows.to_pylist():
        answer = dict(row)
        for view in ("user_daily", "item_daily", "user_category_daily", "user_brand_daily"):
            of_view = [spec for spec in specs if spec.view == view]
            wanted = {key: answer[f"item_daily__{key}"] if key in ("category", "brand") else row[key] for key in of_view[0].keys}
            known = [
                held_row
                for held_row in held[view]
                if all(held_row[key] == value for key, value in wanted.items())
                and held_row["available_at"] <= row["event_timestamp"]
                and row["event_timestamp"] - of_view[0].ttl <= held_row["as_of"] <= row["event_timestamp"]
            ]
            newest = max(known, key=lambda held_row: held_row["as_of"], default={})
            answer |= {spec.name: newest.get(spec.name.split("__", 1)[1]) for spec in of_view}
        answers.append({name: answer[name] for name in [*rows.column_names, *(spec.name for spec in specs)]})
    return answers


def test_the_schema_describes_every_feature_once_in_a_fixed_order():
    specs = store.schema()
    assert [spec.name for spec in specs][:2] == ["user_daily__events_1d", "user_daily__events_7d"]
    assert len({spec.name for spec in specs}) == len(specs) > 40
    assert all(spec.description.endswith(".") and spec.name.startswith(spec.view + "__") for spec in specs)
    assert {spec.keys for spec in specs} == {("user_id",), ("item_id",), ("user_id", "category"), ("user_id", "brand")}


def test_an_unknown_service_is_an_error_that_lists_the_known():
    with pytest.raises(StateError, match="ranking_v1"):
        store.schema(service="nobody")


@pytest.mark.parametrize("seed", [0, 1])
def test_historical_features_are_the_newest_known_rows_within_the_ttl(built: Home, seed: int):
    rows = some_rows(150, seed)
    found = store.historical(built, rows).to_pylist()
    expected = oracle(built, rows)
    assert found == expected
    assert sum(row["user_category_daily__events_30d"] is not None for row in found) > 5
    assert sum(row["user_brand_daily__events_30d"] is not None for row in found) > 5


def test_joined_rows_are_those_of_stock_feast(built: Home, monkeypatch: pytest.MonkeyPatch):
    """Ours, and Feast's own DuckDB store on the same repository with its creation filter on, give the same values."""
    rows = some_rows(120, 7)
    ours = store.historical(built, rows)
    monkeypatch.setattr(historical, "open_store", StockStore)
    assert store.historical(built, rows).equals(ours)


def test_no_row_is_an_answer_too(built: Home):
    assert store.historical(built, entity_rows([])).num_rows == 0
    (row,) = store.historical(built, entity_rows([("nobody", "nothing", END)])).to_pylist()
    assert {value for name, value in row.items() if "__" in name} == {None}


def test_a_missing_key_is_named(built: Home):
    with pytest.raises(StateError, match="item_id"):
        store.historical(built, some_rows(3).drop_columns(["item_id"]))


def test_no_training_row_changes_when_the_future_and_corrections_land(lived: Home):
    """What was joined before is joined again, value for value.

    Future-dated events, late arrivals and later corrections land, and every day is built again.
    """
    rows = some_rows(200, 11)
    rows = rows.filter(pa.compute.less_equal(rows["event_timestamp"], pa.scalar(END, TIMESTAMP)))
    before = store.historical(lived, rows)
    lake.land_tables(lived, events=table("events", planted()))
    manifest = lived.features / build.MANIFEST
    manifest.unlink()  # nothing is remembered: every day is built anew from what the lake holds now
    build.build(lived, day(DAYS + 7))
    assert store.historical(lived, rows).equals(before)
    later = store.historical(lived, rows.set_column(2, "event_timestamp", pa.array([day(DAYS + 3)] * len(rows), TIMESTAMP)))
    assert later["user_daily__events_7d"].to_pylist() != before["user_daily__events_7d"].to_pylist(), "the planted rows show in time"


KEYS = st.sampled_from(["1", "11", "12", "2", "", "é"])  # joined without a separator, some of these collide
MOMENTS = st.integers(-3, 25 * 24).map(lambda hour: day(0) + timedelta(hours=hour))


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mart=st.lists(st.tuples(KEYS, KEYS, st.integers(0, 20), st.integers(0, 60)), max_size=60, unique_by=lambda row: row[:3]),
    asked=st.lists(st.tuples(KEYS, KEYS, MOMENTS), min_size=1, max_size=40),
)
def test_any_mart_joins_as_the_rule_says(registered: Home, mart: list, asked: list):
    """Colliding keys, gaps longer than the ttl, ties, and rows that became available after their date."""
    write_marts(registered, mart)
    rows = entity_rows(asked)
    assert store.historical(registered, rows).to_pylist() == oracle(registered, rows)


def write_marts(home: Home, rows: list[tuple[str, str, int, int]]) -> None:
    """Write marts by hand: (user or item, category, day, hours until available); features count upwards."""
    shutil.rmtree(home.features, ignore_errors=True)
    for mart, specs in ((view, [*of_view]) for view, of_view in groupby(store.schema(home), key=lambda spec: spec.view)):
        keys = build.MARTS[mart]
        columns = {key: [row[0] if n == 0 else row[1] for row in rows] for n, key in enumerate(keys)}
        unique = list({(*(values[n] for values in columns.values()), rows[n][2]): n for n in range(len(rows))}.values())
        table_of = {key: pa.array([values[n] for n in unique], pa.string()) for key, values in columns.items()}
        table_of["as_of"] = pa.array([day(rows[n][2]) for n in unique], TIMESTAMP)
        for spec in specs:
            name = spec.name.split("__", 1)[1]
            table_of[name] = pa.array([_by_hand(spec.dtype, rows[n][1], n) for n in unique], spec.dtype)
        table_of["available_at"] = pa.array([day(rows[n][2]) + timedelta(hours=rows[n][3] // 2) for n in unique], TIMESTAMP)
        path = home.features / mart / "as_of=by-hand.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(table_of), path)


def _by_hand(dtype: pa.DataType, text: str, n: int) -> object:
    return text if pa.types.is_string(dtype) else bool(n % 2) if pa.types.is_boolean(dtype) else n


@pytest.fixture
def registered(home: Home) -> Home:
    """Return a home whose registry knows the views, with marts still to come."""
    store.apply(home)
    return home


CHILD = """
import hashlib, pickle, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
import pyarrow as pa
from pipelines.config import Home
from pipelines.features import store
from test_feature_store import some_rows
found = store.historical(Home(Path(sys.argv[2])), some_rows(400, 5))
print("digest", hashlib.sha256(repr(found.to_pylist()).encode()).hexdigest())
"""


@pytest.mark.parametrize(
    ("seed", "zone"),
    [
        ("0", "Asia/Kolkata"),
        pytest.param("2", "America/New_York", marks=pytest.mark.slow),
        pytest.param("1", "UTC", marks=pytest.mark.slow),
        pytest.param("3", "America/New_York", marks=pytest.mark.slow),
        pytest.param("3", "Asia/Kolkata", marks=pytest.mark.slow),
    ],
)
def test_neither_hash_seed_nor_time_zone_changes_a_joined_value(built: Home, seed: str, zone: str):
    import hashlib

    environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "PYTHONWARNINGS": "ignore"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(built.root)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    here = hashlib.sha256(repr(store.historical(built, some_rows(400, 5)).to_pylist()).encode()).hexdigest()
    assert child.stdout.splitlines()[-1] == f"digest {here}"


def everyone(home: Home, at: datetime) -> pa.Table:
    """Return every user, each with some item, at one moment."""
    names = pq.read_table(home.features / "user_daily" / f"as_of={at:%F}.parquet")["user_id"].to_pylist()
    return entity_rows([(name, f"i{n % 12}", at) for n, name in enumerate(names)])


def same_as_offline(home: Home, at: datetime) -> bool:
    """Return whether the online store holds what a point-in-time join gives at `at`, for every user and item."""
    rows = everyone(home, at)
    offline = store.historical(home, rows).drop_columns(["event_timestamp"])
    online = store.online(home, rows.drop_columns(["event_timestamp"]), as_of=at)
    return offline.to_pylist() == online.to_pylist()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=pytest.mark.slow)])  # Redis by itself: test_materialization
def test_the_online_store_never_goes_back_and_loses_no_correction(
    lived: Home, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    """Scheduled, overlapping, out of order and corrected at an equal moment: online is the newest offline row."""
    if kind == "redis":
        monkeypatch.setenv(repository.REDIS, request.getfixturevalue("redis"))
    store.apply(lived)
    store.materialize(lived, day(39))
    assert same_as_offline(lived, day(39))
    written = store.materialize(lived, END)
    assert written == {mart: len(pq.read_table(lived.features / mart / f"as_of={END:%F}.parquet")) for mart in build.MARTS}
    assert same_as_offline(lived, END)

    store.materialize(lived, day(30))  # an older backfill
    assert same_as_offline(lived, END)

    file = lived.features / "user_daily" / f"as_of={END:%F}.parquet"  # a correction that carries the same moment
    corrected = pq.read_table(file)
    place = corrected.column_names.index("events_7d")
    pq.write_table(corrected.set_column(place, "events_7d", pa.array([777] * len(corrected), pa.int32())), file)
    store.materialize(lived, day(30))
    assert same_as_offline(lived, END)
    assert set(store.online(lived, everyone(lived, END).drop_columns(["event_timestamp"]))["user_daily__events_7d"].to_pylist()) == {777}


def test_a_value_older_than_its_ttl_is_no_answer_online_either(lived: Home):
    store.materialize(lived, END)
    rows = entity_rows([("u0", "i0", END)]).drop_columns(["event_timestamp"])
    (kept,) = store.online(lived, rows, as_of=day(DAYS + 8)).to_pylist()
    (gone,) = store.online(lived, rows, as_of=day(DAYS + 8) + timedelta(seconds=1)).to_pylist()
    assert kept["user_daily__tenure_days"] is not None
    assert gone["user_daily__tenure_days"] is None
    (record,) = cycle.records(lived, END, "materialize")
    assert record["online"]["item_daily"] == 12
    assert record["answers_until"]["item_daily"] == day(DAYS + 8).isoformat()


def test_materializing_a_day_that_was_not_built_is_an_error(lived: Home):
    with pytest.raises(StateError, match=r"reloop features"):
        store.materialize(lived, day(DAYS + 1))


@pytest.mark.slow
def test_eight_processes_that_apply_at_once_all_take_effect(home: Home):
    call = "from pipelines.config import Home; from pipelines.features import store; store.apply(Home.from_environment())"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    children = [subprocess.Popen([sys.executable, "-c", call], env=environment, cwd=REPOSITORY) for _ in range(8)]
    assert [child.wait() for child in children] == [0] * 8
    assert {view.name for view in repository.open_store(home).list_feature_views()} == set(build.MARTS)


def test_events_of_the_world_are_what_the_tests_think():
    assert sum(event["received_at"] - event["event_at"] > timedelta(days=1) for event in events()) > 50
