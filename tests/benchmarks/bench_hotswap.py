"""Releases that change under load: what each phase of a swap takes, what requests feel of it, and how soon the guard finds a fault.

    swap        `reloop serve` with two workers answers at a steady rate (open loop) while releases are promoted one after the other
    rollback    from the flip until every worker answers from the release of before
    memory      of a worker (proportional set size), after the first and after the last swap
    detection   canaries of known faults through the service's own decision, in simulated time (`tests/canary_lab.py`)

The peer of a latency is the same service in the same run while nothing changes. `--trained FOLDER` takes a shop that was trained before.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import canary_lab
import http_load
import one_run
import served_lists
import served_shop
import swap_lab
import trained_shop
from http_load import Clients, Process

from pipelines import publish
from pipelines.config import Home
from pipelines.registry import releases, rollback
from pipelines.serving.holder import Holder, workers
from pipelines.serving_policies import RolloutPolicy

WORKERS = 2
USERS = [f"u{at:08d}" for at in range(64)]


def pss_mb(pid: int) -> float:
    """Return the memory of a process, pages that are shared counted by their share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def vitals(pid: int) -> tuple[float, int, int]:
    """Return memory, open files and threads of a process."""
    return pss_mb(pid), len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(Path(f"/proc/{pid}/task").iterdir()))


def ms(values: list[float], q: float) -> float:
    """Return a percentile in milliseconds."""
    return float(np.percentile(values, q)) * 1e3 if values else float("nan")


def swapping(service: Process, digests: dict[int, str], asked: argparse.Namespace) -> dict[str, Any]:
    """Promote under load, then roll back under load, until as many answers were looked at as are asked for; return what was measured."""
    home, taken = service.home, service.taken
    found: dict[str, Any] = {"phases": [], "to_all": [], "back": [], "at": []}
    look = served_lists.Whole(served_lists.Quiet(home, digests, USERS))
    with Clients(service.port, asked.rate, USERS, look=look) as clients:
        time.sleep(5)
        for version in (2, 3):  # so that there is a release of before
            swap_lab.promoted(home, version, digests[version])
            taken(version, time.perf_counter())
        time.sleep(1)
        found["before"] = {pid: vitals(pid) for pid in workers(home)}
        quiet_from = time.perf_counter()
        time.sleep(20)
        quiet_to = time.perf_counter()
        for at in itertools.count():
            if at >= asked.swaps and len(clients.done) >= asked.answers:
                break
            version = at % 4 + 2
            if releases.pointer(home).version == version:
                continue
            begun = time.perf_counter()
            swap_lab.promoted(home, version, digests[version])
            seconds, said = taken(version, begun)
            found["to_all"].append(seconds)
            found["at"].append(begun)
            found["phases"] += [one["seconds"] for one in said if not one["was_loaded"]]
            time.sleep(1.0)
        for _ in range(3):  # back, and forth again, so that there is something to go back to
            begun = time.perf_counter()
            left = releases.pointer(home).version
            back = rollback.roll_back(home, reason="the benchmark")
            found["back"].append(taken(back["champion_after"], begun)[0])
            swap_lab.promoted(home, left or 0, digests[left or 0])
            taken(left or 0, begun)
        time.sleep(1.0)
        found["after"] = {pid: vitals(pid) for pid in workers(home)}
    quiet = [one.seconds for one in clients.done if quiet_from <= one.due < quiet_to]
    near = [
        one.seconds
        for one in clients.done
        if any(begun - 0.2 <= one.due <= begun + took + 0.2 for begun, took in zip(found["at"], found["to_all"], strict=True))
    ]
    found |= {"quiet": quiet, "near": near, "requests": len(clients.done), "failed": clients.failed, "mixed": clients.wrong}
    found["closed"] = dict(Counter(clients.closed))
    found["statuses"] = dict(Counter(one.status for one in clients.done))
    found["full"] = sum(one.rung == "full" for one in clients.done) / max(len(clients.done), 1)
    found["seen"] = sorted({one.version for one in clients.done})
    return found


def pause(home: Home, digests: dict[int, str], seconds: float = 6.0) -> dict[str, list[float]]:
    """Return what answers take in one process, at rest and while releases are loaded one after the other."""
    found: dict[str, list[float]] = {}
    for name, swaps in (("at rest", False), ("while releases change", True)):
        mine = Holder(home, swap_lab.Telling, RolloutPolicy(poll_seconds=0.01))
        mine.follow()
        mine.start()
        took, begun, version = found.setdefault(name, []), time.perf_counter(), 2
        while (now := time.perf_counter()) - begun < seconds:
            if swaps and mine.held.fence == releases.pointer(home).fence:
                version = version % 4 + 2
                swap_lab.promoted(home, version, digests[version])
            for at in range(20):
                now = time.perf_counter()
                engine, _ = mine.pick(swap_lab.ask(f"u{at}"))
                engine.answer(swap_lab.ask(f"u{at}"))  # type: ignore[union-attr]
                took.append(time.perf_counter() - now)
                time.sleep(0.002)
        mine.stop()
    return found


