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


def test_rows_of_lists_are_worth_their_design_effect() -> None:
    """A user who repeats one value m times is worth one row: the effect is sum m^2 / sum m. Independent values are worth themselves."""
    rng = np.random.default_rng(8)
    lengths = rng.integers(1, 9, 3000)
    repeated = column([[str(rng.integers(3))] * int(m) for m in lengths])
    independent = column([[str(v) for v in rng.integers(0, 3, m)] for m in lengths])
    assert psi.reference(repeated, 10).design_effect == pytest.approx((lengths**2).sum() / lengths.sum(), rel=0.05)
    assert psi.reference(independent, 10).design_effect == pytest.approx(1.0, abs=0.06)
    assert psi.reference(column(["a", "b"]), 10).design_effect == 1.0


def test_lists_that_repeat_themselves_raise_no_false_alarm() -> None:
    """300 unchanged samples of 400 users with ten dependent values each, at 5%: without the effect most would alarm."""
    rng = np.random.default_rng(9)

    def sample(n: int) -> pa.ChunkedArray:
        favourite = rng.integers(0, 8, n)
        rows = np.where(rng.random((n, 10)) < 0.7, favourite[:, None], rng.integers(0, 8, (n, 10)))
        return column(rows.astype(str).tolist())

    reference = psi.reference(sample(800), 10)
    corrected, naive = [], []
    for _ in range(300):
        after = sample(400)
        counted = psi.counts(reference, after)
        moved, effects = psi.psi(reference.counted, counted), (reference.design_effect, psi.design_effect(reference, after))
        corrected.append(moved > psi.critical_value(reference.counted, counted, 0.05, effects=effects))
        naive.append(moved > psi.critical_value(reference.counted, counted, 0.05))
    assert np.mean(corrected) <= 0.12  # one reference for all: its own luck stays in
    assert np.mean(naive) > 0.5


@pytest.mark.parametrize(("before", "after"), [([500] * 10, [500] * 10), ([200] * 50, [6] * 50), ([5000, 60, 60, 60], [400, 5, 5, 5])])
def test_the_formula_is_the_simulated_null_within_a_tenth_down_to_five_rows_a_bin(before: list[int], after: list[int]) -> None:
    """At one alarm in a thousand; with fewer rows a bin the bins are pooled first."""
    counted = np.array(before), np.array(after)
    drawn = psi.simulated_value(*counted, 0.001)
    assert drawn == pytest.approx(psi.critical_value(*counted, 0.001), rel=0.1)
    assert drawn == psi.simulated_value(*counted, 0.001)  # seeded


def test_counting_by_comparison_is_searching() -> None:
    rng = np.random.default_rng(10)
    values = np.concatenate([rng.normal(size=1000), [np.nan, np.inf, -np.inf, 0.0, -0.0], np.round(rng.normal(size=500), 1)])
    reference = psi.reference(column(np.round(rng.normal(size=500), 1)), 10)
    known = values[~np.isnan(values)]
    expected = np.bincount(np.searchsorted(reference.edges, known, side="right"), minlength=len(reference.edges) + 1)
    assert psi.counts(reference, column(values)).tolist() == [*expected.tolist(), 1]


def test_values_that_come_once_are_no_drift() -> None:
    """A Zipf tail: in every sample much was not in the one before. Bins counted on the rows that chose them would alarm almost always."""
    rng = np.random.default_rng(12)
    alarms = []
    for _ in range(60):
        before, after = (column(np.minimum(rng.zipf(1.4, 600), 1000).astype(str)) for _ in range(2))
        reference = psi.reference(before, 10)
        counted = psi.counts(reference, after)
        alarms.append(psi.psi(reference.counted, counted) > psi.critical_value(reference.counted, counted, 0.01))
    assert np.mean(alarms) <= 0.05
