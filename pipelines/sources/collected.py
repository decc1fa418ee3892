"""What the bus brought beside the source: segments of staged events (`streaming.collecting`), each row with its turn.

    stream/collected/<first>-<last>-<content>.parquet   staged events and `turn`; first and last turn, microseconds UTC

The turn of an event is the moment of its receipt; for one that was collected only after its window had landed, the end of
what had landed then. So every event is staged by exactly one window, however late it comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.config import Home
from pipelines.window import Window, micros, utc

TURN: Final = "turn"


def folder(home: Home) -> Path:
    """Return where the segments lie."""
    return home.stream / "collected"


def newest(home: Home) -> datetime | None:
    """Return the last turn of all, None where nothing was collected."""
    return max((utc("1970-01-01") + timedelta(microseconds=_turns(file)[1]) for file in folder(home).glob("*.parquet")), default=None)


def outlived(home: Home, landed: datetime | None, keep_days: float) -> list[Path]:
    """Return the segments that no window will stage any more: every turn of theirs lies so many days before the end of what has landed.

    None where nothing has landed: all of it is waiting for its window.
    """
    if landed is None:
        return []
    limit = micros(landed) - round(keep_days * 86_400_000_000)
    return [file for file in sorted(folder(home).glob("*.parquet")) if _turns(file)[1] < limit]


def _turns(file: Path) -> tuple[int, int]:
    """Return the first and the last turn of a segment."""
    first, last = (int(part) for part in file.name.split("-")[:2])
    return first, last


def events(home: Home, window: Window) -> Iterator[pa.Table]:
    """Yield the staged events whose turn is in a window, a segment at a time, oldest first."""
    start, end = micros(window.start), micros(window.end)
    for file in sorted(folder(home).glob("*.parquet")):
        first, last = _turns(file)
        if first >= end or last < start:
            continue
        table = pq.read_table(file)
        found = table.filter(pc.and_(pc.greater_equal(table[TURN], start), pc.less(table[TURN], end)))
        if found.num_rows:
            yield found.drop_columns([TURN])
