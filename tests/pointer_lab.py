"""Bundles that are one text file, releases of them, and promoters that race for the pointer and are killed.

A promoter is what a gate is to the pointer: it reads the champion, judges itself against it, and flips if it is better.
"""

from __future__ import annotations

import os
import random
import signal
from dataclasses import asdict
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

from processes import SERVER, ended, process

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StaleFence
from pipelines.registry import ledger, releases, review, signing

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


def first_start(root: Path, start: Barrier) -> None:
    """Ask who serves where nobody has asked before, at the same moment as others."""
    start.wait(60)
    assert releases.pointer(Home(root)).fence == 0


def started_together(home: Home) -> list[int]:
    """Let eight processes start in an empty state folder; return how each ended."""
    start = SERVER.Barrier(8)
    return ended([process(first_start, home.root, start) for _ in range(8)])


def race(home: Home, versions: list[int], dying: set[int]) -> None:
    """Let every version promote itself at the same time; those that died are started again, as a scheduler does."""
    start, alone = SERVER.Barrier(len(versions)), SERVER.Barrier(1)
    codes = ended([process(promote_until_settled, home.root, version, start, version in dying) for version in versions])
    assert dict(zip(versions, codes, strict=True)) == {version: KILLED if version in dying else 0 for version in versions}
    for version in sorted(dying):
        assert ended([process(promote_until_settled, home.root, version, alone, dies=False)]) == [0]
