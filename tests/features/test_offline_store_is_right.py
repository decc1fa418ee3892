"""The point-in-time join against the oracle: random worlds, planted leaks, and proof that breaking the SQL is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import offline_world as world
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.features.offline_store import join


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def engine(place: Path) -> Iterator[Any]:
    with world.engine(place) as opened:
        yield opened


def wrong_cells(engine: Any, place: Path, seed: int, *sizes: int) -> tuple[int, int]:
    """Return how many values of a random world differ from the oracle's, and how many were compared."""
    rows, entities, layout = world.random_world(seed, *sizes)
    world.write(place, rows, layout)
    zone = world.ZONES[seed % len(world.ZONES)]
    truths = world.expected(rows, entities)
    cells = []
    for equality in (True, False):
        answers = world.looked_up(engine, place, world.table(entities, zone), equality=equality)
        cells += [(answer[name], truth[name]) for answer, truth in zip(answers, truths, strict=True) for name in truth]
    return sum(one != other for one, other in cells), len(cells)


@pytest.mark.parametrize("seed", range(24))
def test_every_value_of_a_random_world_is_the_oracles(engine: Any, place: Path, seed: int):
    wrong, compared = wrong_cells(engine, place, seed)
    assert wrong == 0
    assert compared > 400


@pytest.mark.slow
def test_a_million_values_are_the_oracles(engine: Any, place: Path):
    wrong = compared = 0
    for seed in range(100, 100_000):
        found = wrong_cells(engine, place, seed, 60, 400)
        wrong, compared = wrong + found[0], compared + found[1]
        if compared >= 1_000_000:
            break
    assert wrong == 0
    assert compared >= 1_000_000


MOMENTS = st.builds(
    lambda day, hours, beside: world.DAYS[day] + timedelta(hours=hours, microseconds=beside),
    st.integers(0, 1),
    st.sampled_from([0, 1, 2, 24, 48, 49, 50, 72]),
    st.integers(-1, 1),
)
KEYS = st.one_of(st.none(), st.sampled_from(["1", "11", "111", "", "é", "7'7"]))
FACTS = st.lists(
    st.builds(
        lambda a, b, event, delay, x, z: {
            "a": a,
            "b": b,
            "event": event,
            "created": None if delay is None else event + timedelta(hours=delay),
            "x": x,
            "w": None,
            "z": z,
        },
        KEYS,
        KEYS,
        MOMENTS,
        st.one_of(st.none(), st.sampled_from([-1, 0, 0, 0, 1, 24, 36])),
        st.integers(0, 2),
        st.sampled_from(["p", "q", None]),
    ),
    max_size=12,
)
ASKERS = st.lists(
    st.builds(lambda a, b, at: {"a": a, "b": b, "event_timestamp": at, "n": 0}, KEYS, KEYS, st.one_of(st.none(), MOMENTS)), max_size=8
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=FACTS,
    entities=ASKERS,
    layout=st.sampled_from(["one", "dealt", "daily", "snapshots"]),
    zone=st.sampled_from(world.ZONES),
    naive=st.booleans(),
)
def test_any_small_world_is_joined_as_the_oracle_joins_it(
    engine: Any, place: Path, *, rows: list, entities: list, layout: str, zone: Any, naive: bool
):
    world.write(place, rows, layout)
    asked = world.table(entities, zone)
    if naive:  # a time without zone is UTC
        asked = asked.set_column(2, "event_timestamp", asked["event_timestamp"].cast(world.US).cast(pa.timestamp("us")))
    truths = world.expected(rows, entities)
    assert world.looked_up(engine, place, asked) == truths
    assert world.looked_up(engine, place, asked, equality=False) == truths


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), order=st.randoms(use_true_random=False), layout=st.sampled_from(["one", "dealt", "daily", "snapshots"]))
def test_order_duplication_and_layout_of_the_source_change_nothing(engine: Any, place: Path, seed: int, order: Any, layout: str):
    rows, entities, other = world.random_world(seed, 25, 15)
    world.write(place, rows, other)
    before = world.looked_up(engine, place, world.table(entities))
    again = rows + [row for row in rows if order.random() < 0.3]
    order.shuffle(again)
    world.write(place, again, layout)
    assert world.looked_up(engine, place, world.table(entities)) == before


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import offline_world as world
place = Path(sys.argv[2])
store = world.open_store(place)
answers = []
for seed in range(9):
    rows, entities, layout = world.random_world(seed)
    world.write(place, rows, layout)
    answers.append(world.found(store, world.table(entities, world.ZONES[seed % 5])))
