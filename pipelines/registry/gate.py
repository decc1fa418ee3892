"""The promotion gate: may this challenger serve? A pure function of evidence and policy.

The comparison is paired by user: the same users, labels and catalogue for both, both scored now. A challenger is promoted when
- the lower confidence bound of the relative change of NDCG@10, over the windows of this champion's reign and clustered by user,
  is above the policy's minimum effect, and a sign-flip permutation test agrees (`evaluation.clustered`);
- there are enough windows, and without the best of them the change would still not be negative (`gate_windows`);
- every guardrail holds by its own interval (`gate_guardrails`), and no bound of fairness is broken.
A comparison of two means would promote half of all equal retrains. Asked every week, the gate spends its error (`gate_sequence`).

"keep" means shown to be no better, or harmful; "not enough evidence" that it cannot be told, which keeps the champion, too. What is
missing, no number or failed to be measured never promotes: every test reads `not value > floor`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from scipy import stats

from pipelines.decision_policies import GatePolicy
from pipelines.evaluation import clustered
from pipelines.registry import gate_guardrails, gate_windows
from pipelines.registry.gate_guardrails import Finding, Measure, PerUser, Rule
from pipelines.registry.gate_sequence import spent_alpha
from pipelines.registry.gate_windows import Ids, Pooled, Scores, Window

PROMOTE: Final = "promote"
KEEP: Final = "keep"
NOT_ENOUGH: Final = "not enough evidence"
POWER: Final = 0.8  # at which the minimum detectable effect is stated
FIRST: Final = "first"
SUPERIORITY: Final = "superiority"
FRESHNESS: Final = "freshness"

Track = Literal["first", "superiority", "freshness"]


@dataclass(frozen=True)
class Evidence:
    """What was measured on the judged window, NDCG@10 in [0, 1], rows are users in one order.

    Attributes:
        challenger: [n_users].
        champion: [n_users], or None where nothing was ever released.
        users: [n_users], who they are; needed where there are earlier windows.
        as_of: of this cycle.
        earlier: windows of this champion's reign before this one, oldest first.
        incumbents: trivial recommender -> [n_users].
        slices: guarded slice -> (champion, challenger), two arrays over the slice's users.
        segments: "country:DE" -> likewise; where there are few users only harm that is shown counts.
        measures: what else is guarded, by the names of `decision_policies.GUARDRAILS`.
        failed: what could not be measured -> why.
        inapplicable: guardrail or incumbent -> why it says nothing here: both rankers must tell probabilities for their error to be
            compared, a source must be switched on.
        champion_age_days: from the champion's as_of to the challenger's.
        earlier_decisions: looks at this champion that spent some of the error.
        seed: of the bootstrap.
        broken: bounds that the challenger's own lists break, in sentences (`evaluation.fairness.verdict`).
        kept: where the numbers of this window are kept, with their digest; goes to the figures as it is.
        judged_by: what the labels leave out, in a sentence; "" where nothing.
    """

    challenger: Scores
    champion: Scores | None = None
    users: Ids | None = None
    as_of: str = "now"
    earlier: tuple[Window, ...] = ()
    incumbents: Mapping[str, Scores] = field(default_factory=dict)
    slices: Mapping[str, tuple[Scores, Scores]] = field(default_factory=dict)
    segments: Mapping[str, tuple[Scores, Scores]] = field(default_factory=dict)
    measures: Mapping[str, Measure] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    inapplicable: Mapping[str, str] = field(default_factory=dict)
    champion_age_days: float | None = None
    earlier_decisions: int = 0
    seed: int = 7
    broken: tuple[str, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)
    judged_by: str = ""


@dataclass(frozen=True)
class Verdict:
    """The decision, and why, in sentences that go word for word to the ledger, the tags and the table.

    Attributes:
        track: the rule that applied: the first model, superiority, or freshness (the champion is old).
        figures: every number behind the reasons; JSON values, None where unmeasured. `alpha_spent` is 0 where nothing was tested.
    """

    verdict: Literal["promote", "keep", "not enough evidence"]
    track: Track
    reasons: tuple[str, ...]
    figures: dict[str, Any]

    @property
    def promote(self) -> bool:
        """Tell whether the challenger becomes the champion."""
        return self.verdict == PROMOTE


def judge(evidence: Evidence, policy: GatePolicy) -> Verdict:
    """Decide whether the challenger is promoted. Pure: the same evidence and policy give the same verdict.

    A caller that has per-user scores and no lists (a replay) asks with `guardrails=()`, and with the slices it has.
    """
    n, age = len(evidence.challenger), evidence.champion_age_days
    track: Track = SUPERIORITY
    if evidence.champion is None:
        track = FIRST
    elif age is not None and age > policy.max_age_days:
        track = FRESHNESS
    decision = evidence.earlier_decisions + 1
    figures: dict[str, Any] = {
        "n_users": n,
        "decision": decision,
        "alpha_spent": 0.0,
        "champion_age_days": None if age is None else _known(age),
        "evidence": dict(evidence.kept),
    }
    if problems := _damage(evidence, policy):
        return Verdict(KEEP, track, tuple(f"the evidence is damaged: {problem}" for problem in problems), figures)
    if not n >= policy.min_users:
        few = f"{n} users with a positive label in the judged window, {policy.min_users} are needed (gate.min_users)"
        return Verdict(NOT_ENOUGH, track, (few, *filter(None, [evidence.judged_by])), figures)

    alpha = spent_alpha(1.0 - policy.confidence, decision)
    pooled = gate_windows.pool(_windows(evidence, policy))
    wanted = policy.min_windows if track == SUPERIORITY else 1
    enough = len(pooled.each) >= wanted
    primary, told = _primary(evidence, policy, track, pooled, alpha)
    if not enough:
        some = f"{len(pooled.each)} judged window{'s' if len(pooled.each) > 1 else ''} of this champion's reign and this recipe, {wanted} are needed (gate.min_windows): one lucky week does not decide"
        primary.append(Finding(NOT_ENOUGH, some))
    guards, measured = _guardrails(evidence, policy)
    figures |= {**told, **measured, "alpha": alpha, "confidence": 1.0 - alpha, "alpha_spent": alpha if enough else 0.0}
    findings = [*primary, *guards]
    forced = {finding.forces for finding in findings}
    verdict: Literal["promote", "keep", "not enough evidence"] = KEEP if KEEP in forced else NOT_ENOUGH if NOT_ENOUGH in forced else PROMOTE
    # What decided comes first; what held follows, so that a promotion shows everything it passed.
    ordered = sorted(findings, key=lambda finding: (finding.forces is None, finding.forces != verdict))
    if track == FIRST and verdict != PROMOTE:
        ordered.append(Finding(None, "there is no champion: popularity keeps serving"))
    if evidence.judged_by:
        ordered.append(Finding(None, evidence.judged_by))
    return Verdict(verdict, track, tuple(finding.reason for finding in ordered), figures)


def _damage(evidence: Evidence, policy: GatePolicy) -> list[str]:
    """Return what is missing from the evidence or cannot be true."""
    n = len(evidence.challenger)
    measured: dict[str, Scores] = {"challenger": evidence.challenger, **evidence.incumbents}
    if evidence.champion is not None:
        measured["champion"] = evidence.champion
    problems = [
        f"{name} was scored for {len(values)} users, the challenger for {n}" for name, values in measured.items() if len(values) != n
    ]
    pairs = {f"slice {name}": pair for name, pair in (*evidence.slices.items(), *evidence.segments.items())}
    pairs |= {f"window {window.as_of}": (window.champion, window.challenger) for window in evidence.earlier}
    for name, (before, after) in pairs.items():
        measured[f"{name} (champion)"], measured[f"{name} (challenger)"] = before, after
        if len(before) != len(after):
            problems.append(f"{name} has {len(before)} users for the champion and {len(after)} for the challenger")
    for name, values in measured.items():
        array = np.asarray(values, dtype=np.float64)
        if not np.all((array >= 0.0) & (array <= 1.0)):
            problems.append(f"NDCG@10 of {name} holds a value that is no number in [0, 1]")
    required = [
        *(name for name in policy.incumbents if name not in evidence.inapplicable),
        *([policy.baseline] if evidence.champion is None else []),
    ]
    problems += [f"{name} was not measured" for name in required if name not in evidence.incumbents]
    if evidence.champion is not None:
        problems += [
            f"slice {name} was not measured" for name in policy.slices if name not in evidence.slices and name not in evidence.failed
        ]
        problems += [
            f"{name} was not measured"
            for name in policy.guardrails
            if name not in evidence.measures and name not in evidence.failed and name not in evidence.inapplicable
        ]
    problems += [f"{name} could not be measured: {why}" for name, why in sorted(evidence.failed.items())]
    problems += [f"two rows of one user in window {window.as_of}" for window in evidence.earlier if _twice(window.users)]
    if evidence.earlier and evidence.champion is None:
        problems.append("earlier windows, but no champion that was judged on them")
    if evidence.earlier and (evidence.users is None or len(evidence.users) != n or _twice(evidence.users)):
        problems.append("it is not told who the users are, each once, so earlier windows cannot be joined")
    problems += [f"window {window.as_of} names other users than it scored" for window in evidence.earlier if not _named(window)]
    if evidence.earlier_decisions < 0:
        problems.append(f"{evidence.earlier_decisions} earlier decisions is no count")
    return problems


def _twice(users: Ids) -> bool:
    return len(np.unique(users)) != len(users)


def _named(window: Window) -> bool:
    return len(window.users) == len(window.champion) > 0


def _windows(evidence: Evidence, policy: GatePolicy) -> list[Window]:
    """Return what the verdict is about, oldest first: the newest windows of the reign; the baseline's for a first model."""
    before = evidence.champion if evidence.champion is not None else evidence.incumbents[policy.baseline]
    users = evidence.users if evidence.users is not None else np.arange(len(before))
    earlier = evidence.earlier[max(0, len(evidence.earlier) - policy.windows + 1) :] if policy.windows > 1 else ()
    return [*earlier, Window(evidence.as_of, users, before, evidence.challenger)]


