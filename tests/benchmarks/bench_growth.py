"""What building one more day of features costs: against the length of the history behind it, and against the day's events.

A simulated shop is written straight into the lake, `--events` in all over `--days`. At several
lengths of its history, none shorter than the longest window, the next day is built as `reloop features`
does (dbt with its tests, then the Parquet files), and the peer builds the same day without a state to go on
from: it aggregates the whole lake, as a project of plain tables does. Then the day itself grows, at one
length of history. CPU seconds and bytes read, of all processes, less what a run costs that has next to
nothing to do (dbt's start); of three runs of a day the cheapest, as the others share the machine. The
past is laid down without its marts: no later day reads them, and 100 million events would fill the disk.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
from one_run import publish_page, row

from pipelines import lake
from pipelines.config import Home
from pipelines.features import build
from pipelines.window import utc

START = utc("2024-01-01").date()
CATCH_UP = 30  # days a run while history is laid down
LENGTHS, LOADS, RUNS = 4, (1, 4, 16), 3
MARK = "<!-- growth -->"  # in docs/features.md, before and after what this writes


@dataclass(frozen=True)
class Cost:
    """CPU seconds and megabytes read: by system call, so from the page cache, too."""

    seconds: float
    megabytes: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.seconds - other.seconds, self.megabytes - other.megabytes)


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


def spent() -> Cost:
    """Return what this process and those it waited for have cost so far."""
    seconds = sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return Cost(seconds, int(counters["rchar"]) / 1e6)


def one_day(home: Home, n: int, runs: int = RUNS) -> Cost:
    """Build the rows of midnight `n` and publish them, a few times over; return the least cost."""
    day, costs = START + timedelta(days=n), []
    for _ in range(runs):
        before = spent()
        build.run_dbt(home, day, day)
        build.publish_days(home, [day])
        costs.append(spent() - before)
    return min(costs, key=lambda cost: cost.seconds)


def lay_down(home: Home, first: int, last: int) -> None:
    """Build what the days first..last leave to those after them, a month a run, without tests."""
    for begin in range(first, last + 1, CATCH_UP):
        days = [START + timedelta(days=n) for n in (begin, min(begin + CATCH_UP - 1, last))]
        build.run_dbt(home, *days, "--exclude-resource-type", "test", "--select", "staging", "intermediate")


def anew(home: Home, n: int) -> Cost:
    """Build the same day from the whole lake in a warehouse of its own; return the cost."""
    with tempfile.TemporaryDirectory(dir=home.root) as folder:
        other = Home(Path(folder))
        other.lake.symlink_to(home.lake)
        return one_day(other, n, runs=1)


def shop(root: Path, asked: argparse.Namespace) -> Home:
    """Return an empty home with a catalogue."""
    home = Home(root)
    write_catalogue(home, asked.items)
    return home


@dataclass(frozen=True)
class Point:
    """One measured day: days and events before it, its own events, our cost and the peer's, less the start."""

    days: int
    past: int
    events: int
    ours: Cost
    peer: Cost


