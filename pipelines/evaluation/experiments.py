"""What an experiment says: were units dealt out as meant, what did each arm change, is any guardrail broken. Pure; fails closed.

The order is the order of reading: counts that do not fit the weights (sample ratio mismatch) mean that something other than the
arm differs between arms, and then no figure of it is read. SRM: chi-square of the counts, alarm at p < .001 (Fabijan, Gupchup, Gupta,
Omhover, Qin, Vermeer, Dmitriev, "Diagnosing sample ratio mismatch in online controlled experiments", KDD 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import stats

from pipelines.decision_policies import ExperimentPolicy
from pipelines.errors import ReloopError
from pipelines.evaluation import two_sample
from pipelines.evaluation.two_sample import Doubles, Effect

Verdict = Literal["better", "worse", "no difference", "not yet", "blocked"]


@dataclass(frozen=True)
class Metric:
    """A metric of every arm: sums a unit.

    Attributes:
        top, bottom: float64 [n_units of the arm], an array an arm.
        before: the same metric of the unit in the days before its exposure, NaN for a new one; None: not adjusted.
    """

    top: Sequence[Doubles]
    bottom: Sequence[Doubles]
    before: Sequence[Doubles] | None = None


@dataclass(frozen=True)
class Plan:
    """What was meant before the experiment began; arm 0 is control.

    Attributes:
        weights: an arm each, > 0.
        guardrails: metric -> the relative loss that is still taken; larger metrics are better.
        planned: units an arm, for which the always-valid test is most powerful.
        ended: whether the experiment's time is over: from then on "not yet" becomes "no difference".
    """

    arms: tuple[str, ...]
    weights: tuple[float, ...]
    primary: str
    guardrails: Mapping[str, float] = field(default_factory=dict)
    planned: int = two_sample.PLANNED
    ended: bool = False


@dataclass(frozen=True)
class Ratio:
    """Whether units were dealt out as meant.

    Attributes:
        p: of the chi-square test; NaN where there is nothing to test.
    """

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    p: float

    def broken(self, policy: ExperimentPolicy) -> bool:
        """Return whether no figure may be read."""
        return not self.p >= policy.srm_p


@dataclass(frozen=True)
class Readout:
    """What an experiment says.

    Attributes:
        effects: (arm, metric) -> its effect against control; adjusted where the unit's past was known.
        variance_factors: metric -> what the adjustment left of the variance.
        guarded: (arm, metric) -> how far above what the guardrail allows.
        verdicts: arm -> what is to be said of it.
        reasons: in the order of reading.
    """

    srm: Ratio
    effects: dict[tuple[str, str], Effect]
    variance_factors: dict[str, float]
    guarded: dict[tuple[str, str], Effect]
    verdicts: dict[str, Verdict]
    reasons: tuple[str, ...]

    @property
    def better(self) -> tuple[str, ...]:
        """Return the arms that may replace control."""
        return tuple(arm for arm, verdict in self.verdicts.items() if verdict == "better")


def sample_ratio(counts: Sequence[int], weights: Sequence[float]) -> Ratio:
    """Return how well the arms' counts fit their weights.

    Raises:
        ReloopError: not one weight above 0 for each arm, or fewer than two arms.
    """
    if len(counts) != len(weights) or len(counts) < 2 or not all(weight > 0 for weight in weights):
        raise ReloopError(
            "sample ratio", found=f"{len(counts)} counts, weights {list(weights)}", allowed="two arms or more, a weight above 0 each"
        )
    whole = sum(counts)
    expected = tuple(whole * weight / sum(weights) for weight in weights)
    p = float(stats.chisquare(counts, expected).pvalue) if whole > 0 else float("nan")
    return Ratio(tuple(int(count) for count in counts), expected, p)


def read(plan: Plan, metrics: Mapping[str, Metric], policy: ExperimentPolicy, *, crossed: int = 0) -> Readout:
    """Return what an experiment says.

    Args:
        metrics: every metric of the plan, others for reading.
        crossed: units that were seen in more than one arm; they are in no metric.

    Raises:
        ReloopError: the primary metric or a guardrail was not measured, or arms do not fit.
    """
    missing = [name for name in (plan.primary, *plan.guardrails) if name not in metrics]
    if missing:
        raise ReloopError("experiment", found=f"no metric {', '.join(missing)}", allowed=", ".join(sorted(metrics)))
    counts = [len(top) for top in metrics[plan.primary].top]
    if len(plan.arms) != len(counts):
        raise ReloopError("experiment", found=f"{len(counts)} arms measured", allowed=f"{len(plan.arms)}: {', '.join(plan.arms)}")
    srm = sample_ratio(counts, plan.weights)
    blocked = _blocked(srm, crossed, policy)
    effects: dict[tuple[str, str], Effect] = {}
    guarded: dict[tuple[str, str], Effect] = {}
    factors: dict[str, float] = {}
    # Several treatments share the error (Bonferroni); guardrails must all hold, which needs no correction.
    confidence = 1 - (1 - policy.confidence) / (len(plan.arms) - 1)
    for name, metric in metrics.items():
        values = [two_sample.linearised(top, bottom) for top, bottom in zip(metric.top, metric.bottom, strict=True)]
        adjusted = two_sample.cuped(values, metric.before) if metric.before is not None else two_sample.Adjusted(values, 0.0, 1.0)
        factors[name] = adjusted.variance_factor
        found = [two_sample.moments(one) for one in adjusted.units]
        for arm, moments in zip(plan.arms[1:], found[1:], strict=True):
            effects[arm, name] = two_sample.compare(found[0], moments, confidence=confidence, planned=plan.planned)
            if name in plan.guardrails:
                guarded[arm, name] = two_sample.non_inferior(
                    found[0], moments, plan.guardrails[name], confidence=2 * policy.confidence - 1, planned=plan.planned
                )
    verdicts: dict[str, Verdict] = {}
    reasons = list(blocked)
    for arm in plan.arms[1:]:
        own = {name: effect for (one, name), effect in guarded.items() if one == arm}
        verdicts[arm], said = ("blocked", []) if blocked else _judged(arm, plan, effects[arm, plan.primary], own, policy)
        reasons += said
    return Readout(srm, effects, factors, guarded, verdicts, tuple(reasons))


def _blocked(srm: Ratio, crossed: int, policy: ExperimentPolicy) -> list[str]:
    """Return why nothing may be read, if so."""
    whole = sum(srm.counts)
    said = []
    if srm.broken(policy):
        dealt = ", ".join(f"{count:,} for {expected:,.0f}" for count, expected in zip(srm.counts, srm.expected, strict=True))
        said.append(f"sample ratio mismatch: {dealt} meant, p {srm.p:.2g} < {policy.srm_p:g}; find out why before reading anything")
    if whole and not crossed / (whole + crossed) <= policy.max_crossed:
        said.append(f"{crossed:,} units were seen in more than one arm, above {policy.max_crossed:.1%}: the arms are not what they were")
    return said


def _judged(arm: str, plan: Plan, effect: Effect, guarded: Mapping[str, Effect], policy: ExperimentPolicy) -> tuple[Verdict, list[str]]:
    """Return the verdict on an arm with its reasons."""
    fewest = min(effect.control.n, effect.treatment.n)
    span = f"{arm}: {plan.primary} {effect.difference:+.4g} [{effect.always_lower:+.4g}, {effect.always_upper:+.4g}] at any look"
    rest: Verdict = "no difference" if plan.ended else "not yet"
    harmed = [f"{arm}: {name} lost more than {plan.guardrails[name]:.1%}" for name, one in guarded.items() if one.always_upper < 0]
    unproven = [
        f"{arm}: {name} not shown to lose less than {plan.guardrails[name]:.1%}"
        for name, one in guarded.items()
        if not one.always_lower > 0
    ]
    if not fewest >= policy.min_units:
        return "not yet", [f"{arm}: {fewest:,} units in the smaller arm, below {policy.min_units:,}"]
    if harmed or effect.always_upper < 0:
        return "worse", [span, *harmed]
    if not effect.always_lower > 0:  # NaN, too
        return rest, [span]
    if unproven:
        return rest, [span, *unproven]
    return "better", [span, *(f"{arm}: {name} loses less than {margin:.1%}" for name, margin in plan.guardrails.items())]


def told(readout: Readout) -> dict[str, Any]:
    """Return a readout for machines; what cannot be told is null."""

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    def effect(one: Effect) -> dict[str, float | int | None]:
        names = (
            "difference",
            "lower",
            "upper",
            "p",
            "relative",
            "relative_lower",
            "relative_upper",
            "always_lower",
            "always_upper",
            "always_p",
        )
        sides = {"control": number(one.control.mean), "treatment": number(one.treatment.mean)}
        return {**sides, "n": one.treatment.n, **{name: number(getattr(one, name)) for name in names}, "units_for_tail": one.skewed or None}

    return {
        "srm": {
            "counts": list(readout.srm.counts),
            "expected": [round(one, 1) for one in readout.srm.expected],
            "p": number(readout.srm.p),
        },
        "effects": [{"arm": arm, "metric": name, **effect(one)} for (arm, name), one in readout.effects.items()],
        "guardrails": [
            {"arm": arm, "metric": name, "lower": number(one.always_lower), "upper": number(one.always_upper)}
            for (arm, name), one in readout.guarded.items()
        ],
        "variance_factors": {name: round(value, 4) for name, value in readout.variance_factors.items()},
        "verdicts": dict(readout.verdicts),
        "reasons": list(readout.reasons),
    }
