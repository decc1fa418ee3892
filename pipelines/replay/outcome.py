"""What each policy would have had: mean NDCG@10 with an interval, what it cost, and what hindsight would have added.

The unit is a user in a week. A user comes back in other weeks, so intervals draw users, each with
all weeks (bootstrap; Efron, 1979); differences to the reference are paired by user and week.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from pipelines.errors import NotEnoughData
from pipelines.evaluation import resampled
from pipelines.registry import releases
from pipelines.replay import policies
from pipelines.replay.matrix import Matrix
from pipelines.replay.policies import Rules, Step
from pipelines.window import utc

SEED = 7
DRAWS = 1000


@dataclass(frozen=True)
class Outcome:
    """A policy over the weeks it served.

    Attributes:
        ndcg, difference: {"value", "lower", "upper"}, of user-weeks; the difference is to the reference policy.
        regret: of the best in hindsight, minus this; never below zero.
        trainings, promotions: after the first model, which all have.
        training_seconds: of those trainings, as their stages were clocked; None where they were not.
        weeks: {"end", "trained", "age_days" at the week's start, "ndcg", "users"} of each.
    """

    name: str
    ndcg: dict[str, Any]
    difference: dict[str, Any]
    regret: float
    trainings: int
    promotions: int
    training_seconds: float | None
    weeks: list[dict[str, Any]]
    steps: list[Step]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "policy": self.name,
            "ndcg_at_10": self.ndcg,
            "difference": self.difference,
            "regret": self.regret,
            "trainings": self.trainings,
            "promotions": self.promotions,
            "training_seconds": self.training_seconds,
            "weeks": self.weeks,
            "steps": [
                {
                    "moment": step.moment.isoformat(),
                    "champion": step.champion.isoformat(),
                    "trained": step.trained,
                    "promoted": step.promoted,
                    "reason": step.reason,
                }
                for step in self.steps
            ],
        }


def released(ledger: Sequence[Mapping[str, Any]]) -> frozenset[datetime]:
    """Return the as_of of every challenger that was promoted."""
    return frozenset(utc(entry["as_of"]) for entry in ledger if entry["kind"] == releases.PROMOTED and entry.get("as_of"))


def first(ledger: Sequence[Mapping[str, Any]], trained: Sequence[datetime]) -> datetime:
    """Return the model that all policies begin with: the first that the ledger released, or the oldest where it released none.

    Raises:
        NotEnoughData: nothing was trained after it.
    """
    begun = min(released(ledger) & set(trained), default=min(trained, default=None))
    if begun is None or begun == max(trained):
        raise NotEnoughData("replay", found=f"{len(trained)} cycles", allowed="one more after the first release", hint="widen --from/--to")
    return begun


def outcomes(
    matrix: Matrix,
    rules: Rules,
    start: datetime,
    *,
    names: Sequence[str] | None = None,
    reference: str = policies.GATE,
    seconds: Mapping[datetime, float] | None = None,
) -> list[Outcome]:
    """Walk every policy over the same weeks and return what each would have had, best first.

    Args:
        names: of `policies.POLICIES`, all when None; the reference and the oracle are always walked.
        seconds: what each training took.
    """
    wanted = dict.fromkeys([*(names or policies.POLICIES), reference, policies.ORACLE])
    walked = {name: policies.walk(policies.POLICIES[name], matrix, rules, start) for name in wanted}
    lived = {name: policies.served(matrix, steps) for name, steps in walked.items()}
    # A maximum age leaves old models without cells: only weeks that every policy has can be compared.
    common = [
        place
        for place in range(min(map(len, lived.values())))
        if all(weeks[place] in matrix.cells and len(matrix.cells[weeks[place]].ndcg) for weeks in lived.values())
    ]
    users = {week.end: week.users for week in matrix.weeks}
    ends = [lived[reference][place][1] for place in common]
    everyone, row = np.unique(np.concatenate([np.zeros(0, dtype="<U1"), *(users[end] for end in ends)]), return_inverse=True)
    values = {name: np.concatenate([np.zeros(0), *(matrix.cells[weeks[place]].ndcg for place in common)]) for name, weeks in lived.items()}
    times = np.bincount(row, minlength=len(everyone)).astype(np.float64)
    sums = {name: np.bincount(row, weights=value, minlength=len(everyone)).astype(np.float64) for name, value in values.items()}
    figures = {name: resampled.ratio(total, times) for name, total in sums.items()}
    drawn = resampled.drawn(figures, len(everyone), SEED, DRAWS)
    best = drawn[policies.ORACLE].value
    found = [
        Outcome(
            name=name,
            ndcg=drawn[name].interval(),
            difference=drawn[name].minus(drawn[reference]),
            regret=best - drawn[name].value,
            trainings=sum(step.trained for step in steps[1:]),
            promotions=sum(step.promoted for step in steps[1:]),
            training_seconds=None
            if seconds is None
            else round(sum(seconds.get(step.moment, float("nan")) for step in steps[1:] if step.trained), 1),
            weeks=[_week(matrix, *lived[name][place]) for place in common],
            steps=steps,
        )
        for name, steps in walked.items()
    ]
    return sorted(found, key=lambda one: (-one.ndcg["value"], one.name))


def _week(matrix: Matrix, trained: datetime, end: datetime) -> dict[str, Any]:
    week = next(week for week in matrix.weeks if week.end == end)
    return {
        "start": week.start.isoformat(),
        "end": end.isoformat(),
        "trained": trained.isoformat(),
        "age_days": (week.start - trained).total_seconds() / 86_400,
        "ndcg_at_10": matrix.mean(trained, end),
        "users": len(week.users),
    }
