"""Loading the online store through Feast's own call: the bytes of stock Feast, newer rows only, killed or not."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from online_world import COLUMNS, TTL, World, counting, day, full_row, read, rows_at
from processes import SERVER, process
from redis import Redis

from pipelines.errors import StateError
from pipelines.features import materialization
from pipelines.features.moments import reading_at

NUMBERS = ("count", "total", "amount", "name", "counts")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


@pytest.fixture(params=["sqlite", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(kind: str, request: pytest.FixtureRequest) -> str:
    """Return the address of a real Redis where the store is one."""
    return str(request.getfixturevalue("redis")) if kind == "redis" else ""


def client(address: str) -> Redis:
    return Redis(port=int(address.split(":")[1]))


def dump(store: Any, kind: str) -> dict:
    """Return everything an online store holds of the view but our own mark."""
    if kind == "redis":
        redis = client(store.config.online_store.connection_string)
        return {
            key: {name: value for name, value in redis.hgetall(key).items() if name != b"_created:user_shelf"} for key in redis.scan_iter()
        }
    with sqlite3.connect(store.config.online_store.path) as connection:
        rows = connection.execute(
            "SELECT entity_key, feature_name, value, value_text, vector_value, event_ts, created_ts FROM shelf_user_shelf"
        )
        return {row[:2]: row[2:] for row in rows}


def test_the_store_holds_the_bytes_that_stock_feast_writes(world: World, kind: str, address: str, monkeypatch: pytest.MonkeyPatch):
    """Keys, fields, values, texts and times, for every type, missing ones too; stock Feast reads them alike."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    rows = [full_row(f"u{n}ü", n) for n in range(40)] + [full_row("", 3)]
    world.publish("a", rows_at(day(1) + timedelta(microseconds=1_234_567), rows, created=day(1) + timedelta(hours=3)))
    stock, ours = world.store(kind, address, plugged=False), world.store(kind, address)
    stock.materialize(day(0), day(2))
    expected, answers = dump(stock, kind), read(stock, [row["user_id"] for row in rows])
    if kind == "redis":
        client(address).flushall()
    ours.materialize(day(0), day(2))
    assert dump(ours, kind) == expected
    assert len(expected) == (41 if kind == "redis" else 41 * len(COLUMNS))
    reader = world.store(kind, address, plugged=False, name=f"{kind}-ours")
    assert read(reader, [row["user_id"] for row in rows]) == answers == read(ours, [row["user_id"] for row in rows])
    assert answers[1]["counts"] == [1]
    assert answers[4]["amount"] is None


def test_older_rows_never_replace_newer_ones_and_corrections_do(world: World, kind: str, address: str):
    store = world.store(kind, address, engine={"whole_state": False})

    def load(n: int, value: int, created: float) -> int:
        world.publish("a", rows_at(day(n), counting(3, value), created=day(created)))
        store.materialize(day(n), day(10))
        found = {row["count"] for row in read(store, ["u0", "u1", "u2"], "count")}
        assert len(found) == 1
        return found.pop()

    assert load(3, 30, created=3) == 30
    assert load(4, 40, created=4) == 40
    assert load(3, 31, created=9) == 40, "an out-of-order backfill"
    assert load(4, 39, created=3.5) == 40, "an older version of the same day"
    assert load(4, 41, created=4.5) == 41, "a correction of the same day"
    assert load(4, 42, created=4.5) == 42, "a rebuild that carries the same moments"
    assert load(4, 40, created=4) == 42
    assert load(5, 50, created=4) == 50


def test_any_order_of_loads_and_pushes_ends_in_the_newest_row(world: World, kind: str, address: str):
    """Event days, created days and writers at random, bulk and push mixed: the maximum stands, the last of equals."""
    store, rng = world.store(kind, address, engine={"whole_state": False, "sweep": False}), random.Random(5)
    best: tuple[float, float, int] = (0, 0, 0)
    for step in range(1, 25):
        event, created = rng.randrange(1, 5), rng.randrange(1, 5)
        table = rows_at(day(event), counting(2, step), created=day(5 + created))
        if rng.random() < 0.5:
            world.publish("a", table)
            store.materialize(day(event), day(9))
        else:
            store.write_to_online_store("user_shelf", df=table.to_pandas())
        best = max(best, (event, created, step))
        assert {row["total"] for row in read(store, ["u0", "u1"], "total")} == {best[2]}, step


