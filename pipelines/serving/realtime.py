"""Events in real time: accepted or refused row by row, kept by the bus, and known to the user's next answer.

What is accepted counts in this process at once (`recent`), in every process once the consumer has brought the session to the
online store, which takes well under a second; both make the lists out of date that were remembered for the user (`news`).
What is refused goes over the bus, too: the consumer puts it into quarantine with its reasons, so that nothing is lost.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from pipelines import columns as c
from pipelines import config
from pipelines.config import Home
from pipelines.serving.lookout import Lookout
from pipelines.serving.news import News
from pipelines.serving.recent import Recent
from pipelines.serving.shared_cache import SharedCache
from pipelines.streaming import bus as buses
from pipelines.streaming import collecting
from pipelines.streaming.bus import EventBus, Message, encode
from pipelines.streaming.consumer import Consumer
from pipelines.streaming.reading import Judge
from pipelines.streaming.session import SessionEvent
from pipelines.window import micros

LOG: Final = logging.getLogger(__name__)
GROUP: Final = "sessions"  # as `reloop stream` calls it: both share the work
MICROSECOND: Final = timedelta(microseconds=1)
RETRY_SECONDS: Final = 1.0
WAIT_SECONDS: Final = 0.25

Touched = Callable[[Sequence[str]], None]


def touching(home: Home) -> Touched:
    """Return what makes the remembered lists of users out of date, in every process of a state folder, and over Redis where lists are shared."""
    settings, news = config.load(home).serving, News(home)
    shared = SharedCache(home, settings.cache, settings.ladder.breaker) if settings.cache.redis else None

    def touched(users: Sequence[str]) -> None:
        news.touch(users)
        if shared is not None:
            shared.touch(users)

    return touched


@dataclass(frozen=True)
class Verdict:
    """What became of one row.

    Attributes:
        event_id: as it was sent, or made of the row.
        reasons: why it was refused; none where it was accepted.
    """

    event_id: str
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether it counts."""
        return not self.reasons


class Intake:
    """Takes batches of events; any number of threads.

    Args:
        touched: is told whose remembered lists are out of date.
    """

    def __init__(self, home: Home, bus: EventBus, recent: Recent, touched: Touched) -> None:
        self._bus, self._recent, self._touched = bus, recent, touched
        settings = config.load(home).validation
        self._ahead = timedelta(minutes=settings.max_future_minutes)
        self._judge, self._turn = Judge(settings), threading.Lock()  # its engine serves one thread at a time

    @classmethod
    def of(cls, home: Home, recent: Recent, touched: Touched) -> Intake:
        """Return the intake of a state folder, which publishes to the bus of its settings.

        Raises:
            StateError: the bus cannot be reached.
        """
        collecting.expect(home)  # from now on the bus keeps what is published until the lake has it
        return cls(home, buses.of(home, group=GROUP, consumer="intake"), recent, touched)

    def take(self, rows: Sequence[Mapping[str, Any]], now: datetime, request_id: str = "") -> list[Verdict]:
        """Return the fate of each row; once this returns, the bus keeps them all.

        A row without `event_at` happened now; one without `event_id` is named by its content, so that sending it twice counts once
        where it says when it happened. Where it does not, the request belongs to its name, and how many like it stand before it in the batch: two
        rows alike are two events, and the same request sent again brings the same ones. All rows were received now, whatever they say; what a clock that is ahead by no more than the
        rules allow says to come has happened now, so that the next answer knows it.

        Raises:
            StateError: the bus cannot be reached, or is full: nothing was taken, send the batch again.
        """
        if not rows:
            return []
        met: Counter[bytes] = Counter()
        sent = _by_receipt([_completed(row, now, request_id, met) for row in rows], now, self._ahead)
        messages = [Message("", micros(now), encode(row)) for row in sent]
        with self._turn:
            judged = self._judge.judge(messages)
        refused = {id(message): tuple(row[c.REASONS]) for message, row in judged.refused}
        self._bus.publish(sent)
        fresh: dict[str, list[SessionEvent]] = {}
        for _, row in judged.accepted:
            event = SessionEvent(micros(row[c.EVENT_AT]), row[c.EVENT_ID], row[c.ITEM_ID], row[c.EVENT_TYPE])
            fresh.setdefault(row[c.USER_ID], []).append(event)
        if fresh:
            self._recent.add(fresh, micros(now))  # first, so that a list made because of the news knows the event
            self._touched(list(fresh))
        return [Verdict(str(row[c.EVENT_ID]), refused.get(id(message), ())) for row, message in zip(sent, messages, strict=True)]

    def close(self) -> None:
        """Leave the bus."""
        self._bus.close()
        self._judge.close()


