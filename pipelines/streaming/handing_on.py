"""From the consumers' memory into the state folder: refused events to quarantine."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import publish, tables
from pipelines.config import Home, source_file
from pipelines.streaming.memory import Memory
from pipelines.streaming.reading import TIMES

SOURCE: Final = "stream"
ROWS: Final = 200_000


def quarantine(home: Home, memory: Memory) -> int:
    """Publish what was refused since the last time as `quarantine/stream-<number>/events.parquet`; return how many rows.

    One process at a time. Killed and run again, every refused message is in quarantine once.
    """
    written = 0
    with publish.locked(home.stream / ".quarantine.lock"):
        while rows := memory.refused(ROWS):
            batch = f"stream-{rows[0][0]:012d}"
            # Cut off before they are forgotten below, the same rows are published again under the same name.
            with publish.folder(home.quarantine / batch, {"batch_id": batch, "source": _source(home)}) as folder:
                pq.write_table(_table(rows), folder / "events.parquet", **publish.PARQUET)
            memory.handed_on(rows[-1][0])
            written += len(rows)
    return written


def _source(home: Home) -> str:
    """Return whose data the lake holds: streamed events are theirs."""
    file = source_file(home)
    return str(json.loads(file.read_text(encoding="utf-8"))["source"]) if file.is_file() else SOURCE


def _table(rows: list[tuple[int, dict[str, Any]]]) -> pa.Table:
    """Return remembered rows in the schema of quarantine, `source_row` their number."""
    read = [
        {**row, **{name: datetime.fromisoformat(row[name]) for name in TIMES if row.get(name)}, c.SOURCE_ROW: number}
        for number, row in rows
    ]
    return pa.Table.from_pylist(read, schema=tables.quarantined("events"))
