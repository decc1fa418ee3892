"""Slices of which little was known, on paper."""

import numpy as np
import pytest

from pipelines.evaluation import cold, slices

INDPTR, ITEM, GAIN = np.array([0, 1, 3]), np.array([0, 1, 2]), np.ones(3)  # user 0 wants item 0; user 1 wants 1 and 2
LISTS = {"popular": np.array([[1, 0], [1, 0]]), "model": np.array([[0, 1], [2, 1]])}


def report(lists=LISTS, **changes):
    asked = {"users": {"cold_users": np.array([True, False])}, "cold_items": np.array([False, False, True])} | changes
    return cold.quality(lists, "popular", indptr=INDPTR, label_item=ITEM, label_gain=GAIN, **asked)


def test_cold_users_are_those_of_the_slice():
    """For user 0 the popular list has the item at place 2: 1 / log2(3)."""
    found = report()["cold_users"]
    assert found["n_users"] == 1
    assert found["lists"]["popular"]["ndcg_at_10"] == pytest.approx(1 / np.log2(3))
    assert found["lists"]["model"]["ndcg_at_10"] == 1
    assert found["lists"]["model"]["difference"] == pytest.approx(1 - 1 / np.log2(3))
    assert found["lists"]["model"]["difference_lower"] is None, "one user has no interval"


def test_on_cold_items_only_their_labels_count_and_only_users_who_have_one():
    found = report()["cold_items"]
    assert found["n_users"] == 1
    assert found["lists"]["popular"] == {
        "ndcg_at_10": 0.0, "recall_at_50": 0.0, "difference": 0.0, "difference_lower": None, "difference_upper": None
    }  # fmt: skip
    assert found["lists"]["model"]["ndcg_at_10"] == 1


def test_a_slice_of_nobody_is_unmeasured_not_zero():
    found = report(users={"cold_users": np.zeros(2, dtype=bool)})["cold_users"]
    assert found["n_users"] == 0
    assert found["lists"]["model"]["ndcg_at_10"] is None


def test_without_the_baseline_there_are_no_differences():
    found = report(lists={"model": LISTS["model"]})["cold_users"]["lists"]["model"]
    assert found["ndcg_at_10"] == 1
    assert found["difference"] is None


def test_an_item_is_cold_that_is_young_has_few_events_or_was_never_heard_of():
    days, events = np.array([100.0, 100.0, 14.0, 15.0, np.nan]), np.array([10, 9, 99, 99, 99])
    assert slices.cold_items(events, days).tolist() == [False, True, True, False, True]
