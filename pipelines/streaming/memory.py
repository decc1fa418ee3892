"""What consumers remember between deliveries: sessions, ids already met, and what is on its way to the lake. SQLite.

One delivery is one transaction, so that an event takes effect wholly or not at all and, however
often it is delivered, once. Consumers of one state folder share the file; each waits its turn.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from pipelines import columns as c
from pipelines.config import Home
from pipelines.streaming.bus import encode
from pipelines.streaming.reading import EPOCH, Judged
from pipelines.streaming.session import ITEMS, SessionEvent

DAY_US: Final = 86_400_000_000
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS users (user_id TEXT PRIMARY KEY, known_us INTEGER NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT NOT NULL, event_us INTEGER NOT NULL, event_id TEXT NOT NULL, item_id TEXT NOT NULL, event_type TEXT NOT NULL,
    PRIMARY KEY (user_id, event_us, event_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS met (id TEXT PRIMARY KEY, at_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS met_at ON met (at_us);
CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, fate TEXT NOT NULL, row TEXT NOT NULL);
"""


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
        remember_days: an event id is known for so long after the newest receipt; a repetition that comes
            later than that still changes no session, and the lake knows it for good.
        keep_for_lake: whether accepted events wait here until `handing_on.land` takes them.
    """

    def __init__(self, home: Home, *, remember_days: float = 3.0, keep_for_lake: bool = False) -> None:
        file = home.stream / "memory.db"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file, timeout=60.0, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")  # what is acknowledged must outlive the machine's power
        self._database.executescript(SCHEMA)
        self._remember_us, self._keep_for_lake = round(remember_days * DAY_US), keep_for_lake

    def take(self, judged: Judged, told: Mapping[str, Sequence[SessionEvent]]) -> Change:
        """Let a delivery take effect, once.

        Args:
            told: events of users that others know of (the online store): remembered beside the new ones.
        """
        change = Change()
        with self._transaction():
            fresh: dict[str, list[dict[str, Any]]] = {}
            named = dict.fromkeys(row[c.USER_ID] for _, row in judged.accepted)
            for _, row in judged.accepted:
                if self._first(f"event {row[c.EVENT_ID]}", _us(row[c.RECEIVED_AT])):
                    fresh.setdefault(row[c.USER_ID], []).append(row)
                    self._keep("accepted", row, wanted=self._keep_for_lake)
                    change.accepted += 1
                else:
                    change.repeated += 1
            for message, row in judged.refused:
                if self._first(f"message {message.position}", message.published_us):
                    self._keep("refused", row)
                    change.refused += 1
                else:
                    change.repeated += 1
            for user in named:
                change.sessions[user] = self._remember(user, fresh.get(user, []), told.get(user, ()))
            self._forget()
        return change

    def _first(self, name: str, at_us: int) -> bool:
        return self._database.execute("INSERT OR IGNORE INTO met VALUES (?, ?)", (name, at_us)).rowcount > 0

    def _keep(self, fate: str, row: Mapping[str, Any], *, wanted: bool = True) -> None:
        if wanted:
            self._database.execute("INSERT INTO outbox (fate, row) VALUES (?, ?)", (fate, encode(row).decode()))

    def _remember(self, user: str, rows: Sequence[Mapping[str, Any]], told: Sequence[SessionEvent]) -> tuple[int, int, list[SessionEvent]]:
        new = [(user, _us(row[c.EVENT_AT]), row[c.EVENT_ID], row[c.ITEM_ID], row[c.EVENT_TYPE]) for row in rows]
        new += [(user, event.event_us, event.event_id, event.item_id, event.event_type) for event in told]
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
        held = self._database.execute(
            "SELECT event_us, event_id, item_id, event_type FROM events WHERE user_id = ? ORDER BY event_us DESC, event_id DESC", (user,)
        ).fetchall()
        return known_us, version, [SessionEvent(*event) for event in held]

    def _forget(self) -> None:
        self._database.execute("DELETE FROM met WHERE at_us < (SELECT max(at_us) FROM met) - ?", (self._remember_us,))

    def outbox(self, fate: str, count: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the oldest rows of a fate that are still to be handed on, each with its number; times are text."""
        query = "SELECT number, row FROM outbox WHERE fate = ? ORDER BY number LIMIT ?"
        return [(number, json.loads(row)) for number, row in self._database.execute(query, (fate, count))]

    def handed_on(self, fate: str, until: int) -> None:
        """Forget the rows of a fate up to a number: somebody else keeps them now."""
        with self._transaction():
            self._database.execute("DELETE FROM outbox WHERE fate = ? AND number <= ?", (fate, until))

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


def _us(moment: Any) -> int:
    microseconds: int = (moment - EPOCH) // timedelta(microseconds=1)
    return microseconds
