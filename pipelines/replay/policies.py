"""Policies of retraining and release, walked over the matrix: pure functions of what was known at each moment.

At each moment a policy says whether it trains, and whether what it trained may serve. All begin with
the same first model. What a policy is judged on is the week that begins at that moment, which no
policy but the oracle has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from pipelines.decision_policies import GatePolicy
from pipelines.registry import gate as registry_gate
from pipelines.registry import gate_incumbents
from pipelines.registry.gate import Evidence
from pipelines.registry.gate_windows import Window
from pipelines.replay.matrix import Matrix
from pipelines.retrieval.lineup import SOURCES

ORACLE: Final = "oracle"
GATE: Final = "gate"


@dataclass(frozen=True)
class Situation:
    """What a policy may look at.

    Attributes:
        champion: `trained` of what serves until this moment.
        trained: when the policy last trained.
        judged: moments at which this champion was already put before the gate, oldest first.
        looks: how many of those spent some of the gate's error.
    """

    moment: datetime
    champion: datetime
    trained: datetime
    judged: tuple[datetime, ...]
    looks: int
    matrix: Matrix
    rules: Rules


@dataclass(frozen=True)
class Rules:
    """What policies go by beside the matrix.

    Attributes:
        gate: its policy; only what the matrix can answer is asked of it.
        released: as_of of every challenger that the ledger says was promoted.
        drifted: (champion, moment) -> why the world has moved, None if it has not; asked only where a policy wants to know.
    """

    gate: GatePolicy
    released: frozenset[datetime] = frozenset()
    drifted: Callable[[datetime, datetime], str | None] = lambda _champion, _moment: None


@dataclass(frozen=True)
class Choice:
    """What a policy does at a moment; what it releases it must have trained.

    Attributes:
        release: the `trained` of the model that serves from now on; None: the champion stays.
        judged: whether the gate was asked; `spent`: whether that spent some of its error.
    """

    trains: bool
    release: datetime | None = None
    reason: str = ""
    judged: bool = False
    spent: bool = False


Policy = Callable[[Situation], Choice]


@dataclass(frozen=True)
class Step:
    """One moment of a walk: what serves from then on, and what was done for it."""

    moment: datetime
    champion: datetime
    trained: bool
    promoted: bool
    reason: str


def walk(policy: Policy, matrix: Matrix, rules: Rules, start: datetime) -> list[Step]:
    """Return a policy's steps from the release of the first model, that of `start`, on."""
    now = Situation(start, start, start, (), 0, matrix, rules)
    steps = [Step(start, start, trained=True, promoted=True, reason="the first model")]
    for moment in matrix.trained:
        if moment <= start:
            continue
        choice = policy(replace(now, moment=moment))
        promoted = choice.release is not None and choice.release != now.champion
        now = Situation(
            moment,
            choice.release or now.champion,
            moment if choice.trains else now.trained,
            () if promoted else (*now.judged, *([moment] if choice.judged else [])),
            0 if promoted else now.looks + choice.spent,
            matrix,
            rules,
        )
        steps.append(Step(moment, now.champion, choice.trains, promoted, choice.reason))
    return steps


def never(_now: Situation) -> Choice:
    """Keep the first model."""
    return Choice(trains=False)


def every(days: float) -> Policy:
    """Return the policy that trains once the last training is so many days old, and releases what it gets."""

    def policy(now: Situation) -> Choice:
        if now.moment - now.trained < timedelta(days=days):
            return Choice(trains=False)
        return Choice(trains=True, release=now.moment, reason=f"{(now.moment - now.trained).days} days since the last training")

    return policy


def on_drift(now: Situation) -> Choice:
    """Train when the drift check of the champion fires, and release what comes of it."""
    why = now.rules.drifted(now.champion, now.moment)
    return Choice(trains=False) if why is None else Choice(trains=True, release=now.moment, reason=why)


def on_drift_gated(now: Situation) -> Choice:
    """Train when the drift check fires; the gate decides on quality."""
    why = now.rules.drifted(now.champion, now.moment)
    return Choice(trains=False) if why is None else _gated(now)


