"""PSI against its closed form, its null distribution, and the ways in which others' PSI went blind."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines.errors import StateError
from pipelines.evaluation import psi


def column(values: object) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


def moved(before: object, after: object, bins: int = 10) -> float:
    reference = psi.reference(column(before), bins)
    return psi.psi(reference.counted, psi.counts(reference, column(after)))


def test_two_bins_on_paper() -> None:
    """With p = (.5, .5), q = (.25, .75): PSI = .25 ln 2 + .25 ln 1.5."""
    before, after = np.array([1000, 1000]), np.array([500, 1500])
    assert psi.psi(before, after, smoothing=0.0) == pytest.approx(0.25 * math.log(2) + 0.25 * math.log(1.5))


def test_smoothing_bounds_what_a_vanished_bin_costs() -> None:
    """A category of 1% that vanishes among 10,000 rows: (c + .5)/(n + .5 B) gives about .066, finite and small."""
    value = psi.psi(np.array([9900, 100]), np.array([10000, 0]))
    p, q = (100.5 / 10001, 0.5 / 10001)
    assert value == pytest.approx((p - q) * math.log(p / q) + (q - p) * math.log((1 - p) / (1 - q)), rel=1e-9)
    assert value < 0.1


def test_the_null_is_chi_square_so_the_critical_value_holds_its_rate() -> None:
    """Deciles, 400 reference and 300 current rows of one distribution: at most the promised share exceeds the critical value.

    2,000 checks at 5%: three standard errors are 1.5 points.
    """
    rng = np.random.default_rng(11)
    alarms = []
    for _ in range(2000):
        before, after = rng.lognormal(size=400), rng.lognormal(size=300)
        edges = np.quantile(before, np.arange(1, 10) / 10)
        counted = [np.bincount(np.searchsorted(edges, values, side="right"), minlength=10) for values in (before, after)]
        alarms.append(psi.psi(*counted) > psi.critical_value(*counted, 0.05))
    assert 0.02 < np.mean(alarms) <= 0.065


def test_sidak_spreads_the_rate_over_the_features() -> None:
    before = after = np.full(10, 1000)
    alone = 1 - (1 - 0.01) ** (1 / 20)
    assert psi.critical_value(before, after, 0.01, 20) == pytest.approx(stats.chi2.isf(alone, 9) * (2 / 10_000))


def test_rare_categories_do_not_raise_false_alarms() -> None:
    """50 Zipf categories, 300 rows now: bins that expect fewer than five rows are pooled, or chi-square would be far off."""
    rng = np.random.default_rng(3)
    weights = 1 / np.arange(1, 51) ** 1.3
    weights /= weights.sum()
    alarms = [
        psi.psi(a, b) > psi.critical_value(a, b, 0.01)
        for a, b in ((rng.multinomial(5000, weights), rng.multinomial(300, weights)) for _ in range(2000))
    ]
    assert np.mean(alarms) <= 0.02


def test_one_outlier_changes_nothing() -> None:
    """Equal-width bins over both samples fall from .27 to .00007 by one value of a million; ours moves by less than 5%."""
    rng = np.random.default_rng(5)
    before, after = rng.normal(size=5000), rng.normal(0.5, size=5000)
    plain = moved(before, after)
    assert plain > 0.2
    assert moved(before, np.append(after, 1e6)) == pytest.approx(plain, rel=0.05)
    assert moved(np.append(before, 1e6), after) == pytest.approx(plain, rel=0.05)


def test_a_burst_of_nulls_is_seen_and_infinity_is_a_number() -> None:
    values = np.linspace(0, 1, 5000)
    holed = [None if i % 10 == 0 else float(x) for i, x in enumerate(values)]
    assert moved(values, holed) > 0.2
    assert moved(values, np.where(np.arange(5000) % 10 == 0, np.nan, values)) == pytest.approx(moved(values, holed))
    assert moved(values, np.append(values, np.inf)) < 0.01


@pytest.mark.parametrize("after", [[1] * 900 + [2] * 100, [1] * 900 + [0] * 100, [1] * 900 + [None] * 100])
def test_a_constant_that_stops_being_constant_is_seen(after: list[int | None]) -> None:
    assert moved([1] * 1000, after) > 0.2
    assert moved([1] * 1000, [1] * 500) == 0


def test_a_value_above_all_that_was_seen_has_a_bin_of_its_own() -> None:
    assert moved([0, 1, 2] * 400, [0, 1, 7] * 400) > 0.2


def test_an_unseen_category_is_told_from_a_rare_one() -> None:
    names = [f"c{i:03d}" for i in range(200) for _ in range(300 - i)]
    reference = psi.reference(column(names), 10)
    assert len(reference.categories) == psi.TOP_CATEGORIES
    counts = psi.counts(reference, column(["c000", "c199", "brand-new", None]))
    assert counts[0] == 1
    assert counts[-3:].tolist() == [1, 1, 1]  # other, unseen, missing


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), min_size=1, max_size=60), st.integers(2, 12))
@settings(max_examples=150, deadline=None)
def test_no_row_is_lost_and_a_sample_has_not_moved_from_itself(values: list[float | None], bins: int) -> None:
    reference = psi.reference(pa.chunked_array([pa.array(values, pa.float64())]), bins)
    assert reference.rows == len(values)
    assert list(reference.edges) == sorted(set(reference.edges))
    assert psi.psi(reference.counted, reference.counted) == 0
    assert psi.from_json(psi.to_json({"x": reference})) == {"x": reference}


def test_nothing_to_compare_is_nan_and_never_above_a_threshold() -> None:
    empty = np.zeros(3, dtype=np.int64)
    assert math.isnan(psi.psi(empty, np.array([1, 2, 3])))
    assert math.isnan(psi.critical_value(np.array([1, 2, 3]), empty, 0.01))
    with pytest.raises(StateError, match="4 bins now"):
        psi.psi(np.ones(3, dtype=np.int64), np.ones(4, dtype=np.int64))
    with pytest.raises(StateError, match="a number"):
        psi.counts(psi.reference(column([1.0, 2.0]), 10), column(["a"]))
