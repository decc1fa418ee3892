"""Hot swap, at length: a hundred thousand answers while releases come and go and publishers are killed; five hundred swaps leak nothing.

And who tests the tests: each way to break the swap is caught by what the holder's tests look at.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import process
from swap_lab import Load, Telling, ask, digests, marked, promoted, remembered, until, whole

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import bundle, releases, rollback
from pipelines.registry.choosing import Serving
from pipelines.serving import holder as holders
from pipelines.serving.holder import Holder
from pipelines.serving.request import Answer, Ask, Release
from pipelines.serving_policies import RolloutPolicy

FAST = RolloutPolicy(poll_seconds=0.02, retry_seconds=0.1)


def parts_of(home: Home) -> dict[int, dict[str, str]]:
    return {version: bundle.facts(home, digest)["parts"] for version, digest in digests(home).items()}


def publish(root: Path, seed: int) -> None:
    """Publish and promote for good: bundles made anew, promotions, rollbacks, damaged bundles among them; until somebody kills this."""
    home, rng = Home(root), random.Random(seed)
    named, parent = digests(home), os.getppid()
    while os.getppid() == parent:  # not beyond the test
        version = rng.choice(sorted(named))
        what = rng.random()
        try:
            if what < 0.2:
                again = marked(home, named[version], version)
                assert len(again) == 64
            elif what < 0.35:
                rollback.roll_back(home)
            elif what < 0.5:
                damaged(home, named, rng)
            elif releases.pointer(home).version != version:
                promoted(home, version, named[version])
        except (StateError, OSError):  # nothing to go back to, or the bundle is there already
            continue
        time.sleep(0.02)


def damaged(home: Home, named: dict[int, str], rng: random.Random) -> None:
    """Promote a bundle one file of which is cut or has a flipped bit, under a version that nobody has seen; it is mended later."""
    version = 90 + rng.randrange(5)
    digest = f"{version:064x}"
    source = home.bundles / named[1]
    if not (home.bundles / digest).is_dir():
        shutil.copytree(source, home.bundles / digest)
        file = rng.choice(sorted(path for path in (home.bundles / digest).rglob("*") if path.is_file()))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(content) if rng.random() < 0.5 else bytes(content[: len(content) // 2]))
        remembered(home, digest)
    promoted(home, version, digest)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_answer_of_a_hundred_thousand_is_mixed_while_publishers_are_killed_anywhere(shop: Home) -> None:
    named, parts = digests(shop), parts_of(shop)
    promoted(shop, 1, named[1])
    holder = Holder(shop, Telling, FAST)
    holder.start()
    seen: set[int] = set()

    def one(turn: int) -> str | None:
        engine, _ = holder.pick(ask(f"u{turn % 997}"))
        assert engine is not None
        answer = engine.answer(ask(f"u{turn % 997}"))
        seen.add(answer.release.version or 0)
        return whole(answer, named, parts)

    rng, killed = random.Random(5), 0
    with Load(one) as load:
        while len(load.seconds) < 100_000:
            publisher = process(publish, shop.root, killed)
            publisher.start()
            time.sleep(rng.uniform(0.02, 1.0))
            os.kill(publisher.pid or 0, signal.SIGKILL)
            publisher.join()
            killed += 1
    holder.stop()
    assert load.wrong == []
    assert seen >= {1, 2, 3, 4}
    assert seen <= set(named), "nothing damaged served"
    assert killed > 20
    assert len(holder.swaps) == holder.swaps.maxlen


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_swaps_leak_neither_memory_nor_files_nor_threads(shop: Home) -> None:
    named = digests(shop)
    holder = Holder(shop, Telling, FAST)
    held: list[tuple[float, int, int]] = []
    for at in range(560):
        version = at % 4 + 1
        promoted(shop, version, named[version])
        holder.follow()
        engine, _ = holder.pick(ask())
        assert engine is not None
        assert engine.release.version == version
        engine.answer(ask())
        held.append((resident_mb(), len(list(Path("/proc/self/fd").iterdir())), threading.active_count()))
    early, late = np.array(held[60:120]), np.array(held[-60:])
    assert np.median(late[:, 0]) <= 1.05 * np.median(early[:, 0])
    assert late[:, 1].max() <= early[:, 1].max()
    assert late[:, 2].max() == early[:, 2].max()


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


@dataclass(frozen=True)
class OneByOne(Telling):
    """A release whose sources are put, one after the other, into the model that serves."""

    shared: Any = None

    def answer(self, ask: Ask) -> Answer:
        return Telling(replace(self.serving, model=self.shared)).answer(ask)


def one_by_one() -> Callable[[Serving], Telling]:
    models: list[Any] = []

    def bind(serving: Serving) -> Telling:
        if not models:
            models.append(replace(serving.model, retrievers=dict(serving.model.retrievers)))
        for name, source in serving.model.retrievers.items():
            models[0].retrievers[name] = source
            time.sleep(0.03)
        return OneByOne(serving, models[0])

    return bind


@dataclass(frozen=True)
class TwoReferences(Telling):
    """A release that tells of whatever serves when it has answered."""

    holder: Any = None

    @property
    def release(self) -> Release:
        champion = self.holder[0].held.champion if self.holder else None
        serving = self.serving if champion is None else champion.serving
        return Release(serving.version, serving.digest, serving.parts)

    def answer(self, ask: Ask) -> Answer:
        answer = super().answer(ask)
        time.sleep(0.002)
        return replace(answer, release=self.release)


def mixed(shop: Home, bind: Callable[[list[Holder]], Callable[[Serving], Telling]]) -> list[str]:
    """Return what is mixed in answers while two releases take turns."""
    named, parts = digests(shop), parts_of(shop)
    promoted(shop, 1, named[1])
    box: list[Holder] = []
    holder = Holder(shop, bind(box), FAST)
    box.append(holder)
    holder.follow()
    holder.start()

    def one(turn: int) -> str | None:
        engine, _ = holder.pick(ask(f"u{turn}"))
        assert engine is not None
        return whole(engine.answer(ask(f"u{turn}")), named, parts)

    with Load(one) as load:
        for version in (3, 1, 3):  # of one catalogue, or an engine of mixed parts could not even be warmed
            fence = promoted(shop, version, named[version]).fence
            until(lambda fence=fence: holder.held.fence == fence)
            time.sleep(0.05)
    holder.stop()
    return load.wrong


@pytest.mark.parametrize(
    ("broken", "bind"),
    [
        ("parts one by one", lambda box: one_by_one()),
        ("two references", lambda box: lambda serving: TwoReferences(serving, box)),
    ],
)
def test_a_swap_that_mixes_is_caught(shop: Home, broken: str, bind: Any) -> None:
    assert mixed(shop, bind), broken


def test_the_same_look_finds_nothing_in_a_swap_as_it_is(shop: Home) -> None:
    assert mixed(shop, lambda box: Telling) == []


def test_a_load_that_skips_the_digests_is_caught(shop: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    named = digests(shop)
    promoted(shop, 1, named[1])
    file = shop.bundles / named[2] / "reference.json"
    file.write_bytes(file.read_bytes() + b" ")
    promoted(shop, 2, named[2])

    def serves() -> int | None:
        holder = Holder(shop, Telling, FAST)
        holder.follow()
        return holder.held.champion.release.version if holder.held.champion else None

    assert serves() == 1
    monkeypatch.setattr(bundle, "checked_folder", lambda home, path, digest: path)
    monkeypatch.setattr(holders.rehearsal, "rehearse", lambda home, digest: {})
    assert serves() == 2, "without the checks the damaged one serves: they are what refuses it"


def test_a_deal_that_forgets_who_was_in_is_caught(shop: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from swap_lab import canary

    promoted(shop, 1, digests(shop)[1])
    now = canary(shop, 2, 0.2)
    users = [f"u{at}" for at in range(500)]

    def inside(share: float) -> set[str]:
        return {user for user in users if holders.gets_challenger(replace(now, share=share), user)}

    assert inside(0.2) < inside(0.5)
    monkeypatch.setattr(holders, "fraction", lambda *words: random.random())
    assert not inside(0.2) < inside(0.5)
