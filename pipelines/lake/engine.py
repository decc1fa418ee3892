"""The one way DuckDB is opened over our files: in memory, bounded, in UTC, and unable to fetch code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import duckdb

from pipelines.config import Home
from pipelines.errors import StateError

MEMORY: Final = "2GB"  # beyond it DuckDB spills to disk
THREADS: Final = 2


def open_engine(home: Home, *, memory: str = MEMORY) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB that spills to the state folder and neither installs nor loads extensions.

    Times are UTC whatever TZ says, and text is compared byte by byte.
    """
    spill = home.root / "tmp" / "duckdb"
    spill.mkdir(parents=True, exist_ok=True)
    engine = duckdb.connect(
        config={
            "memory_limit": memory,
            "threads": str(THREADS),
            "temp_directory": str(spill),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "preserve_insertion_order": "false",  # who wants an order says ORDER BY; streaming needs less memory so
        }
    )
    engine.execute("SET TimeZone = 'UTC'")
    return engine


def quoted(value: str | Path) -> str:
    """Return a text as a SQL literal, for the places where DuckDB takes no parameter."""
    return "'" + str(value).replace("'", "''") + "'"


def parquet(files: list[Path], columns: str = "*") -> str:
    """Return the SELECT over some Parquet files (at least one), by absolute path and without globbing."""
    listed = ", ".join(quoted(literal(file)) for file in files)
    return f"SELECT {columns} FROM read_parquet([{listed}], hive_partitioning = false)"


def literal(path: Path) -> str:
    """Return a path in which DuckDB sees no wildcard."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(path))


@contextmanager
def disk_errors(what: str, home: Home) -> Iterator[None]:
    """Turn a failed write (disk or quota full, file too large) into an error that says what to do."""
    try:
        yield
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as failure:
        raise StateError(
            what,
            found=f"{type(failure).__name__}: {failure}",
            allowed=f"room to write under {home.root}",
            hint="nothing was published and no file is half-written; make room and run the stage again",
        ) from failure
