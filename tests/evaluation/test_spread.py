"""Coverage, concentration, novelty and variety, worked out on paper."""

import math

import numpy as np
import pytest

from pipelines.evaluation import rating, spread

LISTS = np.array([[0, 1, 2], [0, 1, -1], [0, -1, -1], [-1, -1, -1]])


def test_coverage_is_the_share_of_the_catalogue_in_anyones_first_k():
    assert spread.coverage(LISTS, 5, 3) == 3 / 5
    assert spread.coverage(LISTS, 5, 1) == 1 / 5
    assert np.isnan(spread.coverage(LISTS[3:], 0, 1))


def test_gini_is_zero_for_equal_exposure_and_nearly_one_for_a_single_item():
    everything = np.arange(100).reshape(10, 10)
    assert spread.gini(everything, 100, 10) == pytest.approx(0)
    assert spread.gini(np.zeros((50, 1), dtype=int), 100, 1) == pytest.approx(0.99)
    # exposures 3, 2, 1 of three items: sorted 1, 2, 3 -> (-2 * 1 + 0 * 2 + 2 * 3) / (3 * 6)
    assert spread.gini(LISTS, 3, 3) == pytest.approx(4 / 18)
    assert np.isnan(spread.gini(LISTS[3:], 3, 3))


def test_novelty_is_the_mean_surprise_in_bits():
    met_by = np.array([8, 2, 0])
    expected = [(0 + 2 + 3) / 3, (0 + 2) / 2, 0, math.nan]  # of 8 users: 1, 1/4, and nobody counts as one
    np.testing.assert_allclose(spread.novelty(LISTS, met_by, 8, 3), expected)


def test_diversity_is_the_share_of_pairs_from_different_groups():
    group = np.array([0, 0, 1, -1, -1])
    lists = np.array([[0, 1, 2, -1], [0, 1, -1, -1], [3, 4, 0, -1], [2, -1, -1, -1]])
    np.testing.assert_allclose(spread.intra_list_diversity(lists, group, 4), [2 / 3, 0, 1, np.nan])


def test_rating_errors_are_per_user_and_a_user_without_ratings_is_unmeasured():
    indptr, predicted, given = np.array([0, 2, 2, 3]), np.array([4.0, 2.0, 3.0]), np.array([5.0, 5.0, 3.0])
    np.testing.assert_allclose(rating.mae(indptr, predicted, given), [2, np.nan, 0])
    np.testing.assert_allclose(rating.rmse(indptr, predicted, given), [math.sqrt(5), np.nan, 0])
