"""Changes of means over users who may be measured several times, and the test by flipped signs."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.errors import ReloopError
from pipelines.evaluation import clustered, paired
from pipelines.evaluation.clustered import change, sign_flip


def shop(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return NDCG before and after, as it looks in life: most users nothing, the rest spread."""
    rng = np.random.default_rng(seed)
    before = np.where(rng.random(n) < 0.6, 0.0, rng.beta(1.2, 2.2, n))
    return before, np.clip(before + np.where(before > 0, rng.normal(0.004, 0.1, n), 0.0), 0, 1)


def test_a_relative_change_worked_out_on_paper():
    """Two users: (.2, .4) before, (.3, .4) after: .1 / .6. Linearised: (.1 - .2 / 6) / .6 and (0 - .4 / 6) / .6, that is 1/9 and -1/9."""
    found = change([0.2, 0.4], [0.3, 0.4])
    assert found.value == pytest.approx(1 / 6)
    assert found.influence == pytest.approx([1 / 9, -1 / 9])
    assert found.error == pytest.approx(np.sqrt(2 / 1 * 2 / 81))
    assert change([0.2, 0.4], [0.3, 0.4], relative=False).value == pytest.approx(0.05)


def test_without_repeats_a_plain_change_has_the_paired_bounds():
    before, after = shop(2000)
    found = change(before, after, relative=False)
    assert found.bound(0.05) == pytest.approx(paired.lower_bound(after - before, 0.95, 0), rel=1e-9)
    few = change(before[:300], after[:300], relative=False)
    assert few.bound(0.05) == pytest.approx(paired.lower_bound((after - before)[:300], 0.95, 0), abs=2e-4)


def test_rows_of_one_user_are_one_piece_of_evidence():
    """The same 1,500 users five times over say what they say once; taken for 7,500 users the interval would be less than half as wide."""
    before, after = shop(1500)
    once = change(before, after)
    users = np.tile(np.arange(1500), 5)
    five = change(np.tile(before, 5), np.tile(after, 5), users)
    assert (five.n, five.n_rows) == (1500, 7500)
    assert five.bound(0.05) == pytest.approx(once.bound(0.05))
    assert five.p_above(0.0) == pytest.approx(once.p_above(0.0))
    naive = change(np.tile(before, 5), np.tile(after, 5))
    assert naive.value - naive.bound(0.05) < 0.5 * (once.value - once.bound(0.05))


@pytest.mark.parametrize("n", [40, 300])
def test_flipping_signs_by_formula_is_flipping_them_by_lot(n: int):
    rng = np.random.default_rng(n)
    values = np.where(rng.random(n) < 0.5, 0.0, rng.normal(0, 1, n)) + 0.02
    values += 1.9 * values.std() / np.sqrt(n) - values.mean()
    drawn = np.mean([(rng.choice([-1.0, 1.0], (20_000, n)) @ values >= values.sum()).mean() for _ in range(10)])
    assert 0.005 < drawn < 0.1
    assert sign_flip(values) == pytest.approx(drawn, rel=0.05)


def test_few_users_are_flipped_one_by_one_and_far_tails_stay_positive():
    assert sign_flip([1.0, 2.0, 3.0]) == 1 / 8
    assert sign_flip([3.0, -1.0]) == 1 / 2  # of 4, 2, -2, -4 two are at least 2
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip(np.ones(30)) == pytest.approx(0.5**30)
    far = sign_flip(np.r_[np.ones(900), -np.ones(400)])
    assert 1e-45 < far < 1e-40  # normal: 13.9 standard deviations; drawing flips would never see it
    assert sign_flip(-np.arange(1.0, 40.0)) == pytest.approx(1.0)


def test_the_bound_is_exceeded_as_often_as_it_says():
    """400 samples of 300 users and of 1,200: the true change lies below the 5% bound in about 5% (standard error 1.1 points)."""
    before, after = shop(200_000, 3)
    truth = change(before, after).value
    for n in (300, 1200):
        below = 0
        for seed in range(400):
            rows = np.random.default_rng(seed).integers(0, len(before), n)
            below += truth < change(before[rows], after[rows]).bound(0.05, seed, 999)
        assert 0.02 <= below / 400 <= 0.085, n


def test_a_tail_that_no_resample_reaches_takes_the_wider_bound():
    before, after = shop(300)
    found = change(before, after)
    late = found.bound(1e-6)
    assert late <= found.value - 4.7 * found.error
    assert found.bound(1 - 1e-6) >= found.value + 4.7 * found.error


def test_what_cannot_be_told_is_no_number():
    assert np.isnan(change([], []).value)
    assert np.isnan(change([0.5], [0.6]).bound(0.05))
    assert np.isnan(sign_flip([]))
    assert np.isnan(sign_flip([np.nan, 1.0]))
    assert change([0.0, 0.0], [0.1, 0.3]).value == pytest.approx(0.2)  # nothing to relate it to: a plain change
    assert change([0.2, np.nan, 0.3], [0.2, 0.1, np.nan]).n == 1


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: change([0.1], [0.1, 0.2]), "1 before, 2 after"),
        (lambda: change([0.1, 0.2], [0.1, np.inf]), "infinite"),
        (lambda: change([0.1, 0.2], [0.1, 0.2], np.array(["a"])), "2 before"),
        (lambda: change([0.1, 0.2], [0.1, 0.3]).bound(1.0), r"1\.0"),
    ],
)
def test_what_is_no_pair_is_refused(call, found):
    with pytest.raises(ReloopError, match=found):
        call()


def test_a_constant_change_needs_no_resampling():
    assert clustered.change(np.full(50, 0.2), np.full(50, 0.3), relative=False).bound(0.01) == pytest.approx(0.1)
