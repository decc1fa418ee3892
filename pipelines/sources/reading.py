"""Read one window of a source into a staged batch: everything is kept, nothing is judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import lake, publish, tables
from pipelines.config import Home
from pipelines.errors import SourceError
from pipelines.sources import collected, normalising
from pipelines.sources.request import Request, Source, World
from pipelines.window import Window, micros

if TYPE_CHECKING:
    from pipelines.sources.simulator import Shop

TABLES: Final = ("events", "items", "users")
ENTITIES: Final = {"items": c.ITEM_ID, "users": c.USER_ID}


def stage_batch(home: Home, request: Request, window: Window) -> str:
    """Publish `landing/<batch_id>/{events,items,users}.parquet` for one window and return the batch id.

    A row belongs to the window in which it was received; beside these a window brings the items and
    users of a file as they stood at its start, and the first one all their versions before it, so
    that reading may begin anywhere; of events also what the bus brought (`collected`). Rows whose time could not be read belong to the window that holds the source's first moment, so that a run
    over the whole source reads every row exactly once. The manifest's facts are source, window,
    rows (read, by table), settings (of a mapping) and, where a table came with columns missing or
    too many, `columns`: {table: {"missing": [...], "unknown": [...]}}.

    Raises:
        StateError: the lake holds another source.
        SourceError: the source cannot be read, or is refused.
        MappingError: the mapping does not fit its file.
    """
    lake.check_source(home, str(request.source))
    batch_id = request.identity(window)
    rows: dict[str, int] = {}
    facts: dict[str, Any] = {
        "source": str(request.source),
        "window": [window.start.isoformat(), window.end.isoformat()],
        "rows": rows,
        "settings": {},
    }
    normalised = None if request.source is Source.SIMULATED else normalising.normalised(home, request)
    with publish.folder(home.landing / batch_id, facts) as folder:
        if normalised is None:
            facts["columns"] = {}
            shop = _shop(request.world)
            drawn = {"events": shop.raw(window), "items": iter([shop.items(window)]), "users": iter([shop.users(window)])}
            for name, pieces in drawn.items():
                conformed = _conformed(name, pieces, facts["columns"])
                rows[name] = _write(folder / f"{name}.parquet", name, _with_collected(home, name, conformed, window))
        else:
            facts["settings"] = normalised.settings
            for name in TABLES:
                pieces = _slice(normalised, name, window)
                rows[name] = _write(folder / f"{name}.parquet", name, _with_collected(home, name, pieces, window))
    return batch_id


def _with_collected(home: Home, name: str, pieces: Iterator[pa.Table], window: Window) -> Iterator[pa.Table]:
    """Yield the pieces of a table, then, of events, what the bus brought beside them, its rows numbered on."""
    last = -1
    for piece in pieces:
        last = max(last, pc.max(piece[c.SOURCE_ROW]).as_py() or 0)
        yield piece
    if name == "events":
        for found in collected.events(home, window):
            number = pa.array(range(last + 1, last + 1 + found.num_rows), pa.int64())
            last += found.num_rows
            yield found.set_column(found.schema.get_field_index(c.SOURCE_ROW), c.SOURCE_ROW, number)


@lru_cache(maxsize=1)
def _shop(world: World) -> Shop:
    from pipelines.sources.simulator import Shop

    return Shop(world)


def _conformed(name: str, pieces: Iterator[pa.Table], odd: dict[str, dict[str, list[str]]]) -> Iterator[pa.Table]:
    """Yield pieces in the staged schema, rows numbered through; note in `odd` which columns were missing or unknown."""
    first = 0
    for piece in pieces:
        known = {*tables.staged(name).names}
        missing = [column for column in tables.CANONICAL[name].names if column not in piece.column_names]
        unknown = [column for column in piece.column_names if column not in known]
        if missing or unknown:
            noted = odd.setdefault(name, {"missing": [], "unknown": []})
            odd[name] = {key: sorted({*noted[key], *found}) for key, found in (("missing", missing), ("unknown", unknown))}
        if unknown and c.RAW not in piece.column_names:
            # What stands in a column that nobody knows is kept, so that quarantine can show it.
            piece = piece.append_column(c.RAW, [_as_json(piece.select(unknown))])  # noqa: PLW2901
        yield conform(name, piece, first)
        first += piece.num_rows


def _as_json(table: pa.Table) -> pa.Array:
    """Return each row as a JSON object, null where nothing in it is filled."""
    rows = table.to_pylist()
    return pa.array(
        [json.dumps(row, default=str) if any(value is not None for value in row.values()) else None for row in rows], pa.string()
    )


def conform(name: str, table: pa.Table, first: int = 0) -> pa.Table:
    """Return `table` in the staged schema: missing columns null, `source_row` counted from `first`, unknown ones dropped."""
    schema = tables.staged(name)
    columns = []
    for field in schema:
        if field.name in table.column_names:
            columns.append(_cast(table.column(field.name), field, name))
        elif field.name == c.SOURCE_ROW:
            columns.append(pa.array(range(first, first + table.num_rows), pa.int64()))
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, field: pa.Field, name: str) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"{name}.{field.name}", found=f"{column.type} that is no {field.type}: {error}", allowed=str(field.type)
        ) from error


def _slice(source: normalising.Normalised, name: str, window: Window) -> Iterator[pa.Table]:
    """Yield the rows of a window, a row group at a time; only row groups that can hold some are read.

    Of items and users also what stands at its start, or in the source's first window all before it.
    """
    start, end = micros(window.start), micros(window.end)
    undated = source.first in window
    standing = np.zeros(0, np.int64)
    if name in ENTITIES and window.start <= source.first:
        start = np.iinfo(np.int64).min
    elif name in ENTITIES:
        standing = _standing(source.folder / f"{name}.parquet", ENTITIES[name], start)
    first = 0
    with pq.ParquetFile(source.folder / f"{name}.parquet") as file:
        position = file.schema_arrow.get_field_index(c.RECEIVED_AT)
        for group in range(file.num_row_groups):
            first, before = first + file.metadata.row_group(group).num_rows, first
            stands = standing[(standing >= before) & (standing < first)] - before
            # The leaf of a flat column has the position of its field: nested ones stand behind it.
            statistics = file.metadata.row_group(group).column(_leaf(file, position)).statistics
            spread = statistics is not None and statistics.has_min_max
            nulls = statistics is None or not statistics.has_null_count or statistics.null_count > 0
            reaches = spread and micros(statistics.min) < end and micros(statistics.max) >= start
            if not (reaches or (undated and nulls) or len(stands)):
                continue
            table = conform(name, file.read_row_group(group, use_threads=False))
            at = table.column(c.RECEIVED_AT).cast(pa.int64())
            inside = pc.and_(pc.greater_equal(at, start), pc.less(at, end))
            chosen = pc.fill_null(inside, undated).to_numpy(zero_copy_only=False).copy()
            chosen[stands] = True
            if chosen.any():
                yield table.filter(pa.array(chosen))


def _standing(file: Path, key: str, start: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the positions of the rows of a file that hold the newest version of their entity received before `start`, ascending."""
    versions = pq.read_table(file, columns=[key, c.VALID_FROM, c.RECEIVED_AT], use_threads=False)
    received = pc.less(versions[c.RECEIVED_AT].cast(pa.int64()), start)
    versions = pa.table({"key": versions[key], "at": versions[c.VALID_FROM].cast(pa.int64()), "row": np.arange(len(versions))}).filter(
        received
    )
    newest = versions.group_by("key", use_threads=False).aggregate([("at", "max")])
    rows = versions.join(newest.rename_columns(["key", "at"]), ["key", "at"], join_type="left semi", use_threads=False)["row"]
    return np.sort(rows.to_numpy())


def _leaf(file: pq.ParquetFile, position: int) -> int:
    """Return the Parquet leaf of a flat top-level column."""
    name = file.schema_arrow.field(position).name
    return next(leaf for leaf in range(len(file.schema)) if file.schema.column(leaf).path == name)


def _write(path: Path, name: str, pieces: Iterator[pa.Table]) -> int:
    """Write pieces of one table to a Parquet file and return its rows; memory holds one piece."""
    rows = 0
    options = {key: value for key, value in publish.PARQUET.items() if key != "row_group_size"}
    with pq.ParquetWriter(path, tables.staged(name), **options) as writer:
        for piece in pieces:
            writer.write_table(piece, row_group_size=publish.PARQUET["row_group_size"])
            rows += piece.num_rows
    return rows
