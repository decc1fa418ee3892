"""What to ingest next."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

from pipelines import lake
from pipelines.config import Home
from pipelines.errors import SourceError
from pipelines.lake.ledger import LANDINGS
from pipelines.sources import collected, normalising
from pipelines.sources.request import WORLD_STARTS, Request, Source
from pipelines.window import Window, ceil_day, floor_day, utc

MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d(?:[T ][\d:.]+(?:Z|[+-]\d\d:?\d\d)?)?")  # a landing keeps its window as text
FOREVER: Final = datetime(9999, 12, 31, tzinfo=UTC)


def span(home: Home, request: Request) -> Window:
    """Return the whole days of a source, from its first to the end of its last; a simulated shop never ends.

    A source goes on beyond its files while the bus brings events.

    Raises:
        StateError: the lake holds another source; said before the first row of this one is read.
        SourceError: the source cannot be read, or no row of it has a readable time.
    """
    lake.check_source(home, str(request.source))
    if request.source is Source.SIMULATED:
        return Window(utc(WORLD_STARTS), FOREVER)
    source = normalising.normalised(home, request)
    last = max(source.last, collected.newest(home) or source.last)
    return Window(floor_day(source.first), ceil_day(last + timedelta(microseconds=1)))


def windows(
    home: Home,
    request: Request,
    *,
    start: str | date | datetime | None = None,
    end: str | date | datetime | None = None,
    batch_days: int = 7,
) -> list[Window]:
    """Return what to ingest next, oldest first, in windows of `batch_days` days (the last may be shorter).

    Args:
        start: the first moment to read; None goes on where the lake ends, an empty lake begins with
            the source's first day.
        end: the first moment not to read; None reads to the end of the source. The simulated shop
            has no end: None then asks for one window.

    Returns:
        An empty list where there is nothing new. Windows never leave the source's span.
    """
    if batch_days < 1:
        raise SourceError("batch_days", found=str(batch_days), allowed="a number of days, 1 or more")
    whole = span(home, request)
    first = max(utc(start), whole.start) if start is not None else max(landed_until(home) or whole.start, whole.start)
    unless_told = first + timedelta(days=batch_days) if whole.end == FOREVER else whole.end
    last = unless_told if end is None else min(utc(end), whole.end)
    return list(Window(first, last).split(batch_days)) if first < last else []


def landed_until(home: Home) -> datetime | None:
    """Return the end of the last landed window, or None where nothing has landed."""
    ends = []
    for file in sorted((home.lake / LANDINGS).glob("*.json")):
        moments = MOMENT.findall(str(json.loads(file.read_text(encoding="utf-8"))["window"]))
        ends += [utc(moments[-1])] if moments else []
    return max(ends, default=None)
