"""The promotion gate: may this challenger serve? A pure function of evidence and policy.

The comparison is paired by user: the same users, labels and catalogue for both, both scored now. A
challenger is promoted when the one-sided lower confidence bound of its mean NDCG@10 difference is
above zero, the difference is worth the change, and every guardrail holds; a comparison of two means
would promote half of all equal retrains. Asked every week, the gate spends its error: decision j of
a champion's reign has alpha * 6 / (pi^2 j^2), which sums to alpha. Guardrails must all hold, so they
need no correction (intersection-union). Every test reads `not value > floor`, so NaN never passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipelines.decision_policies import GatePolicy
from pipelines.evaluation import paired

PROMOTE: Final = "promote"
KEEP: Final = "keep"
NOT_ENOUGH: Final = "not enough evidence"
POWER: Final = 0.8  # at which the minimum detectable effect is stated

Scores = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Evidence:
    """What was measured on the judged window, NDCG@10 in [0, 1], rows are users in one order.

    Attributes:
        challenger: [n_users].
        champion: [n_users], or None where nothing was ever released.
        incumbents: trivial recommender -> [n_users].
        slices: guarded slice -> (champion, challenger), two arrays over the slice's users.
        coverage: (champion, challenger), share of the catalogue in anyone's first ten.
        champion_age_days: from the champion's as_of to the challenger's.
        earlier_decisions: times this champion has been tested before.
        seed: of the bootstrap.
        broken: bounds that the challenger's own lists break, in sentences (`evaluation.fairness.verdict`).
    """

    challenger: Scores
    champion: Scores | None = None
    incumbents: Mapping[str, Scores] = field(default_factory=dict)
    slices: Mapping[str, tuple[Scores, Scores]] = field(default_factory=dict)
    coverage: tuple[float, float] | None = None
    champion_age_days: float | None = None
    earlier_decisions: int = 0
    seed: int = 7
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The decision, and why, in sentences that go word for word to the ledger, the tags and the table.

    Attributes:
        track: the rule that applied: the first model, superiority, or freshness (the champion is old).
        figures: every number behind the reasons; JSON values, None where unmeasured.
    """

    verdict: Literal["promote", "keep", "not enough evidence"]
    track: Literal["first", "superiority", "freshness"]
    reasons: tuple[str, ...]
    figures: dict[str, Any]

    @property
    def promote(self) -> bool:
        """Tell whether the challenger becomes the champion."""
        return self.verdict == PROMOTE


@dataclass(frozen=True)
class _Finding:
    """One test's outcome: the verdict it forces (None if it holds) and its sentence."""

    forces: Literal["keep", "not enough evidence"] | None
    reason: str


@dataclass(frozen=True)
class _Comparison:
    """A paired comparison of means."""

    n_users: int
    base: float
    difference: float
    lower: float

    def figures(self) -> dict[str, Any]:
        return {"n_users": self.n_users, "base": _known(self.base), "difference": _known(self.difference), "lower": _known(self.lower)}

    def sentence(self, subject: str) -> str:
        return f"{subject} {_change(self.difference, self.base)} over {self.n_users} users, lower bound {_change(self.lower, self.base)}"


def spent_alpha(alpha: float, decision: int) -> float:
    """Return the error that decision `decision` (from 1) of a reign may spend; the sum over all of them is `alpha`.

    >>> round(spent_alpha(0.05, 1), 4), round(spent_alpha(0.05, 2), 4)
    (0.0304, 0.0076)
    """
    return alpha * 6.0 / (math.pi**2 * decision**2)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _change(value: float, base: float) -> str:
    """Return a change of NDCG for people: relative where there is something to relate it to."""
    return f"{value / base:+.1%}" if base > 0 else f"{value:+.4f}"


def _compare(before: Scores, after: Scores, confidence: float, seed: int) -> _Comparison:
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if not len(differences):
        return _Comparison(0, math.nan, math.nan, math.nan)
    return _Comparison(
        len(differences), float(np.mean(before)), float(differences.mean()), float(paired.lower_bound(differences, confidence, seed))
    )


