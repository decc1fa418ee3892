"""Ratings that are predicted: on paper, and on MovieLens-100K."""

from dataclasses import replace

import numpy as np
import pytest
from retriever_contract import everyone, strangers, world

from pipelines import columns as c
from pipelines.datasets.interactions import histories
from pipelines.evaluation import metrics, rating
from pipelines.retrieval.biased_mf import BiasedMf


def rated(events, n_users, n_items):
    """Return ratings of (user, item, days before now, rating)."""
    known = world([(user, item, age, 1.0) for user, item, age, _ in events], n_users, n_items)
    values = {(user, item, age): value for user, item, age, value in events}
    age = (known.as_of - known.at) / 86_400e6
    value = np.array([values[int(u), int(i), float(a)] for u, i, a in zip(known.user, known.item, age, strict=True)], dtype=np.float32)
    return replace(known, event_type=np.full(len(value), c.EVENT_TYPES.index(c.RATING), dtype=np.int8), value=value)


def test_with_enormous_regularization_a_rating_is_the_mean_and_the_biases():
    known = rated([(0, 0, 1, 5.0), (0, 1, 1, 3.0), (1, 0, 1, 3.0), (1, 1, 1, 1.0)], 2, 2)
    model = BiasedMf(n_factors=1, regularization=1e9, bias_regularization=1e-6, n_epochs=30).fit(known)
    found = model.predict(everyone(known), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    np.testing.assert_allclose(found, [5, 3, 3, 1], atol=1e-3)
    assert model.state["mean"][0] == 3
    nobody = model.predict(strangers(2, 1), np.array([0, 0]), np.array([0, 1]))
    np.testing.assert_allclose(nobody, [4, 2], atol=1e-3)


def test_the_newest_rating_of_a_pair_counts():
    known = rated([(0, 0, 9, 1.0), (0, 0, 1, 5.0), (0, 1, 1, 5.0)], 1, 2)
    assert BiasedMf().fit(known).state["mean"][0] == 5


def test_each_row_is_the_ridge_regression_on_the_other_side():
    rng = np.random.default_rng(2)
    known = rated([(u, i, 1, float(rng.integers(1, 6))) for u in range(20) for i in range(12) if rng.random() < 0.5], 20, 12)
    model = BiasedMf(n_factors=3, n_epochs=2).fit(known)
    found, told = model.folded_in(everyone(known))
    assert told.all()
    for user in (0, 7, 19):
        mine = known.user == user
        x = model.state["factor"][known.item[mine]].astype(float)
        wanted = known.value[mine] - model.state["mean"] - model.state["bias"][known.item[mine]]
        penalty = np.diag([model.regularization * mine.sum()] * 3 + [model.bias_regularization])
        np.testing.assert_allclose(found[user], np.linalg.solve(x.T @ x + penalty, x.T @ wanted), atol=1e-4)


def test_a_shop_without_ratings_gets_no_proposals():
    known = world([(0, 0, 1.0, 1.0), (0, 1, 1.0, 1.0)], 1, 2)
    assert (BiasedMf().fit(known).retrieve(everyone(known), 2, exclude_seen=False).item == -1).all()


@pytest.mark.slow
def test_on_movielens_100k_it_predicts_as_well_as_the_published_models(real_data):
    """A random fifth is held out. Surprise's five-fold figures, RMSE / MAE: biases .944/.748, SVD .934/.737, SVD++ .920/.722."""
    table = np.loadtxt(real_data / "movielens-100k" / "u.data", dtype=np.int64)
    held = np.random.default_rng(0).random(len(table)) < 0.2
    known = rated([(u - 1, i - 1, 1, float(r)) for u, i, r, _ in table[~held]], 943, 1682)
    user, item, given = table[held, 0] - 1, table[held, 1] - 1, table[held, 2].astype(float)
    predicted = np.clip(BiasedMf().fit(known).predict(histories(known, known.user_ids), user, item), 1, 5)
    everything = np.array([0, len(given)])
    assert metrics.mean(rating.rmse(everything, predicted, given)) < 0.93
    assert metrics.mean(rating.mae(everything, predicted, given)) < 0.735
