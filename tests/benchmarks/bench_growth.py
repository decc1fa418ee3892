"""What building one more day of features costs: against the length of the history behind it, and against the day's events.

A simulated shop is written straight into the lake, `--events` in all over `--days`. At several
lengths of its history the next day is built as `reloop features` does (dbt with its tests, then the
Parquet files), and the peer builds the same day without a state to go on from: it aggregates the
whole lake, as a project of plain tables does. Then the day itself grows, at one length of history.
CPU seconds of all processes, less what a run costs that has next to nothing to do (dbt's start).
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
from one_run import publish_page, row

from pipelines import lake
from pipelines.config import REPOSITORY, Home
from pipelines.features import build
from pipelines.window import utc

START = utc("2024-01-01").date()
CATCH_UP = 30  # days a run while history is laid down
LENGTHS, LOADS = 4, (1, 2, 4)


def write_days(home: Home, days: range, events_a_day: int, *, users: int, items: int) -> None:
    """Write the lake's files of some days: one event in 50 is received one to six days late."""
    with lake.open_engine(home) as engine:
        engine.execute("SET preserve_insertion_order = true")
        for n in days:
            folder = home.lake / "events" / f"event_date={START + timedelta(days=n)}"
            folder.mkdir(parents=True, exist_ok=True)
            engine.execute(f"""COPY (
                SELECT '{n}-' || e AS event_id, 'u' || least(hash(e // 4, {n}) % {users}, hash(e // 4, {n}, 1) % {users}) AS user_id,
                    'i' || least(hash(e, {n}, 2) % {items}, hash(e, {n}, 3) % {items}) AS item_id,
                    CASE WHEN e % 25 = 0 THEN 'purchase' WHEN e % 10 = 1 THEN 'add_to_cart' ELSE 'view' END AS event_type,
                    CASE WHEN e % 25 = 0 THEN (hash(e, {n}, 4) % 10000) / 100.0 END::DOUBLE AS value,
                    CASE WHEN e % 25 = 0 THEN 1.0 END::DOUBLE AS quantity,
                    TIMESTAMPTZ '{START + timedelta(days=n)} 00:00:00+00' + to_microseconds(e * (86400000000 // {events_a_day})) AS event_at,
                    event_at + CASE WHEN e % 50 = 7 THEN to_hours(24 * (1 + e % 6)) ELSE to_seconds(1) END AS received_at,
                    's{n}-' || (e // 4) AS session_id, CASE WHEN e % 3 = 0 THEN 'mobile' ELSE 'desktop' END AS device, NULL::VARCHAR AS request_id
                FROM range({events_a_day}) numbers(e)
            ) TO '{folder / "events.parquet"}' (FORMAT parquet, COMPRESSION zstd)""")


def write_catalogue(home: Home, items: int) -> None:
    """Write one version of every item."""
    (home.lake / "items").mkdir(parents=True, exist_ok=True)
    with lake.open_engine(home) as engine:
        engine.execute(f"""COPY (
            SELECT 'i' || i AS item_id, NULL::VARCHAR AS title, 'c' || (i % 30) AS category, 'b' || (i % 120) AS brand, (1 + i % 90)::DOUBLE AS price,
                NULL::MAP(VARCHAR, VARCHAR) AS attributes, true AS available, NULL::TIMESTAMPTZ AS created_at,
                TIMESTAMPTZ '{START} 00:00:00+00' AS valid_from, valid_from AS received_at
            FROM range({items}) numbers(i)
        ) TO '{home.lake / "items" / "items.parquet"}' (FORMAT parquet)""")


