"""Reading the lake: a consistent view of one landing's state, however long the reader takes."""

from __future__ import annotations

import atexit
import os
import shutil
from datetime import date, datetime
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import publish, tables
from pipelines.config import Home
from pipelines.lake.engine import open_engine, parquet, quoted
from pipelines.lake.journal import JOURNAL, locked, recover
from pipelines.lake.ledger import HEAD
from pipelines.window import Window, utc

EVENTS: Final = "events/event_date={day}/events.parquet"
VERSIONS: Final = {"items": ("items/items.parquet", c.ITEM_ID), "users": ("users/users.parquet", c.USER_ID)}


def days(home: Home) -> list[date]:
    """Return the UTC days that hold at least one event, ascending."""
    recover(home)
    return [_day(file) for file in _event_files(home.lake)]


def event_files(home: Home, window: Window | None = None) -> list[Path]:
    """Return the day files of the lake, oldest first; with `window`, of the days it touches.

    A later landing replaces these files; who reads for long, or across days, uses `connect`.
    """
    recover(home)
    wanted = None if window is None else set(window.days())
    return [file for file in _event_files(home.lake) if wanted is None or _day(file) in wanted]


def partitions(home: Home, before: datetime) -> dict[str, str]:
    """Return the sha256 of every file that a reader of what was known before a moment is given, by its path inside the lake."""
    root, last = _snapshot(home), utc(before).date()
    files = [file for file in _event_files(root) if _day(file) <= last] + [root / name for name, _ in VERSIONS.values()]
    return {str(file.relative_to(root)): publish.digest(file) for file in files if file.is_file()}


def received_since(home: Home, day: date) -> list[date]:
    """Return the days before a day whose file holds an event received on it or later, ascending; footers are read, not rows."""
    recover(home)
    return [_day(file) for file in _event_files(home.lake) if _day(file) < day and _newest_receipt(file) >= day]


def _newest_receipt(file: Path) -> date:
    """Return the UTC day on which the last row of a day's file was received."""
    meta = pq.read_metadata(file)
    leaf = tables.EVENTS.get_field_index(c.RECEIVED_AT)
    found = [meta.row_group(group).column(leaf).statistics for group in range(meta.num_row_groups)]
    return max(
        (utc(statistics.max).date() if statistics is not None and statistics.has_min_max else date.max for statistics in found),
        default=date.min,
    )


def connect(home: Home, *, before: datetime | None = None) -> duckdb.DuckDBPyConnection:
    """Return DuckDB with the views `events`, `items` and `users` over the lake as it is now.

    A landing that happens later does not show. An empty lake has empty views of the same columns.

    Args:
        before: restrict events to what had happened *and* had been received before this moment,
            items and users to the versions valid from before it and received before it.
    """
    engine = open_engine(home)
    root = _snapshot(home)
    limit = None if before is None else f"TIMESTAMPTZ {quoted(utc(before).isoformat())}"
    files = [file for file in _event_files(root) if before is None or _day(file) <= utc(before).date()]
    known = "" if limit is None else f" WHERE {c.EVENT_AT} < {limit} AND {c.RECEIVED_AT} < {limit}"
    define(engine, "events", tables.EVENTS, files, known)
    for table, (name, _) in VERSIONS.items():
        define(
            engine,
            table,
            tables.CANONICAL[table],
            [root / name],
            "" if limit is None else f" WHERE {c.VALID_FROM} < {limit} AND {c.RECEIVED_AT} < {limit}",
        )
    return engine


def define(engine: duckdb.DuckDBPyConnection, view: str, schema: pa.Schema, files: list[Path], where: str = "") -> None:
    """Define a view over those of some Parquet files that exist; of no rows if none does."""
    there = [file for file in files if file.is_file()]
    query = parquet(there, ", ".join(schema.names)) + where if there else _nothing(engine, schema)
    engine.execute(f"CREATE VIEW {view} AS {query}")


def _nothing(engine: duckdb.DuckDBPyConnection, schema: pa.Schema) -> str:
    """Return the SELECT of no rows with the columns of a schema."""
    engine.register("_schema", schema.empty_table())
    described = engine.execute("DESCRIBE SELECT * FROM _schema").fetchall()
    engine.unregister("_schema")
    return "SELECT " + ", ".join(f"NULL::{kind} AS {name}" for name, kind, *_ in described) + " WHERE false"


def _event_files(root: Path) -> list[Path]:
    return sorted((root / "events").glob("event_date=*/events.parquet"))


def _day(file: Path) -> date:
    return date.fromisoformat(file.parent.name.removeprefix("event_date="))


def _snapshot(home: Home) -> Path:
    """Return a folder of hard links to the lake's files as they are now, one a process and landing.

    Landings replace files by renaming, so a link keeps the bytes that a reader began with. Where
    links are refused (some network and container file systems) the lake itself is returned.
    """
    process = home.root / "tmp" / f"lake.{os.getpid()}"
    while True:
        recover(home)
        with locked(home, "commit", shared=True):
            if not (home.lake / JOURNAL).is_file():  # else a writer died since the line above
                return _link(home.lake, process)


def _link(lake: Path, process: Path) -> Path:
    mark = lake / HEAD
    state = mark.stat() if mark.is_file() else None
    root = process / ("empty" if state is None else f"{state.st_mtime_ns}-{state.st_ino}")
    if root.is_dir():
        return root
    _sweep(process)
    building = process / f".{root.name}"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        for file in [*_event_files(lake), *(lake / name for name, _ in VERSIONS.values())]:
            if file.is_file():
                link = building / file.relative_to(lake)
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, link)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        return lake
    building.rename(root)
    return root


def _sweep(process: Path) -> None:
    """Drop the links of processes that are gone, and see to it that ours go when we do."""
    for other in process.parent.glob("lake.*"):
        pid = other.name.removeprefix("lake.")
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(other, ignore_errors=True)
    if not process.is_dir():
        atexit.register(_leave, process, os.getpid())


def _leave(process: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child inherits the registration, not the folder
        shutil.rmtree(process, ignore_errors=True)
