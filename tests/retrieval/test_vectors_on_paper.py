"""Affinities of vectors, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.datasets.interactions import Interactions, histories
from pipelines.retrieval.vectors import Vectors
from pipelines.window import micros, utc

NOW = micros(utc("2025-03-03"))
EAST, NORTH, FAR_EAST, UNKNOWN = range(4)
PLANE = Vectors(
    query=np.zeros((0, 2), np.float32),
    told=np.zeros(0, bool),
    item=np.array([[1, 0], [0, 1], [7, 0], [0, 0]], np.float32),
    known=np.array([True, True, True, False]),
)


def affinity(lists: list[list[int]], item: int) -> list[float]:
    indptr = np.append(0, np.cumsum([len(one) for one in lists])).astype(np.int64)
    member = np.array([each for one in lists for each in one], np.int32)
    return PLANE.of_lists(indptr, member, np.arange(len(lists)), np.full(len(lists), item, np.int32)).tolist()


def test_a_list_stands_for_the_mean_of_its_directions_not_of_its_lengths():
    """East and far east are one direction; with north beside one of them the mean lies halfway: 45 degrees."""
    found = affinity([[EAST], [FAR_EAST], [FAR_EAST, NORTH], [NORTH], [EAST, UNKNOWN]], EAST)
    np.testing.assert_allclose(found, [1, 1, np.sqrt(0.5), 0, 1], rtol=1e-6)


def test_a_list_of_nothing_known_and_an_unknown_item_have_no_affinity():
    assert np.isnan(affinity([[], [UNKNOWN]], EAST)).all()
    assert np.isnan(affinity([[EAST]], UNKNOWN)).all()


def test_whoever_else_is_asked_for_the_bits_are_the_same():
    rng = np.random.default_rng(0)
    plane = Vectors(PLANE.query, PLANE.told, rng.normal(size=(50, 33)).astype(np.float32), np.ones(50, bool))
    indptr, member = np.arange(0, 401, 8), rng.integers(0, 50, 400).astype(np.int32)
    row, item = np.repeat(np.arange(50), 20), rng.integers(0, 50, 1000).astype(np.int32)
    together = plane.of_lists(indptr, member, row, item)
    for one in (0, 17, 49):
        mine = slice(20 * one, 20 * one + 20)
        alone = plane.of_lists(np.array([0, 8]), member[8 * one : 8 * one + 8], np.zeros(20, np.int64), item[mine])
        assert np.array_equal(alone, together[mine])


@pytest.mark.parametrize(("until", "device"), [("2025-03-01", 2), ("2025-02-01", 1), ("2025-01-01", -1)])
def test_the_device_in_hand_is_that_of_the_last_event_before_the_moment(until: str, device: int):
    """A phone on 15 January, a tablet on 15 February."""
    at = np.array([micros(utc(day)) for day in ("2025-01-15", "2025-02-15")])
    one, none = np.zeros(2, np.int32), np.full(2, np.nan, np.float32)
    known = Interactions(
        np.array(["u"]),
        np.array(["i"]),
        one,
        one,
        at,
        np.ones(2, np.float32),
        np.zeros(2, np.int8),
        none,
        NOW,
        device=np.array([1, 2], np.int8),
    )
    assert histories(known, np.array(["u", "stranger"]), utc(until)).device.tolist() == [device, -1]
