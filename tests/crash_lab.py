"""A process to break: runs one scenario in a fork and breaks it, for tests that must survive losing a process.

    python crash_lab.py ROOT SCENARIO...

It imports the library once and forks for every run, so a hundred kills take seconds. Prints one
JSON object. A kill comes as SIGKILL in the middle of the library's own file-system calls, which an
audit hook counts: no product code knows of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from small_shop import START, catalogue, shop, stage

from pipelines import lake
from pipelines.config import Home
from pipelines.errors import ReloopError
from pipelines.validation import checkpoint
from pipelines.window import utc

STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.link"}
DAYS = 3


def forked(action: Callable[[], None]) -> tuple[int, str]:
    """Run an action in a child; return how it ended (0, an exit status, or minus the signal) and its message."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            action()
        except ReloopError as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
            os._exit(3)
        except BaseException as error:  # noqa: BLE001 (the child must not return into the parent's loop)
            os.write(writer, repr(error).encode())
            os._exit(4)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), message


def killed_at(home: Home, step: int, action: Callable[[], None]) -> Callable[[], None]:
    """Return the action, ended by SIGKILL before its `step`-th file-system call under the state folder."""

    def run() -> None:
        seen = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in STEPS and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(str(home.root)):
                seen += 1
                if seen > step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        action()

    return run