def _primary(evidence: Evidence, policy: GatePolicy, track: Track, pooled: Pooled, alpha: float) -> tuple[list[Finding], dict[str, Any]]:
    """Test the challenger against the champion, or against popularity where there is none; return the findings and their figures."""
    found, rival = pooled.change, "the champion" if evidence.champion is not None else policy.baseline
    floor = {FIRST: 0.0, SUPERIORITY: policy.min_effect, FRESHNESS: -policy.non_inferiority_margin}[track]
    lower, upper = found.bound(alpha, evidence.seed), found.bound(policy.confidence, evidence.seed, gate_guardrails.RESAMPLES)
    p = found.p_above(floor)
    detectable = floor + float(stats.norm.isf(alpha) + stats.norm.isf(1.0 - POWER)) * found.error
    mean = float(np.mean(evidence.challenger))
    said = f"NDCG@10 {mean:.4f} on the fresh window; against {rival} {_change(found.value)} over {_over(pooled)}, lower bound {_change(lower)} at {1 - alpha:.2%} confidence, permutation p {_odds(p)}"
    limit = {
        FIRST: "zero",
        SUPERIORITY: f"the {floor:+.1%} that is worth a release",
        FRESHNESS: f"the {floor:+.1%} allowed (the champion is {evidence.champion_age_days or 0:.0f} days old, limit {policy.max_age_days:.0f}, so not being worse suffices)",
    }[track]
    findings = []
    if not lower > floor:
        hopeless = not upper > floor
        seen = "" if hopeless else f"; a true change of {_change(detectable)} would have been found four times in five"
        findings.append(Finding(KEEP if hopeless else NOT_ENOUGH, f"{said}, not above {limit}{seen}"))
    elif not p <= alpha:
        findings.append(
            Finding(NOT_ENOUGH, f"{said}: above {limit} by its interval, but the permutation test does not agree at {alpha:.2g}")
        )
    else:
        findings.append(Finding(None, f"{said}, above {limit}"))
    if pooled.without_best is not None and not pooled.without_best >= min(floor, 0.0):
        findings.append(
            Finding(NOT_ENOUGH, f"without its best window the change is {_change(pooled.without_best)}: one week carries everything")
        )
    figures = {
        "base": _known(pooled.base),
        "challenger_ndcg_at_10": _known(mean),
        "change": _known(found.value),
        "change_lower": _known(lower),
        "change_upper": _known(upper),
        "difference": _known(found.value * pooled.base),
        "lower": _known(lower * pooled.base),
        "p_permutation": _known(p),
        "floor": floor,
        "detectable": _known(detectable),
        "shrunken": _known(_shrunken(found.value, found.error)),
        "n_clusters": found.n,
        "n_rows": found.n_rows,
        "without_best_window": None if pooled.without_best is None else _known(pooled.without_best),
        "windows": [_window(name, change, policy) for name, change in pooled.each],
    }
    return findings, figures


