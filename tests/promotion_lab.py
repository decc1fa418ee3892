"""Processes to race and to kill in the promotion stage."""

from __future__ import annotations

import importlib
import os
import signal
import time
from datetime import datetime
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

from processes import process

from pipelines.config import Home
from pipelines.errors import StaleFence
from pipelines.registry import projection, promotion, releases

STALE: Final = 7


def _decide(root: Path, as_of: datetime) -> None:
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


def zombie(root: Path, as_of: datetime) -> BaseProcess:
    """Return a process that judges, and is frozen before it flips: an orphan whose retry the caller plays."""
    frozen = process(stopped_before_its_flip, root, as_of)
    frozen.start()
    for _ in range(3000):
        if Path(f"/proc/{frozen.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return frozen
        time.sleep(0.1)
    raise AssertionError("it never came to its flip")


def woken(frozen: BaseProcess) -> int | None:
    """Let a frozen process go on; return how it ended."""
    os.kill(frozen.pid or 0, signal.SIGCONT)
    frozen.join(120)
    return frozen.exitcode


def together(root: Path, as_of: datetime, judged: Barrier) -> None:
    """Decide, but flip the pointer only when the others have judged too."""
    flip = releases.flip

    def waiting(*arguments: Any, **named: Any) -> Any:
        judged.wait(240)
        return flip(*arguments, **named)

    releases.flip = waiting  # type: ignore[assignment]
    _decide(root, as_of)


def release_and_tell(root: Path, versions: list[int], start: Barrier) -> None:
    """Flip the pointer to one version after the other, as fast as the others let it, telling MLflow after each."""
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
