"""What carries events from those who see them to those who need them: at least once, in batches, acknowledged.

A bus keeps every published event until each group of consumers has acknowledged it. A consumer that
dies leaves what it did not acknowledge to the others, or to itself when it comes back; what it had
done already it is handed again, so whoever consumes must be able to meet an event twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipelines import config
from pipelines.config import Home
from pipelines.errors import StateError


class Message(NamedTuple):
    """One delivery.

    Attributes:
        position: its name on the bus, the same in every delivery.
        published_us: when the bus took it, microseconds since 1970 UTC.
        payload: the event as JSON (UTF-8), or whatever somebody published.
    """

    position: str
    published_us: int
    payload: bytes


class EventBus(Protocol):
    """A bus seen by one member of one group.

    Attributes:
        name: its servers and the topic, without any password: positions are its own.
    """

    name: str

    def publish(self, events: Iterable[Mapping[str, Any]]) -> int:
        """Put events on the bus; once this returns, they are kept. Returns how many.

        Raises:
            StateError: the bus cannot be reached, or is full.
        """

    def consume(self, count: int, wait_seconds: float) -> list[Message]:
        """Return at most `count` messages of the group: left over from a consumer that died, else new; none after the wait.

        Raises:
            StateError: the bus cannot be reached.
        """

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Say that messages are done with; the group is not handed them again."""

    def waiting(self) -> int:
        """Return how many messages the group has not acknowledged yet."""

    def close(self) -> None:
        """Leave; what was consumed and not acknowledged is delivered again."""


def encode(event: Mapping[str, Any]) -> bytes:
    """Return an event as JSON: what it lacks is left out, times as ISO 8601."""
    filled = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in event.items() if value is not None}
    return json.dumps(filled, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()


def of(home: Home, *, group: str, consumer: str) -> EventBus:
    """Return the bus of a state folder: that of its settings, or a file of its own.

    Raises:
        StateError: as `connect`.
    """
    settings = config.load(home).stream
    return connect(settings.bus or f"sqlite://{_own(home)}", topic=settings.topic, group=group, consumer=consumer)


def exists(home: Home) -> bool:
    """Tell whether anything can have been published: the bus is a server, or the file of its own is there."""
    return bool(config.load(home).stream.bus) or _own(home).is_file()


def _own(home: Home) -> Path:
    return home.stream / "bus.db"


def connect(address: str, *, topic: str, group: str, consumer: str) -> EventBus:
    """Return the bus at an address: `sqlite:///FILE`, `redis://HOST:PORT/DB` or `kafka://HOST:PORT,HOST:PORT`.

    Args:
        group: consumers of one group share the events, each group gets them all.
        consumer: one member; under the same name again it resumes what it left.

    Raises:
        StateError: the address is of no known kind or names no server, or its client is not installed.
    """
    scheme, _, servers = address.partition("://")
    if scheme == "sqlite":
        from pipelines.streaming.sqlite_bus import SqliteBus

        if not servers.startswith("/"):
            raise StateError("event bus sqlite://", found="no file", allowed="sqlite:///ABSOLUTE/FILE")
        return SqliteBus(Path(servers), topic=topic, group=group, consumer=consumer)
    if scheme in {"redis", "rediss", "unix"}:
        from pipelines.streaming.redis_streams import RedisStreams

        return RedisStreams(address, topic=topic, group=group, consumer=consumer)
    if scheme == "kafka":
        from pipelines.streaming.kafka import Kafka

        servers = servers.rstrip("/")
        if not all(server.strip().partition(":")[0] for server in servers.split(",")):
            raise StateError("event bus kafka://", found="no broker", allowed="kafka://HOST:PORT,HOST:PORT")
        return Kafka(servers, topic=topic, group=group, consumer=consumer)
    raise StateError("event bus", found=f"the scheme {scheme!r}", allowed="sqlite:///FILE, redis://HOST:PORT/DB or kafka://HOST:PORT")
