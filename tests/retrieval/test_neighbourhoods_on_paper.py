"""Weights of the neighbourhood models that can be worked out by hand."""

import numpy as np
import pytest
from retriever_contract import everyone, world

from pipelines.errors import ReloopError
from pipelines.retrieval import neighbours
from pipelines.retrieval.graph_filter import GraphFilter
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.user_knn import UserKnn

# item 0: users 0, 1; item 1: users 0, 1; item 2: user 1
EVENTS = [(0, 0, 1, 1.0), (0, 1, 1, 1.0), (1, 0, 1, 1.0), (1, 1, 1, 1.0), (1, 2, 1, 1.0)]


def weights(retriever):
    return neighbours.matrix(retriever.state).toarray()


def test_jaccard_is_shared_over_all_users_of_either():
    found = weights(ItemKnn(similarity="jaccard", shrinkage=0.0, half_life_days=1e9).fit(world(EVENTS, 2, 4)))
    np.testing.assert_allclose(found, [[0, 1, 1 / 2, 0], [1, 0, 1 / 2, 0], [1 / 2, 1 / 2, 0, 0], [0, 0, 0, 0]], rtol=1e-6)
    shrunk = weights(ItemKnn(similarity="jaccard", shrinkage=2.0, half_life_days=1e9).fit(world(EVENTS, 2, 4)))
    np.testing.assert_allclose(shrunk[0], [0, 2 / 4, 1 / 4, 0], rtol=1e-6)


def test_an_unknown_similarity_is_refused():
    with pytest.raises(ReloopError, match="similarity 'dice'; expected cosine, jaccard or dot"):
        ItemKnn(similarity="dice").fit(world(EVENTS, 2, 4))


def test_a_path_counts_less_through_a_user_and_to_an_item_of_many():
    found = weights(GraphFilter(user_exponent=1.0, from_exponent=0.5, to_exponent=1.0).fit(world(EVENTS, 2, 4)))
    by_paths = 1 / 2 + 1 / 3  # through user 0, of two items, and user 1, of three
    expected = [
        [0, by_paths / (2**0.5 * 2), 1 / 3 / 2**0.5, 0],
        [by_paths / (2**0.5 * 2), 0, 1 / 3 / 2**0.5, 0],
        [1 / 3 / 2, 1 / 3 / 2, 0, 0],
        [0, 0, 0, 0],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    levelled = weights(GraphFilter(user_exponent=1.0, from_exponent=0.5, to_exponent=1.0, power=0.5).fit(world(EVENTS, 2, 4)))
    np.testing.assert_allclose(levelled, np.sqrt(expected), rtol=1e-6)


def test_users_are_compared_by_the_cosine_of_their_histories_and_speak_for_what_they_met():
    # user 0 met 0, 1; user 1 met 0, 1, 2; user 2 met 1, 3
    events = [*EVENTS, (2, 1, 1, 1.0), (2, 3, 1, 1.0)]
    interactions = world(events, 3, 4)
    plain = UserKnn(shrinkage=0.0, item_exponent=0.0, power=1.0, half_life_days=1e9, recency_half_life_days=1e9).fit(interactions)
    found = plain.retrieve(everyone(interactions), 4, exclude_seen=True)
    assert found.item[0].tolist() == [2, 3, -1, -1]
    np.testing.assert_allclose(found.score[0, :2], [2 / 6**0.5, 1 / 2], rtol=1e-5)

    shrunk = UserKnn(shrinkage=2.0, item_exponent=0.0, power=2.0, half_life_days=1e9, recency_half_life_days=1e9).fit(interactions)
    found = shrunk.retrieve(everyone(interactions), 4, exclude_seen=True)
    np.testing.assert_allclose(found.score[0, :2], [(2 / (6**0.5 + 2)) ** 2, (1 / 4) ** 2], rtol=1e-5)

    nearest = UserKnn(n_neighbours=2, shrinkage=0.0, item_exponent=0.0).fit(interactions)
    assert nearest.retrieve(everyone(interactions), 4, exclude_seen=True).item[0].tolist() == [2, -1, -1, -1], "itself and user 1"


def test_an_item_that_everybody_met_makes_users_less_alike():
    events = [(0, 0, 1, 1.0), (0, 1, 1, 1.0), (1, 0, 1, 1.0), (1, 2, 1, 1.0), (2, 1, 1, 1.0), (2, 3, 1, 1.0), (3, 0, 1, 1.0)]
    interactions = world(events, 4, 4)
    found = UserKnn(item_exponent=1.0, shrinkage=0.0).fit(interactions).retrieve(everyone(interactions), 2, exclude_seen=True)
    assert found.item[0].tolist() == [3, 2], "user 2 shares the rarer item"


def test_only_the_users_with_the_newest_events_are_kept():
    events = [(0, 0, 9, 1.0), (0, 1, 9, 1.0), (1, 0, 5, 1.0), (1, 2, 1, 1.0), (2, 0, 2, 1.0)]
    fitted = UserKnn(max_users=2).fit(world(events, 3, 3))
    assert len(fitted.state["indptr"]) == 3
    assert sorted(fitted.state["indices"].tolist()) == [0, 0, 2], "not item 1, which only user 0 met"


def test_the_low_pass_filter_adds_the_first_directions_of_the_normalised_matrix():
    rng = np.random.default_rng(3)
    interactions = world([(user, item, 1.0, 1.0) for user in range(40) for item in range(12) if rng.random() < 0.3], 40, 12)
    model = GraphFilter(n_factors=3, low_pass=2.0, recency_half_life_days=1e9).fit(interactions)
    x = everyone(interactions).matrix().toarray().astype(float)
    degree = x.sum(axis=0)
    normal = x / np.sqrt(np.maximum(x.sum(axis=1, keepdims=True), 1) * degree)
    v = np.linalg.svd(normal)[2][:3]
    expected = x @ weights(model) + 2.0 * (x / np.sqrt(degree)) @ v.T @ v * np.sqrt(degree)
    found = model.retrieve(everyone(interactions), 12, exclude_seen=False)
    told = x.any(axis=1)
    assert told.sum() > 30
    np.testing.assert_allclose(found.score[told], np.take_along_axis(expected, found.item.astype(np.int64), axis=1)[told], atol=1e-3)
