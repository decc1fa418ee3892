"""Lists against histories, on paper."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation import taste

GROUP = np.array([0, 0, 1, 2, -1])


def test_shares_are_of_items_whose_group_is_known():
    lists = np.array([[0, 2, 4, 3], [4, -1, -1, -1], [1, 0, 2, -1]])
    assert taste.shares(lists, GROUP, 3, 3).tolist() == [[0.5, 0.5, 0], [0, 0, 0], [2 / 3, 1 / 3, 0]]


def test_miscalibration_is_steck_s_divergence():
    history = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    lists = np.array([[0, 2], [0, 1], [0, 2], [4, -1]])
    found = taste.miscalibration(lists, GROUP, history, 2, dilution=0.1)
    assert found[0] == 0  # as the history
    # q = (1, 0), q~ = (.95, .05): .5 ln(.5 / .95) + .5 ln(.5 / .05)
    assert found[1] == pytest.approx(0.5 * np.log(0.5 / 0.95) + 0.5 * np.log(10))
    assert np.isnan(found[2:]).all()  # no history; no item of a known group


def test_mean_popularity_of_the_first_k():
    lists = np.array([[0, 1, 2], [2, -1, -1], [-1, -1, -1]])
    found = taste.mean_popularity(lists, np.array([1.0, 0.5, 0.0]), 2)
    assert found[:2].tolist() == [0.75, 0.0]
    assert np.isnan(found[2])