print(world.digest(answers))
"""
ENVIRONMENTS = [(seed, zone) for seed in range(8) for zone in ("UTC", "America/New_York", "Asia/Kolkata", "Pacific/Apia")]


@pytest.mark.parametrize(
    ("seed", "zone"),
    [case if case == (6, "America/New_York") else pytest.param(*case, marks=pytest.mark.slow) for case in ENVIRONMENTS],
)
def test_neither_hash_seed_nor_zone_of_the_process_matters(tmp_path: Path, seed: int, zone: str):
    worlds = [world.random_world(number) for number in range(9)]
    truth = world.digest([world.expected(rows, entities) for rows, entities, _ in worlds])
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "TZ": zone, "PYTHONWARNINGS": "ignore"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.split()[-1] == truth


def planted(entities: list) -> list:
    """Return rows that begin to be seen a microsecond after some entity row asks, each with a value of its own.

    One in two is of that microsecond; the other corrects the very moment of the question, but was received too late.
    """
    plants = []
    for n, entity in enumerate(entities):
        if entity["a"] and entity["b"] and entity["event_timestamp"]:
            later = entity["event_timestamp"] + timedelta(microseconds=1)
            event = later if n % 2 else entity["event_timestamp"]
            plants.append({"a": entity["a"], "b": entity["b"], "event": event, "created": later, "x": 1000 + n, "w": 0.0, "z": "planted"})
    return plants


GUARDED = ["with_ttl", "ageless", "by_one_key"]


def sightings(engine: Any, place: Path, seed: int) -> tuple[int, int]:
    """Plant rows in a random world; return how often one is seen before its time, and how many are seen in time.

    Each is asked for twice: where it must not be seen yet, and a microsecond later.
    """
    rows, entities, layout = world.random_world(seed)
    plants = {plant["x"]: plant for plant in planted(entities)}
    world.write(place, rows + list(plants.values()), layout)
    later = [{**plant, "event_timestamp": plant["created"], "n": n} for n, plant in plants.items()]
    asked = entities + [{name: entity[name] for name in ("a", "b", "event_timestamp", "n")} for entity in later]
    early, in_time = 0, set()
    ways = [world.looked_up(engine, place, world.table(asked), GUARDED, equality=equality) for equality in (True, False)]
    for answer in ways[0] + ways[1]:
        for view in GUARDED:
            plant = plants.get(answer[f"{view}__x"])
            if plant and max(plant["event"], plant["created"]) > answer["event_timestamp"]:
                early += 1
            elif plant:
                in_time.add(plant["x"])
    return early, len(in_time)


def leaks(engine: Any, place: Path, seed: int) -> int:
    return sightings(engine, place, seed)[0]


@pytest.mark.parametrize("seed", range(9))
def test_no_planted_row_of_the_future_or_corrected_later_is_seen_before_its_time(engine: Any, place: Path, seed: int):
    early, in_time = sightings(engine, place, seed)
    assert early == 0
    assert in_time > 10, "the plants are potent: they are seen as soon as they may be"


# What must not go unnoticed: a name, the text of the SQL that is broken, and what it is broken into.
MUTATIONS = {
    "event by t: <= becomes <": ("asked.t >= answer.since", "asked.t > answer.since"),
    "the future is let in": ("asked.t >= answer.since", "asked.t + 3600000000 >= answer.since"),
    "the future is let into the equality": (' AND epoch_us(v."event") <= asked.t', ""),
    "event by t in the equality: <= becomes <": (
        ' AND epoch_us(v."event") <= asked.t',
        ' AND epoch_us(v."event") < asked.t AND event <> asked.t',
    ),
    "created guard out of the equality": (' AND epoch_us(v."created") <= asked.t', ""),
    "ttl out of the equality": (' AND asked.t - epoch_us(v."event") <= ', " AND 0 <= "),
    "created guard out of the corrected keys": ("greatest(event, known) AS since", "event AS since"),
    "created guard inverted": ("greatest(event, known) AS since", "known AS since"),
    "ttl removed": ("WHERE asked.t - answer.event <= ", "WHERE true OR asked.t - answer.event <= "),
    "ttl: <= becomes <": ("WHERE asked.t - answer.event <= ", "WHERE asked.t - answer.event < "),
    "tie order turned around": ("ORDER BY event, known", "ORDER BY event, known DESC"),
    "tie order ignores the creation": ("ORDER BY event, known,", "ORDER BY event,"),
    "newest becomes oldest": ("ORDER BY event, known", "ORDER BY event DESC, known"),
    "features decide ties the other way": ("f0 NULLS FIRST", "f0 DESC NULLS LAST"),
    "superseded rows kept": ("rank = max(rank) OVER", "rank <= max(rank) OVER"),
    "a correction counts only after the next one": ("AND CURRENT ROW)", "AND 1 PRECEDING)"),
    "a key less": (" AND coded.k1 = asked.k1", ""),
    "a key less in the files": (' AND v."b" = coded.k1', ""),
    "a key less in the equality": (' AND v."b" = asked.k1', ""),
    "any earlier slice but the last": (" = asked.slice", " < asked.slice"),
}


def suite_fails(engine: Any, place: Path) -> bool:
    """Return whether the oracle notices something in a dozen random worlds; a crash counts as noticed."""
    try:
        return any(wrong_cells(engine, place, seed)[0] for seed in range(24)) or any(leaks(engine, place, seed) for seed in range(6))
    except Exception:  # noqa: BLE001 - a broken statement may fail in any way
        return True


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_oracle_notices_when_the_sql_is_broken(engine: Any, place: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    whole, broken = MUTATIONS[name]
    applied = 0
    real = join.run

    def mutated(engine: Any, statement: str) -> Any:
        nonlocal applied
        applied += whole in statement
        return real(engine, statement.replace(whole, broken))

    monkeypatch.setattr(join, "run", mutated)
    assert suite_fails(engine, place)
    assert applied, "the mutation never met a statement"


def without_dedup(candidates: pa.Table) -> Any:
    return np.array([], np.int32)


def only_late(candidates: pa.Table) -> Any:
    late = (
        candidates.filter(pa.compute.greater(candidates["known"], candidates["event"]))
        if "known" in candidates.column_names
        else candidates.slice(0, 0)
    )
    return np.unique(late["code"].to_numpy())


def only_ties(candidates: pa.Table) -> Any:
    return REAL_CORRECTED(candidates.drop_columns(["known"]) if "known" in candidates.column_names else candidates)


REAL_CORRECTED = join.corrected


@pytest.mark.parametrize("broken", [without_dedup, only_late, only_ties])
def test_the_oracle_notices_when_corrected_keys_go_undetected(engine: Any, place: Path, monkeypatch: pytest.MonkeyPatch, broken: Any):
    monkeypatch.setattr(join, "corrected", broken)
    assert suite_fails(engine, place)


def test_taking_the_created_guard_out_lets_planted_rows_through(engine: Any, place: Path, monkeypatch: pytest.MonkeyPatch):
    real = join.run

    def unguarded(engine: Any, statement: str) -> Any:
        return real(
            engine,
            statement.replace("greatest(event, known) AS since", "event AS since").replace(' AND epoch_us(v."created") <= asked.t', ""),
        )

    monkeypatch.setattr(join, "run", unguarded)
    assert all(leaks(engine, place, seed) for seed in range(9))


def test_codes_too_many_to_pack_are_told_apart_all_the_same():
    code, event = [1, 1, 2, 2, 3], [-(2**61), -(2**61), 5, 6, 2**61]
    table = pa.table({"code": pa.array(code, pa.int32()), "event": pa.array(event, pa.int64())})
    assert join.corrected(table).tolist() == [1]
    assert join.corrected(table.append_column("known", pa.array([e + (e == 6) for e in event], pa.int64()))).tolist() == [1, 2]
