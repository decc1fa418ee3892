"""The service over HTTP: processor time a request, latency at stated rates, and what becomes of three times what it can.

Open loop: requests are sent when they are due (Poisson), whether earlier ones were answered or not, and timed from that moment, so
that a service that stalls is not spared the requests that would have come meanwhile. The service is `reloop serve` in processes of its own.

    make bench-http ARGS='--home var --seconds 20 --workers 1'
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from open_loop import SLO_MS, Call, Seen, Service, everything, load, saturating

from pipelines import publish
from pipelines.config import REPOSITORY, Home


def started(home: Path, workers: int, log: Path) -> tuple[subprocess.Popen[bytes], Service]:
    """Start the service and wait until all workers answer."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", "--workers", str(workers), "--now", "data"]
    environment = {**os.environ, "RELOOP_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=environment, cwd=REPOSITORY)
    while f"{workers} of {workers} processes answer" not in (text := log.read_text()):
        if process.poll() is not None:
            raise SystemExit(f"the service did not start: {text[-2000:]}")
        time.sleep(0.2)
    return process, Service(process.pid, int(text.split("http://127.0.0.1:", 1)[1].split("/", 1)[0]))


def prepared(home: Path | None, folder: Path) -> Path:
    """Return a copy of a state folder whose clients may ask as often as they like; a small shop where none is named."""
    target = folder / "var"
    if home is None:
        sys.path.insert(0, str(REPOSITORY / "tests"))
        import served_shop
        import trained_shop

        served_shop.copied(served_shop.released(trained_shop.twice(folder / "trained"), folder / "served"), target)
    else:
        left_out = shutil.ignore_patterns("serving", "training", "mlflow", "landing", "tmp", "warehouse", "airflow")
        shutil.copytree(home, target, ignore=left_out)
    settings = target / "reloop.toml"
    text = settings.read_text() if settings.is_file() else ""
    settings.write_text(f"{text}\n[serving.limits]\nrequests_per_second = 1e9\n[serving.log]\naccess = true\n")
    return target


def users(service: Service, many: int) -> list[str]:
    """Return ids of known users."""
    found: list[str] = []
    for digit in "0123456789":
        with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/v1/users?limit=50&starts=u0000{digit}", timeout=20) as answer:
            found += json.load(answer)["user_ids"]
        with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/v1/users?limit=50&starts=u000000{digit}", timeout=20) as answer:
            found += json.load(answer)["user_ids"]
    return list(dict.fromkeys(found))[:many]


def objective(
    measure: Callable[..., Seen], service: Service, given: argparse.Namespace, known: list[str], rows: list[dict[str, Any]]
) -> None:
    """Ask over all surfaces at a stated rate for a stated time, and hold it against the objective."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/v1/trending?k=200", timeout=20) as answer:
        items = [item["item_id"] for item in json.load(answer)["items"]]
    seen = measure("all surfaces, as a shop has them", given.slo_rate, given.slo_seconds, everything(known, items))
    about = f"objective: {given.slo_rate:g}/s for {given.slo_seconds:g} s"
    rows += [
        {"case": f"{about}: p50", "ours": seen.quantile(0.5), "peer": None, "unit": "ms", "ratio": None, "target": 20.0, "met": seen.quantile(0.5) <= 20},
        {"case": f"{about}: p99", "ours": seen.quantile(0.99), "peer": None, "unit": "ms", "ratio": None, "target": SLO_MS, "met": seen.quantile(0.99) <= SLO_MS},
        {"case": f"{about}: answered and no 5xx", "ours": seen.available, "peer": None, "unit": "share", "ratio": None, "target": 0.9995, "met": seen.available >= 0.9995},
    ]  # fmt: skip
    for tier in sorted(seen.tiers):
        rows.append(
            {
                "case": f"{about}: {tier}, p99",
                "ours": seen.quantile(0.99, tier),
                "peer": None,
                "unit": "ms",
                "ratio": None,
                "target": None,
                "met": None,
            }
        )
        print(f"{tier}: {len(seen.tiers[tier])} requests, p50 {seen.quantile(0.5, tier):.1f} ms, p99 {seen.quantile(0.99, tier):.1f} ms")
    print(f"{about}: p50 {seen.quantile(0.5):.1f} ms, p99 {seen.quantile(0.99):.1f} ms, answered and no 5xx {seen.available:.4%}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--home", type=Path)
    options.add_argument("--seconds", type=float, default=15.0)
    options.add_argument("--overload-seconds", type=float, default=30.0, help="300 is the promise")
    options.add_argument("--slo-rate", type=float, default=20.0, help="requests a second over all surfaces; 0 leaves it out")
    options.add_argument("--slo-seconds", type=float, default=30.0, help="1800 is the promise")
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--rates", type=float, nargs="*", default=[20.0, 50.0, 100.0])
    given = options.parse_args()
    out, rows = Console(width=140), []
    table = Table(
        "case",
        "asked/s",
        "sent",
        "p50 ms",
        "p99 ms",
        "CPU ms a request",
        "shed",
        "broken",
        "rungs",
        "RSS MB",
        title="reloop serve over HTTP, open loop",
    )
    folder = Path(tempfile.mkdtemp(prefix="bench-http-"))
    home = prepared(given.home, folder)
    process, service = started(home, given.workers, folder / "serve.log")
    count = 0
    try:
        known = users(service, 500)

        def everyone() -> Call:  # another device each time: a list that was never asked for, at no other cost
            nonlocal count
            count += 1
            return Call(f"/v1/users/{known[count % len(known)]}/recommendations?k=10&device=d{count}")

        def measure(case: str, rate: float, seconds: float, call: Callable[[], Call]) -> Seen:
            seen = asyncio.run(load(service, rate, seconds, call))
            cpu = seen.cpu_seconds / max(seen.sent, 1) * 1e3
            rungs = ", ".join(f"{rung} {number / max(sum(seen.rungs.values()), 1):.0%}" for rung, number in sorted(seen.rungs.items()))
            table.add_row(
                case,
                f"{rate:.0f}",
                str(seen.sent),
                f"{seen.quantile(0.5):.1f}",
                f"{seen.quantile(0.99):.1f}",
                f"{cpu:.2f}",
                f"{seen.shed:.1%}",
                str(seen.broken),
                rungs,
                f"{seen.resident / 2**20:.0f}",
            )
            rows.append(
                {"case": f"{case}: CPU a request", "ours": cpu, "peer": None, "unit": "ms", "ratio": None, "target": None, "met": None}
            )
            rows.append(
                {
                    "case": f"{case}: p99 at {rate:.0f}/s",
                    "ours": seen.quantile(0.99),
                    "peer": None,
                    "unit": "ms",
                    "ratio": None,
                    "target": SLO_MS,
                    "met": seen.quantile(0.99) <= SLO_MS,
                }
            )
            return seen

        measure("warm", 20, 3, everyone)
        rows.clear()
        measure("healthz (the floor of HTTP)", 200, given.seconds / 2, lambda: Call("/healthz"))
        measure("the same list again (cached)", 100, given.seconds / 2, lambda: Call(f"/v1/users/{known[0]}/recommendations?k=10"))
        for rate in given.rates:
            full = measure("home, a new list each time", rate, given.seconds, everyone)
        if given.slo_rate:
            objective(measure, service, given, known, rows)
        each = full.cpu_seconds / max(full.sent, 1)
        capacity = asyncio.run(saturating(service, 5.0, everyone))
        before = service.resident()
        over = measure("three times what it can", 3 * capacity, given.overload_seconds, everyone)
        after = [measure(f"afterwards, second {second + 1}", 0.3 * capacity, 1.0, everyone) for second in range(6)]
        recovered = next((second + 1 for second, seen in enumerate(after) if seen.shed == 0 and not seen.broken), None)
        rows += [
            {"case": "overload: accepted p99", "ours": over.quantile(0.99), "peer": None, "unit": "ms", "ratio": None, "target": SLO_MS, "met": over.quantile(0.99) <= SLO_MS},
            {"case": "overload: told to come back without saying when", "ours": over.untold, "peer": None, "unit": "requests", "ratio": None, "target": 0, "met": over.untold == 0},
            {"case": "overload: told to come back", "ours": over.shed, "peer": None, "unit": "share", "ratio": None, "target": None, "met": None},
            {"case": "overload: neither answered nor told", "ours": over.broken, "peer": None, "unit": "requests", "ratio": None, "target": 0, "met": over.broken == 0},
            {"case": "overload: seconds until nobody is turned away", "ours": recovered, "peer": None, "unit": "s", "ratio": None, "target": 10, "met": recovered is not None},
            {"case": "overload: memory grew by", "ours": (service.resident() - before) / 2**20, "peer": None, "unit": "MB", "ratio": None, "target": None, "met": None},
        ]  # fmt: skip
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
    out.print(table)
    busy = os.getloadavg()[0]
    client = resource.getrusage(resource.RUSAGE_SELF)
    notes = f"{given.workers} workers, {os.cpu_count()} cores, load of the machine {busy:.1f}, client {client.ru_utime + client.ru_stime:.0f} CPU s"
    out.print(
        f"capacity here and now: {capacity:.0f} new lists a second; at a core a worker: {given.workers / each:.0f} ({each * 1e3:.2f} ms of CPU each); {notes}"
    )
    publish.write_json(
        Home.from_environment().reports / "bench" / "http.json",
        {"name": "http", "machine": f"{os.cpu_count()} cores", "rows": rows, "notes": notes},
    )


if __name__ == "__main__":
    main()
