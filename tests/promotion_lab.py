"""Processes to race and to kill in the promotion stage.

A fork server imports the library once and forks for every run: forking the test process itself would
inherit the threads of the native libraries it has used, which hang in a child.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
from datetime import datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

from pipelines.config import Home
from pipelines.errors import StaleFence
from pipelines.registry import projection, promotion, releases

SERVER: Final = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["promotion_lab", "mlflow", "pipelines.registry.runs"])
STALE: Final = 7


def _decide(root: Path, as_of: datetime) -> None:
    os.environ["RELOOP_HOME"] = str(root)
    try:
        promotion.decide(Home(root), as_of)
    except StaleFence:
        os._exit(STALE)


def killed_before(root: Path, as_of: datetime, module: str, step: str) -> None:
    """Decide, ended by SIGKILL on the way into a function."""

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(importlib.import_module(module), step, kill)
    _decide(root, as_of)


def stopped_before_its_flip(root: Path, as_of: datetime) -> None:
    """Decide, but freeze between judging and flipping, as a task does whose machine hangs; go on when told to."""
    flip = releases.flip

    def freezing(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return flip(*arguments, **named)

    releases.flip = freezing  # type: ignore[assignment]
    _decide(root, as_of)


def zombie(root: Path, as_of: datetime) -> Any:
    """Return a process that judges, and is frozen before it flips: an orphan whose retry the caller plays."""
    process = SERVER.Process(target=stopped_before_its_flip, args=(root, as_of))
    process.start()
    for _ in range(3000):
        if Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return process
        time.sleep(0.1)
    raise AssertionError("it never came to its flip")


def woken(process: Any) -> int | None:
    """Let a frozen process go on; return how it ended."""
    os.kill(process.pid, signal.SIGCONT)
    process.join(120)
    return process.exitcode


def together(root: Path, as_of: datetime, judged: Barrier) -> None:
    """Decide, but flip the pointer only when the others have judged too."""
    flip = releases.flip

    def waiting(*arguments: Any, **named: Any) -> Any:
        judged.wait(240)
        return flip(*arguments, **named)

    releases.flip = waiting  # type: ignore[assignment]
    _decide(root, as_of)


def exit_codes(target: Any, calls: list[tuple[Any, ...]]) -> list[int | None]:
    """Run a function in as many processes as there are calls, at once; return how each ended."""
    processes = [SERVER.Process(target=target, args=arguments) for arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def release_and_tell(root: Path, versions: list[int], start: Barrier) -> None:
    """Flip the pointer to one version after the other, as fast as the others let it, telling MLflow after each."""
    os.environ["RELOOP_HOME"] = str(root)
    home = Home(root)
    start.wait(240)
    for version in versions:
        while True:
            try:
                now = releases.pointer(home)
                body = {"as_of": None, "champion_before": now.version, "champion_after": version, "reasons": []}
                releases.flip(home, now, version=version, digest=f"{version:064d}", as_of="2025-03-01", key=None, body=body)
                break
            except StaleFence:
                continue
        projection.sync(home)
