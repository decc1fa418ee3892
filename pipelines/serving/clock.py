"""What time it is, for the service: the one place of the library that may ask the machine.

A service that is replayed or simulated starts at a moment of its own and goes on with real seconds. These
come from the monotonic clock, which all processes of a machine share and nobody can set back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from pipelines import lake
from pipelines.config import Home
from pipelines.errors import ReloopError, StateError
from pipelines.window import utc

WALL: Final = "wall"
DATA: Final = "data"


def wall() -> datetime:
    """Return the present of the machine, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Anchored:
    """A clock that stood at `moment` when the monotonic clock stood at `ticks`; travels to other processes of the machine."""

    moment: datetime
    ticks: float

    def __call__(self) -> datetime:
        """Return what time it is."""
        return self.moment + timedelta(seconds=time.monotonic() - self.ticks)


def starting(home: Home, said: str) -> Anchored | None:
    """Return the clock that is asked for: `wall` (None), `data` (starts at the end of the lake), or a moment that it starts at.

    Raises:
        StateError: it is no moment, or the lake is empty.
    """
    if said == WALL:
        return None
    if said == DATA:
        days = lake.days(home)
        if not days:
            raise StateError("lake", found="no events", allowed="at least a day of events", hint="`reloop ingest`, or --now wall")
        return Anchored(utc(days[-1]) + timedelta(days=1), time.monotonic())
    try:
        return Anchored(utc(said), time.monotonic())
    except ReloopError as error:
        raise StateError("--now", found=said, allowed="wall, data, or a moment such as 2025-03-01T12:00") from error
