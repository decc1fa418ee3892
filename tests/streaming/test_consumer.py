"""The consumer: bad events kept, good ones effective once, whatever is killed and however often it comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from streaming_world import Event, day, events

from pipelines import tables
from pipelines.config import REPOSITORY, Home, ValidationSettings
from pipelines.errors import StateError
from pipelines.features import repository
from pipelines.features.pushing import PushedView
from pipelines.streaming import session
from pipelines.streaming.bus import Message, connect, encode
from pipelines.streaming.consumer import Consumer
from pipelines.streaming.memory import Memory
from pipelines.streaming.reading import Judge, Judged
from pipelines.streaming.session import SessionEvent
from pipelines.streaming.shelves import Shelves
from pipelines.window import micros, utc

FED = events()[:400]
BAD = [
    {"event_id": "no-user", "item_id": "i1", "event_type": "view", "event_at": day(1), "received_at": day(1)},
    {**FED[0], "event_id": "wrong-type", "event_type": "wink"},
    {**FED[0], "event_id": "tomorrow", "event_at": day(40), "received_at": day(2)},
    {**FED[0], "event_id": "ancient", "event_at": day(-60), "received_at": day(2)},
    {**FED[0], "event_id": "no-zone", "event_at": "2025-03-02T10:00:00"},
    {**FED[0], "event_id": "negative", "value": -1.0},
    {**FED[0], "event_id": "number", "value": "many"},
    {**FED[0], "event_id": ["a", "list"]},
]


def member(address: str, name: str = "a", topic: str = "events") -> Any:
    return connect(address, topic=topic, group="sessions", consumer=name)


def quarantined(home: Home) -> list[dict[str, Any]]:
    return [row for file in sorted(home.quarantine.glob("stream-*/events.parquet")) for row in pq.read_table(file).to_pylist()]


def accepted(home: Home) -> list[str]:
    with closing(Memory(home)) as memory:
        return memory.met()


def expected(home: Home, rows: list[Event]) -> dict[str, dict[str, Any]]:
    """Return every user's session from the definition."""
    shelves = Shelves(home)
    shelves.refresh()
    found = {}
    for user in {row["user_id"] for row in rows}:
        mine = [row for row in rows if row["user_id"] == user]
        made = [SessionEvent(micros(e["event_at"]), e["event_id"], e["item_id"], e["event_type"]) for e in mine]
        last = max(micros(max(e["event_at"], e["received_at"])) for e in mine)
        if (values := session.features(session.newest(shelves.place(made)), last)) is not None:
            found[user] = values
    return found


def is_right(home: Home, rows: list[Event]) -> bool:
    wanted = expected(home, rows)
    found = dict(zip(wanted, PushedView(home, session.VIEW).read(list(wanted)), strict=True))
    assert found == wanted
    return len(wanted) > 5


def test_a_bad_event_is_quarantined_with_its_reason_and_the_good_ones_go_on(shop: Home, bus_address: str):
    bus = member(bus_address)
    bus.publish([*FED[:50], *BAD])
    raw = connect(bus_address, topic="events", group="x", consumer="x")
    raw._redis.xadd("reloop:events", {b"event": b"\xff no json"})
    raw._redis.xadd("reloop:events", {b"else": b"no event"})
    raw._redis.xadd("reloop:events", {b"event": b"[1, 2]"})
    raw._redis.xadd("reloop:events", {b"event": b'{"event_at": 1e999, "value": 1' + b"0" * 400 + b"}"})
    raw.close()
    with closing(Consumer(shop, bus)) as consumer:
        counts = consumer.run(count=30, idle_seconds=0.5)
    assert (counts.accepted, counts.refused, counts.repeated) == (50, len(BAD) + 4, 0)
    rows = quarantined(shop)
    said = {row["event_id"]: row["reasons"] for row in rows}
    assert said["no-user"] == ["user_id is missing"]
    assert said["wrong-type"][0].startswith("event_type is not one of")
    assert "more than 5 minutes after" in said["tomorrow"][0]
    assert "more than 30 days after" in said["ancient"][0]
    assert said["no-zone"] == ["event_at could not be read: '2025-03-02T10:00:00'", "event_at is missing"]
    assert said["negative"] == ["value is negative"]
    assert said["number"] == ["value could not be read: 'many'"]
    assert [row["raw"] for row in rows if row["reasons"][0] == "the message is no JSON object"] == ["\ufffd no json", "", "[1, 2]"]
    assert len(rows) == len(BAD) + 4
    assert all(row["reasons"] for row in rows)
    assert is_right(shop, FED[:50])


