"""What consumers remember between deliveries: sessions, ids already met, and refused events not yet in quarantine. SQLite.

One delivery is one transaction, so that an event takes effect wholly or not at all and, however
often it is delivered, once. Consumers of one state folder share the file; each waits its turn.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, NamedTuple

from pipelines import columns as c
from pipelines.config import Home
from pipelines.streaming.bus import Message, encode
from pipelines.streaming.reading import EPOCH, Judged
from pipelines.streaming.session import ITEMS, SessionEvent

DAY_US: Final = 86_400_000_000
SECOND_US: Final = 1_000_000
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS users (user_id TEXT PRIMARY KEY, known_us INTEGER NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT NOT NULL, event_us INTEGER NOT NULL, event_id TEXT NOT NULL, item_id TEXT NOT NULL, event_type TEXT NOT NULL,
    PRIMARY KEY (user_id, event_us, event_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS met (id TEXT PRIMARY KEY, at_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS met_at ON met (at_us);
CREATE TABLE IF NOT EXISTS refused (number INTEGER PRIMARY KEY AUTOINCREMENT, row TEXT NOT NULL);
"""


class Told(NamedTuple):
    """What others know of a user.

    Attributes:
        known_us: the moment from which it holds, microseconds since 1970 UTC.
    """

    known_us: int
    events: Sequence[SessionEvent]


NOTHING: Final = Told(0, ())


@dataclass
class Change:
    """What a delivery changed.

    Attributes:
        sessions: user -> (known_us, version, newest events); of every user an accepted event named,
            met before or not, for a delivery that was cut off may have been remembered and never
            pushed. The version grows with every delivery.
        accepted, refused, repeated: messages by fate; a repeated one had its effect before.
    """

    sessions: dict[str, tuple[int, int, list[SessionEvent]]] = field(default_factory=dict)
    accepted: int = 0
    refused: int = 0
    repeated: int = 0


class Memory:
    """The memory of a state folder's consumers.

    Args:
        remember_days: an event id is known for so long, by the time of the bus; a repetition that comes
            later than that still changes no session, and the lake knows it for good.
    """

    def __init__(self, home: Home, *, remember_days: float = 3.0) -> None:
        file = home.stream / "memory.db"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file, timeout=60.0, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")  # what is acknowledged must outlive the machine's power
        self._database.executescript(SCHEMA)
        self._remember_us = round(remember_days * DAY_US)

    def take(self, judged: Judged, told: Mapping[str, Told], bus: str = "") -> Change:
        """Let a delivery take effect, once.

        Args:
            told: what others (the online store) know of users: remembered beside the new events.
            bus: the name of the one that delivered; another has messages of the same positions.
        """
        change = Change()
        with self._transaction():
            fresh: dict[str, list[dict[str, Any]]] = {}
            named = dict.fromkeys(row[c.USER_ID] for _, row in judged.accepted)
            for message, row in judged.accepted:
                if self._first(f"event {row[c.EVENT_ID]}", message.published_us):
                    fresh.setdefault(row[c.USER_ID], []).append(row)
                    change.accepted += 1
                else:
                    change.repeated += 1
            for message, row in judged.refused:
                if self._first(_name(bus, message), message.published_us):
                    self._database.execute("INSERT INTO refused (row) VALUES (?)", (encode(row).decode(),))
                    change.refused += 1
                else:
                    change.repeated += 1
            for user in named:
                change.sessions[user] = self._remember(user, fresh.get(user, []), told.get(user, NOTHING))
            self._forget()
        return change

    def unite(self, told: Mapping[str, Told]) -> Change:
        """Remember what others know of users, without any event."""
        with self._transaction():
            return Change({user: self._remember(user, [], known) for user, known in told.items()})

    def _first(self, name: str, at_us: int) -> bool:
        return self._database.execute("INSERT OR IGNORE INTO met VALUES (?, ?)", (name, at_us)).rowcount > 0

    def _remember(self, user: str, rows: Sequence[Mapping[str, Any]], told: Told) -> tuple[int, int, list[SessionEvent]]:
        new = [(user, _us(row[c.EVENT_AT]), row[c.EVENT_ID], row[c.ITEM_ID], row[c.EVENT_TYPE]) for row in rows]
        new += [(user, event.event_us, event.event_id, event.item_id, event.event_type) for event in told.events]
        self._database.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)", new)
        self._database.execute(
            "DELETE FROM events WHERE user_id = ? AND (event_us, event_id) < (SELECT event_us, event_id FROM events WHERE user_id = ?"
            " ORDER BY event_us DESC, event_id DESC LIMIT 1 OFFSET ?)",
            (user, user, ITEMS - 1),
        )
        known = max([0, *(max(_us(row[c.EVENT_AT]), _us(row[c.RECEIVED_AT])) for row in rows)])
        known_us, version = self._database.execute(
            "INSERT INTO users VALUES (?, ?, 1) ON CONFLICT (user_id)"
            " DO UPDATE SET known_us = max(known_us, excluded.known_us), version = version + 1 RETURNING known_us, version",
            (user, known),
        ).fetchone()
        if told.known_us > known_us:
            # Somebody else wrote that row (the mart, a consumer with another memory). What it is united with
            # must count as newer, by a second, for SQLite keeps no less.
            known_us = told.known_us + SECOND_US
            self._database.execute("UPDATE users SET known_us = ? WHERE user_id = ?", (known_us, user))
        held = self._database.execute(
            "SELECT event_us, event_id, item_id, event_type FROM events WHERE user_id = ? ORDER BY event_us DESC, event_id DESC", (user,)
        ).fetchall()
        return known_us, version, [SessionEvent(*event) for event in held]

    def _forget(self) -> None:
        self._database.execute("DELETE FROM met WHERE at_us < (SELECT max(at_us) FROM met) - ?", (self._remember_us,))

    def refused(self, count: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the oldest refused rows that are not yet in quarantine, each with its number; times are text."""
        query = "SELECT number, row FROM refused ORDER BY number LIMIT ?"
        return [(number, json.loads(row)) for number, row in self._database.execute(query, (count,))]

    def handed_on(self, until: int) -> None:
        """Forget the refused rows up to a number: quarantine keeps them now."""
        with self._transaction():
            self._database.execute("DELETE FROM refused WHERE number <= ?", (until,))

    def met(self) -> list[str]:
        """Return the ids of the events that took effect and are not yet forgotten, sorted."""
        return [name.removeprefix("event ") for (name,) in self._database.execute("SELECT id FROM met WHERE id LIKE 'event %' ORDER BY id")]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _name(bus: str, message: Message) -> str:
    """Return what one message is known by: a topic that was deleted and made anew has the positions of the old one."""
    told = hashlib.blake2b(message.payload, digest_size=16, key=hashlib.blake2b(bus.encode()).digest())
    return f"message {message.position} {told.hexdigest()}"


def _us(moment: Any) -> int:
    microseconds: int = (moment - EPOCH) // timedelta(microseconds=1)
    return microseconds
