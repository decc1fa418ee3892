"""Networks that rank do what their papers say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ranker_contract import NETWORK, ndcg, world

from pipelines.errors import ReloopError, StateError
from pipelines.ranking import rankers
from pipelines.ranking.neural import inputs, network
from pipelines.ranking.neural.dcn import Dcn
from pipelines.ranking.neural.multi_task import Mmoe, SharedBottom
from pipelines.ranking.neural.wide_deep import WideDeep
from pipelines.ranking.protocol import RankingRows


def test_a_cross_layer_is_that_of_the_paper():
    """x0 = (1, 2), W = [[0, 1], [1, 0]], b = (1, 0): W x = (2, 1), x1 = (1 * (2 + 1) + 1, 2 * 1 + 2) = (4, 4); again: (1*5+4, 2*4+4)."""
    swap, shift = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 0.0])
    params = {f"cross{layer}.{part}": value for layer in (0, 1) for part, value in (("weight", swap), ("shift", shift))}
    params |= {"deep0.weight": np.zeros((2, 1)), "deep0.shift": np.zeros(1), "out.deep": np.zeros(1), "out.shift": np.array([0.5])}
    x = np.array([[1.0, 2.0]])
    first = Dcn(n_cross=2, n_layers=1, rank=0).ranked(np, params | {"out.cross": np.array([1.0, 0.0])}, x)
    second = Dcn(n_cross=2, n_layers=1, rank=0).ranked(np, params | {"out.cross": np.array([0.0, 1.0])}, x)
    assert (first.tolist(), second.tolist()) == ([9.5], [12.5])
    assert Dcn(n_cross=1, n_layers=1, rank=0).ranked(np, params | {"out.cross": np.array([1.0, 1.0])}, x).tolist() == [8.5]
    low = {f"cross{layer}.down": np.array([[1.0], [0.0]]) for layer in (0, 1)} | {
        f"cross{layer}.up": np.array([[0.0, 1.0]]) for layer in (0, 1)
    }
    found = Dcn(n_cross=1, n_layers=1, rank=1).ranked(np, params | low | {"out.cross": np.array([1.0, 1.0])}, x)
    assert found.tolist() == [(1 * 1 + 1) + (2 * 1 + 2) + 0.5], "W x = (0, x_0)"


def test_the_wide_part_remembers_what_each_bin_was_worth():
    bins = np.arange(8.0).reshape(2, 4)
    params = {"wide.bins": bins, "wide.slope": np.array([10.0, 0.0]), "out.deep": np.zeros(1), "out.shift": np.zeros(1)}
    params |= {"deep0.weight": np.zeros((2, 1)), "deep0.shift": np.zeros(1)}
    found = WideDeep(n_bins=4, n_layers=1).ranked(np, params, np.array([[-1.0, 1.0], [0.1, -0.4]]))
    assert found.tolist() == [0 + 7 - 10, 2 + 5 + 1.0]


def test_a_gate_mixes_the_experts_for_its_own_head():
    """Two experts say (1) and (3); gates of (0, 0) and (0, log 3) weigh them 1/2, 1/2 and 1/4, 3/4: heads see 2 and 2.5."""
    params = {"view.gate": np.zeros((1, 2)), "purchase.gate": np.array([[0.0, np.log(3.0)]])}
    experts = np.array([[[1.0], [3.0]]])
    x = np.ones((1, 1))
    assert Mmoe().seen(np, params, "view", x, experts).tolist() == [[2.0]]
    np.testing.assert_allclose(Mmoe().seen(np, params, "purchase", x, experts), [[2.5]])


def test_worth_is_the_weighted_sum_of_probabilities_and_of_the_expected_amount():
    """Towers that are 0 leave the shifts: p(view) 1/2, p(purchase) 1/4, amount e^log(11) - 1 = 10."""
    told = {"view": 0.0, "purchase": -np.log(3.0), "value": np.log(11.0)}
    params = {f"{head}.shift": np.array([logit]) for head, logit in told.items()} | {f"{head}.out": np.zeros(1) for head in told}
    params |= {"deep0.weight": np.zeros((1, 1)), "deep0.shift": np.zeros(1)}
    params |= {f"{head}.tower0.{part}": np.zeros(shape) for head in told for part, shape in (("weight", (1, 1)), ("shift", (1,)))}
    worth = SharedBottom(view_weight=2.0, purchase_weight=4.0, value_weight=0.1).ranked(np, params, np.ones((1, 1)))
    np.testing.assert_allclose(worth, [2 / 2 + 4 / 4 + 0.1 * 10 / 4])


def test_the_softmax_loss_is_the_cross_entropy_of_gains_and_scores():
    """Scores (log 3, 0), gains (3, 1): softmax (3/4, 1/4), loss -(3/4 log 3/4 + 1/4 log 1/4); a pad and a list without gain count nothing."""
    batch = {"there": np.array([[True, True, False], [True, True, True]]), "gain": np.array([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])}
    found = network.listwise(np, np.array([[np.log(3.0), 0.0, 99.0], [1.0, 2.0, 3.0]]), batch)
    np.testing.assert_allclose(found, -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), rtol=1e-6)


def deeds(rows: RankingRows) -> RankingRows:
    """Return the world's rows with what was done: the best is bought for 10 to 20, the good viewed."""
    bought = rows.gain > 2
    value = np.where(bought, 10 + 10 * np.arange(len(bought)) / len(bought), 0)
    return replace(
        rows,
        outcomes={
            "view": (rows.gain > 0).astype(np.float32),
            "add_to_cart": np.zeros(len(bought), np.float32),
            "purchase": bought.astype(np.float32),
            "value": value.astype(np.float32),
        },
    )