def test_repetitions_are_counted_and_change_nothing(shop: Home, bus_address: str):
    bus = member(bus_address)
    with closing(Consumer(shop, bus)) as consumer:
        bus.publish([*FED[:60], *BAD[:2]])
        consumer.run(idle_seconds=0.5)
        bus.publish([*FED[:60], {**FED[3], "item_id": "another"}])
        counts = consumer.run(idle_seconds=0.5)
    assert (counts.accepted, counts.repeated) == (60, 61)
    assert sorted(accepted(shop)) == sorted(e["event_id"] for e in FED[:60])
    assert is_right(shop, FED[:60])


def test_an_event_from_after_the_bus_took_it_is_refused():
    """Its own time of receipt says nothing: a session that once reached 2060 would never be told of anything again."""
    taken_us = micros(day(9))

    def fate(event_at: Any, received_at: Any, published_us: int = taken_us) -> list[str]:
        event = {**FED[0], "event_at": event_at, "received_at": received_at}
        judged = judge.judge([Message("1-0", published_us, encode(event))])
        return judged.refused[0][1]["reasons"] if judged.refused else []

    with closing(Judge(ValidationSettings())) as judge:
        late = "is more than 5 minutes after the bus took it"
        assert fate(utc("2060-01-01"), utc("2060-01-01")) == [f"event_at {late}", f"received_at {late}"]
        assert fate(day(9), day(9) + timedelta(minutes=6)) == [f"received_at {late}"]
        assert fate(day(9) + timedelta(minutes=6), day(9) + timedelta(minutes=4)) == [f"event_at {late}"]
        assert fate(day(9) + timedelta(minutes=5), day(9) + timedelta(minutes=5)) == []
        assert fate(day(9), day(9), 0) == [], "a bus that keeps no time"


def test_a_text_is_read_as_the_lake_reads_it_without_the_spaces_around_it():
    def read(**changes: Any) -> tuple[list[Any], list[Any]]:
        judged = judge.judge([Message("1-0", micros(day(20)), encode({**FED[0], **changes}))])
        return [row["user_id"] for _, row in judged.accepted], [row["reasons"] for _, row in judged.refused]

    with closing(Judge(ValidationSettings())) as judge:
        assert read(user_id=" ") == read(user_id="") == ([], [["user_id is missing"]])
        assert read(user_id=" u 1 ", device="  ") == (["u 1"], [])


def test_messages_of_two_topics_at_one_position_are_both_kept(home: Home):
    """Also those of one topic that was deleted and made anew; the same message again is kept once."""
    row = {**dict.fromkeys(tables.staged("events").names), "source_row": 0, "reasons": ["no JSON"]}

    def delivered(bus: str, payload: bytes) -> int:
        return memory.take(Judged([], [(Message("1-0", 5_000, payload), row)]), {}, bus).refused

    with closing(Memory(home)) as memory:
        fates = [delivered(*at) for at in [("b one", b"x"), ("b two", b"x"), ("b one", b"x"), ("b one", b"y"), ("b two", b"x")]]
        assert fates == [1, 1, 0, 1, 0]
        assert len(memory.refused(10)) == 3


def test_an_event_without_a_time_of_receipt_was_received_when_the_bus_took_it(bus_address: str):
    bus = member(bus_address)
    now = time.time()
    at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now))
    bus.publish([{"event_id": "e", "user_id": "u", "item_id": "i", "event_type": "view", "event_at": at}])
    seen = bus.consume(1, 1.0)
    ((_, row),) = Judge(ValidationSettings()).judge(seen).accepted
    assert abs(row["received_at"].timestamp() - now) < 60
    assert Judge(ValidationSettings()).judge(seen).accepted[0][1] == row, "the same in every delivery"
    bus.close()


