"""Effects between arms: worked on paper, against SciPy, and by how often intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipelines.errors import ReloopError
from pipelines.evaluation import two_sample
from pipelines.evaluation.two_sample import Moments, compare, cuped, linearised, moments, non_inferior


def test_a_mean_is_its_own_linearisation():
    assert linearised([1, 2, 6]).tolist() == [1, 2, 6]


def test_a_ratio_is_linearised_as_on_paper():
    # 3 clicks on 6 impressions: R = 1/2, 2 impressions a user. (1 - 2/2) / 2 = 0, (2 - 1/2) / 2 = 3/4, (0 - 3/2) / 2 = -3/4.
    values = linearised([1, 2, 0], [2, 1, 3])
    assert values == pytest.approx([0.5, 1.25, -0.25])
    found = moments(values)
    assert (found.n, found.mean) == (3, 0.5)
    assert found.variance == pytest.approx((0.75**2 + 0.75**2) / 2)


def test_a_difference_of_means_is_welchs_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, 300), rng.normal(1.2, 3, 200)
    effect, scipy = compare(moments(a), moments(b)), stats.ttest_ind(b, a, equal_var=False)
    assert effect.p == pytest.approx(scipy.pvalue)
    assert (effect.lower, effect.upper) == pytest.approx(tuple(scipy.confidence_interval(0.95)))
    assert effect.relative == pytest.approx(b.mean() / a.mean() - 1)


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0]])
def test_what_is_no_number_is_refused(bad: list[float]):
    with pytest.raises(ReloopError, match="not finite"):
        linearised(bad)
    with pytest.raises(ReloopError, match="not finite"):
        linearised([1.0, 1.0], bad)
    with pytest.raises(ReloopError, match="below 0"):
        linearised([1.0, 1.0], [1.0, -1.0])
    with pytest.raises(ReloopError, match="one of each"):
        linearised([1.0, 1.0], [1.0])


def test_nothing_measured_is_nan_and_no_verdict():
    empty, one = moments(np.zeros(0)), moments(np.ones(1))
    assert np.isnan([empty.mean, empty.squared_error, one.squared_error]).all()
    assert np.isnan(linearised([0.0, 0.0], [0.0, 0.0])).all()
    for effect in (compare(empty, one), compare(one, one), compare(moments(np.ones(5)), moments(np.ones(5)))):
        assert not effect.always_lower > 0
        assert not effect.always_upper < 0
        assert np.isnan(effect.p)


def test_users_who_see_much_do_not_make_the_interval_narrow():
    """Of 1,000 A/A tests whose users' click rates differ, about 95% of the intervals hold 0; those of impressions taken for independent hold fewer."""
    rng = np.random.default_rng(2)
    ours = theirs = 0
    for _ in range(400):
        arms = []
        for _ in range(2):
            shown = rng.geometric(0.1, 500)
            arms.append((rng.binomial(shown, rng.beta(0.5, 4.5, 500)).astype(float), shown.astype(float)))
        effect = compare(*(moments(linearised(*arm)) for arm in arms))
        ours += effect.lower <= 0 <= effect.upper
        (clicks_a, shown_a), (clicks_b, shown_b) = ((top.sum(), bottom.sum()) for top, bottom in arms)
        pooled = (clicks_a + clicks_b) / (shown_a + shown_b)
        theirs += abs(clicks_b / shown_b - clicks_a / shown_a) <= 1.96 * np.sqrt(pooled * (1 - pooled) * (1 / shown_a + 1 / shown_b))
    assert 0.925 <= ours / 400 <= 0.975
    assert theirs / 400 < 0.85


def test_intervals_of_heavy_tailed_revenue_hold_the_truth_and_say_that_the_tail_is_long():
    rng = np.random.default_rng(3)
    true = 0.05 * np.exp(3 + 1.3**2 / 2)
    held = lifted = 0
    for _ in range(300):
        a, b = (np.where(rng.random(4000) < 0.05, rng.lognormal(3, 1.3, 4000), 0) for _ in range(2))
        effect = compare(moments(a), moments(b * 1.1))
        held += effect.lower <= 0.1 * true <= effect.upper
        lifted += effect.relative_lower <= 0.1 <= effect.relative_upper
    assert held / 300 >= 0.92
    assert lifted / 300 >= 0.92
    assert effect.skewed > 4000


def test_the_past_takes_off_what_chance_dealt():
    rng = np.random.default_rng(4)
    past = [rng.normal(10, 3, 2000) for _ in range(2)]
    now = [past[0] + rng.normal(0, 1, 2000), past[1] + rng.normal(0.3, 1, 2000)]
    adjusted = cuped(now, past)
    assert adjusted.theta == pytest.approx(1, abs=0.02)
    assert adjusted.variance_factor == pytest.approx(0.1, abs=0.02)  # 1 - rho^2 = 1 / (9 + 1)
    plain, better = compare(moments(now[0]), moments(now[1])), compare(*(moments(one) for one in adjusted.units))
    assert better.error == pytest.approx(plain.error * np.sqrt(0.1), rel=0.05)
    assert better.lower <= 0.3 <= better.upper


def test_a_past_that_tells_nothing_changes_nothing():
    now = [np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 5.0])]
    for past in ([np.full(3, np.nan)] * 2, [np.ones(3)] * 2, []):
        adjusted = cuped(now, past) if past else cuped(now, [np.zeros(0)] * 0)
        assert [one.tolist() for one in adjusted.units] == [one.tolist() for one in now]
        assert adjusted.variance_factor == 1.0


def test_a_new_users_missing_past_leaves_it_as_it_is():
    now = [np.array([1.0, 2.0, 3.0, 9.0]), np.array([2.0, 3.0, 4.0, 7.0])]
    past = [np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, 2.0, 3.0, np.nan])]
    adjusted = cuped(now, past)
    assert (adjusted.units[0][3], adjusted.units[1][3]) == (9.0, 7.0)


def test_non_inferiority_on_paper():
    # Control 10, treatment 9.9, margin 2%: 9.9 - 9.8 = 0.1 above what is allowed; variance 4/100 + 0.98^2 4/100.
    effect = non_inferior(Moments(100, 10.0, 4.0), Moments(100, 9.9, 4.0), 0.02)
    assert effect.difference == pytest.approx(0.1)
    assert effect.error == pytest.approx(np.sqrt(0.04 + 0.98**2 * 0.04))
    assert two_sample.non_inferior(Moments(10**6, 10.0, 4.0), Moments(10**6, 9.9, 4.0), 0.02).always_lower > 0
