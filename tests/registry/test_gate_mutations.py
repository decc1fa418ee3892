"""The gate's claims catch every way in which the gate was broken on purpose."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from pipelines.decision_policies import GatePolicy
from pipelines.evaluation import clustered, distances
from pipelines.evaluation.resampled import Drawn
from pipelines.registry import gate, gate_guardrails, gate_sequence, gate_windows
from pipelines.registry.gate import KEEP, NOT_ENOUGH, PROMOTE, Evidence, judge
from pipelines.registry.gate_guardrails import Exact, PerDraw, PerUser, Rates, Timed
from pipelines.registry.gate_windows import Window

N = 2400
POLICY = GatePolicy(
    min_users=1000,
    min_slice_users=300,
    min_segment_users=300,
    incumbents=("popular_7d",),
    slices=("light_users",),
    guardrails=("coverage",),
)
USERS = np.arange(N)
RNG = np.random.default_rng(11)
BASE = np.where(RNG.random(N) < 0.5, 0.0, RNG.beta(1.2, 2.2, N)) * 0.9
LIGHT = USERS % 2 == 0


def better(gain: float, seed: int, spread: float = 0.03) -> np.ndarray:
    """Return what a challenger gives who is better by exactly so much on average."""
    wobble = np.where(BASE > 0, np.random.default_rng(seed).normal(0, spread, N), 0.0)
    after = np.clip(BASE + wobble, 0, 1)
    return np.clip(after * (1 + gain) * BASE.mean() / after.mean(), 0, 1)


def shown(fresh: np.ndarray, *earlier: np.ndarray, **changes: Any) -> Evidence:
    """Return the evidence of a week and of those before it."""
    plain = Evidence(
        challenger=fresh,
        champion=BASE,
        users=USERS,
        as_of="now",
        earlier=tuple(Window(f"week {number}", USERS, BASE, each) for number, each in enumerate(earlier)),
        incumbents={"popular_7d": BASE * 0.5, "popular": BASE * 0.5},
        slices={"light_users": (BASE[LIGHT], fresh[LIGHT])},
        measures={"coverage": Exact(0.3, 0.3)},
        champion_age_days=7.0,
    )
    return replace(plain, **changes)


GOOD = (better(0.05, 1), better(0.05, 2))


def verdict(*weeks: np.ndarray, policy: GatePolicy = POLICY, **changes: Any) -> str:
    return judge(shown(*(weeks or GOOD), **changes), policy).verdict


def one(measure: gate_guardrails.Measure, name: str) -> str:
    """Return the verdict on two good weeks with another measure guarded."""
    return verdict(measures={name: measure}, policy=POLICY.model_copy(update={"guardrails": (name,)}))


def gains() -> None:
    assert verdict() == PROMOTE


def noise() -> None:
    assert verdict(BASE, BASE) == KEEP
    assert all(verdict(better(0.0, 10 + seed), better(0.0, 30 + seed)) != PROMOTE for seed in range(5))
    assert verdict(better(0.003, 3, 0.001), better(0.003, 4, 0.001)) == KEEP  # sure, and worth nothing


def many_looks() -> None:
    late = judge(shown(*GOOD, earlier_decisions=9), POLICY).figures
    assert late["alpha"] == pytest.approx(0.05 * 6 / np.pi**2 / 100)
    faint = better(0.029, 5, 0.1), better(0.029, 6, 0.1)
    assert verdict(*faint) == PROMOTE
    tenth = judge(shown(*faint, earlier_decisions=9), POLICY)
    assert (tenth.verdict, "not above the +1.0%" in tenth.reasons[0]) == (NOT_ENOUGH, True), tenth.reasons
    assert (
        gate.looks([{"champion_before": 1, "figures": {"alpha_spent": 0.03}}, {"champion_before": 2, "figures": {"alpha_spent": 0.03}}], 1)
        == 1
    )


def weeks() -> None:
    assert verdict(GOOD[0]) == NOT_ENOUGH
    assert judge(shown(GOOD[0]), POLICY).figures["alpha_spent"] == 0.0
    assert verdict(better(0.5, 1), better(-0.01, 2)) == NOT_ENOUGH  # one week carries everything
    worse = judge(shown(better(-0.04, 1), better(0.2, 2)), POLICY.model_copy(update={"slices": ()}))
    assert worse.verdict == KEEP
    assert worse.reasons[0].startswith("this challenger on the fresh window")
    copies = judge(shown(*[better(0.012, 5, 0.1)] * 4), POLICY).figures
    alone = judge(shown(better(0.012, 5, 0.1)), POLICY).figures
    assert copies["change_lower"] == pytest.approx(alone["change_lower"])


def few() -> None:
    short = {name: each[:900] for name, each in (("champion", BASE), ("challenger", GOOD[0]), ("users", USERS))}
    trivial = {"popular_7d": BASE[:900] * 0.5}
    assert verdict(**short, incumbents=trivial, policy=POLICY.model_copy(update={"min_windows": 1})) == NOT_ENOUGH
    assert verdict(slices={"light_users": (BASE[:200], GOOD[0][:200])}) == NOT_ENOUGH
    five = np.array([0.2, 0.3, 0.25, 0.35, 0.3])
    tiny = Evidence(five * 1.5, five, measures={}, champion_age_days=7.0)
    small = POLICY.model_copy(update={"min_users": 2, "min_windows": 1, "slices": (), "incumbents": (), "guardrails": ()})
    assert judge(tiny, small).verdict == NOT_ENOUGH  # of 32 flips of signs one does as well, and .031 is above .030


def old() -> None:
    assert verdict(better(0.003, 3, 0.01), champion_age_days=29.0) == PROMOTE
    assert verdict(better(-0.02, 3, 0.01), champion_age_days=29.0) == KEEP


def nonsense() -> None:
    holed = GOOD[0].copy()
    holed[3] = np.nan
    assert verdict(holed, GOOD[1]) == KEEP
    assert verdict(measures={}) == KEEP
    assert verdict(measures={}, failed={"coverage": "OSError"}) == KEEP
    assert verdict(failed={"earlier windows": "StateError"}) == KEEP
    assert verdict(measures={"coverage": Exact(0.3, float("nan"))}) == KEEP
    assert verdict(broken=("fairness: min_tail_ratio was not measured",)) == KEEP
    assert verdict(incumbents={}) == KEEP
    assert verdict(slices={}) == KEEP


def harm() -> None:
    spoilt = np.where(LIGHT, BASE * 0.85, np.clip(BASE * 1.3, 0, 1))
    assert verdict(spoilt, GOOD[1]) == KEEP
    new = POLICY.model_copy(update={"slices": ("cold_users",)})
    assert verdict(slices={"cold_users": (BASE[LIGHT], BASE[LIGHT] * 0.93)}, policy=new) == PROMOTE
    assert verdict(slices={"cold_users": (BASE[LIGHT], BASE[LIGHT] * 0.85)}, policy=new) == KEEP
    assert verdict(segments={"country:DE": (BASE[LIGHT], BASE[LIGHT] * 0.85)}) == KEEP
    noisy = np.random.default_rng(5).permutation(BASE[LIGHT])
    assert verdict(segments={"country:DE": (BASE[LIGHT], noisy)}) == NOT_ENOUGH
    few = BASE[LIGHT][:250]
    assert verdict(segments={"country:NZ": (few, few * 0.5)}) == KEEP
    assert verdict(segments={"country:NZ": (few[:40], np.roll(few[:40], 3))}) == PROMOTE
    assert verdict(incumbents={"popular_7d": np.clip(BASE * 1.2, 0, 1)}) == KEEP
    draws = np.random.default_rng(1).normal(0, 0.004, 200)
    assert one(PerDraw(Drawn(0.4, 0.4 + draws, N), Drawn(0.39, 0.39 + draws[::-1], N)), "coverage") == PROMOTE
    assert one(PerDraw(Drawn(0.4, 0.4 + draws, N), Drawn(0.363, 0.363 + draws[::-1], N)), "coverage") == KEEP  # the interval reaches beyond
    assert one(PerUser(BASE, BASE + 0.1 * (USERS % 5 == 0)), "empty_lists") == KEEP
    assert one(PerUser(BASE, BASE - 0.1 * (USERS % 5 == 0)), "empty_lists") == PROMOTE
    times = np.random.default_rng(2).uniform(0.01, 0.02, 24)
    assert one(Timed(times, times * 1.5), "latency") == KEEP
    assert one(Timed(times, times * np.linspace(0.7, 1.7, 24)), "latency") == NOT_ENOUGH
    assert one(Exact(0.0, 0.2), "latency") == KEEP  # a ranker after a blend: nothing to compare with, but a list is due in time
    assert one(Exact(0.0, 0.01), "latency") == PROMOTE
    assert one(Exact(0.0, float("nan")), "latency") == KEEP
    nulls = np.zeros(3)
    assert one(Rates(("a", "b", "c"), nulls, np.array([0.0, 0.5, 0.0]), np.full(3, 0.01)), "null_rates") == KEEP
    assert one(Exact(100.0, 160.0), "bundle_size") == KEEP


def correction() -> None:
    wobble = np.random.default_rng(3).normal(0, 0.3, 400)
    faint = 0.5 + wobble - wobble.mean() - 1.95 * wobble.std() / 20
    doubtful = {"country:DE": (np.full(400, 0.5), np.clip(faint, 0, 1))}
    others = {f"country:{number}": (BASE, BASE) for number in range(20)}
    assert verdict(segments=doubtful | others, policy=POLICY.model_copy(update={"max_segment_loss": 0.01})) == NOT_ENOUGH


CLAIMS: tuple[Callable[[], None], ...] = (gains, noise, many_looks, weeks, few, old, nonsense, harm, correction)
CHANGE, ASSESSED, RULE = clustered.change, gate_guardrails.Assessed, gate_guardrails.Rule
MUTATIONS: dict[str, tuple[Any, str, str]] = {
    "pairs are torn apart": (CHANGE, "new - old", "np.roll(new, 1) - old"),
    "a user's weeks count as so many users": (gate_windows.pool, "users if len(windows) > 1 else None", "None"),
    "every look spends all of the error": (gate_sequence.spent_alpha, "(math.pi**2 * decision**2)", "math.pi**2"),
    "the bound is at the policy's confidence": (
        gate._primary,
        "found.bound(alpha, evidence.seed), found",
        "found.bound(0.05, evidence.seed), found",
    ),
    "looks are not counted": (gate.looks, "> 0", "> 1"),
    "another champion's looks are counted": (gate.looks, 'entry.get("champion_before") == version', "True"),
    "the comparison is flipped": (gate._primary, "if not lower > floor", "if lower > floor"),
    "the mean decides": (gate._primary, "if not lower > floor", "if not found.value > floor"),
    "any gain is worth a release": (gate._primary, "SUPERIORITY: policy.min_effect", "SUPERIORITY: 0.0"),
    "an old champion yields to anything": (gate._primary, "-policy.non_inferiority_margin}", "-1.0}"),
    "an old champion yields to none": (gate._primary, "-policy.non_inferiority_margin}", "policy.min_effect}"),
    "the permutation test is not asked": (gate._primary, "elif not p <= alpha", "elif False"),
    "one week may carry everything": (gate._primary, "if pooled.without_best is not None and", "if False and"),
    "the first week decides": (gate.judge, "enough = len(pooled.each) >= wanted", "enough = True"),
    "a look that could not promote spends": (gate.judge, "alpha if enough else 0.0", "alpha"),
    "few users are enough": (gate.judge, "if not n >= policy.min_users", "if not n >= 2"),
    "doubt promotes": (gate.judge, "NOT_ENOUGH if NOT_ENOUGH in forced else PROMOTE", "PROMOTE"),
    "damage is not looked at": (
        gate.judge,
        "if problems := _damage(evidence, policy):",
        "if (problems := _damage(evidence, policy)) and False:",
    ),
    "NaN is a number": (gate._damage, "not np.all((array >= 0.0) & (array <= 1.0))", "np.any((array < 0.0) | (array > 1.0))"),
    "a failed measure is forgotten": (gate._damage, "sorted(evidence.failed.items())", "[]"),
    "a missing measure is forgotten": (gate._damage, "if name not in evidence.measures and", "if False and"),
    "fairness is forgotten": (gate._guardrails, "for reason in evidence.broken", "for reason in ()"),
    "the fresh window is not guarded": (gate._guardrails, "policy.max_fresh_loss", "1.0"),
    "slices are not guarded": (gate._guardrails, "else policy.max_slice_loss", "else 1.0"),
    "new users are not guarded": (gate._guardrails, "policy.max_cold_loss if", "1.0 if"),
    "segments are not guarded": (gate._guardrails, "policy.max_segment_loss", "1.0"),
    "incumbents are not guarded": (gate._guardrails, "policy.non_inferiority_margin", "1.0"),
    "small slices are enough": (gate._guardrails, "min_users=policy.min_slice_users", "min_users=2"),
    "the estimate holds, not its interval": (ASSESSED.holds.fget, "self.rule.within(self.worst)", "self.rule.within(self.change)"),
    "more is better": (RULE.within, "if self.more_is_worse", "if not self.more_is_worse"),
    "harm that is not ruled out passes": (ASSESSED.finding, 'Finding("not enough evidence", f"{said}', 'Finding(None, f"{said}'),
    "a slice of few passes": (ASSESSED.finding, 'Finding("not enough evidence", few)', "Finding(None, few)"),
    "harm passes": (ASSESSED.finding, 'Finding("keep", f"{said}: worse")', 'Finding(None, f"{said}: worse")'),
    "harm that few show passes": (ASSESSED.finding, "and not self.holds and not harmed", "and not self.holds"),
    "the doubt of few stops": (ASSESSED.finding, "if self.n < self.rule.guarded_from and", "if False and"),
    "the doubt of many passes": (gate._guardrails, "guarded_from=policy.min_segment_users", "guarded_from=10**9"),
    "no number passes": (ASSESSED.finding, 'Finding("keep", f"{self.rule.subject}', 'Finding(None, f"{self.rule.subject}'),
    "harm is not corrected for": (distances.holm, "p * (", "p * min(1, "),
    "the bound on the wrong side": (
        gate_guardrails._per_user,
        "if rule.more_is_worse else 1 - confidence",
        "if not rule.more_is_worse else 1 - confidence",
    ),
    "draws have no error": (gate_guardrails._per_draw, "float(draws.std(ddof=1))", "float(0 * draws.std(ddof=1))"),
    "the median is sure": (gate_guardrails._timed, "int(stats.binom.ppf(confidence, n, 0.5)) + 1", "n // 2"),
    "the best column speaks for all": (gate_guardrails._rates, "np.argmax(np.where(np.isnan(reach), np.inf, reach))", "np.argmin(reach)"),
}


def broken(monkeypatch: pytest.MonkeyPatch, function: FunctionType, old: str, new: str) -> None:
    """Let a function run as if its source said something else, wherever it is called from."""
    source = textwrap.dedent(inspect.getsource(function))
    assert old in source, f"{function.__name__} no longer says {old!r}"
    lines = [line for line in source.replace(old, new).splitlines() if not line.startswith("@")]
    made: dict[str, Any] = {}
    exec(compile("from __future__ import annotations\n" + "\n".join(lines), f"<{old} -> {new}>", "exec"), function.__globals__, made)
    monkeypatch.setattr(function, "__code__", made[function.__name__].__code__)


def failing() -> str | None:
    """Return a claim that does not hold, None where all do."""
    for claim in CLAIMS:
        try:
            claim()
        except AssertionError:
            return claim.__name__
    return None


def test_unbroken_every_claim_holds() -> None:
    assert failing() is None
    assert len(MUTATIONS) >= 30


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_gate_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, *MUTATIONS[name])
    assert failing() is not None, f"no claim noticed that {name}"
