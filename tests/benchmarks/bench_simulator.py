"""How fast the simulated shop makes ten million events on one core, beside a plain Python loop that makes far simpler ones.

The peer draws user, item, type and time by fixed weights, one event at a time: no taste, no session,
no memory. It is what a script for test data usually looks like.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import resource
import time
from datetime import timedelta

import pyarrow as pa

from pipelines import columns as c
from pipelines import publish, tables
from pipelines.config import Home
from pipelines.sources.request import WORLD_STARTS, World
from pipelines.sources.simulator import Shop
from pipelines.window import Window, utc

TARGET = 10_000_000 / 60  # events a second: ten million in a minute


def simulated(events: int, days: int) -> tuple[int, float, float]:
    """Return rows, seconds of wall clock and seconds of CPU for about `events` events, week by week as they are ingested."""
    shop = Shop(World(users=200_000, items=20_000, events_per_day=events // days))
    wall, cpu, rows = time.perf_counter(), time.process_time(), 0
    for week in Window(utc(WORLD_STARTS), utc(WORLD_STARTS) + timedelta(days=days)).split(7):
        rows += shop.events(week).num_rows
    return rows, time.perf_counter() - wall, time.process_time() - cpu


def plain(events: int) -> tuple[int, float]:
    """Return rows and seconds of CPU of the peer."""
    rng = random.Random(7)
    weights = [1 / rank for rank in range(1, 20_001)]
    begun, start = time.process_time(), utc(WORLD_STARTS)
    items = rng.choices(range(20_000), weights, k=events)
    rows = []
    for number, item in enumerate(items):
        at = start + timedelta(seconds=rng.random() * 604_800)
        kind = rng.choices((c.VIEW, c.ADD_TO_CART, c.PURCHASE), (85, 10, 5))[0]
        rows.append(
            {
                c.EVENT_ID: f"e{number:016d}",
                c.USER_ID: f"u{rng.randrange(200_000):08d}",
                c.ITEM_ID: f"i{item:08d}",
                c.EVENT_TYPE: kind,
                c.VALUE: 9.99 if kind == c.PURCHASE else None,
                c.EVENT_AT: at,
                c.RECEIVED_AT: at + timedelta(seconds=rng.expovariate(0.5)),
            }
        )
    table = pa.Table.from_pylist(rows, schema=tables.EVENTS).sort_by(c.RECEIVED_AT)
    return table.num_rows, time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--peer-events", type=int, default=200_000)
    arguments = parser.parse_args()
    pa.set_cpu_count(1)  # numpy is left alone: nothing the simulator calls of it has threads
    rows, wall, cpu = simulated(arguments.events, days=63)
    peer_rows, peer_seconds = plain(arguments.peer_events)
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    ours, peer = rows / cpu, peer_rows / peer_seconds
    result = {
        "name": "simulator",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; one thread used",
        "rows": [
            {
                "case": f"{rows:,} events in 63 days, 200,000 users, 20,000 items",
                "ours": round(ours),
                "peer": round(peer),
                "unit": "events/s of one core's time",
                "ratio": round(ours / peer, 2),
                "target": round(TARGET),
                "met": ours >= TARGET,
            }
        ],
        "notes": f"{cpu:.1f} s of CPU, {wall:.1f} s of wall clock, at most {memory_gb:.2f} GB. "
        f"The peer is a Python loop over {peer_rows:,} events without behaviour.",
    }
    for row in result["rows"]:
        print(f"{row['case']}: {row['ours']:,} {row['unit']}, plain loop {row['peer']:,} ({row['ratio']}x), target {row['target']:,}")
    print(result["notes"])
    path = Home.from_environment().reports / "bench" / "simulator.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    publish.write_json(path, result)
    print(path)


if __name__ == "__main__":
    main()