def test_what_a_stock_client_wrote_is_respected(world: World, redis: str):
    """Stock Feast moves the event time and leaves our mark: the mark counts only for the time it was written with."""
    ours, stock = world.store("redis", redis, engine={"whole_state": False}), world.store("redis", redis, plugged=False)
    for store, n, value, expected in ((ours, 1, 1, 1), (stock, 4, 4, 4), (ours, 3, 3, 4), (ours, 5, 5, 5), (stock, 4, 9, 5)):
        world.publish("a", rows_at(day(n) + timedelta(milliseconds=7), counting(1, value)))
        store.materialize(day(n), day(n + 0.5))
        assert read(stock, ["u0"], "count") == [{"count": expected}]


def _load(world: World, kind: str, address: str, n: int, *, zone: str | None, dies_at: int | None, started: Any) -> None:
    if zone:
        os.environ["TZ"] = zone
        time.tzset()
    if dies_at:
        batches, encode = count(1), materialization.encode

        def fatal(batch: pa.RecordBatch, view: Any) -> Any:
            if next(batches) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(batch, view)

        materialization.encode = fatal
    store = world.store(kind, address, registry=f"child{os.getpid()}", engine={"batch_rows": 500, "whole_state": False})
    started.set()
    store.materialize(day(n), day(n))
    os._exit(0)  # the parent's fixtures are not ours to end


def child(world: World, kind: str, address: str, n: int, *, zone: str | None = None, dies_at: int | None = None) -> BaseProcess:
    """Start a process that loads one day in batches of 500 rows, and return once it is about to write; it may die at a batch."""
    started = SERVER.Event()
    loading = process(_load, world, kind, address, n, zone=zone, dies_at=dies_at, started=started)
    loading.start()
    started.wait(60)
    return loading


def finished(loading: BaseProcess) -> int | None:
    loading.join(60)
    return loading.exitcode


def test_two_loads_and_a_stream_at_once_end_in_the_newest(world: World, kind: str, address: str):
    """Three processes, one of them with the older day, write the same entities; which comes first does not matter."""
    for n in (1, 2):
        world.publish(f"day{n}", rows_at(day(n), counting(6000, n)))
    store = world.store(kind, address)
    loads = [child(world, kind, address, n) for n in (2, 1)]
    frames = [rows_at(day(2.5) + timedelta(minutes=n), counting(5, 100 + n)).to_pandas() for n in range(40)]
    for frame in random.Random(1).sample(frames, 40):
        store.write_to_online_store("user_shelf", df=frame)
    assert [finished(load) for load in loads] == [0, 0]
    found = read(store, [f"u{n}" for n in range(6000)], "count")
    assert {row["count"] for row in found[:5]} == {139}
    assert {row["count"] for row in found[5:]} == {2}


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=pytest.mark.slow)], indirect=True)
def test_killed_anywhere_and_run_again_it_ends_in_the_same_values(world: World, kind: str, address: str):
    """No kill tears an entity; after each, every one is wholly of the old day or of the new."""
    users = [f"u{n}" for n in range(8000)]
    world.publish("day1", rows_at(day(1), counting(8000, 1)))
    world.publish("day2", rows_at(day(2), counting(8000, 2)))
    store = world.store(kind, address, engine={"whole_state": False})
    store.materialize(day(1), day(1))
    for batch in (1, 2, 7, 16):
        assert finished(child(world, kind, address, 2, dies_at=batch)) == -signal.SIGKILL
        found = read(store, users, *NUMBERS)
        for row in found:
            assert row == {
                "count": row["count"],
                "total": row["count"],
                "amount": row["count"],
                "name": str(row["count"]),
                "counts": [row["count"]],
            }
        assert len({row["count"] for row in found}) == (1 if batch == 1 else 2), "the kill met the load at work"
    assert finished(child(world, kind, address, 2)) == 0
    assert {row["count"] for row in read(store, users, "count")} == {2}