def gate(now: Situation) -> Choice:
    """Train at every moment; release what the ledger says was released: the real gate, with all that it guards."""
    admitted = now.moment in now.rules.released
    return Choice(trains=True, release=now.moment if admitted else None, reason="as the ledger has it")


def gate_on_quality(now: Situation) -> Choice:
    """Train at every moment; the gate decides on NDCG@10, its slices and incumbents, without the guardrails of the lists themselves."""
    return _gated(now)


def _gated(now: Situation) -> Choice:
    if (now.champion, now.moment) not in now.matrix.cells:
        return Choice(trains=True, reason="the champion was not measured on the challenger's window")
    found = registry_gate.judge(shown(now), now.rules.gate)
    spent = bool(found.figures.get("alpha_spent"))
    return Choice(trains=True, release=now.moment if found.promote else None, reason=found.reasons[0], judged=True, spent=spent)


def shown(now: Situation) -> Evidence:
    """Return what the gate is shown of a challenger that was trained now: the fresh week, and those of this champion's reign before it."""
    week = now.matrix.ending(now.moment)
    before, after = (now.matrix.cells[trained, now.moment] for trained in (now.champion, now.moment))
    known = ~np.isnan(before.tail)
    slices = {name: (before.ndcg[rows], after.ndcg[rows]) for name, rows in week.slices.items()}
    return Evidence(
        challenger=after.ndcg,
        champion=before.ndcg,
        users=week.users,
        as_of=now.moment.isoformat(),
        earlier=tuple(_window(now, moment) for moment in now.judged if now.matrix.ending(moment).end <= week.start),
        incumbents=week.incumbents,
        slices=slices | {"tail_items": (before.tail[known], after.tail[known])},
        champion_age_days=(now.moment - now.champion) / timedelta(days=1),
        earlier_decisions=now.looks,
    )


def _window(now: Situation, moment: datetime) -> Window:
    before, after = (now.matrix.cells[trained, moment].ndcg for trained in (now.champion, moment))
    return Window(moment.isoformat(), now.matrix.ending(moment).users, before, after)


def asked_of(policy: GatePolicy, matrix: Matrix) -> GatePolicy:
    """Return a gate's policy without what a matrix cannot answer: guardrails of the lists themselves, incumbents that are switched off.

    Raises:
        StateError: an incumbent is no source that there is; left out, it would guard nothing and nobody would hear of it.
    """
    gate_incumbents.check(policy, SOURCES)
    there = tuple(name for name in policy.incumbents if all(name in week.incumbents for week in matrix.weeks))
    return policy.model_copy(update={"guardrails": (), "incumbents": there})


def improved(by: float) -> Policy:
    """Return the policy of a bare comparison: train always, release what has a mean NDCG@10 more than `by` (relative) higher."""

    def policy(now: Situation) -> Choice:
        before, after = (now.matrix.mean(trained, now.moment) for trained in (now.champion, now.moment))
        better = after > before * (1 + by)
        return Choice(trains=True, release=now.moment if better else None, reason=f"{after:.4f} against {before:.4f}")

    return policy


def oracle(now: Situation) -> Choice:
    """Serve what will do best in the week to come: the best in hindsight, which nobody can follow."""
    week = now.matrix.after(now.moment)
    if week is None:
        return Choice(trains=True)
    there = [trained for trained in now.matrix.trained if trained <= now.moment and math.isfinite(now.matrix.mean(trained, week.end))]
    best = max(there, key=lambda trained: (now.matrix.mean(trained, week.end), trained), default=None)
    return Choice(trains=True, release=best, reason="known in hindsight")


POLICIES: Final[dict[str, Policy]] = {
    "never": never,
    "every cycle": every(0),
    "every 14 days": every(14),
    "every 28 days": every(28),
    "drift": on_drift,
    "drift, gate on quality": on_drift_gated,
    "improved": improved(0.0),
    "improved > 1%": improved(0.01),
    GATE: gate,
    "gate on quality": gate_on_quality,
    ORACLE: oracle,
}


def served(matrix: Matrix, steps: Sequence[Step]) -> list[tuple[datetime, datetime]]:
    """Return (trained, end of the week) of every week that a walk served, oldest first."""
    weeks = [(step.champion, matrix.after(step.moment)) for step in steps]
    return [(champion, week.end) for champion, week in weeks if week is not None]
