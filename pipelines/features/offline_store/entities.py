"""Entity rows: a frame, an arrow table or a SQL query, as arrow in pieces of bounded size, with one clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import StateError
from pipelines.features.offline_store.sources import PER_SECOND, quoted

EVENT_TIMESTAMP: Final = "event_timestamp"
MISSING: Final = np.iinfo(np.int64).min  # the moment of a row that has none: nothing is known then


@dataclass(frozen=True)
class Entities:
    """Entity rows to come.

    Attributes:
        schema: their columns.
        clock: the column of the moment at which each row asks.
    """

    schema: pa.Schema
    clock: str
    _rows: pa.Table | str

    @classmethod
    def of(cls, rows: pd.DataFrame | pa.Table | str, engine: duckdb.DuckDBPyConnection) -> Entities:
        """Return the entity rows of a frame, an arrow table, or a query over what DuckDB can read.

        Raises:
            StateError: the query fails, the rows tell no time, or a column mixes types.
        """
        if isinstance(rows, str):
            rows = rows.strip().rstrip(";")
            try:
                schema = engine.sql(f"SELECT * FROM ({rows}\n) LIMIT 0").to_arrow_table().schema
            except duckdb.Error as error:
                raise StateError("entity query", found=str(error), allowed="a SELECT that DuckDB runs") from error
            return cls(schema, _clock(schema), rows)
        table = rows if isinstance(rows, pa.Table) else _frame(rows)
        return cls(table.schema, _clock(table.schema), table)

    def pieces(self, engine: duckdb.DuckDBPyConnection, size: int) -> Iterator[pa.Table]:
        """Yield the rows, in order, in tables of `size` rows at most; at least one table, be it empty."""
        if isinstance(self._rows, pa.Table):
            for start in range(0, max(len(self._rows), 1), size):
                yield self._rows.slice(start, size)
            return
        empty = True
        with closing(engine.cursor()) as cursor:  # the engine itself answers other queries meanwhile
            cursor.execute("SET TimeZone = 'UTC'")
            for piece in _regroup(cursor.sql(self._rows).to_arrow_reader(1 << 17), size):
                empty = False
                yield piece
        if empty:
            yield self.schema.empty_table()

    def bounds(self, engine: duckdb.DuckDBPyConnection) -> tuple[datetime | None, datetime | None]:
        """Return the first and the last moment of the rows; None where there is none."""
        if isinstance(self._rows, str):
            cursor = engine.sql(f"SELECT min({quoted(self.clock)}), max({quoted(self.clock)}) FROM ({self._rows}\n)")
            ends = cursor.to_arrow_table()
            low, high = (moments(column, "us") for column in ends.columns)
        else:
            low = high = moments(self._rows[self.clock], "us")
        real = np.concatenate([low, high])
        real = real[real != MISSING]
        if not len(real):
            return None, None
        first, last = (
            datetime.fromtimestamp(0, UTC) + pd.Timedelta(int(value), "us").to_pytimedelta() for value in (real.min(), real.max())
        )
        return first, last


def _regroup(reader: Any, size: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in reader:
        while count + len(batch) > size:
            fits = size - count
            yield pa.Table.from_batches([*held, batch.slice(0, fits)])
            held, count, batch = [], 0, batch.slice(fits)  # noqa: PLW2901 - what is left of the batch is the batch
        held.append(batch)
        count += len(batch)
    if count:
        yield pa.Table.from_batches(held)


def _frame(frame: pd.DataFrame) -> pa.Table:
    if frame.columns.duplicated().any() or not all(isinstance(name, str) for name in frame.columns):
        raise StateError("entity rows", found=f"columns {list(frame.columns)}", allowed="distinct names that are text")
    columns = {}
    for name in frame.columns:
        try:
            columns[name] = pa.Array.from_pandas(frame[name])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            if name != EVENT_TIMESTAMP:
                raise StateError(f"entity rows: column {name!r}", found=str(error), allowed="values of one type") from error
            columns[name] = pa.Array.from_pandas(_parsed(frame[name]))
    return pa.table(columns)


def _parsed(values: Any) -> Any:
    """Return moments written as text or Python objects, of any zone, as UTC."""
    try:
        return pd.to_datetime(pd.Series(values), utc=True, format="ISO8601")
    except (ValueError, TypeError) as error:
        raise StateError("entity rows: their moments", found=str(error), allowed="times, or text in ISO 8601") from error


def _clock(schema: pa.Schema) -> str:
    """Return the column that tells a row's moment: `event_timestamp`, or else the only column of times."""
    if EVENT_TIMESTAMP in schema.names:
        return EVENT_TIMESTAMP
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    if len(times) != 1:
        raise StateError(
            "entity rows", found=f"columns {schema.names}", allowed=f"a column {EVENT_TIMESTAMP!r}, or exactly one column of times"
        )
    return str(times[0])


def moments(column: pa.ChunkedArray | pa.Array, unit: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a column of times as integers since 1970 UTC, rounded down; a time without zone is UTC, a missing one `MISSING`.

    Raises:
        StateError: the column holds neither times nor dates nor text in ISO 8601.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms" if pa.types.is_date64(column.type) else "s"))
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pa.chunked_array([pa.Array.from_pandas(_parsed(column.to_pandas()))])
    elif pa.types.is_null(column.type):
        column = column.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(column.type):
        raise StateError("entity rows: their moments", found=f"a column of {column.type}", allowed="times")
    raw = column.cast(pa.int64())
    values = pc.fill_null(raw, 0).to_numpy()
    have, want = PER_SECOND[column.type.unit], PER_SECOND[unit]
    if want > have:
        reach = np.iinfo(np.int64).max // (want // have)  # beyond it no row of the source can be told apart anyway
        values = np.clip(values, -reach, reach) * (want // have)
    elif want < have:
        values = values // (have // want)
    return np.where(raw.is_valid().to_numpy(), values, MISSING) if raw.null_count else values
