"""Factor models in worlds whose answer is known."""

import numpy as np
from retriever_contract import checkerboard, everyone, random_world, world

from pipelines.retrieval import als, factors
from pipelines.retrieval.bpr import Bpr
from pipelines.retrieval.nmf import Nmf
from pipelines.retrieval.pure_svd import PureSvd


def dense(interactions):
    return np.sqrt(everyone(interactions).matrix().toarray())


def test_scores_of_pure_svd_are_the_projection_on_the_first_directions():
    rng = np.random.default_rng(1)
    interactions = world([(user, item, 1.0, 1.0) for user in range(40) for item in range(16) if rng.random() < 0.3], 40, 16)
    model = PureSvd(n_factors=4, half_life_days=1e9, recency_half_life_days=1e9, n_epochs=20).fit(interactions)
    x = dense(interactions)
    directions = np.linalg.svd(x)[2][:4]
    expected = x @ directions.T @ directions
    found = model.retrieve(everyone(interactions), 16, exclude_seen=False)
    np.testing.assert_allclose(found.score, np.take_along_axis(expected, found.item.astype(np.int64), axis=1), atol=1e-4)


def test_a_projection_never_gives_back_all_it_is_handed():
    assert factors.rank_within(64, (1000, 500)) == 64
    assert factors.rank_within(64, (1000, 40)) == 10
    assert factors.rank_within(64, (1, 3)) == 1


def test_nmf_parts_add_up_to_the_matrix_and_the_history_is_solved_without_negatives():
    interactions = checkerboard()
    model = Nmf(n_factors=2, half_life_days=1e9, recency_half_life_days=1e9).fit(interactions)
    factor = model.state["factor"]
    assert (factor >= 0).all()
    colours = np.array([factor[::2].sum(axis=0), factor[1::2].sum(axis=0)])
    assert (np.sort(colours, axis=1)[:, 0] < 1e-3).all(), "a part is a colour"
    found = model.retrieve(everyone(interactions), 20, exclude_seen=False)
    assert found.score[:, :10].min() > 0.8
    assert np.abs(found.score[:, 10:]).max() < 1e-3


def test_folding_in_is_non_negative_least_squares():
    from scipy.optimize import nnls

    interactions = random_world(9)
    model = Nmf(n_factors=3, half_life_days=1e9, recency_half_life_days=1e9, n_epochs_asked=500).fit(interactions)
    rows = everyone(interactions).matrix()
    rows.data = np.sqrt(rows.data)
    found = model._fold_in(rows, model.state["factor"])
    expected = [nnls(model.state["factor"].astype(float), row)[0] for row in rows.toarray().astype(float)]
    assert len(expected) > 3
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_gradient_of_bpr_is_that_of_its_loss():
    """Against central differences, with the same draws."""
    interactions = checkerboard(6, 8)
    rows = everyone(interactions).matrix()
    rows.data[:] = 1
    rng = np.random.default_rng(0)
    learnt = {"history": rng.standard_normal((8, 3)), "factor": rng.standard_normal((8, 3)), "bias": rng.standard_normal(8)}
    drawn = np.arange(8, dtype=np.int32)
    model = Bpr(n_factors=3, regularization=0.0)

    def loss(tables):
        draws = np.random.default_rng(5).choice(drawn, rows.nnz)
        total = 0.0
        for pair, (user, item) in enumerate(zip(np.repeat(np.arange(6), np.diff(rows.indptr)), rows.indices, strict=True)):
            met = rows.indices[rows.indptr[user] : rows.indptr[user + 1]]
            if draws[pair] in met:
                continue
            others = met[met != item]
            x = tables["history"][others].sum(axis=0) / np.sqrt(len(others))
            apart = x @ (tables["factor"][item] - tables["factor"][draws[pair]]) + tables["bias"][item] - tables["bias"][draws[pair]]
            total += np.log1p(np.exp(-apart))
        return total / rows.nnz

    found = model._gradient(rows, drawn, learnt, np.random.default_rng(5))
    checked = 0
    for name, table in learnt.items():
        for place in np.ndindex(table.shape):
            sides = []
            for nudge in (1e-4, -1e-4):
                moved = {key: value.copy() for key, value in learnt.items()}
                moved[name][place] += nudge
                sides.append(loss(moved))
            np.testing.assert_allclose(found[name][place], (sides[0] - sides[1]) / 2e-4, atol=1e-5)
            checked += 1
    assert checked == 8 * 3 * 2 + 8


def test_an_item_met_alone_is_learnt_from_by_nobody_and_still_answered():
    interactions = world([(0, 0, 1.0, 1.0), (1, 1, 1.0, 1.0)], 2, 2)
    found = Bpr(n_factors=2).fit(interactions).retrieve(everyone(interactions), 2, exclude_seen=False)
    assert (found.item >= 0).all()


def folded_in(model, interactions):
    """Return the exact solution of each user's weighted ridge regression, and what the model says."""
    known, factor = everyone(interactions), model.state["factor"].astype(float)
    confidence = known.matrix().toarray() * model.alpha
    n_pairs = (confidence > 0).sum(axis=1)
    power = (n_pairs + known.n_items / model.alpha) ** model.frequency_exponent
    expected = []
    for row, share in zip(confidence, power / power.mean(), strict=True):
        gram = factor.T @ factor + factor.T @ np.diag(row) @ factor + model.regularization * share * np.eye(factor.shape[1])
        expected.append(np.linalg.solve(gram, factor.T @ np.where(row > 0, 1 + row, 0)))
    return np.array(expected), model._fold_in(known, model.state["known"], model.state["mean_power"][0])


def test_als_regularises_those_of_whom_more_is_known_more(monkeypatch):
    monkeypatch.setattr(als, "STEP", 1.0001)
    interactions = random_world(4)
    forever = {"half_life_days": 1e9, "recency_half_life_days": 1e9}
    for exponent in (0.0, 1.0):
        model = als.Als(n_factors=4, regularization=2.0, frequency_exponent=exponent, **forever).fit(interactions)
        expected, found = folded_in(model, interactions)
        assert len(found) > 10
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_als_with_all_rows_alike_is_what_implicit_fits():
    """Our rounds and implicit's differ only in the first vectors; where all rows are of one length they end in the same scores."""
    interactions = checkerboard()
    plain, scaled = (als.Als(n_factors=4, frequency_exponent=exponent).fit(interactions) for exponent in (0.0, 1.0))
    known = everyone(interactions)
    scores = [np.sort(model.retrieve(known, 20, exclude_seen=False).score, axis=1) for model in (plain, scaled)]
    np.testing.assert_allclose(scores[0][:, -9:], scores[1][:, -9:], rtol=0.02)
