"""What an experiment says, in small worlds whose answer is known; and when it says nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.decision_policies import ExperimentPolicy
from pipelines.errors import ReloopError
from pipelines.evaluation import experiments
from pipelines.evaluation.experiments import Metric, Plan, read, sample_ratio, told

POLICY = ExperimentPolicy()
PLAN = Plan(("control", "new"), (1, 1), "ctr", {"revenue": 0.02})


def world(lift: float = 0.0, revenue: float = 0.0, n: tuple[int, int] = (5000, 5000), seed: int = 0) -> dict[str, Metric]:
    """Return click rates of 10% on ten impressions a user, and revenue around 10, as lifted in the second arm."""
    rng = np.random.default_rng(seed)
    shown = [np.full(size, 10.0) for size in n]
    clicks = [rng.binomial(10, 0.1 * (1 + by), size).astype(float) for size, by in zip(n, (0, lift), strict=True)]
    paid = [rng.normal(10 * (1 + by), 1, size) for size, by in zip(n, (0, revenue), strict=True)]
    return {"ctr": Metric(clicks, shown), "revenue": Metric(paid, [np.ones(size) for size in n])}


def test_the_sample_ratio_on_paper():
    # 60 and 40 for 50 and 50: chi-square 100/50 + 100/50 = 4, one degree of freedom: p = .0455.
    found = sample_ratio([60, 40], [1, 1])
    assert found.expected == (50, 50)
    assert found.p == pytest.approx(0.0455, abs=1e-4)


def test_a_better_arm_is_found_with_its_reasons():
    found = read(PLAN, world(lift=0.2), POLICY)
    assert found.better == ("new",)
    assert "ctr +0.0" in found.reasons[0]
    assert found.reasons[1] == "new: revenue loses less than 2.0%"


def test_a_worse_arm_is_called_worse():
    assert read(PLAN, world(lift=-0.2), POLICY).verdicts == {"new": "worse"}


def test_an_arm_that_wins_clicks_and_loses_money_is_worse():
    found = read(PLAN, world(lift=0.3, revenue=-0.1), POLICY)
    assert found.verdicts == {"new": "worse"}
    assert "new: revenue lost more than 2.0%" in found.reasons


def test_an_arm_whose_guardrail_is_not_yet_shown_has_to_wait():
    rng = np.random.default_rng(0)
    metrics = world(lift=0.3)
    noisy = [rng.exponential(10, 5000) * (rng.random(5000) < 0.1) for _ in range(2)]
    found = read(PLAN, metrics | {"revenue": replace(metrics["revenue"], top=noisy)}, POLICY)
    assert found.verdicts == {"new": "not yet"}
    assert "revenue not shown to lose less than 2.0%" in found.reasons[1]


def test_equal_arms_are_not_told_apart_and_at_the_end_that_is_the_answer():
    assert read(PLAN, world(), POLICY).verdicts == {"new": "not yet"}
    assert read(replace(PLAN, ended=True), world(), POLICY).verdicts == {"new": "no difference"}


def test_a_sample_ratio_mismatch_blocks_the_reading_whatever_it_would_say():
    found = read(PLAN, world(lift=0.5, n=(5000, 4500)), POLICY)
    assert found.verdicts == {"new": "blocked"}
    assert found.better == ()
    assert found.reasons[0].startswith("sample ratio mismatch: 5,000 for 4,750, 4,500 for 4,750 meant")
    assert read(replace(PLAN, weights=(10, 9)), world(lift=0.5, n=(5000, 4500)), POLICY).better == ("new",)


def test_units_that_met_two_arms_block_the_reading():
    assert read(PLAN, world(lift=0.5), POLICY, crossed=500).verdicts == {"new": "blocked"}
    assert read(PLAN, world(lift=0.5), POLICY, crossed=50).better == ("new",)


def test_few_units_say_nothing():
    found = read(PLAN, world(lift=9.0, n=(150, 150)), POLICY)
    assert found.verdicts == {"new": "not yet"}
    assert found.reasons == ("new: 150 units in the smaller arm, below 200",)


@pytest.mark.parametrize("ended", [True, False])
def test_nothing_shown_is_blocked_and_nothing_clicked_is_no_gain(ended: bool):
    plan = replace(PLAN, ended=ended)
    assert read(plan, world(n=(0, 0)), POLICY).verdicts == {"new": "blocked"}
    silent = world() | {"ctr": Metric([np.zeros(5000)] * 2, [np.full(5000, 10.0)] * 2)}
    assert read(plan, silent, POLICY).better == ()
    unseen = world() | {"ctr": Metric([np.zeros(5000)] * 2, [np.zeros(5000)] * 2)}
    assert read(plan, unseen, POLICY).better == ()


def test_several_treatments_share_the_error():
    three = Plan(("control", "a", "b"), (1, 1, 1), "ctr")
    rng = np.random.default_rng(0)
    clicks = [rng.binomial(10, 0.1, 3000).astype(float) for _ in range(3)]
    metric = {"ctr": Metric(clicks, [np.full(3000, 10.0)] * 3)}
    found, alone = read(three, metric, POLICY), read(PLAN_OF_TWO, {"ctr": Metric(clicks[:2], [np.full(3000, 10.0)] * 2)}, POLICY)
    wide, narrow = found.effects["a", "ctr"], alone.effects["a", "ctr"]
    assert wide.always_upper - wide.always_lower > narrow.always_upper - narrow.always_lower


PLAN_OF_TWO = Plan(("control", "a"), (1, 1), "ctr")


def test_a_known_past_narrows_what_is_read():
    rng = np.random.default_rng(0)
    past = [rng.gamma(2, 10, 2000) for _ in range(2)]
    paid = [one + rng.normal(by, 3, 2000) for one, by in zip(past, (0.0, 1.0), strict=True)]
    plan = Plan(("control", "new"), (1, 1), "revenue")
    bare = read(plan, {"revenue": Metric(paid, [np.ones(2000)] * 2)}, POLICY)
    known = read(plan, {"revenue": Metric(paid, [np.ones(2000)] * 2, past)}, POLICY)
    assert known.variance_factors["revenue"] < 0.1
    assert (bare.verdicts["new"], known.verdicts["new"]) == ("not yet", "better")


def test_what_is_told_to_machines_has_no_nan():
    record = told(read(PLAN, world(n=(0, 0)), POLICY))
    assert record["effects"][0]["difference"] is None
    assert record["srm"]["p"] is None
    assert told(read(PLAN, world(lift=0.2), POLICY))["verdicts"] == {"new": "better"}


def test_a_metric_that_was_not_measured_is_an_error():
    with pytest.raises(ReloopError, match="no metric revenue"):
        read(PLAN, {"ctr": world()["ctr"]}, POLICY)
    with pytest.raises(ReloopError, match="a weight above 0 each"):
        sample_ratio([1, 2], [1, 0])
    with pytest.raises(ReloopError, match="2 arms measured"):
        read(replace(PLAN, arms=("a", "b", "c"), weights=(1, 1, 1)), world(), POLICY)


def test_the_order_of_reading_is_ratio_first():
    assert experiments.told(read(PLAN, world(), POLICY)).keys() >= {"srm", "effects", "verdicts", "reasons"}