def by_history(asked: argparse.Namespace, folder: Path, start: Cost) -> list[Point]:
    """Return, at growing lengths of history, the cost of the next day."""
    home, found, built, usual = shop(folder / "long", asked), [], 0, asked.events // asked.days
    for length in (asked.days * (k + 1) // LENGTHS for k in range(LENGTHS)):
        write_days(home, range(built, length), usual, users=asked.users, items=asked.items)
        lay_down(home, built + 1, length - 1)
        found.append(Point(length, length * usual, usual, one_day(home, length) - start, anew(home, length) - start))
        print(found[-1], f"warehouse {home.warehouse.stat().st_size / 1e9:.1f} GB", flush=True)
        built = length
    shutil.rmtree(home.root)
    return found


def by_load(asked: argparse.Namespace, folder: Path, start: Cost) -> list[Point]:
    """Return the cost of a day of 1, 4 and 16 times the events, behind 10 ordinary days."""
    found, usual = [], asked.events // asked.days
    for load in LOADS:
        home = shop(folder / f"load{load}", asked)
        write_days(home, range(10), usual, users=asked.users, items=asked.items)
        lay_down(home, 1, 10)
        write_days(home, range(10, 11), load * usual, users=asked.users, items=asked.items)
        found.append(Point(10, 10 * usual, load * usual, one_day(home, 11) - start, start))
        print(found[-1], flush=True)
        shutil.rmtree(home.root)
    return found


def idle(folder: Path) -> Cost:
    """Return what a run costs in which a handful of events happened."""
    home = shop(folder / "idle", argparse.Namespace(items=10))
    write_days(home, range(2), 100, users=10, items=10)
    lay_down(home, 1, 1)
    return one_day(home, 2)


def plot(file: Path, history: list[Point], load: list[Point]) -> None:
    """Draw the curves, readable without colour."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "reloop", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, (time, read, day) = plt.subplots(1, 3, figsize=(10, 3.2))
    past = [point.past / 1e6 for point in history]
    for axes, unit, label in ((time, "seconds", "CPU seconds"), (read, "megabytes", "MB read")):
        axes.plot(past, [getattr(point.ours, unit) for point in history], "k-o", label="from yesterday's state")
        axes.plot(past, [getattr(point.peer, unit) for point in history], "k--s", markerfacecolor="white", label="whole lake anew")
        axes.set(xlabel="million events before the day", ylabel=label, ylim=(0, None), xlim=(0, None))
    time.legend(frameon=False)
    day.plot([point.events / 1000 for point in load], [point.ours.seconds for point in load], "k-o")
    day.set(xlabel="thousand events on the day", ylabel="CPU seconds", ylim=(0, None), xlim=(0, None))
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def table(history: list[Point], load: list[Point]) -> str:
    """Return the figures as two tables in Markdown."""
    lines = ["| history | events before | CPU s | anew | MB read | anew |", "|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {p.days} days | {p.past:,} | {p.ours.seconds:.1f} | {p.peer.seconds:.1f} | {p.ours.megabytes:,.0f} | {p.peer.megabytes:,.0f} |"
        for p in history
    ]
    lines += ["", "| events on the day | CPU s | MB read |", "|---:|---:|---:|"]
    lines += [f"| {p.events:,} | {p.ours.seconds:.1f} | {p.ours.megabytes:,.0f} |" for p in load]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--days", type=int, default=364)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--docs", type=Path, help="also draw the curves and write the table into features.md of this folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = idle(folder)
        load = by_load(asked, folder, start)
        history = by_history(asked, folder, start)
    notes = (
        f"{asked.events:,} events over {asked.days} days, {asked.users:,} users, {asked.items:,} items; all less a run with next to nothing to do "
        f"({start.seconds:.1f} CPU s, dbt's start). Peer: the whole lake aggregated anew; of the last lines, the ordinary day. DuckDB {duckdb.__version__}."
    )
    if asked.docs:
        plot(asked.docs / "features-growth.svg", history, load)
        page = asked.docs / "features.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(MARK)
        caption = "![CPU seconds and bytes read for one more day](features-growth.svg)"
        after = rest.rpartition(MARK)[2]
        page.write_text(f"{before}{MARK}\n\n{caption}\n\n{table(history, load)}\n\n{notes}\n\n{MARK}{after}", encoding="utf-8")
    print(table(history, load))
    rows: list[dict[str, Any]] = []
    for unit, label in (("seconds", "CPU s"), ("megabytes", "MB read")):
        flat = getattr(history[-1].ours, unit) / getattr(history[0].ours, unit)
        rows += [
            row(f"{point.past / 1e6:.1f}M before, {label}", getattr(point.ours, unit), getattr(point.peer, unit), label, "", met=True)
            for point in history
        ]
        rows[-1] |= {"target": f"<= x1.2 of {history[0].past / 1e6:.1f}M: x{flat:.2f}", "met": flat <= 1.2}
    for point in load:
        growth, allowed = point.ours.seconds / load[0].ours.seconds, point.events / load[0].events
        line = row(
            f"a day of {point.events / 1000:,.0f}k", point.ours.seconds, load[0].ours.seconds, "CPU s", f"<= x{allowed:.0f}", met=True
        )
        rows.append(line | {"met": growth <= allowed * 1.1})
    publish_page("growth", rows, notes)


if __name__ == "__main__":
    main()
