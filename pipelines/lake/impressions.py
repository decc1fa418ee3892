"""What was shown to whom, as rows of the canonical impressions table.

    lake/impressions/shown_date=D/impressions.parquet   the impressions of a UTC day

A lake without them is one whose source logs none.
"""

from __future__ import annotations

import duckdb

from pipelines import columns as c
from pipelines import tables
from pipelines.config import Home
from pipelines.lake.engine import open_engine
from pipelines.lake.reading import define
from pipelines.window import Window, utc


def connect(home: Home, window: Window) -> duckdb.DuckDBPyConnection:
    """Return DuckDB with the view `impressions`: those shown in a window, of which there may be none."""
    engine = open_engine(home)
    view(engine, home, window)
    return engine


def view(engine: duckdb.DuckDBPyConnection, home: Home, window: Window) -> None:
    """Define the view `impressions`: those shown in a window."""
    first, last = f"{utc(window.start):%Y-%m-%d}", f"{utc(window.end):%Y-%m-%d}"
    files = [
        file
        for file in sorted((home.lake / "impressions").glob("shown_date=*/impressions.parquet"))
        if first <= file.parent.name.removeprefix("shown_date=") <= last
    ]
    start, end = (f"TIMESTAMPTZ '{utc(moment).isoformat()}'" for moment in (window.start, window.end))
    define(engine, "impressions", tables.IMPRESSIONS, files, f" WHERE {c.SHOWN_AT} >= {start} AND {c.SHOWN_AT} < {end}")
