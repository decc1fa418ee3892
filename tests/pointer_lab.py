"""Bundles that are one text file, releases of them, and promoters that race for the pointer and are killed.

A promoter is what a gate is to the pointer: it reads the champion, judges itself against it, and flips if it is better.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StaleFence
from pipelines.registry import ledger, releases, review, signing

FORK: Final = multiprocessing.get_context("fork")
KILLED: Final = -signal.SIGKILL


def bundle(home: Home, content: str) -> str:
    """Publish a folder named by its digest and return the digest."""
    building = home.bundles / "building"
    with publish.folder(building, {}) as out:
        (out / "model.txt").write_text(content, encoding="utf-8")
    signing.sign(home, building)
    digest = publish.manifest(building).digest
    if (home.bundles / digest).is_dir():
        return digest
    building.rename(home.bundles / digest)
    return digest


def release(home: Home, version: int, baseline: releases.Pointer | None = None) -> releases.Pointer:
    """Release a version of its own content, as of the so many-th of March."""
    now = baseline or releases.pointer(home)
    body = {
        "as_of": f"2025-03-{version:02d}T00:00:00+00:00",
        "challenger": version,
        "champion_before": now.version,
        "champion_after": version,
        "reasons": [f"reason {version}"],
    }
    return releases.flip(
        home, now, version=version, digest=bundle(home, f"v{version}"), as_of=body["as_of"], key=f"decide/{version}", body=body
    )


def ask(home: Home, version: int) -> dict[str, Any]:
    """Record that a challenger waits, judged against the champion of now."""
    now = releases.pointer(home)
    body = {
        "as_of": f"2025-03-{version:02d}T00:00:00+00:00",
        "challenger": version,
        "challenger_digest": bundle(home, f"v{version}"),
        "champion_before": now.version,
        "champion_after": now.version,
        "fence_before": now.fence,
        "verdict": "promote",
        "track": "superiority",
        "reasons": [f"better by *much* [{version}](http://evil)"],
        "figures": {"difference": 0.0123, "n_users": 4711, "slices": {}},
        "trigger": {"reasons": ["the world has drifted"]},
        "baseline": asdict(now),
    }
    ledger.record(home, ledger.WAITING, f"decide/{version}", body)
    return review.of_version(home, version)


def quality(version: int) -> float:
    """Return how good a version is: any order but that of the numbers."""
    return random.Random(version).random() if version else 0.0


def promote_until_settled(root: Path, version: int, start: Barrier, dies: bool) -> None:
    """Judge and flip, again after each refusal, until the version serves or a better one does.

    Args:
        dies: by SIGKILL, between the first judgement and the flip.
    """
    home = Home(root)
    start.wait(60)
    while True:
        now = releases.pointer(home)
        better = quality(version) > quality(now.version or 0)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        body = {"as_of": None, "champion_before": now.version, "champion_after": version if better else now.version, "reasons": []}
        if not better:
            releases.keep(home, f"decide/{version}", {**body, "figures": {}})
            os._exit(0)
        try:
            releases.flip(home, now, version=version, digest=f"{version:064d}", as_of="2025-03-01", key=f"decide/{version}", body=body)
            os._exit(0)
        except StaleFence:
            continue


def race(home: Home, versions: list[int], dying: set[int]) -> None:
    """Let every version promote itself at the same time; those that died are started again, as a scheduler does."""
    start = FORK.Barrier(len(versions))
    racers = {
        version: FORK.Process(target=promote_until_settled, args=(home.root, version, start, version in dying)) for version in versions
    }
    codes = _ended(racers)
    assert {version for version, code in codes.items() if code == KILLED} == dying, codes
    alone = FORK.Barrier(1)
    again = {version: FORK.Process(target=promote_until_settled, args=(home.root, version, alone, False)) for version in dying}
    for version, process in again.items():
        assert _ended({version: process}) == {version: 0}


def _ended(processes: dict[int, Any]) -> dict[int, int]:
    for process in processes.values():
        process.start()
    for process in processes.values():
        process.join(120)
    return {version: process.exitcode for version, process in processes.items()}


def forked(action: Callable[[], Any]) -> int:
    """Run an action in a child; return how it ended: 0, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