def test_rows_past_their_ttl_are_neither_written_nor_kept(world: World, kind: str, address: str):
    """An entity that left the source is missing once its row is past the ttl, and gone with the next load."""
    store = world.store(kind, address)
    world.publish("a", rows_at(day(1), counting(3, 1)))
    store.materialize(day(0), day(1))
    world.publish("a", rows_at(day(9), counting(2, 9)))  # u2 has left
    world.publish("old", rows_at(day(0), [{"user_id": "u9", "count": 0}]))
    store.materialize(day(0), day(9))
    with reading_at(day(9)):
        assert read(store, ["u0", "u2", "u9"], "count") == [{"count": 9}, {"count": 1}, {"count": None}]
    with reading_at(day(9) + timedelta(seconds=1)):
        assert read(store, ["u0", "u2"], "count") == [{"count": 9}, {"count": None}]
    assert read(store, ["u2"], "count") == [{"count": 1}], "whoever names no moment is answered as by stock Feast"
    world.publish("a", rows_at(day(10), counting(2, 10)))
    store.materialize(day(9), day(10))
    assert read(store, ["u2"], "count") == [{"count": None}]
    assert len({key[:1] if kind == "redis" else key[0] for key in dump(store, kind)}) == (1 if kind == "redis" else 2)
    assert len(dump(store, kind)) == (2 if kind == "redis" else 2 * len(COLUMNS))


def test_an_end_far_behind_the_source_empties_no_store(world: World, kind: str, address: str):
    """`feast materialize-incremental` up to now, over a source that ends last year: nothing to load is nothing to sweep."""
    world.publish("a", rows_at(day(1), counting(2, 1)))
    store = world.store(kind, address)
    store.materialize(day(0), day(1))
    store.materialize_incremental(day(400))
    assert read(store, ["u0", "u1"], "count") == [{"count": 1}] * 2
    store.materialize(day(-9), day(400))  # all of the source is loaded, and past its ttl at the end
    assert read(store, ["u0", "u1"], "count") == [{"count": 1}] * 2


def test_one_projects_sweep_leaves_anothers_rows_alone(world: World, redis: str):
    """Of two projects in one Redis, even if the name of one ends in the other's, under the same join key."""
    world.publish("a", rows_at(day(1), counting(2, 1)))
    other = world.store("redis", redis, name="other", project="myshelf")
    other.materialize(day(0), day(1))
    world.publish("a", rows_at(day(30), counting(1, 2)))
    mine = world.store("redis", redis)
    mine.materialize(day(29), day(30))
    assert read(other, ["u0", "u1"], "count") == [{"count": 1}] * 2
    assert read(mine, ["u0", "u1"], "count") == [{"count": 2}, {"count": None}]


def test_threads_that_push_through_one_store_take_turns(world: World, kind: str, address: str):
    """As `feast serve` does: every push is written, none is torn, whichever comes first."""
    world.publish("a", rows_at(day(1), counting(1, 1)))
    store = world.store(kind, address)
    frames = [rows_at(day(2) + timedelta(minutes=n), counting(5, n)).to_pandas() for n in range(40)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda frame: store.write_to_online_store("user_shelf", df=frame), frames))
    assert read(store, ["u0", "u4"], "count", "total") == [{"count": 39, "total": 39}] * 2


def test_by_the_stores_own_clock_a_value_past_its_ttl_is_missing(world: World, kind: str, address: str):
    """The world is of last March: with `expire_on_read` no stock call is answered, without it every one is."""
    world.publish("a", rows_at(day(1), counting(1, 1)))
    world.store(kind, address).materialize(day(0), day(1))
    name = "redis" if kind == "redis" else "sqlite-ours"
    strict = world.store(kind, address, name=name, expire_on_read=True)
    assert read(strict, ["u0"], "count") == [{"count": None}]
    with reading_at(day(2)):
        assert read(strict, ["u0"], "count") == [{"count": 1}]
    if kind == "redis":  # as `feast serve` asks
        asked = strict.get_online_features_async(features=["user_shelf:count"], entity_rows={"user_id": ["u0"]})
        assert asyncio.run(asked).to_dict()["count"] == [None]
    assert read(world.store(kind, address, name=name), ["u0"], "count") == [{"count": 1}]


@pytest.mark.parametrize("tags", [{"rows": "daily"}, {}], ids=["daily", "changes"])
def test_an_incremental_load_finds_days_that_were_rebuilt(world: World, kind: str, address: str, tags: dict[str, str]):
    store = world.store(kind, address, tags=tags)
    world.publish("day2", rows_at(day(2), counting(2, 2)))
    world.publish("day3", rows_at(day(3), counting(1, 3)))
    store.materialize(day(1), day(3.4))
    world.publish("day3", rows_at(day(3), counting(1, 33)))  # rebuilt after a late event, as of the same day
    world.publish("day2", rows_at(day(2), counting(2, 22)))
    store.materialize_incremental(day(3.5))
    expected = [{"count": 33}, {"count": 2 if tags else 22}]
    assert read(store, ["u0", "u1"], "count") == expected, "of daily rows the newest day is the state, else all within the ttl"
    assert timedelta(days=2) < TTL


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York"])
def test_moments_are_utc_in_every_zone(world: World, kind: str, address: str, zone: str):
    world.publish("day2", rows_at(day(2), counting(1, 2)))
    assert finished(child(world, kind, address, 2, zone=zone)) == 0
    store = world.store(kind, address)
    answer = store.get_online_features(features=["user_shelf:count"], entity_rows={"user_id": ["u0"]})
    assert answer.to_dict(include_event_timestamps=True)["count__ts"] == [int(day(2).timestamp())]


