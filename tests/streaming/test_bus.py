"""One contract for every bus: at least once, in batches, nothing lost that was not acknowledged."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from pipelines.errors import StateError
from pipelines.streaming.bus import EventBus, Message, connect
from pipelines.streaming.redis_streams import RedisStreams
from pipelines.streaming.sqlite_bus import SqliteBus

Member = Callable[..., EventBus]


# Each group of Kafka's takes seconds to form, waiting: one fast test of it stands for the contract, the rest are slow.
KAFKA: Final = pytest.param("kafka", marks=pytest.mark.slow)


@pytest.fixture(params=["sqlite", "redis", KAFKA])
def member(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Member]:
    """Return a maker of members of one fresh topic: a file, Redis itself, and librdkafka's own mock cluster on loopback."""
    if request.param == "sqlite":
        address, cluster = f"sqlite://{tmp_path / 'bus.db'}", None
    elif request.param == "redis":
        address, cluster = f"redis://{request.getfixturevalue('redis')}/0", None
    else:
        cluster = request.getfixturevalue("kafka_cluster")
        address = f"kafka://{cluster}"
    made: list[EventBus] = []

    def make(consumer: str = "a", group: str = "g", topic: str = "events") -> EventBus:
        made.append(connect(address, topic=topic, group=group, consumer=consumer))
        return made[-1]

    yield make
    for bus in made:
        bus.close()


def numbered(first: int, last: int) -> list[dict]:
    return [{"event_id": f"e{n}", "user_id": f"u{n % 5}"} for n in range(first, last)]


def ids(messages: list[Message]) -> list[str]:
    import json

    return sorted((json.loads(message.payload)["event_id"] for message in messages), key=lambda name: int(name[1:]))


def taken(bus: EventBus, count: int, seconds: float = 60.0, acknowledge: bool = False) -> list[Message]:
    """Return `count` messages, or what came within the time."""
    found: list[Message] = []
    until = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < until:
        got = bus.consume(count - len(found), 0.2)
        found += got
        if acknowledge:
            bus.acknowledge(got)
    return found


def wanted(first: int, last: int) -> list[str]:
    return [f"e{n}" for n in range(first, last)]


def test_what_is_published_is_consumed_once_when_acknowledged(member: Member):
    bus = member()
    assert bus.publish(numbered(0, 50)) == 50
    assert ids(taken(bus, 50, acknowledge=True)) == wanted(0, 50)
    assert bus.waiting() == 0
    assert bus.consume(10, 0.3) == []
    bus.close()
    assert member().consume(10, 2.0) == []


@pytest.mark.parametrize("member", ["sqlite", "redis", "kafka"], indirect=True)
def test_what_was_not_acknowledged_comes_again_under_the_same_position(member: Member):
    bus = member()
    bus.publish(numbered(0, 20))
    first = taken(bus, 20)
    done = [message for message in first if message.payload in {m.payload for m in first[:8]}]
    bus.acknowledge(done)
    bus.close()
    again = taken(member(), 12)
    assert set(again) <= set(first)
    assert {m.position for m in first} - {m.position for m in done} <= {m.position for m in again}


def test_a_batch_is_no_larger_than_asked_and_waits_no_longer(member: Member):
    bus = member()
    bus.publish(numbered(0, 30))
    assert len(taken(bus, 1)) == 1
    assert 0 < len(bus.consume(7, 2.0)) <= 7
    began = time.monotonic()
    taken(bus, 22)
    bus.consume(10, 0.3)
    assert time.monotonic() - began < 15


def test_every_group_gets_everything(member: Member):
    member().publish(numbered(0, 10))
    assert ids(taken(member(group="one"), 10)) == ids(taken(member(group="two"), 10)) == wanted(0, 10)


def test_topics_do_not_mix(member: Member):
    member().publish(numbered(0, 3))
    member(topic="other").publish(numbered(3, 5))
    assert ids(taken(member(topic="other"), 2)) == wanted(3, 5)


@pytest.fixture(params=["sqlite", "redis"])
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., EventBus]:
    """Return a maker of members of one fresh topic whose limits the test sets."""
    if request.param == "sqlite":
        return partial(SqliteBus, tmp_path / "bus.db", topic="t")
    return partial(RedisStreams, f"redis://{request.getfixturevalue('redis')}/0", topic="t")


def test_what_a_dead_member_left_goes_to_another(limited: Member):
    """It died without a word; after the idle time its entries are somebody else's, the acknowledged ones never."""
    dead = limited(group="g", consumer="dead", idle_seconds=0.2)
    dead.publish(numbered(0, 10))
    got = dead.consume(10, 1.0)
    dead.acknowledge(got[:4])
    heir = limited(group="g", consumer="heir", idle_seconds=0.2)
    assert heir.consume(10, 0.05) == []  # not idle for long enough
    time.sleep(0.3)
    inherited = heir.consume(4, 0.1) + heir.consume(4, 0.1)
    assert ids(inherited) == wanted(4, 10)
    heir.acknowledge(inherited)
    assert heir.waiting() == 0
    dead.close()
    heir.close()


