"""Half-open intervals of UTC time. A stage never asks what time it is: it is handed a `Window` or an `as_of`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from pipelines.errors import ReloopError

DAY = timedelta(days=1)
STAMP = "%Y-%m-%dT%H%M%S"


def utc(moment: str | date | datetime) -> datetime:
    """Return `moment` as an aware UTC datetime; a bare date means its midnight, a naive time is UTC.

    Raises:
        ReloopError: the text is no ISO 8601 date or time.
    """
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError as error:
            raise ReloopError(
                "as_of", found=repr(moment), allowed="an ISO 8601 date or time such as 2025-03-01 or 2025-03-01T00:00:00Z"
            ) from error
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def micros(moment: datetime) -> int:
    """Return microseconds since 1970-01-01 UTC, exact (no float on the way)."""
    return (utc(moment) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def stamp(moment: datetime) -> str:
    """Return a moment as names of folders and files have it, to the second: 2025-03-03T000000."""
    return f"{utc(moment):{STAMP}}"


def stamped(name: str) -> datetime | None:
    """Return the moment that `stamp` named; None of a name that is none, hidden or somebody's own."""
    try:
        found = utc(datetime.strptime(name, STAMP))  # noqa: DTZ007 - a name has no zone, it is UTC
    except ValueError:
        return None
    return found if stamp(found) == name else None


def floor_day(moment: datetime) -> datetime:
    """Return the UTC midnight at or before `moment`."""
    return utc(moment).replace(hour=0, minute=0, second=0, microsecond=0)


def ceil_day(moment: datetime) -> datetime:
    """Return the UTC midnight at or after `moment`."""
    floor = floor_day(moment)
    return floor if floor == utc(moment) else floor + DAY


@dataclass(frozen=True, order=True)
class Window:
    """The half-open interval [start, end) in UTC.

    >>> Window.parse("2025-01-06", "2025-01-08").days()
    [datetime.date(2025, 1, 6), datetime.date(2025, 1, 7)]
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", utc(self.start))
        object.__setattr__(self, "end", utc(self.end))
        if not self.start < self.end:
            raise ReloopError("window", found=f"[{self.start:%F %T}, {self.end:%F %T})", allowed="a start before its end")

    @classmethod
    def parse(cls, start: str | date | datetime, end: str | date | datetime) -> Window:
        """Return the window between two ISO 8601 moments."""
        return cls(utc(start), utc(end))

    @classmethod
    def ending(cls, as_of: datetime, days: int) -> Window:
        """Return the `days` days before `as_of`."""
        return cls(utc(as_of) - timedelta(days=days), utc(as_of))

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= utc(moment) < self.end

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%d}..{self.end:%Y-%m-%d}"

    def days(self) -> list[date]:
        """Return every calendar day (UTC) that the window touches, ascending."""
        first, last = floor_day(self.start), ceil_day(self.end)
        return [(first + n * DAY).date() for n in range((last - first) // DAY)]

    def split(self, days: int) -> Iterator[Window]:
        """Yield consecutive windows of `days` days that tile this one; the last may be shorter."""
        start = self.start
        while start < self.end:
            end = min(start + timedelta(days=days), self.end)
            yield Window(start, end)
            start = end
