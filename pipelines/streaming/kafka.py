"""Kafka as the event bus: keyed by user, so that one consumer at a time meets a user's events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any, Final

from pipelines import columns as c
from pipelines.errors import StateError
from pipelines.streaming.bus import Message, encode

FLUSH_SECONDS: Final = 30.0
SESSION_SECONDS: Final = 6.0
CLOSE_SECONDS: Final = 10.0

log = logging.getLogger(__name__)


class Kafka:
    """A member of a consumer group of a topic.

    Offsets are committed by `acknowledge` alone, up to the first message of a partition that is not
    yet acknowledged; what lies behind them is delivered again after a crash. Retention is the
    topic's own: Kafka keeps messages by age and size, whoever has read them.

    Args:
        servers: HOST:PORT of the brokers, separated by commas.
        options: further settings of librdkafka (security.protocol, sasl.*, ssl.*).
        clock: the present in nanoseconds since 1970; no message is taken to be from after it.
    """

    def __init__(
        self,
        servers: str,
        *,
        topic: str,
        group: str,
        consumer: str,
        options: Mapping[str, Any] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        try:
            import confluent_kafka as kafka
        except ImportError as error:
            raise StateError(
                "event bus kafka://",
                found="confluent-kafka is not installed",
                allowed="the extra `kafka`",
                hint="pip install 'reloop[kafka]'",
            ) from error
        self.topic, self.servers = topic, servers
        self.name = f"kafka://{','.join(sorted(servers.split(',')))} {topic}"
        self._kafka, self._clock = kafka, clock
        self._common = {"bootstrap.servers": servers, "client.id": consumer, "log_level": 2, **(options or {})}
        self._settings = {
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": round(SESSION_SECONDS * 1000),
            "partition.assignment.strategy": "cooperative-sticky",
            "topic.metadata.refresh.interval.ms": 1000,
        }
        self._consumer: Any = None
        self._producer: Any = None
        # partition -> offsets delivered and not yet acknowledged
        self._open: dict[int, set[int]] = {}
        self._next: dict[int, int] = {}

    def publish(self, events: Iterable[Mapping[str, Any]]) -> int:
        """Send events and wait until all in-sync replicas have them."""
        if self._producer is None:
            self._producer = self._kafka.Producer({**self._common, "enable.idempotence": True, "linger.ms": 5})
        failed: list[str] = []
        sent = 0

        def told(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(str(error))

        for event in events:
            key = str(event.get(c.USER_ID) or "")
            while True:
                try:
                    self._producer.produce(self.topic, value=encode(event), key=key, on_delivery=told)
                    break
                except BufferError:
                    self._producer.poll(0.1)
            sent += 1
        if left := self._producer.flush(FLUSH_SECONDS):
            failed.append(f"{left} events were not confirmed within {FLUSH_SECONDS:g} s")
        if failed:
            raise self._gone(failed[0], "publish them again once the brokers are up: an event that comes twice counts once")
        return sent

    def consume(self, count: int, wait_seconds: float) -> list[Message]:
        """Return new messages of the partitions that are ours, from the last commit on."""
        with self._reachable():
            records = self._subscribed().consume(count, wait_seconds)
        messages, now = [], self._clock() // 1_000_000
        for record in records:
            if error := record.error():
                # A topic comes into being with its first event.
                if error.code() in {self._kafka.KafkaError.UNKNOWN_TOPIC_OR_PART, self._kafka.KafkaError._PARTITION_EOF}:
                    continue
                raise self._gone(str(error))
            partition, offset = record.partition(), record.offset()
            self._open.setdefault(partition, set()).add(offset)
            self._next[partition] = max(self._next.get(partition, 0), offset + 1)
            # Unless the topic says otherwise the time is the publisher's, whose clock may be years ahead.
            published = min(max(record.timestamp()[1], 0), now)
            messages.append(Message(f"{partition}:{offset}", published * 1000, record.value() or b""))
        return messages

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Commit, of every partition, the first offset that is still needed."""
        done: dict[int, set[int]] = {}
        for message in messages:
            partition, offset = map(int, message.position.split(":"))
            done.setdefault(partition, set()).add(offset)
        commits = []
        for partition, offsets in done.items():
            if partition in self._open:  # else it was given to another member meanwhile, who gets them again
                self._open[partition] -= offsets
                first = min(self._open[partition], default=self._next[partition])
                commits.append(self._kafka.TopicPartition(self.topic, partition, first))
        if commits:
            with self._reachable():
                self._subscribed().commit(offsets=commits, asynchronous=False)

    def waiting(self) -> int:
        """Return how far the commits of the group are behind the ends of the partitions."""
        with self._reachable():
            consumer = self._subscribed()
            known = consumer.list_topics(self.topic, timeout=5.0).topics[self.topic].partitions
            committed = consumer.committed([self._kafka.TopicPartition(self.topic, partition) for partition in known], timeout=5.0)
            behind = 0
            for place in committed:
                first, end = consumer.get_watermark_offsets(place, timeout=5.0)
                behind += end - max(place.offset, first)
            return behind

    def close(self) -> None:
        """Leave the group; uncommitted messages go to the members that stay.

        librdkafka's close waits without end where the group is being balanced just then, so it is given some
        seconds. A member that did not get to say goodbye is missed by the group after `SESSION_SECONDS`.
        """
        if (consumer := self._consumer) is not None:
            self._consumer = None
            leaving = Thread(target=consumer.close, name="kafka-close", daemon=True)
            leaving.start()
            leaving.join(CLOSE_SECONDS)
            if leaving.is_alive():
                log.warning("%s: not left within %g s; the group misses this member in %g s", self.name, CLOSE_SECONDS, SESSION_SECONDS)

    def _subscribed(self) -> Any:
        if self._consumer is None:
            self._consumer = self._kafka.Consumer({**self._common, **self._settings})
            self._consumer.subscribe([self.topic], on_revoke=self._revoked, on_lost=self._revoked)
        return self._consumer

    def _revoked(self, _: Any, partitions: Sequence[Any]) -> None:
        for place in partitions:
            self._open.pop(place.partition, None)
            self._next.pop(place.partition, None)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except self._kafka.KafkaException as error:
            raise self._gone(str(error)) from error

    def _gone(self, found: str, hint: str = "what was not acknowledged is delivered again") -> StateError:
        return StateError(
            f"event bus kafka://{self.servers}, topic {self.topic}",
            found=found,
            allowed="brokers that answer",
            hint=hint,
        )
