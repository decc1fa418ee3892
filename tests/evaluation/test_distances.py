"""Distances between two samples in the same bins, each against a value on paper or scipy's own on the raw values."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from pipelines.evaluation import distances, psi


def of(before: object, after: object, bins: int = 10) -> distances.Distances:
    columns = [pa.chunked_array([pa.array(values)]) for values in (before, after)]
    reference = psi.reference(columns[0], bins)
    return distances.between(reference, psi.counts(reference, columns[1]), smoothing=1e-9, effect=psi.design_effect(reference, columns[1]))


def test_two_categories_on_paper() -> None:
    """Shares p = (1/2, 1/2) and q = (1/4, 3/4): KL = 1/4 ln(1/2) + 3/4 ln(3/2), a quarter of the rows must move."""
    found = of(["a", "b"] * 200, ["a"] * 100 + ["b"] * 300)
    assert found.kl == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)
    assert found.total_variation == pytest.approx(0.25)
    mixed = [0.375, 0.625]
    divergence = (stats.entropy([0.5, 0.5], mixed, base=2) + stats.entropy([0.25, 0.75], mixed, base=2)) / 2
    assert found.jensen_shannon == pytest.approx(math.sqrt(divergence), abs=1e-5)
    assert found.chi_square_p == pytest.approx(stats.chi2_contingency([[200, 200], [100, 300]], correction=False).pvalue)
    assert math.isnan(found.ks)
    assert math.isnan(found.wasserstein)


def test_a_shift_by_a_tenth_of_the_span_is_a_wasserstein_of_a_tenth() -> None:
    values = np.linspace(0, 1, 10_001)
    found = of(values, values + 0.1, bins=50)
    assert found.wasserstein == pytest.approx(0.1, abs=0.01)
    assert found.ks == pytest.approx(0.1, abs=0.01)


def test_ks_through_bins_never_exceeds_the_true_one_and_its_p_value_is_no_smaller() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        before, after = rng.normal(size=400), rng.normal(rng.uniform(0, 0.5), size=300)
        found, true = of(before, after), stats.ks_2samp(before, after, method="asymp")
        assert found.ks <= true.statistic + 1e-12
        assert found.ks_p >= true.pvalue - 0.01


def test_lists_of_dependent_values_do_not_look_more_sure_than_they_are() -> None:
    """Every user repeats one value nine times: the p-value is that of the users, not of the rows."""
    rng = np.random.default_rng(4)
    draws = [rng.choice(["a", "b", "c"], 300) for _ in range(2)]
    single, repeated = of(*(d.tolist() for d in draws)), of(*([[str(v)] * 9 for v in d] for d in draws))
    assert repeated.chi_square_p == pytest.approx(single.chi_square_p, abs=0.02)


def test_holm_on_paper_and_nan_stays() -> None:
    found = distances.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert [found[name] for name in "abc"] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(found["d"])
    counted = distances.holm({"a": 0.01, "b": math.nan}, asked=2)  # one that was not asked counts
    assert counted["a"] == pytest.approx(0.02)
    assert math.isnan(counted["b"])
    assert distances.holm({}) == {}


def test_an_empty_sample_is_unmeasured() -> None:
    empty = of([1.0, 2.0], pa.array([], pa.float64()))
    assert all(math.isnan(value) for value in vars(empty).values())
