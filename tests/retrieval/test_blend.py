"""Merging lists: every candidate once, best first, and it knows who proposed it."""

import numpy as np
import pytest

from pipelines.retrieval import blend
from pipelines.retrieval.protocol import Candidates


def source(*rows):
    """Return candidates from rows of items, scored 10, 9, 8 ..."""
    item = np.array(rows, dtype=np.int32)
    score = np.where(item < 0, -np.inf, 10 - np.arange(item.shape[1])).astype(np.float32)
    return Candidates(item, score)


def test_items_that_two_sources_propose_come_before_those_of_one():
    found = blend.merge({"a": source([4, 2, 7]), "b": source([2, 9, -1])}, 4)
    assert found.item.tolist() == [[2, 4, 9, 7]]
    np.testing.assert_allclose(found.score[0], [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63], rtol=1e-6)
    np.testing.assert_array_equal(found.source_rank["a"][0], [2, 1, np.nan, 3])
    np.testing.assert_array_equal(found.source_rank["b"][0], [1, np.nan, 2, np.nan])
    np.testing.assert_array_equal(found.source_score["a"][0], [9, 10, np.nan, 8])


def test_equal_sums_are_ordered_by_item_index_and_k_cuts():
    found = blend.merge({"a": source([8, 3]), "b": source([5, 1])}, 3)
    assert found.item.tolist() == [[5, 8, 1]]


def test_users_nobody_proposes_for_have_an_empty_row():
    found = blend.merge({"a": source([-1, -1], [1, 0]), "b": source([-1, -1], [-1, -1])}, 3)
    assert found.item.tolist() == [[-1, -1, -1], [1, 0, -1]]
    assert np.isneginf(found.score[0]).all()
    assert np.isnan(found.source_rank["b"]).all()
    table = blend.tabulate(found, np.array([70, 71], dtype=np.int32))
    assert table.select(["user", "item", "blend_rank"]).to_pylist() == [
        {"user": 71, "item": 1, "blend_rank": 1},
        {"user": 71, "item": 0, "blend_rank": 2},
    ]


@pytest.mark.parametrize("n_users", [0, 1, 50])
def test_it_agrees_with_fusion_done_one_user_at_a_time(n_users, monkeypatch):
    monkeypatch.setattr(blend, "USERS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    lists = {}
    for name in "abc":
        item = np.array([rng.permutation(30)[:8] for _ in range(n_users)], dtype=np.int32).reshape(n_users, 8)
        for row in range(n_users):
            item[row, rng.integers(0, 9) :] = -1
        lists[name] = source(*item) if n_users else Candidates(item, item.astype(np.float32))
    found = blend.merge(lists, 12)
    assert found.item.shape == (n_users, 12)
    for row in range(n_users):
        fused = {}
        for candidates in lists.values():
            for rank, item in enumerate(candidates.item[row], start=1):
                if item >= 0:
                    fused[int(item)] = fused.get(int(item), 0) + 1 / (60 + rank)
        order = sorted(fused, key=lambda item: (-np.float32(fused[item]), item))[:12]
        assert found.item[row, : len(order)].tolist() == order
        assert (found.item[row, len(order) :] == -1).all()
