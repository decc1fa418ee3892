"""What a challenger may not spoil: every guardrail by its margin and with its own interval.

A guardrail holds where the worst that its one-sided interval allows is within the margin (non-inferiority). All must hold for a
promotion; that needs no correction, for each one more only makes a promotion harder (intersection-union; Berger, 1982). The
claim that one is harmed is another matter: with twenty of them one looks harmed by chance, so it goes by Holm's correction (1979)
for their number. A guardrail that neither holds nor is harmed is unsure: there is not enough evidence to rule harm out.

Every comparison reads `not worst within margin`, so that NaN never holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipelines.decision_policies import GatePolicy
from pipelines.evaluation import clustered, distances
from pipelines.evaluation.resampled import Drawn

RESAMPLES: Final = 1999  # of small slices: a tail of 5% holds a hundred
Numbers = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PerUser:
    """One number a user of a slice, [n] each, in one order."""

    before: Numbers
    after: Numbers


@dataclass(frozen=True)
class PerDraw:
    """A figure of the whole audience with its value in each draw of users, the same draws on both sides."""

    before: Drawn
    after: Drawn


@dataclass(frozen=True)
class Timed:
    """Seconds that the same users' lists took, [n] each, measured in turns."""

    before: Numbers
    after: Numbers


@dataclass(frozen=True)
class Exact:
    """A number that is counted, not estimated."""

    before: float
    after: float


@dataclass(frozen=True)
class Rates:
    """Shares of some columns, [n] each, and the standard error of their differences."""

    names: tuple[str, ...]
    before: Numbers
    after: Numbers
    error: Numbers


Measure = PerUser | PerDraw | Timed | Exact | Rates


@dataclass(frozen=True)
class Rule:
    """How a measure is bounded.

    Attributes:
        subject: what a reason calls it.
        margin: the most that may be lost, as a positive number.
        relative: to what it was before.
        more_is_worse: as of latency.
        min_users: below which nothing is said.
        guarded_from: users below which harm that cannot be ruled out is told and stops nothing; harm that is shown always does.
    """

    subject: str
    margin: float
    relative: bool = True
    more_is_worse: bool = False
    min_users: int = 2
    guarded_from: int = 0

    def within(self, worst: float) -> bool:
        """Tell whether a change is within the margin; NaN never is."""
        return worst <= self.margin if self.more_is_worse else worst >= -self.margin


@dataclass(frozen=True)
class Finding:
    """One test's outcome: the verdict it forces (None if it holds) and its sentence."""

    forces: Literal["keep", "not enough evidence"] | None
    reason: str


@dataclass(frozen=True)
class Assessed:
    """A guardrail with its figures.

    Attributes:
        change: in the measure's own direction.
        worst: the bound of the one-sided interval on the side of harm.
        p_harm: of there being no harm at all; NaN, and not asked, where the guardrail holds.
        n: users, or columns.
        counted: what n counts; nothing where the measure is exact.
    """

    name: str
    rule: Rule
    before: float
    after: float
    change: float
    worst: float
    p_harm: float
    n: int
    counted: str = "users"

    @property
    def holds(self) -> bool:
        """Tell whether the worst that the interval allows is within the margin."""
        if self.n < self.rule.min_users:
            return False
        return self.rule.within(self.worst)

    def figures(self, *, harmed: bool) -> dict[str, Any]:
        """Return what goes to the ledger."""
        numbers = {"before": self.before, "after": self.after, "change": self.change, "worst": self.worst, "p_harm": self.p_harm}
        told = {name: float(value) if math.isfinite(value) else None for name, value in numbers.items()}
        outcome = "holds" if self.holds else "harmed" if harmed else "unsure"
        return {**told, "n_users": self.n, "margin": self.rule.margin, "relative": self.rule.relative, "outcome": outcome}

    def finding(self, *, harmed: bool) -> Finding:
        """Return what it forces, and why."""
        if self.n < self.rule.guarded_from and not self.holds and not harmed:
            change = "" if math.isnan(self.change) else f" {_told(self.change, relative=self.rule.relative)}"
            return Finding(
                None,
                f"{self.rule.subject}{change} over {self.n} {self.counted}: not guarded, {self.rule.guarded_from} are needed to rule harm out; none is shown",
            )
        if self.n < self.rule.min_users:
            few = f"{self.rule.subject}: {self.n} users, {self.rule.min_users} are needed (gate.min_slice_users)"
            return Finding("not enough evidence", few)
        if math.isnan(self.change) or math.isnan(self.worst):
            return Finding("keep", f"{self.rule.subject}: no number came of measuring it")
        said = (
            f"{self.rule.subject} {_told(self.change, relative=self.rule.relative)}{f' over {self.n} {self.counted}' if self.counted else ''}, "
            f"at worst {_told(self.worst, relative=self.rule.relative)} "
            f"(margin {_told(self.rule.margin if self.rule.more_is_worse else -self.rule.margin, relative=self.rule.relative)})"
        )
        if self.holds:
            return Finding(None, said)
        if harmed:
            return Finding("keep", f"{said}: worse")
        return Finding("not enough evidence", f"{said}: no harm shown, but it cannot be ruled out")


