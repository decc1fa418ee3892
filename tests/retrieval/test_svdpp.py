"""SVD++: its equations against least squares written out, and on MovieLens-100K beside biased matrix factorisation."""

from dataclasses import replace

import numpy as np
import pytest
from retriever_contract import everyone, strangers, world
from test_biased_mf import rated

from pipelines import columns as c
from pipelines.datasets.interactions import histories
from pipelines.evaluation import metrics, rating
from pipelines.retrieval import ratings, svdpp
from pipelines.retrieval.biased_mf import BiasedMf
from pipelines.retrieval.svdpp import SvdPp


@pytest.fixture
def some():
    """Return ratings of which half of all pairs are given."""
    rng = np.random.default_rng(2)
    return rated([(u, i, 1, float(rng.integers(1, 6))) for u in range(15) for i in range(9) if rng.random() < 0.5], 15, 9)


def met(interactions):
    """Return float64 [n_users, n_items], 1 / sqrt of how much a user met, where it met something."""
    there = np.zeros((len(interactions.user_ids), len(interactions.item_ids)))
    there[interactions.user, interactions.item] = 1
    return there / np.sqrt(np.maximum(there.sum(axis=1, keepdims=True), 1))


def test_with_enormous_regularization_a_rating_is_the_mean_and_the_biases():
    known = rated([(0, 0, 1, 5.0), (0, 1, 1, 3.0), (1, 0, 1, 3.0), (1, 1, 1, 1.0)], 2, 2)
    model = SvdPp(n_factors=1, regularization=1e9, implicit_regularization=1e9, bias_regularization=1e-6, n_epochs=30).fit(known)
    found = model.predict(everyone(known), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    np.testing.assert_allclose(found, [5, 3, 3, 1], atol=1e-3)
    np.testing.assert_allclose(model.predict(strangers(2, 1), np.array([0, 0]), np.array([0, 1])), [4, 2], atol=1e-3)


def test_what_was_met_places_the_user_by_the_root_of_how_much(some):
    """Equation 15 with p_u = 0, b_u = 0: a user who viewed items 1 and 4 and rated nothing."""
    model = SvdPp(n_factors=3).fit(some)
    viewer = world([(0, 1, 2.0, 1.0), (0, 4, 1.0, 1.0), (0, 4, 0.5, 1.0)], 1, 9)
    found = model.predict(everyone(viewer), np.zeros(9, dtype=np.int64), np.arange(9))
    z = (model.state["implicit"][1] + model.state["implicit"][4]) / 2**0.5
    np.testing.assert_allclose(found, model.state["mean"] + model.state["bias"] + model.state["factor"][:, :-1] @ z, rtol=1e-5)
    assert (model.retrieve(everyone(viewer), 3, exclude_seen=True).item >= 0).all()


def test_taste_and_bias_of_a_user_are_the_ridge_regression_on_what_is_left(some):
    model = SvdPp(n_factors=3, n_epochs=2).fit(some)
    found, told = model.folded_in(everyone(some))
    assert told.all()
    z = met(some) @ model.state["implicit"]
    for user in (0, 7, 14):
        mine = some.user == user
        x = model.state["factor"][some.item[mine]].astype(float)
        wanted = some.value[mine] - model.state["mean"] - model.state["bias"][some.item[mine]] - x[:, :3] @ z[user]
        penalty = np.diag([model.regularization * mine.sum()] * 3 + [model.bias_regularization])
        expected = np.linalg.solve(x.T @ x + penalty, x.T @ wanted)
        expected[:3] += z[user]
        np.testing.assert_allclose(found[user], expected, atol=1e-4)


@pytest.mark.parametrize("held", [svdpp.HELD, 0], ids=["normal equations held", "made anew in each step"])
def test_implicit_factors_minimise_the_loss_together_with_every_users_taste_and_bias(some, monkeypatch, held):
    """Against one least-squares system over all of y, p and b at once, written out row by row."""
    monkeypatch.setattr(svdpp, "HELD", held)
    model = SvdPp(n_factors=2, n_steps=200)
    users, _ = ratings.learnt_from(some)
    rng = np.random.default_rng(3)
    q, bias = rng.standard_normal((9, 2)).astype(np.float32), rng.standard_normal(9).astype(np.float32) / 3
    found = model._implicit(users, svdpp._met(some.user.astype(np.int64), some.item, users.shape), q, bias, np.zeros_like(q))

    spread, n = met(some), users.getnnz(axis=1)
    n_y, wide = 9 * 2, 3  # unknowns: y, then (p, b) of each user
    rows, wanted = [], []
    for user, item in zip(*users.nonzero(), strict=True):
        row = np.zeros(n_y + 15 * wide)
        row[:n_y] = np.outer(spread[user], q[item]).ravel()
        row[n_y + user * wide : n_y + (user + 1) * wide] = [*q[item], 1]
        rows.append(row)
        wanted.append(users[user, item] - bias[item])
    penalty = np.concatenate(
        [
            np.repeat(model.implicit_regularization * (spread > 0).sum(axis=0), 2),
            np.concatenate([[model.regularization * of_user] * 2 + [model.bias_regularization] for of_user in n]),
        ]
    )
    system = np.vstack([rows, np.diag(np.sqrt(penalty))])
    expected = np.linalg.lstsq(system, np.concatenate([wanted, np.zeros(len(penalty))]), rcond=None)[0]
    np.testing.assert_allclose(found.ravel(), expected[:n_y], atol=2e-3)
    assert np.abs(expected[:n_y]).max() > 0.05


def test_every_round_lowers_the_loss(some):
    """Squared errors and all penalties, with users folded in as serving folds them in."""
    losses = []
    for n_epochs in (1, 2, 4, 8, 16):
        model = SvdPp(n_factors=3, n_epochs=n_epochs, n_steps=50).fit(some)
        found, _ = model.folded_in(everyone(some))
        z = met(some) @ model.state["implicit"]
        error = model.predict(everyone(some), some.user.astype(np.int64), some.item) - some.value
        loss = (error**2).sum() + model.regularization * (
            (np.bincount(some.user)[:, None] * (found[:, :-1] - z) ** 2).sum()
            + (np.bincount(some.item)[:, None] * model.state["factor"][:, :-1] ** 2).sum()
        )
        loss += model.implicit_regularization * (np.bincount(some.item)[:, None] * model.state["implicit"] ** 2).sum()
        losses.append(loss + model.bias_regularization * ((found[:, -1] ** 2).sum() + (model.state["bias"] ** 2).sum()))
    assert np.all(np.diff(losses) < 0)


def test_a_view_beside_ratings_moves_what_is_predicted(some):
    """BiasedMf leaves views aside; here they say what the user chose to look at."""
    view = replace(
        some,
        user=np.append(some.user, 14).astype(np.int32),
        item=np.append(some.item, 8).astype(np.int32),
        at=np.append(some.at, some.as_of - 1),
        weight=np.append(some.weight, 1).astype(np.float32),
        event_type=np.append(some.event_type, c.EVENT_TYPES.index(c.VIEW)).astype(np.int8),
        value=np.append(some.value, np.nan).astype(np.float32),
    )
    assert (14, 8) not in set(zip(some.user.tolist(), some.item.tolist(), strict=True))
    for model, moved in ((BiasedMf(n_factors=2), False), (SvdPp(n_factors=2), True)):
        fitted = model.fit(some)
        before, after = (fitted.predict(everyone(known), np.array([14]), np.array([0])) for known in (some, view))
        assert (abs(float(before[0] - after[0])) > 1e-4) == moved


def test_a_shop_without_ratings_gets_no_proposals():
    known = world([(0, 0, 1.0, 1.0), (0, 1, 1.0, 1.0)], 1, 2)
    assert (SvdPp().fit(known).retrieve(everyone(known), 2, exclude_seen=False).item == -1).all()


@pytest.mark.slow
def test_on_movielens_100k_it_predicts_better_than_without_what_was_met(real_data):
    """A random fifth is held out. Surprise's five-fold figures, RMSE / MAE: SVD .934/.737, SVD++ .920/.722."""
    table = np.loadtxt(real_data / "movielens-100k" / "u.data", dtype=np.int64)
    held = np.random.default_rng(0).random(len(table)) < 0.2
    known = rated([(u - 1, i - 1, 1, float(r)) for u, i, r, _ in table[~held]], 943, 1682)
    user, item, given = table[held, 0] - 1, table[held, 1] - 1, table[held, 2].astype(float)
    errors = {}
    for name, model in (("biased_mf", BiasedMf()), ("svdpp", SvdPp())):
        predicted = np.clip(model.fit(known).predict(histories(known, known.user_ids), user, item), 1, 5)
        everything = np.array([0, len(given)])
        errors[name] = metrics.mean(rating.rmse(everything, predicted, given)), metrics.mean(rating.mae(everything, predicted, given))
    assert errors["svdpp"][0] < min(0.918, errors["biased_mf"][0] - 0.004)
    assert errors["svdpp"][1] < min(0.721, errors["biased_mf"][1])