def _damage(evidence: Evidence, policy: GatePolicy) -> list[str]:
    """Return what is missing from the evidence or cannot be true."""
    n = len(evidence.challenger)
    measured: dict[str, Scores] = {"challenger": evidence.challenger, **evidence.incumbents}
    if evidence.champion is not None:
        measured["champion"] = evidence.champion
    problems = [
        f"{name} was scored for {len(values)} users, the challenger for {n}" for name, values in measured.items() if len(values) != n
    ]
    for name, (before, after) in evidence.slices.items():
        measured[f"{name} (champion)"], measured[f"{name} (challenger)"] = before, after
        if len(before) != len(after):
            problems.append(f"slice {name} has {len(before)} users for the champion and {len(after)} for the challenger")
    for name, values in measured.items():
        array = np.asarray(values, dtype=np.float64)
        if not np.all((array >= 0.0) & (array <= 1.0)):
            problems.append(f"NDCG@10 of {name} holds a value that is no number in [0, 1]")
    required = [*policy.incumbents, *([policy.baseline] if evidence.champion is None else [])]
    problems += [f"{name} was not measured" for name in required if name not in evidence.incumbents]
    if evidence.champion is not None:
        problems += [f"slice {name} was not measured" for name in policy.slices if name not in evidence.slices]
        if evidence.coverage is None:
            problems.append("coverage was not measured")
    if evidence.earlier_decisions < 0:
        problems.append(f"{evidence.earlier_decisions} earlier decisions is no count")
    return problems


def _primary(evidence: Evidence, policy: GatePolicy, track: str, confidence: float) -> tuple[_Finding, _Comparison]:
    """Test the challenger against the champion, or against popularity where there is none."""
    rival = "the champion" if evidence.champion is not None else policy.baseline
    before = evidence.champion if evidence.champion is not None else evidence.incumbents[policy.baseline]
    found = _compare(before, evidence.challenger, confidence, evidence.seed)
    said = found.sentence(f"NDCG@10 {float(np.mean(evidence.challenger)):.4f} against {found.base:.4f} of {rival}:")
    said += f" at {confidence:.2%} confidence"
    if track == "freshness":
        floor = -policy.non_inferiority_margin * found.base
        age = f"the champion is {evidence.champion_age_days:.0f} days old (limit {policy.max_age_days:.0f}), so not being worse suffices"
        if not found.lower > floor:
            return _Finding(KEEP, f"{said}, not above the {-policy.non_inferiority_margin:+.1%} allowed ({age})"), found
        return _Finding(None, f"{said}; {age}"), found
    if not found.lower > 0.0:
        return _Finding(KEEP, f"{said}, not above zero"), found
    if track == "superiority" and not found.difference >= policy.min_effect * found.base:
        return _Finding(KEEP, f"{said}, but less than the {policy.min_effect:+.1%} that is worth a release"), found
    return _Finding(None, said), found


def _guardrail(subject: str, found: _Comparison, margin: float, harmed: float) -> _Finding:
    """Hold a floor of `-margin`, relative; `harmed` is the upper bound, below zero where harm is shown."""
    said = f"{found.sentence(subject)} (floor {-margin:+.1%})"
    if found.lower >= -margin * found.base:
        return _Finding(None, said)
    if harmed < 0.0 or found.difference < -margin * found.base:
        return _Finding(KEEP, f"{said}: worse")
    return _Finding(NOT_ENOUGH, f"{said}: no harm shown, but too few users to rule it out")