def cpu() -> float:
    """Return the CPU seconds of this process and of those it waited for."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def one_day(home: Home, n: int) -> float:
    """Build the row of midnight `n`, publish it, and return the CPU seconds."""
    day, before = START + timedelta(days=n), cpu()
    build.run_dbt(home, day, day)
    build.publish_days(home, [day])
    return cpu() - before


def lay_down(home: Home, first: int, last: int) -> None:
    """Build the days first..last, a month a run, without tests."""
    for begin in range(first, last + 1, CATCH_UP):
        end = min(begin + CATCH_UP - 1, last)
        build.run_dbt(home, START + timedelta(days=begin), START + timedelta(days=end), "--exclude-resource-type", "test")


def anew(home: Home, n: int) -> float:
    """Build the same day from the whole lake in a warehouse of its own; return the CPU seconds."""
    with tempfile.TemporaryDirectory(dir=home.root) as folder:
        other = Home(Path(folder))
        other.lake.symlink_to(home.lake)
        return one_day(other, n)


def shop(root: Path, asked: argparse.Namespace) -> Home:
    """Return an empty home with a catalogue."""
    home = Home(root)
    write_catalogue(home, asked.items)
    return home


def by_history(asked: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Return, at growing lengths of history, the cost of the next day, ours and the peer's."""
    home, found, built = shop(folder / "long", asked), [], 0
    lengths = [max(asked.days * (k + 1) // LENGTHS, 2) for k in range(LENGTHS)]
    for length in lengths:
        write_days(home, range(built, length), asked.events // asked.days, users=asked.users, items=asked.items)
        lay_down(home, built + 1, length - 1)
        rows = length * (asked.events // asked.days)
        found.append({"days": length, "events": rows, "ours": one_day(home, length), "peer": anew(home, length)})
        print(found[-1], flush=True)
        shutil.rmtree(home.features)
        built = length
    return found


def by_load(asked: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Return the cost of a day of 1, 2 and 4 times the events, behind 10 ordinary days."""
    found, usual = [], asked.events // asked.days
    for load in LOADS:
        home = shop(folder / f"load{load}", asked)
        write_days(home, range(10), usual, users=asked.users, items=asked.items)
        lay_down(home, 1, 10)
        write_days(home, range(10, 11), load * usual, users=asked.users, items=asked.items)
        found.append({"events": load * usual, "ours": one_day(home, 11)})
        print(found[-1], flush=True)
        shutil.rmtree(home.root)
    return found


def idle(asked: argparse.Namespace, folder: Path) -> float:
    """Return what a run costs in which a handful of events happened."""
    home = shop(folder / "idle", argparse.Namespace(items=10))
    write_days(home, range(2), 100, users=10, items=10)
    lay_down(home, 1, 1)
    return one_day(home, 2)


def plot(file: Path, history: list[dict[str, float]], load: list[dict[str, float]], start: float) -> None:
    """Draw both curves, readable without colour."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "reloop"
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=False)
    days = [point["days"] for point in history]
    left.plot(days, [point["ours"] - start for point in history], "k-o", label="from yesterday's state")
    left.plot(days, [point["peer"] - start for point in history], "k--s", markerfacecolor="white", label="whole lake anew")
    left.set(xlabel="days of history", ylabel="CPU seconds for one more day", title="Against history", ylim=(0, None))
    left.legend(frameon=False)
    right.plot([point["events"] / 1000 for point in load], [point["ours"] - start for point in load], "k-o")
    right.set(xlabel="thousand events on the day", title="Against the day's events", ylim=(0, None), xlim=(0, None))
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--plot", type=Path, default=REPOSITORY / "docs" / "features-growth.svg")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = idle(asked, folder)
        load = by_load(asked, folder)
        history = by_history(asked, folder)
    plot(asked.plot, history, load, start)
    flat = (history[-1]["ours"] - start) / (history[0]["ours"] - start)
    rows: list[dict[str, Any]] = [
        row(f"{point['days']} days, {point['events'] / 1e6:.1f}M events", point["ours"], point["peer"], "CPU s a day", "", met=True)
        for point in history
    ]
    rows[-1] |= {"target": "history x4: cost <= x1.3", "met": flat <= 1.3}
    per_event = [(point["ours"] - start) / point["events"] for point in load]
    rows += [
        {"case": f"a day of {point['events'] / 1000:,.0f} thousand events", "ours": round(point["ours"], 2), "peer": round(start, 2), "unit": "CPU s",
         "ratio": round((point["ours"] - start) / (load[0]["ours"] - start), 3), "target": f"<= x{point['events'] // load[0]['events']}",
         "met": per_event[n] <= per_event[0] * 1.1}
        for n, point in enumerate(load)
    ]  # fmt: skip
    notes = (
        f"{asked.events:,} events over {asked.days} days, {asked.users:,} users, {asked.items:,} items. Peer of the first lines: the whole lake "
        f"aggregated anew. Of the last: a run with next to nothing to do ({start:.1f} CPU s, dbt's start), and the ratio is to the ordinary day, "
        f"both less that start. With {LENGTHS} times the history the day costs {flat:.2f} times as much. DuckDB {duckdb.__version__}."
    )
    publish_page("growth", rows, notes)


if __name__ == "__main__":
    main()
