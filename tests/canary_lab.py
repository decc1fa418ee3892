"""Canaries whose truth is known: requests drawn period by period, judged by the service's own decision, no clock.

Users differ: each has a pace, a speed and a chance to fail of its own, so requests of one user are no independent evidence, as in a shop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipelines.serving.clicks import BUCKETS
from pipelines.serving.rollout import Move, moved
from pipelines.serving.tally import CELLS, EDGES_MS, LATENCIES, NAMES, PERIOD_SECONDS, SCORES, UNIT_SECONDS, Figures
from pipelines.serving_policies import RolloutPolicy

HEAD: Final = len(NAMES)
K: Final = 10
CLICKED: Final = 0.1  # of the answers


@dataclass(frozen=True)
class Fault:
    """What a challenger does to its answers, beyond what control does.

    Attributes:
        failed, empty, lower, same: further share of answers; slower_ms: added to each.
        flat: scores all alike.
        fewer: share of the clicks that are lost.
        after: seconds into the rollout when it begins.
    """

    name: str = "none"
    failed: float = 0.0
    empty: float = 0.0
    lower: float = 0.0
    same: float = 0.0
    slower_ms: float = 0.0
    flat: bool = False
    fewer: float = 0.0
    after: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a rollout ended: promoted or not, after how many seconds, why; seconds since the fault began where it was ended."""

    promoted: bool
    seconds: float
    share: float
    reasons: tuple[str, ...]
    detected: float


class World:
    """A shop's traffic."""

    def __init__(self, rate: float, seed: int, users: int = 20_000, base_failed: float = 0.002) -> None:
        self.rng = np.random.default_rng(seed)
        self.rate, self.n = rate, users
        self.place = self.rng.random(users)  # in the hash of the rollout
        pace = self.rng.lognormal(0.0, 1.0, users)
        self.pace = pace / pace.sum()
        self.met = np.full(users, -1)
        self.speed = self.rng.lognormal(0.0, 0.3, users)
        self.fails = self.rng.beta(0.02, 0.02 / base_failed - 0.02, users)  # of some, nearly all requests
        self.clicks = np.random.default_rng([seed, 1])
        self.likes = self.clicks.beta(2.0, 2.0 / CLICKED - 2.0, users)
        self.bucket = self.clicks.integers(0, BUCKETS, users)
        self.acted = np.zeros((2, BUCKETS, 2), np.int64)  # since it was last emptied

    def period(self, share: float, fault: Fault, now: float) -> np.ndarray:
        """Return int64 [2, CELLS], what challenger and control counted in five seconds."""
        cells = np.zeros((2, CELLS), np.int64)
        n = self.rng.poisson(self.rate * PERIOD_SECONDS)
        user = np.unique(self.rng.choice(self.n, n, p=self.pace))  # each counts once a minute
        user = user[self.met[user] < int(now / UNIT_SECONDS)]
        self.met[user] = int(now / UNIT_SECONDS)
        burst = self.rng.lognormal(0.0, 0.25)  # the machine is busy for all alike
        for side, mine in enumerate((self.place[user] < share, self.place[user] >= share)):
            ours, m = user[mine], int(mine.sum())
            bad = fault if side == 0 and now >= fault.after else Fault()
            did = self.clicks.random(m) < self.likes[ours] * (1 - bad.fewer)
            self.acted[side] += np.stack([np.bincount(self.bucket[some], minlength=BUCKETS) for some in (ours, ours[did])], axis=1)
            failed = self.rng.random(m) < self.fails[ours] + bad.failed
            lower = failed | (self.rng.random(m) < 0.01 + bad.lower)
            took = np.where(failed, 1.0, 6.0 * burst * self.speed[ours] * self.rng.lognormal(0.0, 0.4, m)) + bad.slower_ms
            took = np.where(self.rng.random(m) < 0.01, took + 40.0, took)  # a pause now and then
            pairs = max(m - 1, 0)
            cells[side, 1:HEAD] = (
                m, failed.sum(), (self.rng.random(m) < 0.001 + bad.empty).sum(), lower.sum(), pairs,
                self.rng.binomial(pairs, min(1.0, 0.02 + bad.same)),
            )  # fmt: skip
            cells[side, HEAD : HEAD + LATENCIES] = np.bincount(np.searchsorted(EDGES_MS, took), minlength=LATENCIES)
            if bad.flat:
                cells[side, -1] += K * m
            else:
                z = self.rng.standard_normal((m, K))
                z = (z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, keepdims=True) if m else z
                places = np.clip((z / 0.4 + 8.5).astype(int), 0, SCORES - 2)
                cells[side, HEAD + LATENCIES :] += np.bincount(places.ravel(), minlength=SCORES)
        return cells


def rolled_out(policy: RolloutPolicy, rate: float, seed: int, fault: Fault = Fault(), begin: float | None = None) -> Ended:
    """Return how a rollout ends.

    Args:
        begin: the share to begin at; the policy's first where None.
    """
    world = World(rate, seed)
    share, since, now = begin or policy.shares[0], 0.0, 0.0
    seen: list[np.ndarray] = []
    late = int(policy.window_seconds / PERIOD_SECONDS)
    while True:
        seen.append(world.period(share, fault, now))
        now += PERIOD_SECONDS
        whole, fresh = (tuple(Figures.of(side) for side in np.sum(part, axis=0)) for part in (seen, seen[-late:]))
        move: Move = moved(share, now - since, whole, fresh, policy, acted=(world.acted[0], world.acted[1]))  # type: ignore[arg-type]
        if move.to in {"end", "promote"}:
            return Ended(move.to == "promote", now, share, move.reasons, now - fault.after)
        if move.to == "step":
            share, since, seen = move.share, now, []
            world.acted[:] = 0