def _completed(row: Mapping[str, Any], now: datetime, request_id: str, met: Counter[bytes]) -> dict[str, Any]:
    """Return a row that the bus can carry and the rules can judge; what JSON cannot carry goes as text, to be refused.

    Args:
        met: rows of the batch that did not say when they happened, by content; this one is counted.
    """
    said = {name: value for name, value in row.items() if value is not None and name != c.RECEIVED_AT}
    try:
        content = encode(said)
    except (ValueError, TypeError, RecursionError):
        said = {"unreadable": ascii(dict(row))[:10_000]}
        content = encode(said)
    if c.EVENT_AT not in said:
        met[content] += 1
        content += f"\0{request_id or now.isoformat()}\0{met[content]}".encode()
    return {c.EVENT_ID: hashlib.blake2b(content, digest_size=16).hexdigest(), c.EVENT_AT: now, **said, c.RECEIVED_AT: now}


def _by_receipt(rows: list[dict[str, Any]], now: datetime, ahead: timedelta) -> list[dict[str, Any]]:
    """Return rows of which none happened after it was received, but those that the rules refuse for it; their order stays."""
    early = [at for at, row in enumerate(rows) if (moment := _moment(row[c.EVENT_AT])) is not None and now <= moment <= now + ahead]
    early.sort(key=lambda at: _moment(rows[at][c.EVENT_AT]) or now)
    for left, at in enumerate(reversed(early), 1):
        rows[at] = {**rows[at], c.EVENT_AT: now - left * MICROSECOND}
    return rows


def _moment(value: object) -> datetime | None:
    """Return a time with its offset, as rows and their JSON have it; None of anything else."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return found if isinstance(found, datetime) and found.tzinfo is not None else None


class Follower:
    """Keeps sessions fresh from within the service: one thread of one process of a state folder, whichever it is.

    Who holds a lock on `stream/.consumer.lock` consumes; the kernel drops the lock when the holder dies, and another takes over within
    `RETRY_SECONDS`. What the dead one had not acknowledged is delivered again.
    """

    def __init__(self, home: Home, touched: Touched) -> None:
        self._home, self._touched = home, touched
        self.lookout = Lookout("reloop-sessions", self._lead, RETRY_SECONDS)
        self._lock: int | None = None
        self.leads = False

    @property
    def trouble(self) -> str:
        """Why nothing is consumed just now; empty where something is."""
        return self.lookout.trouble

    def start(self) -> None:
        """Begin."""
        self.lookout.start()

    def stop(self) -> None:
        """End, after the delivery under way, and let another process have the lock."""
        self.lookout.stop()
        self.leads = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _lead(self) -> None:
        """Consume until told to stop, or until something goes wrong; nothing where another process does.

        Raises:
            Exception: what went wrong; everything is left, and the lock kept for the next try.
        """
        if self._lock is None:
            lock = self._home.stream / ".consumer.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        self.leads = True
        name = f"serve-{socket.gethostname()}"
        with (
            closing(buses.of(self._home, group=GROUP, consumer=name)) as bus,
            closing(Consumer(self._home, bus, on_pushed=self._touched)) as consumer,
        ):
            while not self.lookout.stopping.is_set():
                consumer.step(wait_seconds=WAIT_SECONDS)
                self.lookout.trouble = ""
