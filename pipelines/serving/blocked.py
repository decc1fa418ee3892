"""Items that must not be shown: a takedown holds in every process within seconds, on every rung, in every cache and arm.

    serving/blocked.db      one row a decision, oldest first; nothing is ever changed in it or taken out of it

A process reads the decisions that are new to it, so following costs one look-up by number. It is the last thing that happens
to an answer (`Blocked.without`), whoever made the answer and whenever.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from pipelines.config import Home
from pipelines.errors import ReloopError, StateError
from pipelines.serving.request import Answer, Shown, Why

LOG: Final = logging.getLogger(__name__)
FOLLOW_SECONDS: Final = 0.5
FOR_YOU: Final = Why("for_you", "Picked for you")  # the reason where the true one would name what is blocked
SCHEMA: Final = """CREATE TABLE IF NOT EXISTS decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, item_id TEXT NOT NULL, blocked INTEGER NOT NULL, reason TEXT NOT NULL,
    decided_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)"""


def block(home: Home, item_ids: Iterable[str], reason: str) -> int:
    """Take items out of every list from now on; return how many were not blocked before.

    Raises:
        ReloopError: no reason is given.
        StateError: the file cannot be written.
    """
    if not reason.strip():
        raise ReloopError("reason", found="none", allowed="why the item must not be shown; it is kept with the decision")
    return _decide(home, item_ids, blocked=True, reason=reason.strip())


def unblock(home: Home, item_ids: Iterable[str], reason: str = "") -> int:
    """Let items be shown again; return how many were blocked.

    Raises:
        StateError: the file cannot be written.
    """
    return _decide(home, item_ids, blocked=False, reason=reason.strip())


def standing(home: Home) -> list[dict[str, Any]]:
    """Return what is blocked: `item_id`, `reason`, `decided_at`, in the order of the decisions."""
    with closing(_opened(home)) as db:
        newest = "SELECT max(number) FROM decisions GROUP BY item_id"
        found = db.execute(f"SELECT item_id, reason, decided_at FROM decisions WHERE blocked AND number IN ({newest}) ORDER BY number")
        return [dict(zip(("item_id", "reason", "decided_at"), row, strict=True)) for row in found]


def _decide(home: Home, item_ids: Iterable[str], *, blocked: bool, reason: str) -> int:
    wanted = list(dict.fromkeys(item_ids))
    try:
        with closing(_opened(home)) as db, db:
            db.execute("BEGIN IMMEDIATE")
            last = "SELECT blocked FROM decisions WHERE item_id = ? ORDER BY number DESC LIMIT 1"
            changed = [item for item in wanted if bool((db.execute(last, [item]).fetchone() or [0])[0]) != blocked]
            db.executemany(
                "INSERT INTO decisions (item_id, blocked, reason) VALUES (?, ?, ?)", [(item, blocked, reason) for item in changed]
            )
    except sqlite3.Error as error:
        raise StateError(str(_file(home)), found=f"{type(error).__name__}: {error}", allowed="a file that can be written") from error
    return len(changed)


def _file(home: Home) -> Any:
    return home.serving / "blocked.db"


def _opened(home: Home) -> sqlite3.Connection:
    """Return a connection of its own to the decisions, which are made if there are none.

    Raises:
        StateError: the file is no database, or of another shape.
    """
    _file(home).parent.mkdir(parents=True, exist_ok=True)
    try:
        db = sqlite3.connect(_file(home), timeout=5.0, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(SCHEMA)
        db.execute("CREATE INDEX IF NOT EXISTS of_item ON decisions (item_id, number)")
    except sqlite3.Error as error:
        raise StateError(
            str(_file(home)),
            found=f"{type(error).__name__}: {error}",
            allowed="the list of blocked items",
            hint="restore it from a backup: without it nobody knows what must not be shown",
        ) from error
    return db


class Blocked:
    """The blocked items as a process knows them; follows the file, asking at most every `follow_seconds`.

    A file that cannot be read at the start is an error: what must not be shown would be. Later the last known state holds.

    Raises:
        StateError: the decisions cannot be read.
    """

    def __init__(self, home: Home, *, follow_seconds: float = FOLLOW_SECONDS, ticks: Callable[[], float] = time.monotonic) -> None:
        self._db, self._turn = _opened(home), threading.Lock()
        self._ticks, self._follow_seconds = ticks, follow_seconds
        self._number, self._due = 0, ticks()
        self._items: frozenset[str] = frozenset()
        try:
            self._follow()
        except sqlite3.Error as error:
            raise StateError(str(_file(home)), found=f"{type(error).__name__}: {error}", allowed="the list of blocked items") from error

    @property
    def items(self) -> frozenset[str]:
        """The ids that are blocked now."""
        if self._ticks() >= self._due and self._turn.acquire(blocking=False):
            try:
                self._follow()
            except sqlite3.Error as error:
                LOG.warning("blocked items: %s; the last known ones stay blocked", error)
            finally:
                self._turn.release()
        return self._items

    def _follow(self) -> None:
        self._due = self._ticks() + self._follow_seconds
        new = self._db.execute("SELECT number, item_id, blocked FROM decisions WHERE number > ? ORDER BY number", [self._number]).fetchall()
        if new:
            items = set(self._items)
            for self._number, item, blocked in new:
                items.add(item) if blocked else items.discard(item)
            self._items = frozenset(items)

    def without(self, answer: Answer) -> Answer:
        """Return an answer without blocked items, and without reasons that name one; those below move up, and it says how many were taken out."""
        blocked = self.items
        if not blocked or all(shown.item_id not in blocked and shown.why.item_id not in blocked for shown in answer.items):
            return answer
        good = [shown.item_id not in blocked for shown in answer.items]
        if not all(good):
            answer = replace(answer.keeping(good), degraded=(*answer.degraded, f"blocked: {good.count(False)} taken out"))
        return replace(answer, items=tuple(_unnamed(shown, blocked) for shown in answer.items))


def _unnamed(shown: Shown, blocked: frozenset[str]) -> Shown:
    return replace(shown, why=FOR_YOU) if shown.why.item_id in blocked else shown
