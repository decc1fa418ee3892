"""Guardrails: each by its margin and its own interval; a claim of harm is corrected for their number."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.decision_policies import GUARDRAILS, GatePolicy
from pipelines.evaluation.resampled import Drawn
from pipelines.registry.gate_guardrails import Exact, Measure, PerDraw, PerUser, Rates, Rule, Timed, assess, rules, weighed

RNG = np.random.default_rng(5)
BASE = np.clip(RNG.beta(2, 3, 3000), 0.01, 1)
WOBBLE = RNG.normal(0, 0.02, 3000)
DRAWS = RNG.normal(0, 0.004, 200)


def per_user(gain: float) -> PerUser:
    return PerUser(BASE, np.clip(BASE * (1 + gain) + WOBBLE, 0, 1))


def per_draw(gain: float, base: float = 0.4) -> PerDraw:
    after = base * (1 + gain)
    return PerDraw(Drawn(base, base + DRAWS, 3000), Drawn(after, after + DRAWS[::-1], 3000))


def timed(factor: float, n: int = 24) -> Timed:
    before = RNG.uniform(0.005, 0.01, n)
    return Timed(before, before * factor * RNG.uniform(0.97, 1.03, n))


LOSS = Rule("quality", 0.05)
MORE = Rule("seconds", 0.25, more_is_worse=True)
CASES: dict[str, tuple[Measure, Rule, str]] = {
    "quality as it was": (per_user(0.0), LOSS, "holds"),
    "quality a little worse, within the margin": (per_user(-0.02), LOSS, "holds"),
    "quality worse": (per_user(-0.10), LOSS, "harmed"),
    "too noisy to say": (PerUser(BASE[:40], np.r_[BASE[20:40], BASE[:20]]), LOSS, "unsure"),
    "too few users": (PerUser(BASE[:40], BASE[:40]), Rule("slice", 0.05, min_users=41), "few"),
    "few of whom harm is shown": (PerUser(BASE[:300], BASE[:300] * 0.5), Rule("segment", 0.05, guarded_from=1000), "harmed"),
    "few who have it as good": (PerUser(BASE[:300], BASE[:300]), Rule("segment", 0.05, guarded_from=1000), "holds"),
    "few of whom nothing is shown": (PerUser(BASE[:40], np.r_[BASE[20:40], BASE[:20]]), Rule("segment", 0.05, guarded_from=41), "told"),
    "just as many as are guarded": (PerUser(BASE[:40], np.r_[BASE[20:40], BASE[:20]]), Rule("segment", 0.05, guarded_from=40), "unsure"),
    "one of a segment": (PerUser(BASE[:1], BASE[:1] * 0.5), Rule("segment", 0.05, guarded_from=1000), "told"),
    "nobody of a segment": (PerUser(BASE[:0], BASE[:0]), Rule("segment", 0.05, guarded_from=1000), "told"),
    "nobody": (PerUser(BASE[:0], BASE[:0]), LOSS, "few"),
    "coverage as it was": (per_draw(0.0), Rule("coverage", 0.10), "holds"),
    "a fifth of the coverage lost": (per_draw(-0.2), Rule("coverage", 0.10), "harmed"),
    "coverage of nothing": (per_draw(0.0, 0.0), Rule("coverage", 0.10), "number"),
    "coverage without draws": (PerDraw(Drawn(0.4, np.zeros(0), 3000), Drawn(0.4, np.zeros(0), 3000)), Rule("coverage", 0.1), "number"),
    "more concentrated": (per_draw(0.3), Rule("gini", 0.05, relative=False, more_is_worse=True), "harmed"),
    "less concentrated": (per_draw(-0.3), Rule("gini", 0.05, relative=False, more_is_worse=True), "holds"),
    "as fast": (timed(1.0), MORE, "holds"),
    "half as fast again": (timed(1.5), MORE, "harmed"),
    "faster": (timed(0.5), MORE, "holds"),
    "timed on three users": (timed(1.0, 3), MORE, "unsure"),
    "no time at all": (Timed(np.zeros(24), np.zeros(24)), MORE, "number"),
    "as large": (Exact(100, 140), Rule("bytes", 0.5, more_is_worse=True), "holds"),
    "twice as large": (Exact(100, 200), Rule("bytes", 0.5, more_is_worse=True), "harmed"),
    "larger than nothing": (Exact(0, 200), Rule("bytes", 0.5, more_is_worse=True), "number"),
    "no size": (Exact(100, float("nan")), Rule("bytes", 0.5, more_is_worse=True), "number"),
}


@pytest.mark.parametrize("case", CASES)
def test_truth_table_of_guardrails(case: str):
    measure, rule, outcome = CASES[case]
    (finding,), figures = weighed({"it": (measure, rule)}, 0.95, 7)
    forces, says = {
        "holds": (None, "margin"),
        "harmed": ("keep", "worse"),
        "unsure": ("not enough evidence", "cannot be ruled out"),
        "told": (None, "not guarded"),
        "few": ("not enough evidence", "are needed"),
        "number": ("keep", "no number"),
    }[outcome]
    assert finding.forces == forces, finding
    assert says in finding.reason
    assert (figures["it"]["outcome"] == "holds") == (outcome == "holds")


def test_missing_values_are_judged_by_the_worst_column():
    names, before = ("age", "price", "visits"), np.array([0.1, 0.0, 0.5])
    rule = rules(GatePolicy())["null_rates"]
    fine = Rates(names, before, before + np.array([0.01, 0.0, 0.02]), np.full(3, 0.01))
    assert assess("nulls", fine, rule, 0.95, 7).holds
    burst = assess("nulls", Rates(names, before, before + np.array([0.01, 0.3, 0.02]), np.full(3, 0.01)), rule, 0.95, 7)
    assert not burst.holds
    assert "in price" in burst.finding(harmed=True).reason
    blind = assess("nulls", Rates(names, before, np.array([0.1, np.nan, 0.5]), np.full(3, 0.01)), rule, 0.95, 7)
    assert blind.finding(harmed=False).forces == "keep"
    assert assess("nulls", Rates((), np.zeros(0), np.zeros(0), np.zeros(0)), rule, 0.95, 7).holds  # nothing is read


def test_one_guardrail_that_looks_harmed_among_twenty_is_unsure_not_harmed():
    """A p of .03 alone is harm at 5%; as one of twenty it is what chance shows."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.3, 400)
    noise += -1.95 * noise.std() / 20 - noise.mean()
    alone = {"a": (PerUser(np.full(400, 0.5), 0.5 + noise), Rule("a", 0.01))}
    assert weighed(alone, 0.95, 7)[0][0].forces == "keep"
    many = alone | {f"b{number}": (per_user(0.0), LOSS) for number in range(19)}
    assert weighed(many, 0.95, 7)[0][0].forces == "not enough evidence"


def test_every_guardrail_of_the_settings_has_its_bound():
    assert set(rules(GatePolicy())) == set(GUARDRAILS)
    assert len(GUARDRAILS) == 12
