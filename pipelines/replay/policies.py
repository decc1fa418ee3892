"""Policies of retraining and release, walked over the matrix: pure functions of what was known at each moment.

At each moment a policy says whether it trains, and whether what it trained may serve. All begin with
the same first model. What a policy is judged on is the week that begins at that moment, which no
policy but the oracle has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pipelines.replay.matrix import Matrix

ORACLE: Final = "oracle"
GATE: Final = "gate"


@dataclass(frozen=True)
class Situation:
    """What a policy may look at.

    Attributes:
        champion: `trained` of what serves until this moment.
        trained: when the policy last trained.
        asked: how often this champion was already tested by the gate.
    """

    moment: datetime
    champion: datetime
    trained: datetime
    asked: int
    matrix: Matrix
    signals: Signals


@dataclass(frozen=True)
class Choice:
    """What a policy does at a moment; what it releases it must have trained.

    Attributes:
        release: the `trained` of the model that serves from now on; None: the champion stays.
        tested: whether the gate was asked, which spends some of its error.
    """

    trains: bool
    release: datetime | None = None
    tested: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Signals:
    """What the stages say of a champion at a moment, asked only where a policy wants to know.

    Attributes:
        drifted: (champion, moment) -> why the world has moved, None if it has not.
        admits: (champion, challenger, times asked before) -> whether the gate promotes, and its first reason.
    """

    drifted: Callable[[datetime, datetime], str | None]
    admits: Callable[[datetime, datetime, int], tuple[bool, str]]


Policy = Callable[[Situation], Choice]


@dataclass(frozen=True)
class Step:
    """One moment of a walk: what serves from then on, and what was done for it."""

    moment: datetime
    champion: datetime
    trained: bool
    promoted: bool
    reason: str


def walk(policy: Policy, matrix: Matrix, signals: Signals, start: datetime) -> list[Step]:
    """Return a policy's steps from the release of the first model, that of `start`, on."""
    champion = trained = start
    asked = 0
    steps = [Step(start, start, trained=True, promoted=True, reason="the first model")]
    for moment in matrix.trained:
        if moment <= start:
            continue
        choice = policy(Situation(moment, champion, trained, asked, matrix, signals))
        trained = moment if choice.trains else trained
        promoted = choice.release is not None and choice.release != champion
        asked = 0 if promoted else asked + choice.tested
        champion = choice.release or champion
        steps.append(Step(moment, champion, choice.trains, promoted, choice.reason))
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
    why = now.signals.drifted(now.champion, now.moment)
    return Choice(trains=False) if why is None else Choice(trains=True, release=now.moment, reason=why)


def on_drift_gated(now: Situation) -> Choice:
    """Train when the drift check fires; the gate decides."""
    why = now.signals.drifted(now.champion, now.moment)
    return Choice(trains=False) if why is None else _gated(now)


def gate(now: Situation) -> Choice:
    """Train at every moment; the gate decides."""
    return _gated(now)


def _gated(now: Situation) -> Choice:
    admitted, why = now.signals.admits(now.champion, now.moment, now.asked)
    return Choice(trains=True, release=now.moment if admitted else None, tested=True, reason=why)


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
    "drift, gated": on_drift_gated,
    "improved": improved(0.0),
    "improved > 1%": improved(0.01),
    GATE: gate,
    ORACLE: oracle,
}


def served(matrix: Matrix, steps: Sequence[Step]) -> list[tuple[datetime, datetime]]:
    """Return (trained, end of the week) of every week that a walk served, oldest first."""
    weeks = [(step.champion, matrix.after(step.moment)) for step in steps]
    return [(champion, week.end) for champion, week in weeks if week is not None]
