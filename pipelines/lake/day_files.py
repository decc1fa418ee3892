"""Writing sorted rows as Parquet while they stream: bytes depend on the rows alone, memory on none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import publish, tables

GROUP: Final = int(publish.PARQUET["row_group_size"])
FORMAT: Final = {knob: value for knob, value in publish.PARQUET.items() if knob != "row_group_size"}
MICROS_A_DAY: Final = 86_400_000_000


class _Writer:
    """A Parquet file with row groups of exactly `GROUP` rows, however the rows arrive."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.schema, self.waiting, self.rows = schema, list[pa.RecordBatch](), 0
        self.file = pq.ParquetWriter(path, schema, **FORMAT)

    def write(self, batch: pa.RecordBatch) -> None:
        self.waiting.append(batch)
        self.rows += len(batch)
        while self.rows >= GROUP:
            self._flush(GROUP)

    def _flush(self, rows: int) -> None:
        # One chunk a column: pages are cut at chunk ends, and chunks are an accident of the query.
        table = pa.Table.from_batches(self.waiting).combine_chunks()
        self.file.write_table(table.slice(0, rows).cast(self.schema).combine_chunks(), row_group_size=GROUP)
        self.waiting, self.rows = table.slice(rows).to_batches(), self.rows - rows

    def close(self) -> None:
        if self.rows:
            self._flush(self.rows)
        self.file.close()

    def abandon(self) -> None:
        """Close without caring for the rest; the file is litter."""
        with suppress(OSError):
            self.file.close()


def write_days(folder: Path, merged: duckdb.DuckDBPyRelation) -> set[date]:
    """Write canonical events, sorted by event_at, to `folder/event_date=D/events.parquet`; return the days written."""
    written: set[date] = set()
    writer: _Writer | None = None
    try:
        for batch in merged.to_arrow_reader(GROUP):
            for day, rows in _by_day(batch):
                if day not in written:
                    if writer is not None:
                        writer.close()
                    written.add(day)
                    writer = _Writer(folder / f"event_date={day}" / "events.parquet", tables.EVENTS)
                if writer is not None:
                    writer.write(rows)
        if writer is not None:
            writer.close()
            writer = None
    finally:
        if writer is not None:
            writer.abandon()
    return written


def write_table(path: Path, schema: pa.Schema, rows: duckdb.DuckDBPyRelation) -> int:
    """Write the rows of a query to one file; return how many there were."""
    writer, count = _Writer(path, schema), 0
    try:
        for batch in rows.to_arrow_reader(GROUP):
            writer.write(batch)
            count += len(batch)
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    return count


def _by_day(batch: pa.RecordBatch) -> Iterator[tuple[date, pa.RecordBatch]]:
    """Yield the slices of a sorted batch that share a UTC day."""
    if not len(batch):
        return
    day = batch.column(c.EVENT_AT).cast(pa.int64()).to_numpy() // MICROS_A_DAY
    cuts = [0, *(np.flatnonzero(np.diff(day)) + 1).tolist(), len(batch)]
    for start, end in pairwise(cuts):
        yield datetime.fromtimestamp(int(day[start]) * 86_400, UTC).date(), batch.slice(start, end - start)
