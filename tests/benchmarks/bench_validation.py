"""Validating a staged batch of 30 days, against one DuckDB query that makes the same checks and writes nothing.

Ours also writes every accepted and every refused row, keeps the accounts and renders Data Docs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import timedelta
from pathlib import Path

from bench_ingest import DAYS, START, rows
from one_run import compare, in_process, measured, publish_page

from pipelines import lake, publish, tables
from pipelines.config import Home, ValidationSettings
from pipelines.validation import checkpoint
from pipelines.validation.row_rules import table_rules


def make(home: Home, size: int) -> None:
    """Write a staged batch of which one row in a hundred lacks its user and one in a thousand comes twice."""
    facts = {"source": "bench", "window": [START.isoformat(), (START + timedelta(days=DAYS)).isoformat()]}
    spoilt = f"""
        SELECT * REPLACE (CASE WHEN source_row % 100 = 0 THEN NULL ELSE user_id END AS user_id,
            CASE WHEN source_row % 1000 = 1 THEN md5((source_row - 1)::VARCHAR) ELSE event_id END AS event_id),
            NULL::VARCHAR[] AS reasons, NULL::VARCHAR AS raw
        FROM (SELECT *, row_number() OVER () - 1 AS source_row FROM ({rows(size)}))"""
    with publish.folder(home.landing / "b", facts) as folder, lake.open_engine(home) as engine:
        engine.execute("SET preserve_insertion_order = true")
        names = ", ".join(tables.staged("events").names)
        engine.execute(
            f"COPY (SELECT {names} FROM ({spoilt})) TO '{folder}/events.parquet' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 131072)"
        )


def peer(home: Home) -> None:
    """Count, in one query, what every rule refuses, what is null, and how many ids there are."""
    counts = [f"count(*) FILTER ({rule.condition})" for rule in table_rules(ValidationSettings())["events"].rules]
    counts += [f"count(*) FILTER ({name} IS NULL)" for name in tables.EVENTS.names]
    with lake.open_engine(home) as engine:
        engine.execute(f"SELECT count(*), count(DISTINCT event_id), {', '.join(counts)} FROM '{home.landing}/b/events.parquet'").fetchall()


def main() -> None:
    """Run every size, or one step of it in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--step", nargs=3, metavar=("WHAT", "HOME", "SIZE"))
    asked = parser.parse_args()
    if asked.step:
        what, home, size = asked.step[0], Home(Path(asked.step[1])), int(asked.step[2])
        end = START + timedelta(days=DAYS)
        actions = {
            "make": lambda: make(home, size),
            "ours": lambda: checkpoint.validate_batch(home, end, "b"),
            "peer": lambda: peer(home),
        }
        print(json.dumps(measured(actions[what])))
        return
    found = []
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as folder:
            in_process(__file__, "--step", "make", folder, str(size))
            ours = in_process(__file__, "--step", "ours", folder, str(size))
            found += compare(size, ours, in_process(__file__, "--step", "peer", folder, str(size)), min_ratio=0.1, max_mb=4000)
    publish_page("validation", found, "The peer is one DuckDB query with the same conditions that writes nothing, 2 threads, 2 GB.")


if __name__ == "__main__":
    main()
