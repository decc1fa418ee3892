"""What was shown to whom, as rows of the canonical impressions table.

    lake/impressions/shown_date=D/impressions.parquet   the impressions of a UTC day

    lake/_shown/<batch_id>.json                             what each landing of the impression log brought

An answer that showed no item is a row of rank 0 whose item is `columns.NOTHING`: it was an exposure all the same. Readers find these in a view of
their own, `empty_answers`. That a place came into view is a row of rank -1 whose `shown_at` is when the service learnt it: the view `seen_places`. A pair of request and item occurs once; rows are sorted by (shown_at, request_id, rank, item_id), so the bytes of a day depend on the set of
rows ever landed. A lake without impressions is one whose source logs none.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import cycle, publish, tables
from pipelines.config import Home
from pipelines.lake import journal
from pipelines.lake.day_files import write_table
from pipelines.lake.engine import disk_errors, open_engine, parquet
from pipelines.lake.landing import judged_folder
from pipelines.lake.reading import define
from pipelines.window import Window, utc

SEEN_WITHIN: Final = timedelta(days=1)  # after it was shown, that a place may come into view
FILE: Final = "impressions/shown_date={day}/impressions.parquet"
LANDINGS: Final = "_shown"
SORTED: Final = f"{c.SHOWN_AT}, {c.REQUEST_ID}, {c.RANK}, {c.ITEM_ID}"


def connect(home: Home, window: Window) -> duckdb.DuckDBPyConnection:
    """Return DuckDB with the views `impressions`, `empty_answers` and `seen_places` of a window, of which there may be none."""
    engine = open_engine(home)
    view(engine, home, window)
    return engine


def view(engine: duckdb.DuckDBPyConnection, home: Home, window: Window) -> None:
    """Define the views of a window.

    impressions: items shown in it; empty_answers: answers without any, of the same columns.
    seen_places: request_id, item_id, seen_at of the places that came into view, up to `SEEN_WITHIN` after its end; once each.
    """
    first, last = f"{utc(window.start):%Y-%m-%d}", f"{utc(window.end) + SEEN_WITHIN:%Y-%m-%d}"
    files = [
        file
        for file in sorted((home.lake / "impressions").glob("shown_date=*/impressions.parquet"))
        if first <= file.parent.name.removeprefix("shown_date=") <= last
    ]
    start, end, late = (f"TIMESTAMPTZ '{utc(moment).isoformat()}'" for moment in (window.start, window.end, window.end + SEEN_WITHIN))
    until = f"{c.SHOWN_AT} < CASE WHEN {c.RANK} < 0 THEN {late} ELSE {end} END"
    where = f" WHERE {c.SHOWN_AT} >= {start} AND {until}"
    journal.recover(home)
    if not files:
        define(engine, "logged", tables.IMPRESSIONS, [])
    else:
        engine.execute("CREATE VIEW logged AS " + " UNION ALL ".join(_columns(file) + where for file in files))
    engine.execute(f"CREATE VIEW impressions AS SELECT * FROM logged WHERE {c.RANK} > 0")
    engine.execute(
        f"CREATE VIEW seen_places AS SELECT {c.REQUEST_ID}, {c.ITEM_ID}, min({c.SHOWN_AT}) AS {c.SEEN_AT} FROM logged"
        f" WHERE {c.RANK} = {c.SEEN_RANK} GROUP BY ALL"
    )
    engine.execute(f"CREATE VIEW empty_answers AS SELECT * FROM logged WHERE {c.RANK} = 0")


def _columns(file: Path) -> str:
    """Return the SELECT of a day's impressions; columns that came later are null in older files."""
    known = set(pq.read_schema(file).names)
    kinds = {c.SURFACE: "VARCHAR", c.RUNG: "VARCHAR"}
    return parquet([file], ", ".join(name if name in known else f"NULL::{kinds[name]} AS {name}" for name in tables.IMPRESSIONS.names))


def land(home: Home, as_of: datetime, batch_id: str) -> dict[str, Any]:
    """Merge a judged batch of the impression log into the lake, in one step; return and record what it brought.

    The same batch again changes no byte and returns the report of the first time. Safe to kill and to repeat at any point.

    Raises:
        StateError: the batch was not judged, or the disk is full.
    """
    with cycle.stage(home, as_of, "impressions", batch_id) as record, disk_errors(f"landing of batch {batch_id}", home):
        folder = judged_folder(home, batch_id)
        with journal.writing(home) as staging:
            if (report := landed(home, batch_id)) is not None:
                record.update(report)
                return report
            manifest = publish.manifest(folder)
            with open_engine(home) as engine:
                accepted, days = _merge(home, engine, folder / "impressions.parquet", staging)
            rows = dict(manifest.facts["rows"])
            rows["duplicates"] += rows["accepted"] - accepted
            report = {
                "batch_id": batch_id,
                "rows": rows | {"accepted": accepted},
                "reasons": manifest.facts["reasons"],
                "torn": manifest.facts["torn"],
                "days": days,
            }
            publish.write_json(staging / LANDINGS / f"{batch_id}.json", report)
            journal.commit(home, staging, removed=[])
        record.update(report)
        return report


def _merge(home: Home, engine: duckdb.DuckDBPyConnection, file: Path, staging: Path) -> tuple[int, list[str]]:
    """Stage the new file of every day that the batch touches; return how many rows are new to the lake, and the days."""
    define(engine, "fresh", tables.IMPRESSIONS, [file])
    days = [str(day) for (day,) in engine.execute(f"SELECT DISTINCT CAST({c.SHOWN_AT} AS DATE) AS day FROM fresh ORDER BY day").fetchall()]
    names, added = ", ".join(tables.IMPRESSIONS.names), 0
    for day in days:
        old = home.lake / FILE.format(day=day)
        had = pq.read_metadata(old).num_rows if old.is_file() else 0
        parts = [f"SELECT {names} FROM fresh WHERE CAST({c.SHOWN_AT} AS DATE) = DATE '{day}'", *([_columns(old)] if had else [])]
        merged = engine.sql(
            f"SELECT {names} FROM ({' UNION ALL '.join(parts)}) AS shown QUALIFY row_number() OVER (PARTITION BY {c.REQUEST_ID}, {c.ITEM_ID}, {c.RANK} < 0"
            f" ORDER BY {c.SHOWN_AT}, {c.RANK}, to_json(shown)::VARCHAR) = 1 ORDER BY {SORTED}"
        )
        added += write_table(staging / FILE.format(day=day), tables.IMPRESSIONS, merged) - had
    return added, days


def landed(home: Home, batch_id: str) -> dict[str, Any] | None:
    """Return what a batch of the log brought, whose id is that of its content; None where it has not landed."""
    journal.recover(home)
    entry = home.lake / LANDINGS / f"{batch_id}.json"
    return dict(json.loads(entry.read_text(encoding="utf-8"))) if entry.is_file() else None