@pytest.mark.usefixtures("online_store")
def test_an_event_is_online_within_a_second_of_being_published(shop: Home, bus_address: str):
    """Measured from before the publication to the read that shows it, beside 400 events of others."""
    bus = member(bus_address)
    consumer = Consumer(shop, member(bus_address, "b"))
    bus.publish(FED)
    consumer.run(idle_seconds=0.1)
    stop = threading.Event()

    def serve() -> None:
        with closing(Consumer(shop, member(bus_address, "c"))) as serving:
            ready.set()
            while not stop.is_set():
                serving.step()

    ready = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(30)
    view, took = PushedView(shop, session.VIEW), []
    try:
        for n in range(10):
            began = time.perf_counter()
            bus.publish([{**FED[0], "event_id": f"now-{n}", "user_id": "u0", "item_id": "i3", "event_at": day(20), "received_at": day(20)}])
            while f"now-{n}" not in (view.read(["u0"])[0]["last_event_ids"] or []):
                assert time.perf_counter() - began < 30
            took.append(time.perf_counter() - began)
    finally:
        stop.set()
        thread.join()
        consumer.close()
        bus.close()
    assert sorted(took)[len(took) // 2] < 1.0, took


CHILD = """
import os, signal, sys
from pipelines.config import Home
from pipelines.features.pushing import PushedView
from pipelines.streaming import handing_on
from pipelines.streaming.bus import Message, connect
from pipelines.streaming.consumer import Consumer
from pipelines.streaming.memory import Memory
from pipelines.streaming.reading import Judge, Judged

address, where, call = sys.argv[1], sys.argv[2], int(sys.argv[3])
bus = connect(address, topic="events", group="sessions", consumer="a")
owner, name = {
    "in the transaction": (Memory, "_remember"),
    "after the transaction": (PushedView, "push"),
    "after the push": (handing_on, "quarantine"),
    "after the quarantine": (Memory, "handed_on"),
    "before the acknowledgement": (type(bus), "acknowledge"),
}[where]
there, calls = getattr(owner, name), 0

def dying(*arguments, **named):
    global calls
    calls += 1
    if calls == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return there(*arguments, **named)

setattr(owner, name, dying)
Consumer(Home.from_environment(), bus).run(count=40, idle_seconds=1.0)
"""


def child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("in the transaction", 30),
        pytest.param("after the transaction", 2, marks=pytest.mark.slow),
        pytest.param("after the push", 2, marks=pytest.mark.slow),
        pytest.param("after the quarantine", 1, marks=pytest.mark.slow),
        ("before the acknowledgement", 3),
    ],
)
def test_a_consumer_that_is_killed_loses_nothing_and_doubles_nothing(shop: Home, bus_address: str, where: str, call: int):
    bus = member(bus_address)
    bus.publish([*FED[:100], *BAD, *FED[100:200]])
    died = child(CHILD, bus_address, where, str(call))
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert bus.waiting() > 0, "it died before it was done"
    with closing(Consumer(shop, member(bus_address))) as consumer:
        consumer.run(count=33, idle_seconds=0.5)
    assert bus.waiting() == 0
    bus.close()
    assert sorted(accepted(shop)) == sorted(e["event_id"] for e in FED[:200])
    assert len(quarantined(shop)) == len(BAD)
    assert is_right(shop, FED[:200])


def _behind(bus: Any) -> bool:
    """Return whether events wait; a broker that is settling who consumes what may not tell in time."""
    try:
        return bool(bus.waiting())
    except StateError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["redis", "kafka"])
