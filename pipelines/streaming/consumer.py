"""One consumer: takes events off the bus, judges them, brings the sessions they touch up to date online."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final

from pipelines import columns as c
from pipelines import config
from pipelines.config import Home
from pipelines.features.pushing import PushedView
from pipelines.streaming import handing_on, session
from pipelines.streaming.bus import EventBus
from pipelines.streaming.memory import Change, Memory, Told
from pipelines.streaming.reading import EPOCH, Judge
from pipelines.streaming.shelves import Shelves

WAIT_SECONDS: Final = 0.5


@dataclass
class Counts:
    """What a consumer has done since it began.

    Attributes:
        events: deliveries; accepted + refused + repeated.
        repeated: deliveries that had taken effect before.
        sessions: sessions pushed to the online store.
    """

    events: int = 0
    accepted: int = 0
    refused: int = 0
    repeated: int = 0
    sessions: int = 0

    def record(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


class Consumer:
    """The steps of one delivery, each safe to repeat, the acknowledgement last.

    Events are judged; in one transaction the memory takes those it has not met; the sessions of all
    users named are worked out and pushed; what was refused is published in quarantine; then the
    delivery is acknowledged. Killed between any two steps, it is delivered again and ends the same.

    Args:
        on_pushed: is told whose sessions are up to date now; may be told again.

    Raises:
        StateError: the view is not applied, or the bus or a setting is not usable.
    """

    def __init__(self, home: Home, bus: EventBus, *, on_pushed: Callable[[Sequence[str]], None] | None = None) -> None:
        self._home, self._bus, self._on_pushed = home, bus, on_pushed
        self._view = PushedView(home, session.VIEW)
        self._judge = Judge(config.load(home).validation)
        self._memory = Memory(home)
        self._shelves = Shelves(home)
        self.counts = Counts()

    def step(self, count: int = 500, wait_seconds: float = WAIT_SECONDS) -> int:
        """Take one delivery off the bus and see it through; return its messages, 0 if none came in time."""
        messages = self._bus.consume(count, wait_seconds)
        if not messages:
            return 0
        judged = self._judge.judge(messages)
        users = list(dict.fromkeys(row[c.USER_ID] for _, row in judged.accepted))
        # The batch may know of events that never came by here.
        change = self._memory.take(judged, self._told(users), self._bus.name)
        pushed = self._push(change)
        if self._on_pushed is not None and change.sessions:
            self._on_pushed(list(change.sessions))
        if change.refused:
            handing_on.quarantine(self._home, self._memory)
        self._bus.acknowledge(messages)
        self.counts = Counts(
            events=self.counts.events + len(messages),
            accepted=self.counts.accepted + change.accepted,
            refused=self.counts.refused + change.refused,
            repeated=self.counts.repeated + change.repeated,
            sessions=self.counts.sessions + pushed,
        )
        return len(messages)

    def _told(self, users: Sequence[str]) -> dict[str, Told]:
        """Return what the online store holds of users."""
        held = zip(users, self._view.held(users), strict=True)
        return {user: Told(moment_us, session.of_row(row)) for user, (moment_us, row) in held}

    def _push(self, change: Change) -> int:
        """Push sessions until none of them stands behind what the store holds; return how many there are."""
        self._shelves.refresh()
        pushed = behind = self._pushed(change)
        while behind:
            # Between the read and the push the mart of a new day may have been loaded, and the store kept that.
            moments = self._view.moments(list(behind))
            behind = [user for user, moment in zip(behind, moments, strict=True) if moment > change.sessions[user][0]]
            if behind:
                change = self._memory.unite(self._told(behind))
                behind = self._pushed(change)
        return len(pushed)

    def _pushed(self, change: Change) -> list[str]:
        """Push sessions; return whose, which are those who have one."""
        rows = {}
        for user, (known_us, version, events) in change.sessions.items():
            if (values := session.features(self._shelves.place(events), known_us)) is not None:
                holds = EPOCH + timedelta(microseconds=known_us)
                # A late event changes a session without moving it on: the version tells the store which is
                # newer, in seconds, for SQLite keeps no less.
                rows[user] = (holds, holds + timedelta(seconds=version), values)
        self._view.push(rows)
        return list(rows)

    def run(self, *, count: int = 500, idle_seconds: float | None = None, on_step: Callable[[Counts], None] | None = None) -> Counts:
        """Go on until nothing has come for `idle_seconds`; without it, until the process is ended."""
        handing_on.quarantine(self._home, self._memory)  # what a killed consumer had refused and not yet published
        quiet = 0.0
        while idle_seconds is None or quiet < idle_seconds:
            quiet = 0.0 if self.step(count) else quiet + WAIT_SECONDS
            if on_step is not None:
                on_step(self.counts)
        return self.counts

    def close(self) -> None:
        """Leave the bus and close the memory."""
        self._bus.close()
        self._memory.close()
        self._judge.close()