def detection(runs: int) -> list[dict[str, Any]]:
    """Return how soon each fault is found."""
    faults = [
        canary_lab.Fault("5% of answers fail", failed=0.05),
        canary_lab.Fault("50 ms slower", slower_ms=50),
        canary_lab.Fault("NaN scores", lower=1.0),
        canary_lab.Fault("the same list for all", same=0.98),
        canary_lab.Fault("scores all alike", flat=True),
        canary_lab.Fault("5% empty", empty=0.05),
    ]
    rows = []
    for fault in faults:
        for share, rate in ((0.01, 100.0), (0.1, 20.0), (0.1, 100.0), (0.5, 20.0)):
            ended = [canary_lab.rolled_out(RolloutPolicy(), rate, 500 + seed, fault, share) for seed in range(runs)]
            back = sorted(one.detected for one in ended if not one.promoted)
            rows.append(
                {
                    "fault": fault.name,
                    "share": share,
                    "requests_per_second": rate,
                    "rolled_back": f"{len(back)} of {runs}",
                    "median_seconds": float(np.median(back)) if back else None,
                    "longest_seconds": back[-1] if back else None,
                }
            )
    return rows


def main() -> None:
    """Measure, print, and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, help="folder of a shop that was trained twice")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--swaps", type=int, default=24)
    parser.add_argument("--answers", type=int, default=0, help="at least so many are looked at; 100000 is the promise")
    parser.add_argument("--runs", type=int, default=20, help="canaries a fault")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    work = Path(tempfile.mkdtemp(prefix="reloop-hotswap-"))
    trained = Home(asked.trained) if asked.trained else trained_shop.twice(work / "trained")
    home = served_shop.released(trained, work / "served")
    http_load.configured(home)
    first, second = swap_lab.versions(home)
    digests = {1: second} | {version: swap_lab.marked(home, first if version % 2 else second, version) for version in range(2, 6)}
    with http_load.serving(home, work / "serve.log", workers=WORKERS) as service:
        service.taken(1, time.perf_counter())
        found = swapping(service, digests, asked)
    alone = pause(home, digests)
    rows = report(found, asked)
    for name, values in alone.items():
        rows.append(
            one_run.row(
                f"one process, {name}: p99",
                ms(values, 99),
                ms(alone["at rest"], 99),
                "ms",
                "+10 ms",
                met=ms(values, 99) <= ms(alone["at rest"], 99) + 10,
            )
        )
    faults = detection(asked.runs)
    for line in faults:
        print(line)
    one_run.publish_page(
        "hotswap", rows, f"reloop serve, {WORKERS} workers, {asked.rate:g} requests a second, open loop; {found['requests']} requests"
    )
    publish.write_json(Home.from_environment().reports / "bench" / "hotswap-detection.json", faults)
    shutil.rmtree(work, ignore_errors=True)


def report(found: dict[str, Any], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return, and print, the lines of figures."""
    rows = []
    for name in ("rehearse", "load", "bind", "warm", "switch"):
        values = [one[name] for one in found["phases"]]
        rows.append(one_run.row(f"{name}, median", ms(values, 50), ms(values, 50), "ms", "told", met=True))
    rows += [
        one_run.row("flip until all workers serve, median", ms(found["to_all"], 50), 1000.0, "ms", "told", met=True),
        one_run.row("rollback until all workers serve, longest", max(found["back"]) * 1e3, 5000.0, "ms", "<= 5 s", met=max(found["back"]) <= 5),
        one_run.row("p50 around a swap, against quiet", ms(found["near"], 50), ms(found["quiet"], 50), "ms", "told", met=True),
        one_run.row(
            "p99 around a swap, against quiet", ms(found["near"], 99), ms(found["quiet"], 99), "ms", "+10 ms",
            met=ms(found["near"], 99) <= ms(found["quiet"], 99) + 10,
        ),
        one_run.row(
            "switch, p99", ms([one["switch"] for one in found["phases"]], 99), 10.0, "ms", "< 10 ms",
            met=ms([one["switch"] for one in found["phases"]], 99) < 10,
        ),
        one_run.row(f"failed of {found['requests']} requests", found["failed"], 1, "requests", "0", met=found["failed"] == 0),
        one_run.row(f"mixed of {found['requests']} answers", len(found["mixed"]), 1, "answers", "0", met=not found["mixed"]),
        one_run.row("answers on the rung full", 100 * found["full"], 100, "%", "told", met=True),
    ]  # fmt: skip
    for pid, (memory, files, threads) in found["before"].items():
        after = found["after"].get(pid, (float("nan"), 0, 0))
        rows.append(
            one_run.row(f"worker memory after {len(found['to_all'])} swaps, against before", after[0], memory, "MB", "told", met=True)
        )
        rows.append(one_run.row("files open, against before", after[1], files, "files", "as before", met=after[1] <= files))
        rows.append(one_run.row("threads, against before", after[2], threads, "threads", "as before", met=after[2] <= threads))
    for line in rows:
        print(line)
    print("versions seen", found["seen"], "rate", asked.rate, "statuses", found["statuses"], "connections closed", found["closed"])
    return rows


if __name__ == "__main__":
    main()
