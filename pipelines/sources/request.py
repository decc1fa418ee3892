"""What a person asks of the ingest stage: the form of the ingest Dag, the flags of `reloop run`, one class."""

from __future__ import annotations

import hashlib
import os
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationInfo, field_validator

from pipelines.errors import SourceError
from pipelines.frozen import Frozen
from pipelines.sources.simulator.incidents import Fault, Shift, parse
from pipelines.window import Window

WORLD_STARTS: Final = "2025-01-06"  # a Monday: the first day of the simulated shop


class Source(StrEnum):
    """Where events come from."""

    SIMULATED = "simulated"
    ONLINE_RETAIL = "online-retail"
    MOVIELENS = "movielens"
    RETAILROCKET = "retailrocket"
    TABLE = "table"


class World(Frozen):
    """The size of the simulated shop, what moves its visitors, and what befalls it.

    `faults` and `shifts` are `name@YYYY-MM-DD`; the names are those of `pipelines.sources.simulator`.

    Attributes:
        taste: how much people's own taste decides what they look at and take; 1 is the usual, 0 leaves it to price and luck.
        feedback: how much of the shop's exposure follows recent attention; 1 is the usual, 0 none.
        herd: share of the views that would follow a habit, an errand or the item just seen, and go to the best sellers instead.
    """

    seed: Annotated[int, Field(ge=0)] = 7
    users: Annotated[int, Field(ge=1, le=50_000_000)] = 20_000
    items: Annotated[int, Field(ge=1, le=10_000_000)] = 5_000
    events_per_day: Annotated[int, Field(ge=1, le=100_000_000)] = 16_000
    taste: Annotated[float, Field(ge=0, le=10)] = 1.0
    feedback: Annotated[float, Field(ge=0, le=3)] = 1.0  # above 3 a few items take it all
    herd: Annotated[float, Field(ge=0, le=1)] = 0.0
    faults: tuple[str, ...] = ()
    shifts: tuple[str, ...] = ()

    @field_validator("faults", "shifts")
    @classmethod
    def _can_befall(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Refuse what no day of the world can bring before anything is read: a Dag would say so minutes later.

        Raises:
            SourceError: an entry is not `name@YYYY-MM-DD`, its name is unknown, or its day lies before the world.
        """
        for incident in parse(Fault if info.field_name == "faults" else Shift, value):
            if incident.day < date.fromisoformat(WORLD_STARTS):
                raise SourceError(
                    f"{incident.name}@{incident.day}", found=f"the day {incident.day}", allowed=f"a day from {WORLD_STARTS} on"
                )
        return value


class Request(Frozen):
    """One ingest: a source, where it lies, and how much of it."""

    source: Source = Source.SIMULATED
    path: Path | None = None
    mapping: Path | None = None
    world: World = World()

    @field_validator("path", "mapping")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        """Name a place the same from wherever it is asked for; links are not followed here, the guard judges them."""
        if value is None or ":" in str(value) or "\0" in str(value):  # a scheme or worse is the guard's to refuse, as it was written
            return value
        return Path(os.path.abspath(value))  # noqa: PTH100 - resolve() would follow links

    def identity(self, window: Window) -> str:
        """Return the batch id: source, window, and a short digest of everything else that was asked."""
        asked = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return f"{self.source}-{_stamp(window.start)}-{_stamp(window.end)}-{asked}"


def _stamp(moment: datetime) -> str:
    """Return a moment without characters that a path would mind; midnights without their time."""
    return f"{moment:%Y%m%d}" if f"{moment:%H%M%S%f}" == "000000000000" else f"{moment:%Y%m%dT%H%M%S%f}"
