"""The embedded event bus: a SQLite file, for one machine and no server. What it guarantees is what the others do."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pipelines.errors import StateError
from pipelines.streaming.bus import Message, encode

MAX_LENGTH: Final = 1_000_000
IDLE_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02
NOW_US: Final = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"  # the database's clock, as a server would stamp
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, published_us INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS groups (topic TEXT NOT NULL, name TEXT NOT NULL, delivered INTEGER NOT NULL, PRIMARY KEY (topic, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (
    topic TEXT NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL, consumer TEXT NOT NULL, since_us INTEGER NOT NULL,
    PRIMARY KEY (topic, name, position)
) WITHOUT ROWID;
"""


class SqliteBus:
    """A member of a consumer group of a topic in a file.

    Writers take turns, so positions grow in the order of commits and a reader never skips one. What a
    member was handed stays pending under its name; another takes it over after `idle_seconds`. What
    every group has acknowledged is deleted; `max_length` events that are still needed refuse new ones.

    Args:
        file: made if it is not there; on a local disk, for SQLite's locks.
    """

    def __init__(
        self, file: Path, *, topic: str, group: str, consumer: str, max_length: int = MAX_LENGTH, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self.name = f"sqlite://{file} {topic}"
        self.topic, self.group, self.consumer = topic, group, consumer
        self.max_length, self.idle_us = max_length, round(idle_seconds * 1e6)
        self._turn = threading.Lock()  # a connection serves one statement at a time
        self._recovered = self._joined = False
        with self._reachable():
            file.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, timeout=10.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # once `publish` returns, the event outlives a power cut
            self._db.executescript(SCHEMA)

    def publish(self, events: Iterable[Mapping[str, Any]]) -> int:
        """Put events on the bus in one transaction, all or none."""
        payloads = [(self.topic, encode(event)) for event in events]
        with self._writing() as db:
            # Positions are dense but for what was trimmed of other topics: the ends are enough, and cost the same however many wait.
            (length,) = db.execute(
                "SELECT coalesce((SELECT max(position) FROM events) - (SELECT min(position) FROM events) + 1, 0)"
            ).fetchone()
            if length + len(payloads) > self.max_length:
                raise StateError(
                    f"event bus {self.topic}",
                    found=f"{length} events that consumers have not acknowledged",
                    allowed=f"{self.max_length} at most",
                    hint="let a consumer catch up (`reloop stream`, `reloop ingest`)",
                )
            db.executemany(f"INSERT INTO events (topic, published_us, payload) VALUES (?, {NOW_US}, ?)", payloads)
        return len(payloads)

    def consume(self, count: int, wait_seconds: float) -> list[Message]:
        """Return what this member left itself, else what dead members left, else new events."""
        until = time.monotonic() + wait_seconds
        self._join()
        while True:
            if found := self._delivered(count):
                return found
            if time.monotonic() >= until:
                return []
            time.sleep(POLL_SECONDS)

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Acknowledge events, and delete what no group needs any more."""
        if not messages:
            return
        with self._writing() as db:
            done = [(self.topic, self.group, int(message.position)) for message in messages]
            db.executemany("DELETE FROM pending WHERE topic = ? AND name = ? AND position = ?", done)
            needed = (
                "SELECT min(coalesce((SELECT min(position) - 1 FROM pending p WHERE p.topic = g.topic AND p.name = g.name), g.delivered))"
                " FROM groups g WHERE g.topic = ?"
            )
            db.execute(f"DELETE FROM events WHERE topic = ? AND position <= ({needed})", [self.topic, self.topic])

    def waiting(self) -> int:
        """Return pending and undelivered events of the group."""
        self._join()
        with self._reading() as db:
            (pending,) = db.execute("SELECT count(*) FROM pending WHERE topic = ? AND name = ?", [self.topic, self.group]).fetchone()
            new = "SELECT count(*) FROM events WHERE topic = ? AND position > (SELECT delivered FROM groups WHERE topic = ? AND name = ?)"
            (waiting,) = db.execute(new, [self.topic, self.topic, self.group]).fetchone()
        return int(pending) + int(waiting)

    def close(self) -> None:
        """Leave; pending events stay for this member's name, or for whoever takes them over."""
        with self._turn:
            self._db.close()

    def _join(self) -> None:
        """Make the group, which gets every event that is still there."""
        if not self._joined:
            with self._writing() as db:
                db.execute("INSERT OR IGNORE INTO groups VALUES (?, ?, 0)", [self.topic, self.group])
            self._joined = True

    def _delivered(self, count: int) -> list[Message]:
        if self._recovered and not self._something():
            return []
        with self._writing() as db:
            left = [self.topic, self.group, self.consumer, 0 if self._recovered else 1, self.idle_us, count]
            positions = [
                position
                for (position,) in db.execute(
                    "SELECT position FROM pending WHERE topic = ? AND name = ?"
                    f" AND ((consumer = ? AND ?) OR since_us < {NOW_US} - ?) ORDER BY position LIMIT ?",
                    left,
                )
            ]
            if not positions:
                self._recovered = True
                new = (
                    "SELECT position FROM events WHERE topic = ? AND position > (SELECT delivered FROM groups WHERE topic = ? AND name = ?)"
                )
                asked = [self.topic, self.topic, self.group, count]
                positions = [position for (position,) in db.execute(f"{new} ORDER BY position LIMIT ?", asked)]
                if positions:
                    db.execute("UPDATE groups SET delivered = ? WHERE topic = ? AND name = ?", [positions[-1], self.topic, self.group])
            rows = [(self.topic, self.group, position, self.consumer) for position in positions]
            db.executemany(f"INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, {NOW_US})", rows)
            marks = ",".join("?" * len(positions))
            found = db.execute(
                f"SELECT position, published_us, payload FROM events WHERE position IN ({marks}) ORDER BY position", positions
            ).fetchall()
        return [Message(str(position), published, payload) for position, published, payload in found]

    def _something(self) -> bool:
        """Tell, without taking the writers' turn, whether there is something to be handed out."""
        with self._reading() as db:
            new = "EXISTS (SELECT 1 FROM events WHERE topic = ? AND position > (SELECT delivered FROM groups WHERE topic = ? AND name = ?))"
            left = f"EXISTS (SELECT 1 FROM pending WHERE topic = ? AND name = ? AND since_us < {NOW_US} - ?)"
            asked = [self.topic, self.topic, self.group, self.topic, self.group, self.idle_us]
            return bool(db.execute(f"SELECT {new} OR {left}", asked).fetchone()[0])

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._turn, self._reachable():
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._turn, self._reachable():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(
                f"event bus {self.name}",
                found=f"{type(error).__name__}: {error}",
                allowed="a file on a local disk that can be written",
                hint="is the disk full? What was not acknowledged is delivered again",
            ) from error
