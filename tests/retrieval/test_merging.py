"""Merging lists: every candidate once, best first, with the places that were declared, and it knows who proposed it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import StateError
from pipelines.retrieval import merging
from pipelines.retrieval.merging import Recipe, Union
from pipelines.retrieval.protocol import Candidates


def source(*rows):
    """Return candidates from rows of items, scored 10, 9, 8 ..."""
    item = np.array(rows, dtype=np.int32)
    score = np.where(item < 0, -np.inf, 10 - np.arange(item.shape[1])).astype(np.float32)
    return Candidates(item, score)


def test_items_that_two_sources_propose_come_before_those_of_one():
    found = merging.merge({"a": source([4, 2, 7]), "b": source([2, 9, -1])}, 4)
    assert found.item.tolist() == [[2, 4, 9, 7]]
    np.testing.assert_allclose(found.score[0], [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63], rtol=1e-6)
    np.testing.assert_array_equal(found.source_rank["a"][0], [2, 1, np.nan, 3])
    np.testing.assert_array_equal(found.source_rank["b"][0], [1, np.nan, 2, np.nan])
    np.testing.assert_array_equal(found.source_score["a"][0], [9, 10, np.nan, 8])


def test_equal_sums_are_ordered_by_item_index_and_k_cuts():
    found = merging.merge({"a": source([8, 3]), "b": source([5, 1])}, 3)
    assert found.item.tolist() == [[5, 8, 1]]


def test_a_weight_moves_what_its_source_proposes():
    lists = {"a": source([4, 2]), "b": source([9, 3])}
    found = merging.merge(lists, 4, Recipe({"a": 1.0, "b": 3.0}))
    assert found.item.tolist() == [[9, 3, 4, 2]]
    np.testing.assert_allclose(found.score[0], [3 / 61, 3 / 62, 1 / 61, 1 / 62], rtol=1e-6)


def test_what_a_source_without_weight_proposes_fills_what_is_left_in_its_own_order():
    found = merging.merge({"a": source([7, 1, 5]), "b": source([8, -1, -1])}, 3, Recipe({"a": 0.0, "b": 1.0}))
    assert found.item.tolist() == [[8, 7, 1]]
    assert (found.score > 0).all()


def test_a_guaranteed_place_pushes_out_the_last_and_keeps_the_order_by_score():
    lists = {"a": source([1, 2, 3]), "b": source([1, 2, 3]), "c": source([8, 9, 3])}
    assert merging.merge(lists, 3).item.tolist() == [[3, 1, 2]]
    found = merging.merge(lists, 3, Recipe(least={"c": 1}))
    assert found.item.tolist() == [[3, 1, 8]], "2 had two votes and no guarantee"


def test_a_limited_source_fills_no_more_places_alone_and_still_votes_for_what_others_propose():
    lists = {"a": source([1, 2, 3, 4]), "b": source([9, 4, -1, -1])}
    found = merging.merge(lists, 5, Recipe(most={"a": 1}))
    assert found.item.tolist() == [[4, 1, 9, -1, -1]]
    np.testing.assert_array_equal(found.source_rank["a"][0, :2], [4, 1])


def test_users_nobody_proposes_for_have_an_empty_row():
    found = merging.merge({"a": source([-1, -1], [1, 0]), "b": source([-1, -1], [-1, -1])}, 3)
    assert found.item.tolist() == [[-1, -1, -1], [1, 0, -1]]
    assert np.isneginf(found.score[0]).all()
    assert np.isnan(found.source_rank["b"]).all()


def fused(lists, row, recipe):
    """Return {item: score} of one user, the slow way."""
    scores = {}
    for name, found in lists.items():
        for rank, item in enumerate(found.item[row], start=1):
            if item >= 0:
                scores[int(item)] = scores.get(int(item), 0) + recipe.weights.get(name, 1) / (60 + rank)
    return scores


def by_hand(lists, row, k, recipe):
    """Return the blend of one user, the slow way: guaranteed first, then by score; who is alone and over the limit is out."""
    scores = fused(lists, row, recipe)
    proposers = {item: [name for name, found in lists.items() if item in found.item[row]] for item in scores}
    sure, out = set(), set()
    for name, found in lists.items():
        sure |= {int(item) for item in found.item[row][: recipe.least.get(name, 0)] if item >= 0}
        alone = [int(item) for item in found.item[row] if item >= 0 and proposers[int(item)] == [name]]
        out |= set(alone[recipe.most.get(name, len(alone)) :])
    order = sorted(scores.keys() - out, key=lambda item: (item not in sure, -np.float32(scores[item]), item))[:k]
    return sorted(order, key=lambda item: (-np.float32(scores[item]), item))


@st.composite
def recipes(draw):
    """Return lists of three sources for some users, and a recipe whose guarantees fit into k."""
    seed, n_users, width = draw(st.integers(0, 2**16)), draw(st.integers(0, 9)), draw(st.integers(1, 6))
    rng = np.random.default_rng(seed)
    lists = {}
    for name in "abc":
        item = np.array([rng.permutation(12)[:width] for _ in range(n_users)], dtype=np.int32).reshape(n_users, width)
        for row in range(n_users):
            item[row, rng.integers(0, width + 1) :] = -1
        lists[name] = source(*item) if n_users else Candidates(item, item.astype(np.float32))
    # Weights that are powers of two leave sums exact enough that both ways agree on ties.
    weights = {name: draw(st.sampled_from([0.5, 1.0, 2.0])) for name in "abc"}
    least = {name: draw(st.integers(0, 2)) for name in draw(st.sets(st.sampled_from("abc")))}
    most = {name: least.get(name, 0) + draw(st.integers(0, 2)) for name in draw(st.sets(st.sampled_from("abc")))}
    return lists, draw(st.integers(6, 14)), Recipe(weights, least, most)


@given(recipes())
@settings(max_examples=150, deadline=None)
def test_it_agrees_with_blending_one_user_at_a_time(drawn):
    lists, k, recipe = drawn
    found = merging.merge(lists, k, recipe)
    for row in range(len(found.item)):
        order = by_hand(lists, row, k, recipe)
        assert found.item[row].tolist() == order + [-1] * (k - len(order))
        for name, given_list in lists.items():
            proposed = given_list.item[row].tolist()
            ranks = [proposed.index(item) + 1 if item in proposed else np.nan for item in order]
            np.testing.assert_array_equal(found.source_rank[name][row, : len(order)], ranks)
            scores = [given_list.score[row, proposed.index(item)] if item in proposed else np.nan for item in order]
            np.testing.assert_array_equal(found.source_score[name][row, : len(order)], scores)


@given(recipes())
@settings(max_examples=100, deadline=None)
def test_quotas_hold_for_every_user_and_no_item_comes_twice(drawn):
    lists, k, recipe = drawn
    found = merging.merge(lists, k, recipe)
    for row in range(len(found.item)):
        listed = [item for item in found.item[row].tolist() if item >= 0]
        assert len(set(listed)) == len(listed)
        for name, proposed in lists.items():
            offered = [item for item in proposed.item[row].tolist() if item >= 0]
            assert len(set(listed) & set(offered)) >= min(recipe.least.get(name, 0), len(offered))
            others = {item for other, there in lists.items() if other != name for item in there.item[row].tolist()}
            alone = [item for item in listed if item in offered and item not in others]
            assert len(alone) <= recipe.most.get(name, k)


@given(recipes(), st.sets(st.sampled_from("abc"), min_size=1))
@settings(max_examples=80, deadline=None)
def test_leaving_sources_out_of_a_union_is_never_having_asked_them(drawn, kept):
    lists, k, recipe = drawn
    some = {name: found for name, found in lists.items() if name in kept}
    left = Union.of(lists).of_sources(kept).items(recipe, k)
    np.testing.assert_array_equal(left, merging.merge(some, k, recipe).item)


def test_users_do_not_depend_on_the_block_they_are_merged_in(monkeypatch):
    rng = np.random.default_rng(0)
    lists = {name: source(*(rng.permutation(30)[:8] for _ in range(50))) for name in "abc"}
    whole = merging.merge(lists, 12, Recipe({"a": 0.3}, {"b": 2}, {"c": 1}))
    monkeypatch.setattr(merging, "USERS_AT_ONCE", 7)
    cut = merging.merge(lists, 12, Recipe({"a": 0.3}, {"b": 2}, {"c": 1}))
    np.testing.assert_array_equal(cut.item, whole.item)
    np.testing.assert_array_equal(cut.score, whole.score)
    np.testing.assert_array_equal(cut.source_rank["c"], whole.source_rank["c"])


def test_lists_too_long_for_a_packed_key_are_refused_by_name():
    wide = Candidates(np.full((1, 1 << 20), -1, dtype=np.int32), np.full((1, 1 << 20), -np.inf, dtype=np.float32))
    with pytest.raises(StateError, match="k_per_source"):
        merging.merge({"a": wide}, 5)
