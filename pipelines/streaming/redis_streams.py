"""Redis Streams as the event bus: one stream a topic, consumer groups, nothing dropped that a group still needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

from pipelines.errors import StateError
from pipelines.streaming.bus import Message, encode

FIELD: Final = b"event"
CHUNK: Final = 1000
MAX_LENGTH: Final = 1_000_000
IDLE_SECONDS: Final = 30.0
NEW, OWN_PENDING, OLDEST = ">", "0", "0-0"


class RedisStreams:
    """A member of a consumer group of a stream.

    Delivery: XREADGROUP for new entries; entries that a dead member left pending are taken over by
    XAUTOCLAIM once they have been idle for `idle_seconds`; a member that comes back under its name
    first gets what it left itself.

    Length: what every group has acknowledged is trimmed; a stream of `max_length` entries that are
    still needed refuses new ones, so a stalled consumer slows its producers and loses nothing.
    Without any group nothing is trimmed.

    Args:
        address: redis://HOST:PORT/DB (`rediss://` for TLS).
        idle_seconds: when a delivered and unacknowledged entry counts as left by a dead member.
    """

    def __init__(
        self,
        address: str,
        *,
        topic: str,
        group: str,
        consumer: str,
        max_length: int = MAX_LENGTH,
        idle_seconds: float = IDLE_SECONDS,
        timeout_seconds: float = 2.0,
    ) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise StateError(
                "event bus redis://", found="redis is not installed", allowed="the extra `servers`", hint="pip install 'reloop[servers]'"
            ) from error
        self.address, self.stream, self.group, self.consumer = address, f"reloop:{topic}", group, consumer
        self.max_length, self.idle_ms = max_length, round(idle_seconds * 1000)
        # The client's own retries stall for nine seconds where the server is gone.
        try:
            self._redis: Any = redis.Redis.from_url(
                address, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, retry=Retry(NoBackoff(), 0)
            )
        except ValueError:
            # Neither the address nor what is said of it is repeated: it may hold a password.
            raise StateError(
                "event bus", found="a Redis address that cannot be read", allowed="redis://HOST:PORT/DB, the port a number up to 65535"
            ) from None
        place = self._redis.connection_pool.connection_kwargs
        server = place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"
        self.name = f"redis://{server}/{place.get('db', 0)} {self.stream}"
        self._timeout, self._errors = timeout_seconds, redis.RedisError
        self._recovered, self._claim_from = False, OLDEST
        self._joined = False

    def publish(self, events: Iterable[Mapping[str, Any]]) -> int:
        """Put events on the stream, a thousand a round trip."""
        published = 0
        payloads = (encode(event) for event in events)
        while chunk := list(islice(payloads, CHUNK)):
            with self._reachable(f"{published} events are on it; publish the file again: an event that comes twice counts once"):
                if self._redis.xlen(self.stream) + len(chunk) > self.max_length:
                    self._trim()
                    if (length := self._redis.xlen(self.stream)) + len(chunk) > self.max_length:
                        raise StateError(
                            f"event bus {self.stream}",
                            found=f"{length} events that consumers have not acknowledged",
                            allowed=f"{self.max_length} at most",
                            hint="start a consumer (`reloop stream`), or remove a group that is gone: XGROUP DESTROY",
                        )
                with self._redis.pipeline(transaction=True) as pipe:
                    for payload in chunk:
                        pipe.xadd(self.stream, {FIELD: payload})
                    published += len(pipe.execute())
        return published

    def consume(self, count: int, wait_seconds: float) -> list[Message]:
        """Return what this member left itself, else what dead members left, else new entries."""
        with self._reachable():
            self._join()
            if not self._recovered:
                left = self._read(OWN_PENDING, count, None)
                # Entries of our own stay in the list until acknowledged: read on only once they are.
                if left:
                    return left
                self._recovered = True
            if claimed := self._claim(count):
                return claimed
            return self._read(NEW, count, wait_seconds)

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Acknowledge entries, and drop from the stream what no group needs any more."""
        if messages:
            with self._reachable():
                self._redis.xack(self.stream, self.group, *(message.position for message in messages))
                self._trim()

    def waiting(self) -> int:
        """Return pending and undelivered entries of the group."""
        with self._reachable():
            self._join()
            (info,) = (entry for entry in self._redis.xinfo_groups(self.stream) if entry["name"].decode() == self.group)
            return int(info["pending"]) + int(info["lag"] or 0)

    def close(self) -> None:
        """Leave; pending entries stay for this member's name, or for whoever claims them."""
        self._redis.close()

    def _join(self) -> None:
        if self._joined:
            return
        try:
            self._redis.xgroup_create(self.stream, self.group, id=OLDEST, mkstream=True)
        except self._errors as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._joined = True

    def _read(self, since: str, count: int, wait_seconds: float | None) -> list[Message]:
        # A wait longer than the socket's patience would look like a dead server.
        wait = None if wait_seconds is None else max(1, round(min(wait_seconds, self._timeout / 2) * 1000))
        answer: Any = self._redis.xreadgroup(self.group, self.consumer, {self.stream: since}, count=count, block=wait)
        return _messages(entries) if (entries := answer[0][1] if answer else []) else []

    def _claim(self, count: int) -> list[Message]:
        answer: Any = self._redis.xautoclaim(self.stream, self.group, self.consumer, self.idle_ms, start_id=self._claim_from, count=count)
        self._claim_from = answer[0]
        return _messages(answer[1])

    def _trim(self) -> None:
        """Drop what every group has acknowledged: all before the oldest entry that some group still needs."""
        needed = []
        for group in self._redis.xinfo_groups(self.stream):
            pending: Any = self._redis.xpending(self.stream, group["name"])
            last = pending["min"] if pending["pending"] else group["last-delivered-id"]
            needed.append(_order(last))
        if needed:
            milliseconds, sequence = min(needed)
            self._redis.xtrim(self.stream, minid=f"{milliseconds}-{sequence}", approximate=False)

    @contextmanager
    def _reachable(self, hint: str = "what was not acknowledged is delivered again") -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise StateError(
                f"event bus {self.stream}",
                found=f"{type(error).__name__}: {error}",
                allowed="a Redis that answers",
                hint=f"is the server up, with `maxmemory-policy noeviction`? {hint[0].upper()}{hint[1:]}",
            ) from error


def _order(position: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = position.decode().partition("-")
    return int(milliseconds), int(sequence)


def _messages(entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Message]:
    """Return entries as messages; one that was deleted from the stream has no fields and holds nothing any more."""
    return [Message(position.decode(), _order(position)[0] * 1000, fields.get(FIELD, b"")) for position, fields in entries if fields]