def visible(home: Home) -> dict[str, str]:
    """Return the digest of every file a reader can meet: those with a final name."""
    files = [f for f in home.root.rglob("*") if f.is_file() and not {"tmp", "reports", "_staging"} & set(f.relative_to(home.root).parts)]
    return {str(f.relative_to(home.root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if not f.name.startswith(".")}


def litter(home: Home) -> list[str]:
    """Return what a dead writer left behind."""
    return sorted(str(f.relative_to(home.root)) for f in home.root.rglob("*") if f.name.startswith(".") and f.name.endswith(".tmp")) + [
        str(f) for f in (home.lake / "_staging").rglob("*")
    ]


def prepared(root: Path, rows_a_day: int = 100) -> Home:
    """Return a home whose lake holds one day, with a batch staged that overlaps it and brings two more."""
    home = Home(root)
    for name, first, days in (("first", START, 1), ("second", START, DAYS)):
        stage(home, name, days, first=first, events=shop(days, first=START, rows_a_day=rows_a_day), items=catalogue())
    checkpoint.validate_batch(home, utc(START + timedelta(days=1)), "first")
    lake.land(home, utc(START + timedelta(days=1)), "first")
    return home


def ingest(home: Home) -> None:
    """Validate and land the second batch."""
    checkpoint.validate_batch(home, utc(START + timedelta(days=DAYS)), "second")
    lake.land(home, utc(START + timedelta(days=DAYS)), "second")


def land(home: Home) -> None:
    """Land the second batch, judged already."""
    lake.land(home, utc(START + timedelta(days=DAYS)), "second")


def read(home: Home) -> None:
    """Read the lake as any reader does: it must hold the first batch, or both, and nothing between."""
    with lake.connect(home) as engine:
        rows, unique = engine.sql("SELECT count(*), count(DISTINCT event_id) FROM events").fetchall()[0]
    if rows != unique or rows not in {100, 100 * DAYS}:
        raise AssertionError(f"a reader saw {rows} rows, {unique} events")


def kills(root: Path, first: int = 0, stride: int = 1) -> dict[str, Any]:
    """Kill a landing before each of its file-system calls; a reader looks, it is run again, and compared with an undisturbed one."""
    golden = root / "golden"
    assert forked(lambda: ingest(prepared(golden))) == (0, ""), "the undisturbed run failed"
    expected, outcomes = visible(Home(golden)), []
    template = root / "template"
    assert forked(lambda: checkpoint.validate_batch(prepared(template), utc(START + timedelta(days=DAYS)), "second")) == (0, "")
    for step in range(first, 400, stride):
        home = Home(root / f"kill-{step}")
        _copy(template, home.root)
        ended, message = forked(killed_at(home, step, lambda home=home: land(home)))
        seen = forked(lambda home=home: read(home))
        again = forked(lambda home=home: land(home))
        outcomes.append(
            {
                "step": step,
                "ended": ended,
                "message": message,
                "read": seen,
                "again": again,
                "same": visible(home) == expected,
                "litter": litter(home),
            }
        )
        if ended == 0:
            break
    return {"files": len(expected), "outcomes": outcomes}


def whole_kills(root: Path) -> dict[str, Any]:
    """Kill validation and landing together at moments spread over the run, and run them again."""
    assert forked(lambda: ingest(prepared(root / "golden"))) == (0, "")
    expected, outcomes = visible(Home(root / "golden")), []
    template = root / "template"
    assert forked(lambda: prepared(template) and None) == (0, "")
    for moment in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.4):
        home = Home(root / f"moment-{moment}")
        _copy(template, home.root)
        pid = os.fork()
        if pid == 0:
            ingest(home)
            os._exit(0)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        again = forked(lambda home=home: ingest(home))
        outcomes.append({"moment": moment, "ended": ended, "again": again, "same": visible(home) == expected, "litter": litter(home)})
    return {"outcomes": outcomes}


def full_disk(root: Path) -> dict[str, Any]:
    """Let files grow no larger than a limit, as on a full disk; then lift it and run again."""
    big = 20_000
    assert forked(lambda: ingest(prepared(root / "golden", big))) == (0, "")
    expected, outcomes = visible(Home(root / "golden")), []
    template = root / "template"
    assert forked(lambda: prepared(template, big) and None) == (0, "")

    def limited(home: Home, limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        ingest(home)

    for limit in (1_000, 150_000, 300_000):
        home = Home(root / f"limit-{limit}")
        _copy(template, home.root)
        before = visible(home)
        ended = forked(lambda home=home, limit=limit: limited(home, limit))
        after = visible(home)
        torn = [
            name
            for name in after
            if name.endswith(".parquet")
            and forked(lambda home=home, name=name: pa.parquet.ParquetFile(home.root / name).read() and None)[0]
        ]
        lake_same = {n: d for n, d in after.items() if n.startswith("lake/")} == {n: d for n, d in before.items() if n.startswith("lake/")}
        again = forked(lambda home=home: ingest(home))
        outcomes.append(
            {
                "limit": limit,
                "ended": ended,
                "torn": torn,
                "lake_same": lake_same,
                "again": again,
                "same": visible(home) == expected,
                "litter": litter(home),
            }
        )
    return {"outcomes": outcomes}


def writers(root: Path) -> dict[str, Any]:
    """Let four processes land four overlapping batches at once."""
    home = Home(root)
    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            lake.land_tables(home, events=shop(DAYS, rows_a_day=100).slice(number * 50, 150), batch_id=f"writer-{number}")
            os._exit(0)
        pids.append(pid)
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    lake.land_tables(Home(root.with_name("alone")), events=shop(DAYS, rows_a_day=100).slice(0, 300))
    together, alone = ({n: d for n, d in visible(Home(r)).items() if "/events/" in n} for r in (root, root.with_name("alone")))
    return {"ended": ended, "same": together == alone, "files": len(alone), "sequences": sorted(r.sequence for r in lake.reports(home))}


def zones(root: Path) -> dict[str, Any]:
    """Land the same rows under several time zones of the process."""

    def under(zone: str) -> None:
        os.environ["TZ"] = zone
        time.tzset()
        home = Home(root / zone.replace("/", "-"))
        stage(home, "b", 3, first=utc("2024-03-09"), events=shop(3, first=utc("2024-03-09"), rows_a_day=48))
        checkpoint.validate_batch(home, utc("2024-03-12"), "b")
        lake.land(home, utc("2024-03-12"), "b")

    ended = {zone: forked(lambda zone=zone: under(zone)) for zone in ("UTC", "America/New_York", "Pacific/Apia")}
    return {"ended": ended, "files": [visible(Home(root / zone.replace("/", "-"))) for zone in ended]}


def _copy(template: Path, target: Path) -> None:
    import shutil

    shutil.copytree(template, target)


if __name__ == "__main__":
    import pyarrow.parquet

    scenario = {f.__name__: f for f in (kills, whole_kills, full_disk, writers, zones)}[sys.argv[2]]
    print(json.dumps(scenario(Path(sys.argv[1]), *(int(n) for n in sys.argv[3:]))))