def test_consumers_killed_at_random_while_others_work_lose_and_double_nothing(shop: Home, kind: str, request: pytest.FixtureRequest):
    """Two consumers of a group, one of them killed and started anew five times, events coming all the while."""
    address = f"redis://{request.getfixturevalue('redis')}/2" if kind == "redis" else f"kafka://{request.getfixturevalue('kafka_cluster')}"
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "stream", "--bus", address, "--count", "9"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}

    def started(name: str, *more: str) -> subprocess.Popen:
        argv = [*command, "--consumer", name, *more]
        return subprocess.Popen(argv, env=environment, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    log = (shop.root / "consumers.log").open("w")
    bus, fed = member(address), [*events()[:1000], *BAD]
    bus.publish(fed[:100])
    steady = started("steady")
    victim = started("victim")
    try:
        for n in range(5):
            bus.publish(fed[100 + 180 * n : 280 + 180 * n])
            time.sleep(4 + 0.37 * n)
            victim.kill()
            victim.wait()
            victim = started("victim")
        bus.publish(fed[1000:])
        until = time.monotonic() + 240
        while _behind(bus) and time.monotonic() < until:
            time.sleep(0.5)
        assert bus.waiting() == 0
    finally:
        for process in (steady, victim):
            process.terminate()
            process.wait(30)
        bus.close()
        log.close()
    assert sorted(accepted(shop)) == sorted(e["event_id"] for e in fed[:1000])
    assert len(quarantined(shop)) == len(BAD)
    assert is_right(shop, fed[:1000])


def test_an_id_is_forgotten_after_days_and_the_session_still_counts_it_once(home: Home):
    """By the clock of the bus, whatever times the events carry."""
    row = {**dict.fromkeys(tables.EVENTS.names), **FED[0], "received_at": day(300)}

    def delivered(n: int, event_id: str, days: float) -> Judged:
        return Judged([(Message(str(n), round(days * 86_400_000_000), b""), {**row, "event_id": event_id})], [])

    with closing(Memory(home)) as memory:
        fates = [memory.take(delivered(n, *at), {}) for n, at in enumerate([("a", 0), ("a", 2.9), ("b", 3.1), ("a", 3.2)])]
    assert [(fate.accepted, fate.repeated) for fate in fates] == [(1, 0), (0, 1), (1, 0), (1, 0)]
    (_, version, held) = fates[-1].sessions[row["user_id"]]
    assert [event.event_id for event in held] == ["b", "a"]
    assert version == 4


def test_without_an_applied_view_the_error_says_what_to_run(home: Home, bus_address: str):
    bus = member(bus_address)
    with pytest.raises(StateError, match=r"feature view user_session.*reloop features"):
        Consumer(home, bus)
    bus.close()


def reloop(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    return child("from pipelines.cli import main; main()", "stream", "--home", str(home.root), *arguments)


def test_the_command_publishes_consumes_and_reports_as_json(shop: Home, bus_address: str, tmp_path: Path):
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps(e, default=str) + "\n" for e in FED[:30]))
    published = reloop(shop, "--bus", bus_address, "--publish", str(file), "--json")
    assert json.loads(published.stdout) == {"published": 30}, published.stderr
    consumed = reloop(shop, "--bus", bus_address, "--until-idle", "0.5", "--json")
    counts = json.loads(consumed.stdout)
    assert (counts["events"], counts["accepted"], counts["refused"]) == (30, 30, 0)
    assert is_right(shop, FED[:30])


def test_refused_messages_of_two_buses_of_one_position_are_quarantined_both(shop: Home, redis: str):
    for topic in ("one", "two"):
        bus = member(f"redis://{redis}/3", topic=topic)
        bus._redis.xadd(bus.stream, {b"event": b"no json"}, id="1700000000000-0")
        with closing(Consumer(shop, bus)) as consumer:
            assert consumer.run(idle_seconds=0.1).refused == 1
    assert len(quarantined(shop)) == 2


def test_the_command_says_in_one_line_that_the_online_store_is_not_there(shop: Home, redis: str, monkeypatch: pytest.MonkeyPatch):
    bus = member(f"redis://{redis}/3")
    bus.publish(FED[:1])
    bus.close()
    monkeypatch.setenv(repository.REDIS, "127.0.0.1:1")
    done = reloop(shop, "--bus", f"redis://{redis}/3", "--until-idle", "1")
    assert done.returncode == 2
    assert "Redis at 127.0.0.1:1: ConnectionError" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_says_in_one_line_that_the_bus_is_not_there(shop: Home):
    done = reloop(shop, "--bus", "redis://127.0.0.1:1/0", "--until-idle", "1")
    assert done.returncode == 2
    assert "event bus reloop:events: ConnectionError" in done.stderr
    assert "Traceback" not in done.stderr
