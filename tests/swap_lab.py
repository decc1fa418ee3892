"""Releases to swap: bundles of the trained shop, each marked in every part, and engines that tell the marks of what they answer with."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from bundle_forge import forged
from crowd import Crowd

from pipelines import publish
from pipelines.config import Home
from pipelines.datasets.interactions import Histories
from pipelines.registry import bundle_folder, ledger, libraries, rehearsal, releases, rollouts, signing
from pipelines.registry.choosing import Serving
from pipelines.serving.request import FULL, Answer, Ask, Release, Shown, Why

NOW: Final = datetime(2025, 2, 17, tzinfo=UTC)
MARK: Final = "mark"


def emptied(trained: Home, root: Path) -> Home:
    """Return a state folder with the bundles, the key and the settings of the trained shop; nothing released."""
    home = Home(root)
    shutil.copytree(trained.bundles, home.bundles)
    shutil.copy(trained.root / signing.KEY_FILE, home.root)
    shutil.copy(trained.root / "reloop.toml", home.root)
    return home


def marked(home: Home, source: str, version: int) -> str:
    """Return the digest of a copy of a bundle whose every source, and memory, carry a version's mark; it counts as rehearsed."""

    def change(out: Path) -> None:
        for state in (out / bundle_folder.MODEL_FOLDER / "retrieval").glob("*/state.npz"):
            with np.load(state) as arrays:
                held = {name: arrays[name] for name in arrays.files}
            np.savez(state, **held, **{MARK: np.array([version])})
        content = out / bundle_folder.MODEL_FOLDER / "memory" / "content.npz"
        if content.is_file():
            with np.load(content) as arrays:
                held = {name: arrays[name] for name in arrays.files}
            held["data"] = held["data"] + np.float32(0)
            np.savez(content, **held, **{MARK: np.array([version])})

    digest = forged(home, source, change, honest_parts=True)
    remembered(home, digest)
    return digest


def remembered(home: Home, digest: str) -> None:
    """Let a bundle count as rehearsed on this machine."""
    publish.write_json(rehearsal.memo(home, digest), {"machine": platform.node(), "libraries": libraries.installed(), "difference": 0.0})


def promoted(home: Home, version: int, digest: str) -> releases.Pointer:
    """Flip the pointer as the gate does."""
    now = releases.pointer(home)
    body = {"as_of": "2025-02-10", "champion_before": now.version, "champion_after": version, "challenger": version, "reasons": ["better"]}
    return releases.flip(home, now, version=version, digest=digest, as_of="2025-02-10", key=f"{version}/{now.fence}", body=body)


def ask(user: str = "u1", k: int = 5) -> Ask:
    return Ask("home", f"r-{user}", NOW, k, user)


@dataclass(frozen=True)
class Telling:
    """An engine of a real bundle that proposes for a made-up history and tells, as degraded, the mark of each part that it read."""

    serving: Serving

    @property
    def release(self) -> Release:
        return Release(self.serving.version, self.serving.digest, self.serving.parts)

    def answer(self, ask: Ask) -> Answer:
        model = self.serving.model
        n = len(model.item_ids)
        item = np.array([sum(map(ord, ask.user_id or "")) % n], np.int32)
        users = Histories(np.array([0, 1]), item, np.zeros(1, np.int64), np.ones(1, np.float32), n, 0)
        proposed = model.propose(users)
        marks = tuple(f"{name}={int(one.state[MARK][0])}" for name, one in model.retrievers.items() if one.state and MARK in one.state)
        shown = [
            Shown(str(model.item_ids[i]), rank, float(score), Why("for_you", ""))
            for rank, (i, score) in enumerate(zip(proposed.item[: ask.k], proposed.blend_score[: ask.k], strict=True), 1)
        ]
        return Answer(ask, tuple(shown), FULL, self.release, degraded=marks)


def whole(answer: Answer, digests: dict[int, str], parts: dict[int, dict[str, str]]) -> str | None:
    """Return what is mixed in an answer, None where all of it is one bundle's."""
    version = answer.release.version or 0
    if answer.release.digest != digests[version] or dict(answer.release.parts) != parts[version]:
        return f"version {version} with digest {answer.release.digest} and parts {answer.release.parts}"
    wrong = [mark for mark in answer.degraded if not mark.endswith(f"={version}")]
    return f"version {version} with marks {wrong}" if wrong or not answer.degraded else None


class Load(Crowd):
    """Asks without pause; keeps what each answer took and what was wrong."""

    def __init__(self, work: Callable[[int], str | None], threads: int = 2) -> None:
        super().__init__(threads)
        self.work, self.threads, self.seconds, self.wrong = work, threads, list[float](), list[str]()

    def run(self, place: int) -> None:
        turn = place
        while not self.stop.is_set():
            begun = time.perf_counter()
            try:
                wrong = self.work(turn)
            except Exception as error:  # noqa: BLE001 - a failed request is what this looks for
                wrong = f"{type(error).__name__}: {error}"
            self.seconds.append(time.perf_counter() - begun)
            if wrong:
                self.wrong.append(wrong)
            turn += self.threads


def until(holds: Callable[[], object], seconds: float = 60) -> float:
    """Wait for something; return the seconds it took."""
    begun = time.perf_counter()
    while not holds():
        assert time.perf_counter() - begun < seconds, "it did not happen"
        time.sleep(0.01)
    return time.perf_counter() - begun


def digests(home: Home) -> dict[int, str]:
    """Return the digests of the marked bundles by version."""
    return dict(enumerate((home.root / "digests").read_text().splitlines(), 1))


def canary(home: Home, version: int, share: float, kind: str = ledger.CANARY) -> rollouts.Rollout:
    """Begin a rollout of a marked bundle against what serves."""
    return rollouts.begin(
        home, releases.pointer(home), key=f"rollout of {version}", kind=kind, share=share, version=version, digest=digests(home)[version],
        as_of="2025-02-17", body={"reasons": ["asked for"], "author": "ada"},
    )  # fmt: skip


def versions(home: Home) -> list[str]:
    """Return the digests of the trained shop's two bundles, the older first."""
    found = [(json.loads((path / bundle_folder.FACTS_FILE).read_text())["as_of"], path.name) for path in home.bundles.glob("?" * 64)]
    return [digest for _, digest in sorted(found)]