@pytest.mark.parametrize("ranker", ["shared_bottom", "mmoe"])
def test_declared_weights_decide_what_comes_first(ranker):
    """With the outcomes known it tells a purchase from a view, which the gain alone does not say; a head that never happens is left out."""
    rows, unseen = deeds(world()), world(seed=8)
    fitted = rankers.make(ranker, NETWORK | {"value_weight": 0.1}).fit(rows)
    assert {name.split(".")[0] for name in fitted.state.arrays if name.endswith(".out")} == {"view", "purchase", "value"}
    assert ndcg(unseen, fitted.score(unseen.features, unseen.group)) > 0.95
    only_views = replace(fitted, purchase_weight=0.0, value_weight=0.0)
    assert not np.array_equal(only_views.score(unseen.features), fitted.score(unseen.features))


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_inputs_stay_small_whatever_the_unit_and_tell_where_a_value_was_missing(scaling):
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.lognormal(3, 3, 500), np.full(500, 7.0), rng.random(500), np.full(500, np.nan)]).astype(np.float32)
    features[::5, 2] = np.nan
    learnt = inputs.learn(features, rng)
    found = inputs.made(learnt, features, scaling)
    assert found.shape == (500, inputs.width(learnt)) == (500, 6)
    assert np.abs(found).max() < 6
    assert (found[:, 1] == 0).all(), "what never varies says nothing"
    assert (found[:, 4] == (np.arange(500) % 5 == 0)).all()
    assert (found[:, 5] == 1).all()
    order = np.argsort(features[:, 0])
    assert (np.diff(found[order, 0]) >= 0).all(), "and the order is kept"
    far = inputs.made(learnt, np.array([[1e30, 8.0, np.inf, 3.0]], np.float32), scaling)
    assert np.isfinite(far).all()
    assert far[0, 2] == 0


def test_a_quantile_input_is_the_mean_place_of_equal_values():
    """A half of zeros stands at the middle of the lower half, the rest evenly above."""
    values = np.concatenate([np.zeros(500), np.arange(1, 501)]).astype(np.float32)[:, None]
    learnt = inputs.learn(values, np.random.default_rng(0))
    found = inputs.made(learnt, np.array([[0.0], [250.0], [500.0], [9999.0]], np.float32), "quantile")
    np.testing.assert_allclose(found[:, 0], [-0.5, 0.5, 1, 1], atol=0.05)


def test_long_lists_show_every_taken_candidate_at_each_step():
    rows = world(n_lists=30)
    lists = network._Lists(rows, {}, 4, 8)
    seen = list(lists.batches(lists.telling, np.random.default_rng(0)))
    assert len(seen) == -(-int(lists.telling.sum()) // 8)
    shown = sum((batch["gain"] > 0).sum() for batch in seen)
    assert shown == sum(min(4, n) for n in np.add.reduceat(rows.gain > 0, np.cumsum(rows.group) - rows.group, dtype=int)[lists.telling])
    assert all(batch["features"].shape == (8, 4, 8) for batch in seen)


def test_a_budget_in_seconds_is_kept():
    with pytest.raises(ReloopError, match="no step done within seconds = 1e-09"):
        rankers.make("dcn", NETWORK | {"seconds": 1e-9, "n_cross": 1}).fit(world())


def test_nothing_to_learn_from_is_said():
    rows = world(n_lists=20)
    with pytest.raises(StateError, match="no list with a taken and an ignored candidate"):
        rankers.make("dcn", NETWORK).fit(replace(rows, gain=np.zeros_like(rows.gain)))