def _window(name: str, change: clustered.Change, policy: GatePolicy) -> dict[str, Any]:
    """Return one window alone, with its two-sided interval."""
    reach = float(stats.norm.isf((1 - policy.confidence) / 2)) * change.error
    told = {"change": change.value, "lower": change.value - reach, "upper": change.value + reach}
    return {"as_of": name, "n_users": change.n, **{key: _known(value) for key, value in told.items()}}


def _odds(p: float) -> str:
    """Return a p-value for people: an approximation's far tail is no number to be told."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def _over(pooled: Pooled) -> str:
    if len(pooled.each) == 1:
        return f"{pooled.change.n} users"
    return f"{len(pooled.each)} windows ({', '.join(_change(each.value) for _, each in pooled.each)}; {pooled.change.n} users, {pooled.change.n_rows} user-weeks)"


def _guardrails(evidence: Evidence, policy: GatePolicy) -> tuple[list[Finding], dict[str, Any]]:
    """Return what the guardrails force, and their figures in the groups in which people look for them."""
    guarded: dict[str, tuple[Measure, Rule]] = {}
    for name in policy.incumbents:
        if name in evidence.inapplicable:
            continue
        rule = Rule(f"against {name}: NDCG@10", policy.non_inferiority_margin)
        guarded[f"incumbents/{name}"] = PerUser(evidence.incumbents[name], evidence.challenger), rule
    small = []
    if evidence.champion is not None:
        fresh = Rule("this challenger on the fresh window: NDCG@10", policy.max_fresh_loss)
        guarded["guardrails/fresh_window"] = PerUser(evidence.champion, evidence.challenger), fresh
        for name in policy.slices:
            most = policy.max_cold_loss if name == "cold_users" else policy.max_slice_loss
            rule = Rule(f"slice {name}: NDCG@10", most, min_users=policy.min_slice_users, guarded_from=policy.guard_slices_from)
            guarded[f"slices/{name}"] = PerUser(*evidence.slices[name]), rule
        for name, pair in evidence.segments.items():
            rule = Rule(f"segment {name}: NDCG@10", policy.max_segment_loss, guarded_from=policy.min_segment_users)
            guarded[f"segments/{name}"] = PerUser(*pair), rule
            if len(pair[0]) < policy.min_segment_users:
                small.append(name)
        measured = {name: evidence.measures[name] for name in policy.guardrails if name in evidence.measures}
        guarded |= {f"guardrails/{name}": (one, gate_guardrails.rule_of(name, one, policy)) for name, one in measured.items()}
    findings, figures = gate_guardrails.weighed(guarded, policy.confidence, evidence.seed)
    nested: dict[str, Any] = {"incumbents": {}, "slices": {}, "segments": {}, "guardrails": {}, "not_guarded": {}}
    for name, measured in figures.items():
        group, _, short = name.partition("/")
        nested[group][short] = measured
    nested["not_guarded"] = dict.fromkeys(
        small, f"fewer than {policy.min_segment_users} users (gate.min_segment_users): only harm that is shown counts"
    )
    silent = {name: why for name, why in evidence.inapplicable.items() if name in {*policy.guardrails, *policy.incumbents}}
    nested["not_guarded"] |= silent
    covered = nested["guardrails"].get("coverage")
    nested["coverage"] = {"champion": covered["before"], "challenger": covered["after"]} if covered else None
    told = [Finding(None, f"{name}: not guarded, {why}") for name, why in silent.items()]
    return [*(Finding(KEEP, reason) for reason in evidence.broken), *findings, *told], nested


def looks(entries: Sequence[Mapping[str, Any]], version: int | None) -> int:
    """Return how many looks at a champion spent some of the error: what `earlier_decisions` counts.

    Args:
        entries: decisions of its present reign, in any order.
    """
    return sum(entry.get("champion_before") == version and (entry.get("figures") or {}).get("alpha_spent", 0.0) > 0 for entry in entries)


def _shrunken(value: float, error: float) -> float:
    """Return the effect shrunk for the winner's curse: what was promoted looks better than it is (positive-part James-Stein)."""
    noise = error / value if value else math.inf
    return value * max(0.0, 1.0 - noise * noise)  # squares of their own would underflow before their ratio


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _change(value: float) -> str:
    return f"{value:+.1%}" if abs(value) >= 0.0095 else f"{value:+.2%}"