def _guardrails(evidence: Evidence, policy: GatePolicy) -> tuple[list[_Finding], dict[str, Any]]:
    findings = [_Finding(KEEP, reason) for reason in evidence.broken]
    figures: dict[str, Any] = {"incumbents": {}, "slices": {}, "coverage": None}
    for name in policy.incumbents:
        found = _compare(evidence.incumbents[name], evidence.challenger, policy.confidence, evidence.seed)
        upper = -_compare(evidence.challenger, evidence.incumbents[name], policy.confidence, evidence.seed).lower
        findings.append(_guardrail(f"against {name}: NDCG@10", found, policy.non_inferiority_margin, upper))
        figures["incumbents"][name] = found.figures()
    if evidence.champion is None:
        return findings, figures
    for name in policy.slices:
        before, after = evidence.slices[name]
        found = _compare(before, after, policy.confidence, evidence.seed)
        figures["slices"][name] = found.figures()
        if not found.n_users >= policy.min_slice_users:
            findings.append(
                _Finding(NOT_ENOUGH, f"slice {name} has {found.n_users} users, {policy.min_slice_users} are needed (gate.min_slice_users)")
            )
            continue
        upper = -_compare(after, before, policy.confidence, evidence.seed).lower
        findings.append(_guardrail(f"slice {name}: NDCG@10", found, policy.max_slice_loss, upper))
    before_share, after_share = evidence.coverage or (math.nan, math.nan)
    figures["coverage"] = {"champion": _known(before_share), "challenger": _known(after_share)}
    said = f"coverage {after_share:.1%} of the catalogue against {before_share:.1%} (floor {-policy.max_coverage_loss:+.0%})"
    kept = after_share >= (1.0 - policy.max_coverage_loss) * before_share and after_share > 0.0
    findings.append(_Finding(None if kept else KEEP, said if kept else f"{said}: too much lost"))
    return findings, figures


def judge(evidence: Evidence, policy: GatePolicy) -> Verdict:
    """Decide whether the challenger is promoted. Pure: the same evidence and policy give the same verdict."""
    n = len(evidence.challenger)
    age = evidence.champion_age_days
    track: Literal["first", "superiority", "freshness"] = "superiority"
    if evidence.champion is None:
        track = "first"
    elif age is not None and age > policy.max_age_days:
        track = "freshness"
    decision = evidence.earlier_decisions + 1
    figures: dict[str, Any] = {"n_users": n, "decision": decision, "champion_age_days": None if age is None else _known(age)}
    if problems := _damage(evidence, policy):
        return Verdict(KEEP, track, tuple(f"the evidence is damaged: {problem}" for problem in problems), figures)
    if not n >= max(policy.min_users, 2):
        return Verdict(
            NOT_ENOUGH,
            track,
            (f"{n} users with a positive label in the judged window, {policy.min_users} are needed (gate.min_users)",),
            figures,
        )

    confidence = 1.0 - spent_alpha(1.0 - policy.confidence, decision)
    primary, found = _primary(evidence, policy, track, confidence)
    guards, measured = _guardrails(evidence, policy)
    figures |= {**found.figures(), **measured, "confidence": confidence, "challenger_ndcg_at_10": found.base + found.difference}
    figures |= _read_outs(evidence, policy, found, confidence)
    findings = [primary, *guards]
    forced = {finding.forces for finding in findings}
    verdict: Literal["promote", "keep", "not enough evidence"] = KEEP if KEEP in forced else NOT_ENOUGH if NOT_ENOUGH in forced else PROMOTE
    # What decided comes first; what held follows, so that a promotion shows everything it passed.
    ordered = sorted(findings, key=lambda finding: (finding.forces is None, finding.forces != verdict))
    if track == "first" and verdict != PROMOTE:
        ordered.append(_Finding(None, "there is no champion: popularity keeps serving"))
    return Verdict(verdict, track, tuple(finding.reason for finding in ordered), figures)


def _read_outs(evidence: Evidence, policy: GatePolicy, found: _Comparison, confidence: float) -> dict[str, Any]:
    """Return what helps to read a verdict: the smallest effect the test could see, and the effect shrunk for the winner's curse."""
    before = evidence.champion if evidence.champion is not None else evidence.incumbents[policy.baseline]
    error = float(np.std(np.asarray(evidence.challenger) - np.asarray(before), ddof=1)) / math.sqrt(found.n_users)
    detectable = float(stats.norm.isf(1.0 - confidence) + stats.norm.isf(1.0 - POWER)) * error
    noise = error / found.difference if found.difference else math.inf
    shrink = max(0.0, 1.0 - noise * noise)  # squares of their own would underflow before their ratio
    return {"detectable": _known(detectable), "shrunken": _known(found.difference * shrink)}
