"""The form of the ingest Dag, filled in: what a person, the REST API or `reloop run` asked, typed before it touches anything."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError, field_validator

from pipelines import lake
from pipelines.config import Home
from pipelines.errors import SourceError
from pipelines.frozen import Frozen
from pipelines.sources import plan
from pipelines.sources.request import Request, Source, World
from pipelines.window import Window, utc

WARM_UP: Final = timedelta(weeks=8)  # of the simulated shop on an empty lake: enough for a first training
DAYS_A_BATCH: Final = 7


class Form(Frozen):
    """One filled-in form; a field left empty (None) means what its comment says."""

    source: Source = Source.SIMULATED
    path: Path | None = None
    mapping: Path | None = None
    start: Annotated[str | None, Field(alias="from")] = None  # where the lake ends, else the source's first day
    end: Annotated[str | None, Field(alias="to")] = None  # the source's end; of the simulated shop: its next week
    as_of: str | None = None  # the end of the last window
    batch_days: Annotated[int | None, Field(ge=1, le=366)] = None  # a week
    seed: int | None = None
    users: int | None = None
    items: int | None = None
    events_per_day: int | None = None
    taste: float | None = None
    feedback: float | None = None
    herd: float | None = None
    faults: tuple[str, ...] | None = None
    shifts: tuple[str, ...] | None = None

    @field_validator("start", "end", "as_of")
    @classmethod
    def _is_moment(cls, value: str | None) -> str | None:
        return value if value is None else utc(value).isoformat()

    @classmethod
    def parse(cls, params: Mapping[str, Any]) -> Form:
        """Return the form that these values fill in; values of no field of it are refused.

        Raises:
            SourceError: a value has the wrong type or is out of range; every such field is named.
        """
        try:
            return cls.model_validate(dict(params))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r:.80})" for e in error.errors())
            raise SourceError("ingest form", found=wrong, allowed="the fields and types that the form of the Dag shows") from error

    def request(self) -> Request:
        """Return what to read."""
        world = {name: getattr(self, name) for name in World.model_fields if getattr(self, name) is not None}
        return Request(source=self.source, path=self.path, mapping=self.mapping, world=World(**world))

    def windows(self, home: Home) -> list[Window]:
        """Return what to ingest, oldest first; empty where the source has nothing new."""
        request, end = self.request(), None if self.end is None else utc(self.end)
        if self.source is Source.SIMULATED and end is None:
            week = plan.windows(home, request, start=self.start, batch_days=DAYS_A_BATCH)[0]
            end = week.end if lake.head(home) else week.start + WARM_UP
        return plan.windows(home, request, start=self.start, end=end, batch_days=self.batch_days or DAYS_A_BATCH)

    def settled(self, windows: list[Window]) -> datetime:
        """Return the as_of of this ingest: what was asked, else the end of the last window."""
        return utc(self.as_of) if self.as_of else windows[-1].end
