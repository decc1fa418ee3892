"""Intervals that cover the truth as often as they say."""

import numpy as np
import pytest
from scipy import stats

from pipelines.errors import ReloopError
from pipelines.evaluation import paired, report, slices


def test_many_users_get_students_t():
    values = np.random.default_rng(0).normal(0.01, 0.2, 5000)
    found = paired.interval(values, 0.9)
    lower, upper = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.lower, found.upper) == pytest.approx((lower, upper))
    assert (found.n, found.standard_error) == (5000, pytest.approx(stats.sem(values)))
    assert paired.lower_bound(values, 0.95, 0) == pytest.approx(found.lower), "one side at 95% is the lower end of 90%"


def test_few_users_get_the_bca_bootstrap_of_scipy():
    rng = np.random.default_rng(1)
    values = np.where(rng.random(300) < 0.7, 0, rng.gamma(1, 0.1, 300) - 0.05)
    theirs = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(2)).confidence_interval
    ours, width = paired.interval(values, seed=3), theirs.high - theirs.low
    assert ours.lower == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.upper == pytest.approx(theirs.high, abs=0.03 * width)
    assert ours == paired.interval(values, seed=3), "the same seed gives the same bounds"


@pytest.mark.parametrize("n", [60, 1200])
def test_the_lower_bound_is_crossed_as_rarely_as_it_says(n):
    rng = np.random.default_rng(5)
    crossed = 0
    for trial in range(400):
        values = np.where(rng.random(n) < 0.6, 0.0, rng.normal(0, 0.2, n))  # the true mean is zero
        crossed += paired.lower_bound(values, 0.95, trial) > 0
    assert 0.02 * 400 < crossed < 0.085 * 400  # five in a hundred, within three standard errors


def test_unmeasured_users_are_left_out_and_too_few_give_no_bound():
    assert paired.interval(np.array([np.nan, 0.5, 0.25, np.nan])).n == 2
    for few in (np.array([]), np.array([0.3]), np.array([0.3, np.nan])):
        assert not paired.lower_bound(few, 0.95, 0) > -1, "NaN fails closed"
    assert paired.lower_bound(np.zeros(50), 0.95, 0) == 0


def test_differences_too_small_to_square_are_none():
    assert paired.lower_bound(np.array([0.0, -2e-311]), 0.95, seed=7) == -2e-311


def test_infinite_differences_and_impossible_confidences_are_refused():
    with pytest.raises(ReloopError, match="1 infinite values"):
        paired.interval(np.array([0.1, np.inf]))
    with pytest.raises(ReloopError, match="confidence"):
        paired.interval(np.array([0.1, 0.2]), 95)


def test_every_user_and_item_is_in_exactly_one_slice():
    by_user = slices.users(np.array([0, 1, 5, 6, 100]))
    assert [mask.tolist() for mask in by_user.values()] == [
        [True, False, False, False, False],
        [False, True, True, False, False],
        [False, False, False, True, True],
    ]
    by_item = slices.items(np.array([1, 0, 50, 30, 19]))  # of 100 events: 50 | 30 | 19, 1, 0
    assert [np.flatnonzero(mask).tolist() for mask in by_item.values()] == [[2], [3], [0, 1, 4]]
    assert slices.items(np.zeros(3))["tail_items"].all()
    assert slices.labels_on(by_item["tail_items"], np.array([2, 4, 0]), np.array([3.0, 2.0, 1.0])).tolist() == [0, 2, 1]


def test_a_report_says_how_many_users_each_mean_is_about():
    values = {"ndcg_at_10": np.array([0.5, np.nan, 0.7, 0.6])}
    table = report.summary(values, slices={"some": np.array([True, True, False, False])})
    row = table["ndcg_at_10"]
    assert (row["mean"], row["n"], row["unmeasured"]) == (pytest.approx(0.6), 3, 1)
    assert row["lower"] < 0.6 < row["upper"]
    assert table["slices"]["some"]["ndcg_at_10"] == {"mean": 0.5, "lower": None, "upper": None, "n": 1, "unmeasured": 1}
