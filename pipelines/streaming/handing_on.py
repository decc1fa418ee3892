"""From the consumers' memory into the state folder: refused events to quarantine, accepted ones to the lake."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import lake, publish, tables
from pipelines.config import Home, source_file
from pipelines.streaming.memory import Memory
from pipelines.streaming.reading import TIMES
from pipelines.validation import checkpoint

SOURCE: Final = "stream"
ROWS: Final = 200_000


def quarantine(home: Home, memory: Memory) -> int:
    """Publish what was refused since the last time as `quarantine/stream-<number>/events.parquet`; return how many rows."""
    written = 0
    with _alone(home, "refused"):
        while rows := memory.outbox("refused", ROWS):
            first, last = rows[0][0], rows[-1][0]
            # Cut off before it is forgotten below, the same rows are published again under the same name.
            with publish.folder(home.quarantine / _name(first), {"batch_id": _name(first), "source": _source(home)["source"]}) as folder:
                pq.write_table(_table(rows), folder / "events.parquet", **publish.PARQUET)
            memory.handed_on("refused", last)
            written += len(rows)
    return written


def land(home: Home, as_of: datetime, memory: Memory) -> list[str]:
    """Take what was accepted since the last time through validation into the lake; return the batches.

    Killed anywhere and run again, every event is in the lake once: an event_id lands once.

    Raises:
        ValidationBlocked: the batch as a whole was refused; its events stay in the memory.
    """
    batches = []
    with _alone(home, "accepted"):
        while rows := memory.outbox("accepted", ROWS):
            batch = _name(rows[0][0])
            facts = {**_source(home), "rows": {"events": len(rows)}, "columns": {}}
            with publish.folder(home.landing / batch, facts) as folder:
                pq.write_table(_table(rows), folder / "events.parquet", **publish.PARQUET)
                for table in ("items", "users"):
                    pq.write_table(tables.staged(table).empty_table(), folder / f"{table}.parquet", **publish.PARQUET)
            checkpoint.validate_batch(home, as_of, batch)
            lake.land(home, as_of, batch)
            memory.handed_on("accepted", rows[-1][0])
            batches.append(batch)
    return batches


def _name(number: int) -> str:
    return f"stream-{number:012d}"


def _source(home: Home) -> dict[str, Any]:
    """Return whose data the lake holds: streamed events are theirs."""
    file = source_file(home)
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"source": known.get("source", SOURCE), "settings": known.get("settings", {})}


def _table(rows: Sequence[tuple[int, dict[str, Any]]]) -> pa.Table:
    """Return remembered rows in the staged schema, `source_row` their number."""
    read = [
        {
            **row,
            **{name: datetime.fromisoformat(row[name]) for name in TIMES if row.get(name)},
            c.SOURCE_ROW: number,
        }
        for number, row in rows
    ]
    return pa.Table.from_pylist(read, schema=tables.staged("events"))


@contextmanager
def _alone(home: Home, what: str) -> Iterator[None]:
    """Let one process at a time hand rows on."""
    home.stream.mkdir(parents=True, exist_ok=True)
    with (home.stream / f".{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