def test_a_stream_is_bounded_by_refusing_and_never_by_dropping(limited: Member):
    bus = limited(group="g", consumer="a", max_length=100)
    slow = limited(group="slow", consumer="a", max_length=100)
    assert slow.consume(1, 0.05) == []  # the slow group exists
    assert bus.publish(numbered(0, 100)) == 100
    with pytest.raises(StateError, match="100 events that consumers have not acknowledged"):
        bus.publish(numbered(100, 101))
    bus.acknowledge(bus.consume(60, 1.0))
    with pytest.raises(StateError, match="100 at most"):
        bus.publish(numbered(100, 101))  # the slow group still needs them all
    slow.acknowledge(slow.consume(50, 1.0))
    assert bus.publish(numbered(100, 140)) == 40
    assert ids(taken(slow, 90, acknowledge=True)) == wanted(50, 140)
    assert ids(taken(bus, 80, acknowledge=True)) == wanted(60, 140)
    assert bus.publish(numbered(140, 239)) == 99  # what both have acknowledged made room
    bus.close()
    slow.close()


def test_a_bus_that_is_not_there_is_named_at_once():
    bus = connect("redis://127.0.0.1:1/0", topic="t", group="g", consumer="a")
    began = time.monotonic()
    with pytest.raises(StateError, match=r"event bus reloop:t: ConnectionError.*Redis that answers"):
        bus.consume(1, 0.1)
    assert time.monotonic() - began < 2
    bus.close()


def test_publishers_of_many_processes_take_turns_and_a_consumer_beside_them_skips_none(tmp_path: Path):
    """A position is given at the insert and seen at the commit: where these overlap, a reader that went on would skip one."""
    address = f"sqlite://{tmp_path / 'bus.db'}"
    bus = connect(address, topic="t", group="g", consumer="a")
    code = (
        "import sys; from pipelines.streaming.bus import connect\n"
        "bus = connect(sys.argv[1], topic='t', group='g', consumer='p')\n"
        "for n in range(int(sys.argv[2]), int(sys.argv[2]) + 40): bus.publish([{'event_id': f'e{n}'}])"
    )
    publishers = [subprocess.Popen([sys.executable, "-c", code, address, str(first)]) for first in (0, 40, 80)]
    got = taken(bus, 120, acknowledge=True)
    assert [publisher.wait(60) for publisher in publishers] == [0, 0, 0]
    assert ids(got) == wanted(0, 120)
    assert bus.waiting() == 0
    bus.close()


def test_a_publisher_is_told_what_a_publisher_can_do():
    bus = connect("redis://127.0.0.1:1/0", topic="t", group="g", consumer="a")
    with pytest.raises(StateError, match="0 events are on it; publish the file again") as error:
        bus.publish(numbered(0, 2))
    assert "delivered again" not in str(error.value)
    bus.close()


@pytest.mark.parametrize("address", ["redis://:secret@127.0.0.1:abc/0", "redis://127.0.0.1:99999/0", "redis://user:se/cret@host:6379/0"])
def test_a_redis_address_that_cannot_be_read_is_refused_and_its_password_not_shown(address: str):
    with pytest.raises(StateError, match="redis://HOST:PORT/DB") as error:
        connect(address, topic="t", group="g", consumer="a")
    assert "cret" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("address", ["kafka://", "kafka:///", "kafka://:9092", "kafka://host:9092,"])
def test_a_kafka_address_without_a_broker_is_refused_at_once(address: str):
    with pytest.raises(StateError, match="no broker"):
        connect(address, topic="t", group="g", consumer="a")


def test_a_bus_is_named_by_server_and_topic_and_never_by_its_password():
    addresses = ["redis://:secret@one:1/3", "redis://one:1/3", "redis://one:1/4", "redis://one", "unix:///run/redis.sock?db=2"]
    buses = [connect(address, topic="t", group="g", consumer="a") for address in addresses]
    assert [bus.name for bus in buses] == [
        "redis://one:1/3 reloop:t",
        "redis://one:1/3 reloop:t",
        "redis://one:1/4 reloop:t",
        "redis://one:6379/0 reloop:t",
        "redis:///run/redis.sock/2 reloop:t",
    ]
    for bus in buses:
        bus.close()


def test_a_publisher_whose_clock_is_ahead_does_not_set_the_clock_of_kafka(kafka_cluster: str):
    bus = connect(f"kafka://{kafka_cluster}", topic="t", group="g", consumer="a")
    ahead = bus._kafka.Producer({"bootstrap.servers": kafka_cluster})
    ahead.produce("t", value=b"{}", timestamp=2_840_140_800_000)  # 2060
    assert ahead.flush(30) == 0
    (message,) = taken(bus, 1)
    assert message.published_us <= time.time_ns() // 1000
    bus.close()


def test_leaving_a_group_that_is_being_balanced_is_given_up_and_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """The stand-in closes as librdkafka does in a rebalance that never ends: not before it may."""
    bus = connect("kafka://127.0.0.1:1", topic="t", group="g", consumer="a")
    monkeypatch.setattr("pipelines.streaming.kafka.CLOSE_SECONDS", 0.2)
    may = threading.Event()
    monkeypatch.setattr(bus, "_consumer", SimpleNamespace(close=may.wait), raising=False)
    began = time.monotonic()
    bus.close()
    assert time.monotonic() - began < 5
    assert "not left within 0.2 s" in caplog.text
    may.set()
    bus.close()


def test_an_address_of_no_known_kind_is_refused_and_its_password_not_shown():
    with pytest.raises(StateError, match="'amqp'") as error:
        connect("amqp://somebody:secret@host", topic="t", group="g", consumer="a")
    assert "secret" not in str(error.value)