def test_an_eviction_during_a_load_is_an_error_and_not_a_success(world: World, redis: str):
    world.publish("a", rows_at(day(1), counting(20_000, 1)))
    server = client(redis)
    server.config_set("maxmemory-policy", "allkeys-lru")
    server.config_set("maxmemory", server.info("memory")["used_memory"] + (2 << 20))
    with pytest.raises(StateError, match=r"evicted .*allkeys-lru"):
        world.store("redis", redis).materialize(day(0), day(1))


def test_a_full_redis_says_so(world: World, redis: str):
    world.publish("a", rows_at(day(1), counting(20_000, 1)))
    server = client(redis)
    server.config_set("maxmemory", server.info("memory")["used_memory"] + (1 << 20))
    with pytest.raises(StateError, match="maxmemory"):
        world.store("redis", redis).materialize(day(0), day(1))


def test_a_frozen_or_dead_redis_is_given_up_at_once(world: World, redis: str):
    world.publish("a", rows_at(day(1), counting(1, 1)))
    store = world.store("redis", redis)
    store.materialize(day(0), day(1))
    process = client(redis).info("server")["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        began = time.perf_counter()
        with pytest.raises(Exception, match=r"[Tt]imeout"):
            read(store, ["u0"], "count")
        assert time.perf_counter() - began < 2, "stock redis-py tries again for nine seconds"
    finally:
        os.kill(process, signal.SIGCONT)
    client(redis).shutdown(nosave=True)
    began = time.perf_counter()
    with pytest.raises(Exception, match=r"[Cc]onnect|refused|closed"):
        read(store, ["u0"], "count")
    assert time.perf_counter() - began < 2
    with pytest.raises(StateError, match="Redis at 127"):
        read(store, ["u0"], "count")
    with pytest.raises(StateError, match="Redis at 127"):
        store.materialize(day(0), day(1))


def test_progress_is_shown_as_feast_shows_it(world: World, kind: str, address: str, capsys: pytest.CaptureFixture):
    world.publish("a", rows_at(day(1), counting(1234, 1)))
    world.store(kind, address).materialize(day(0), day(1))
    assert "1234" in capsys.readouterr().err


def test_a_view_that_is_dropped_leaves_nothing(world: World, kind: str, address: str):
    world.publish("a", rows_at(day(1), counting(50, 1)))
    store = world.store(kind, address)
    store.materialize(day(0), day(1))
    store.apply(objects=[], objects_to_delete=[store.get_feature_view("user_shelf")], partial=False)
    if kind == "redis":
        assert client(address).keys() == []
    else:
        with sqlite3.connect(store.config.online_store.path) as connection:
            assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'shelf%'").fetchone() == (0,)


def test_any_other_online_store_is_loaded_by_feasts_own_engine(world: World):
    world.publish("a", rows_at(day(1), counting(5, 1)))
    store = world.store("sqlite", name="mixed")
    store.config._online_store = None
    store.config.online_config = {"type": "sqlite", "path": str(world.folder / "mixed.db")}
    store = type(store)(config=store.config)
    store.materialize(day(0), day(1))
    assert type(store._get_provider().online_store).__name__ == "SqliteOnlineStore"
    assert read(store, ["u4"], "count") == [{"count": 1}]


def test_a_missing_key_is_an_error_that_names_it(world: World, kind: str, address: str):
    world.publish("a", rows_at(day(1), [{"user_id": None, "count": 1}]))
    with pytest.raises(StateError, match="join key user_id"):
        world.store(kind, address).materialize(day(0), day(1))


def test_the_values_held_are_whole_messages(world: World, redis: str):
    world.publish("a", rows_at(day(1), [full_row("u", 8)]))
    world.store("redis", redis).materialize(day(0), day(1))
    (held,) = dump(world.store("redis", redis), "redis").values()
    kinds = {Value.FromString(value).WhichOneof("val") for name, value in held.items() if not name.startswith(b"_ts")}
    assert len(kinds) == len(COLUMNS)
