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
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines import publish
from pipelines.config import REPOSITORY, Home

TICKS = os.sysconf("SC_CLK_TCK")
SLO_MS = 100.0
QUICK_MS = 30.0


@dataclass
class Seen:
    """What a load met."""

    rate: float
    seconds: float = 0.0
    codes: dict[int, int] = field(default_factory=dict)
    rungs: dict[str, int] = field(default_factory=dict)
    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    resident: int = 0

    @property
    def sent(self) -> int:
        return sum(self.codes.values())

    @property
    def shed(self) -> float:
        return sum(count for code, count in self.codes.items() if code in {429, 503}) / max(self.sent, 1)

    @property
    def broken(self) -> int:
        return sum(count for code, count in self.codes.items() if code not in {200, 202, 429, 503})

    def quantile(self, q: float) -> float:
        return statistics.quantiles(self.accepted_ms, n=1000)[int(q * 1000) - 1] if len(self.accepted_ms) > 1 else float("nan")


@dataclass
class Service:
    """`reloop serve` in processes of its own."""

    process: subprocess.Popen[bytes]
    port: int

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def cpu(self) -> float:
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.workers()]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICKS

    def resident(self) -> int:
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.workers()) * os.sysconf("SC_PAGESIZE")


async def load(service: Service, rate: float, seconds: float, path: Callable[[], str], seed: int = 1) -> Seen:
    """Send requests at a rate, and return what became of them."""
    rng, seen, idle = random.Random(seed), Seen(rate), list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()
    running: set[asyncio.Task[None]] = set()

    async def ask(due: float, url: str) -> None:
        try:
            reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(f"GET {url} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            code = int(head.split(b" ", 2)[1])
            length = int(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")).split(b":")[1])
            body = await asyncio.wait_for(reader.readexactly(length), 20)
            idle.append((reader, writer))
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            code, body = 0, b""
        took = (time.perf_counter() - due) * 1e3
        seen.codes[code] = seen.codes.get(code, 0) + 1
        (seen.accepted_ms if code == 200 else seen.refused_ms).append(took)
        if code == 200 and b'"rung"' in body:
            rung = body.split(b'"rung":"', 1)[1].split(b'"', 1)[0].decode()
            seen.rungs[rung] = seen.rungs.get(rung, 0) + 1

    before, begun = service.cpu(), time.perf_counter()
    due = begun
    while due < begun + seconds:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(ask(due, path()))
        running.add(task)
        task.add_done_callback(running.discard)
        due += rng.expovariate(rate)
    await asyncio.gather(*running)
    seen.seconds = time.perf_counter() - begun
    seen.cpu_seconds, seen.resident = service.cpu() - before, service.resident()
    for _, writer in idle:
        writer.close()
    return seen


def started(home: Path, workers: int, log: Path) -> Service:
    """Start the service and wait until all workers answer."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", "--workers", str(workers), "--now", "data"]
    environment = {**os.environ, "RELOOP_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=environment, cwd=REPOSITORY)
    while f"{workers} of {workers} processes answer" not in (text := log.read_text()):
        if process.poll() is not None:
            raise SystemExit(f"the service did not start: {text[-2000:]}")
        time.sleep(0.2)
    return Service(process, int(text.split("http://127.0.0.1:", 1)[1].split("/", 1)[0]))


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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--home", type=Path)
    options.add_argument("--seconds", type=float, default=15.0)
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
    service = started(home, given.workers, folder / "serve.log")
    count = 0
    try:
        known = users(service, 500)

        def everyone() -> str:  # another device each time: a list that was never asked for, at no other cost
            nonlocal count
            count += 1
            return f"/v1/users/{known[count % len(known)]}/recommendations?k=10&device=d{count}"

        def measure(case: str, rate: float, seconds: float, path: Callable[[], str]) -> Seen:
            seen = asyncio.run(load(service, rate, seconds, path))
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
        measure("healthz (the floor of HTTP)", 200, given.seconds / 2, lambda: "/healthz")
        measure("the same list again (cached)", 100, given.seconds / 2, lambda: f"/v1/users/{known[0]}/recommendations?k=10")
        for rate in given.rates:
            full = measure("home, a new list each time", rate, given.seconds, everyone)
        each = full.cpu_seconds / max(full.sent, 1)
        capacity = given.workers / each
        before = service.resident()
        over = measure("three times what it can", 3 * capacity, given.seconds * 2, everyone)
        after = [measure(f"afterwards, second {second + 1}", 0.3 * capacity, 1.0, everyone) for second in range(6)]
        recovered = next((second + 1 for second, seen in enumerate(after) if seen.shed == 0 and not seen.broken), None)
        rows += [
            {"case": "overload: accepted p99", "ours": over.quantile(0.99), "peer": None, "unit": "ms", "ratio": None, "target": SLO_MS, "met": over.quantile(0.99) <= SLO_MS},
            {"case": "overload: told to come back", "ours": over.shed, "peer": None, "unit": "share", "ratio": None, "target": None, "met": None},
            {"case": "overload: neither answered nor told", "ours": over.broken, "peer": None, "unit": "requests", "ratio": None, "target": 0, "met": over.broken == 0},
            {"case": "overload: seconds until nobody is turned away", "ours": recovered, "peer": None, "unit": "s", "ratio": None, "target": 10, "met": recovered is not None},
            {"case": "overload: memory grew by", "ours": (service.resident() - before) / 2**20, "peer": None, "unit": "MB", "ratio": None, "target": None, "met": None},
        ]  # fmt: skip
    finally:
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
    out.print(table)
    busy = os.getloadavg()[0]
    client = resource.getrusage(resource.RUSAGE_SELF)
    notes = f"{given.workers} workers, {os.cpu_count()} cores, load of the machine {busy:.1f}, client {client.ru_utime + client.ru_stime:.0f} CPU s"
    out.print(f"capacity at one core a worker: {capacity:.0f} requests a second ({each * 1e3:.2f} ms of CPU each); {notes}")
    publish.write_json(
        Home.from_environment().reports / "bench" / "http.json",
        {"name": "http", "machine": f"{os.cpu_count()} cores", "rows": rows, "notes": notes},
    )


if __name__ == "__main__":
    main()