def _told(value: float, *, relative: bool) -> str:
    return f"{value:+.1%}" if relative else f"{value:+.4f}"


def rules(policy: GatePolicy) -> dict[str, Rule]:
    """Return how the measures that are no slices of users are bounded, by name."""
    return {
        "coverage": Rule("coverage of the catalogue", policy.max_coverage_loss),
        "tail_exposure": Rule("attention for tail items", policy.max_tail_exposure_loss),
        "gini": Rule("concentration of attention (Gini)", policy.max_gini_increase, relative=False, more_is_worse=True),
        "diversity": Rule("diversity of lists", policy.max_diversity_loss),
        "miscalibration": Rule(
            "miscalibration of lists (KL, nats)", policy.max_miscalibration_increase, relative=False, more_is_worse=True
        ),
        "ece": Rule("calibration error of probabilities (ECE)", policy.max_ece_increase, relative=False, more_is_worse=True),
        "empty_lists": Rule("share of empty lists", policy.max_empty_increase, relative=False, more_is_worse=True),
        "latency": Rule("scoring seconds a user", policy.max_latency_increase, more_is_worse=True),
        "bundle_size": Rule("bundle bytes for as many events", policy.max_size_increase, more_is_worse=True),
        "null_rates": Rule("share of missing values", policy.max_null_increase, relative=False, more_is_worse=True, min_users=1),
        "score_ties": Rule("share of tied scores", policy.max_ties, relative=False, more_is_worse=True),
        "score_psi": Rule("PSI of scores", policy.max_score_psi, relative=False, more_is_worse=True),
    }


def rule_of(name: str, measure: Measure, policy: GatePolicy) -> Rule:
    """Return how a measure is bounded; seconds that nothing compares with stand against a budget of their own."""
    if name == "latency" and isinstance(measure, Exact):
        subject = "scoring seconds a user, where only one model has a ranker"
        return Rule(subject, policy.max_latency_seconds, relative=False, more_is_worse=True)
    return rules(policy)[name]


def assess(name: str, measure: Measure, rule: Rule, confidence: float, seed: int) -> Assessed:
    """Return a measure with its interval and the chance of no harm."""
    if isinstance(measure, PerUser):
        return _per_user(name, measure, rule, confidence, seed)
    if isinstance(measure, PerDraw):
        return _per_draw(name, measure, rule, confidence)
    if isinstance(measure, Timed):
        return _timed(name, measure, rule, confidence)
    if isinstance(measure, Rates):
        return _rates(name, measure, rule, confidence)
    gap = measure.after - measure.before
    change = (gap / measure.before if measure.before else math.nan) if rule.relative else gap
    harmed = change > 0 if rule.more_is_worse else change < 0
    return Assessed(name, rule, measure.before, measure.after, change, change, 0.0 if harmed else 1.0, max(rule.min_users, 1), "")


