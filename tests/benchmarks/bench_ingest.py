"""Landing a judged batch of 30 days, against DuckDB's own partitioned COPY of the same rows in the same order.

The COPY neither deduplicates nor is atomic nor deterministic: it is what the disk and the sort cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import timedelta
from pathlib import Path

from one_run import compare, in_process, measured, publish_page

from pipelines import lake, publish
from pipelines.config import Home
from pipelines.lake.landing import judged_folder
from pipelines.window import utc

START = utc("2025-01-06")
DAYS = 30


def rows(size: int) -> str:
    """Return the SELECT of `size` events in canonical columns, spread over the days, in the order of receipt."""
    micros = DAYS * 86_400_000_000 // size
    return f"""
        SELECT md5(n::VARCHAR) AS event_id, 'u' || (hash(n) % 200000) AS user_id, 'i' || (hash(n, 1) % 20000) AS item_id,
            CASE WHEN n % 20 = 0 THEN 'purchase' WHEN n % 7 = 0 THEN 'add_to_cart' ELSE 'view' END AS event_type,
            CASE WHEN n % 20 = 0 THEN (hash(n, 2) % 10000) / 100.0 END::DOUBLE AS value,
            CASE WHEN n % 20 = 0 THEN 1.0 END::DOUBLE AS quantity,
            TIMESTAMPTZ '2025-01-06 00:00:00+00' + to_microseconds(n * {micros}) AS event_at,
            TIMESTAMPTZ '2025-01-06 00:00:00+00' + to_microseconds(n * {micros} + 2000000) AS received_at,
            's' || (n // 8) AS session_id, CASE WHEN n % 2 = 0 THEN 'phone' ELSE 'desktop' END AS device, NULL::VARCHAR AS request_id
        FROM range({size}) numbers(n)"""


def make(home: Home, size: int) -> None:
    """Write the judged batch."""
    facts = {"source": "bench", "window": [START.isoformat(), (START + timedelta(days=DAYS)).isoformat()], "rows": {"read": size}}
    with publish.folder(judged_folder(home, "b"), facts) as folder, lake.open_engine(home) as engine:
        engine.execute(f"COPY ({rows(size)}) TO '{folder}/events.parquet' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 131072)")


def peer(home: Home) -> None:
    """Copy the same rows, sorted, into a folder a day."""
    with lake.open_engine(home) as engine:
        engine.execute("SET preserve_insertion_order = true")
        engine.execute(
            f"COPY (SELECT *, CAST(event_at AS DATE) AS event_date FROM read_parquet('{judged_folder(home, 'b')}/events.parquet')"
            f" ORDER BY event_at, event_id) TO '{home.root}/peer' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, PARTITION_BY (event_date))"
        )


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
            "ours": lambda: lake.land(home, end, "b"),
            "again": lambda: lake.land(home, end, "b"),
            "peer": lambda: peer(home),
        }
        print(json.dumps(measured(actions[what])))
        return
    found, again = [], []
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as folder:
            in_process(__file__, "--step", "make", folder, str(size))
            ours = in_process(__file__, "--step", "ours", folder, str(size))
            again.append(in_process(__file__, "--step", "again", folder, str(size))["seconds"])
            found += compare(size, ours, in_process(__file__, "--step", "peer", folder, str(size)), min_ratio=0.2, max_mb=4000)
    notes = (
        "The peer is DuckDB's partitioned COPY, sorted, 2 threads, 2 GB. The same batch again took "
        + ", ".join(f"{s:.2f} s" for s in again)
        + "."
    )
    publish_page("ingest", found, notes)


if __name__ == "__main__":
    main()
