"""What each source adds: worked out on paper, and the blend without it is the blend that never had it."""

import numpy as np
import pytest

from pipelines.datasets.labels import Labels
from pipelines.evaluation import metrics
from pipelines.retrieval import attribution, merging, pruning
from pipelines.retrieval.merging import Recipe
from pipelines.retrieval.protocol import Candidates


def source(*rows):
    """Return candidates from rows of items, scored 10, 9, 8 ..."""
    item = np.array(rows, dtype=np.int32)
    score = np.where(item < 0, -np.inf, 10 - np.arange(item.shape[1])).astype(np.float32)
    return Candidates(item, score)


def labels(*wanted):
    """Return labels of gain 1, a row of items a user."""
    indptr = np.cumsum([0, *(len(items) for items in wanted)]).astype(np.int64)
    item = np.concatenate([np.sort(items) for items in wanted]).astype(np.int32)
    return Labels(
        np.array([f"u{row}" for row in range(len(wanted))]), np.array([f"i{n}" for n in range(30)]), indptr, item, np.ones(len(item))
    )


LISTS = {"a": source([1, 5], [4, -1]), "b": source([1, 2], [4, -1]), "c": source([2, 6], [3, -1])}
TRUTH = labels([1, 2], [3])


def test_the_worked_example():
    """Two places. All: user 0 gets 1 and 2, both taken; user 1 gets 4 and 3, one taken of one: recall 1 and 1.

    Without a: user 0 still 2 (b, c) and 1 (b); user 1 has 4 and 3: nothing lost. Without b: user 0 has 1 (a, rank 1),
    2 (c, rank 1): nothing lost. Without c: user 0 has 1 and 2 (b): nothing lost; user 1 has 4 alone: recall 0. So c adds
    (0 + 1) / 2 and the others nothing. Of the four places a proposed 1 and 4, b proposed 1, 2 and 4, c proposed 2 and 3,
    and only 3 has a single proposer; hits are 1, 2, 3.
    """
    found = {row["source"]: row for row in attribution.rows(LISTS, TRUTH, 2, Recipe(), 7)}
    assert {name: row["contribution"] for name, row in found.items()} == {"a": 0.0, "b": 0.0, "c": 0.5}
    assert [found[name]["share_of_places"] for name in "abc"] == [2 / 4, 3 / 4, 2 / 4]
    assert [found[name]["share_of_places_alone"] for name in "abc"] == [0, 0, 1 / 4]
    assert [found[name]["share_of_hits"] for name in "abc"] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert [found[name]["share_of_hits_alone"] for name in "abc"] == pytest.approx([0, 0, 1 / 3])
    assert [found[name]["ceiling"] for name in "abc"] == [0.25, 0.5, 0.75]
    assert found["c"]["ndcg_at_10"] == pytest.approx((1 / (1 + 1 / np.log2(3)) + 1) / 2)
    assert found["a"]["users"] == found["a"]["users_served"] == 2
    assert found["c"]["contribution_lower"] <= 0.5 <= found["c"]["contribution_upper"]


def test_without_a_source_is_as_if_it_had_never_been_asked_whatever_the_recipe():
    rng = np.random.default_rng(0)
    lists = {name: source(*(rng.permutation(25)[:7] for _ in range(40))) for name in "abcd"}
    wanted = [rng.permutation(25)[:3] for _ in range(40)]
    truth = labels(*wanted)
    recipe = Recipe({"a": 0.2, "b": 3.0}, {"c": 2}, {"d": 1})
    found = attribution.judge(lists, truth, 9, recipe)
    for name, without in found.without.items():
        rest = merging.merge({other: there for other, there in lists.items() if other != name}, 9, recipe)
        judged = metrics.judge(rest.item, truth.indptr, truth.item, truth.gain)
        np.testing.assert_array_equal(without, metrics.recall(judged, 9))
    assert (found.recall != found.without["b"]).any()


def test_users_of_the_ladder_are_judged_by_the_blend_that_they_get():
    """The ladder answers user 0 with 9, wrongly, so nobody else is asked; without it user 0 would get 1 of a. User 1 has a history."""
    lists = {"a": source([1], [3]), "cold_users": source([9], [-1])}
    wanted = labels([1], [3])
    found = {row["source"]: row for row in attribution.rows(lists, wanted, 2, Recipe(), 7)}
    assert found["cold_users"]["contribution"] == -0.5
    assert found["a"]["contribution"] == 0.5
    judged = pruning.Judged(lists, wanted, Recipe(), 2)
    assert judged.recall(["a", "cold_users"]).tolist() == [0, 1]
    assert judged.recall(["a"]).tolist() == [1, 1]


def test_blocks_of_users_add_up(monkeypatch):
    rng = np.random.default_rng(1)
    lists = {name: source(*(rng.permutation(25)[:7] for _ in range(40))) for name in "abc"}
    truth = labels(*(rng.permutation(25)[:3] for _ in range(40)))
    whole = attribution.rows(lists, truth, 9, Recipe(), 7)
    monkeypatch.setattr(merging, "USERS_AT_ONCE", 11)
    assert attribution.rows(lists, truth, 9, Recipe(), 7) == whole


def test_a_source_that_knows_nobody_serves_nobody_and_adds_nothing():
    lists = {**LISTS, "mute": source([-1, -1], [-1, -1])}
    mute = attribution.rows(lists, TRUTH, 2, Recipe(), 7)[-1]
    assert (mute["users_served"], mute["contribution"], mute["share_of_places"]) == (0, 0.0, 0.0)