def _per_user(name: str, measure: PerUser, rule: Rule, confidence: float, seed: int) -> Assessed:
    before, after = np.asarray(measure.before, dtype=np.float64), np.asarray(measure.after, dtype=np.float64)
    if not len(before):
        return Assessed(name, rule, math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    found = clustered.change(before, after, relative=rule.relative)
    worst = found.bound(confidence if rule.more_is_worse else 1 - confidence, seed, RESAMPLES)
    p_harm = math.nan if rule.within(worst) else clustered.sign_flip(found.top if rule.more_is_worse else -found.top)
    return Assessed(name, rule, float(before.mean()), float(after.mean()), found.value, worst, p_harm, found.n)


def _normal(name: str, rule: Rule, numbers: tuple[float, float, float, float], confidence: float, n: int) -> Assessed:
    """Return what a normal interval says: `numbers` are before, after, change and its standard error."""
    before, after, change, error = numbers
    sign = 1.0 if rule.more_is_worse else -1.0
    worst = change + sign * float(stats.norm.ppf(confidence)) * error
    p_harm = float(stats.norm.sf(sign * change / error)) if error > 0 else float(not sign * change > 0)
    return Assessed(name, rule, before, after, change, worst, p_harm, n)


def _per_draw(name: str, measure: PerDraw, rule: Rule, confidence: float) -> Assessed:
    before, after = measure.before, measure.after
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = after.draws / before.draws - 1 if rule.relative else after.draws - before.draws
    change = (after.value / before.value - 1 if before.value else math.nan) if rule.relative else after.value - before.value
    error = float(draws.std(ddof=1)) if len(draws) > 1 else math.nan
    return _normal(name, rule, (before.value, after.value, change, error), confidence, min(before.n, after.n))


def _timed(name: str, measure: Timed, rule: Rule, confidence: float) -> Assessed:
    """Median of the users' ratios; its bound is an order statistic (Conover, 1999, 3.2), its test the sign test: a busy machine has outliers."""
    before, after = np.asarray(measure.before, dtype=np.float64), np.asarray(measure.after, dtype=np.float64)
    n = len(before)
    if not (n and (before > 0).all() and (after > 0).all()):
        return Assessed(name, rule, math.nan, math.nan, math.nan, math.nan, math.nan, n)
    ratio = np.sort(after / before) - 1
    place = int(stats.binom.ppf(confidence, n, 0.5)) + 1  # the k-th smallest, from 1, exceeds the median with this confidence
    worst = float(ratio[place - 1]) if place <= n else math.inf
    p_harm = float(stats.binom.sf(int((ratio > 0).sum()) - 1, n, 0.5))
    return Assessed(name, rule, float(np.median(before)), float(np.median(after)), float(np.median(ratio)), worst, p_harm, n)


def _rates(name: str, measure: Rates, rule: Rule, confidence: float) -> Assessed:
    """The column that may be worst; all columns must hold, the claim of harm is corrected for their number (Bonferroni)."""
    if not measure.names:
        return Assessed(name, rule, 0.0, 0.0, 0.0, 0.0, 1.0, rule.min_users, "")  # nothing is read, so nothing can be missing
    change = np.asarray(measure.after, dtype=np.float64) - measure.before
    reach = change + float(stats.norm.ppf(confidence)) * np.asarray(measure.error)
    at = int(np.argmax(np.where(np.isnan(reach), np.inf, reach)))
    error, n = float(measure.error[at]), len(measure.names)
    p_harm = float(stats.norm.sf(change[at] / error)) if error > 0 else float(not change[at] > 0)
    rule = Rule(f"{rule.subject} in {measure.names[at]}", rule.margin, rule.relative, rule.more_is_worse, rule.min_users)
    before, after = float(measure.before[at]), float(measure.after[at])
    return Assessed(name, rule, before, after, float(change[at]), float(reach[at]), min(1.0, n * p_harm), n, "columns")


def weighed(guarded: Mapping[str, tuple[Measure, Rule]], confidence: float, seed: int) -> tuple[list[Finding], dict[str, Any]]:
    """Return what the guardrails force, and their figures by name."""
    assessed = [assess(name, measure, rule, confidence, seed) for name, (measure, rule) in guarded.items()]
    adjusted = distances.holm({each.name: each.p_harm for each in assessed}, asked=len(assessed))  # what holds was not asked, but counts
    harmed = [adjusted[each.name] <= 1 - confidence for each in assessed]
    findings = [each.finding(harmed=worse) for each, worse in zip(assessed, harmed, strict=True)]
    return findings, {each.name: each.figures(harmed=worse) for each, worse in zip(assessed, harmed, strict=True)}
