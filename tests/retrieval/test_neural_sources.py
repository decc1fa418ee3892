"""The neural sources learn what is planted, and answer with numpy what they were taught with JAX."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from retriever_contract import NOW, everyone, world

from pipelines.datasets.interactions import Histories
from pipelines.retrieval import gru4rec, lightgcn
from pipelines.retrieval.bert4rec import Bert4Rec
from pipelines.retrieval.bpr import Bpr
from pipelines.retrieval.gru4rec import Gru4Rec
from pipelines.retrieval.lightgcn import LightGcn
from pipelines.retrieval.neumf import NeuMf
from pipelines.retrieval.neural import sequences
from pipelines.retrieval.popular import Popular
from pipelines.retrieval.sasrec import SasRec
from pipelines.retrieval.two_tower import TwoTower

pytest.importorskip("jax")

SEQUENCE = {"n_factors": 16, "max_history": 8, "batch_size": 64, "learning_rate": 1e-2, "decay": 1.0, "warmup": 1, "n_negatives": 0}

UNTAUGHT = {"n_epochs": 0, "final_epochs": 0}


def stirred(fitted):
    """Return a source with other parameters than the first, none of them 0 or 1: which ones does not matter where two answers are compared."""
    rng = np.random.default_rng(3)
    floats = {name: value for name, value in fitted.state.items() if value.dtype == np.float32}
    assert floats
    return replace(
        fitted, state=fitted.state | {name: value + rng.normal(0, 0.3, value.shape).astype("f") for name, value in floats.items()}
    )


@pytest.fixture(scope="module")
def chain():
    """Return (events, each user's next item): 12 items in a hidden ring, of which eight steps in ten take the next one."""
    rng = np.random.default_rng(0)
    follower, ring = np.empty(12, dtype=int), rng.permutation(12)
    follower[ring] = np.roll(ring, -1)
    events, held_out = [], []
    for user in range(150):
        item = int(rng.integers(12))
        for step in range(8):
            events.append((user, item, 10.0 - step, 1.0))
            item = int(follower[item]) if rng.random() < 0.8 else int(rng.integers(12))
        held_out.append(int(follower[events[-1][1]]))
    return world(events, 150, 12), np.array(held_out)


def first_is_right(retriever, chain):
    interactions, following = chain
    found = retriever.fit(interactions).retrieve(everyone(interactions), 1, exclude_seen=False)
    return (found.item[:, 0] == following).mean()


@pytest.mark.parametrize(
    "retriever",
    [
        SasRec(**SEQUENCE, n_layers=1, n_heads=1, n_epochs=15),
        Gru4Rec(**SEQUENCE, n_hidden=16, n_epochs=15),
        Bert4Rec(**SEQUENCE, n_layers=1, n_heads=1, n_epochs=60, patience=20, last_share=0.5),
    ],
    ids=["sasrec", "gru4rec", "bert4rec"],
)
def test_a_model_of_sequences_names_the_next_item_of_a_planted_chain(retriever, chain):
    assert first_is_right(Popular(), chain) < 0.2
    assert first_is_right(retriever, chain) > 0.9


def test_numpy_answers_what_jax_was_taught(chain):
    """The whole-sequence pass of training, its last position, and the pass of serving, which computes that position alone."""
    from jax import numpy as jnp

    interactions, _ = chain
    for retriever in (SasRec(**SEQUENCE, **UNTAUGHT), Gru4Rec(**SEQUENCE, **UNTAUGHT), Bert4Rec(**SEQUENCE, **UNTAUGHT)):
        fitted = stirred(retriever.fit(interactions))
        item = np.array([[127, 127, 3, 4], [1, 2, 3, 4]], dtype=np.int32)
        whole = fitted.encode(jnp, {name: jnp.asarray(value) for name, value in fitted.state.items()}, item, 127, None)
        alone = fitted.encode(np, fitted.state, item, 127, None, last=True)
        np.testing.assert_allclose(np.asarray(whole)[:, -1], alone[:, 0], rtol=1e-3, atol=1e-4)


def test_padding_and_what_lies_beyond_the_history_change_nothing(chain):
    """A session of two steps gets the same answer behind any padding."""
    fitted = stirred(SasRec(**SEQUENCE, **UNTAUGHT).fit(chain[0]))
    short = fitted.encode(np, fitted.state, np.array([[3, 4]]), 127, None, last=True)
    padded = fitted.encode(np, fitted.state, np.array([[127, 127, 127, 3, 4]]), 127, None, last=True)
    np.testing.assert_allclose(short, padded, rtol=1e-4, atol=1e-5)


def test_a_gated_unit_on_paper():
    """One unit, all weights 0 but W: z = sigmoid(ln 3) = 3/4, n = tanh(x); h' = n/4 + 3h/4."""
    given = np.array([[np.log(3), 0.0, 0.5]])
    found = gru4rec._unit(np, given, np.array([[2.0]]), np.zeros((1, 3)))
    assert found[0, 0] == pytest.approx(np.tanh(0.5) / 4 + 1.5)


def test_lightgcn_adds_up_items_over_the_graph_for_a_user_never_seen():
    """Users {0}, {0, 1}: A = [[1/sqrt 2, 0], [1/2, 1/sqrt 2]], so (I + A'A) of unit vectors has rows (7/4, .354) and (.354, 3/2)."""
    interactions = world([(0, 0, 3.0, 1.0), (1, 0, 2.0, 1.0), (1, 1, 1.0, 1.0)], 2, 2)
    graph = lightgcn._graph(sequences.learnt_from(interactions))
    np.testing.assert_allclose(graph.toarray(), [[2**-0.5, 0], [0.5, 2**-0.5]], rtol=1e-6)
    vector, spread = LightGcn(n_rounds=1)._spread(np.eye(2, dtype=np.float32), graph)
    summed = np.array([[1.75, 8**-0.5], [8**-0.5, 1.5]])
    np.testing.assert_allclose(vector, summed / np.linalg.norm(summed, axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(spread, summed / np.sqrt([[2], [1]]), rtol=1e-5)


def test_lightgcn_learns_a_pair_from_a_graph_that_lacks_it():
    """Two users of one and the same pair of items: with the pairs of the batch taken out nothing is left to propagate."""
    interactions = world([(user, item, 3.0 - item, 1.0) for user in range(2) for item in range(2)], 2, 2)
    graph = lightgcn._graph(sequences.learnt_from(interactions))
    data = lightgcn._padded(graph, graph, 2)
    given = {"everything": np.ones((), dtype=bool), "pair": np.arange(4, dtype=np.int32)}
    to_users, to_items = lightgcn._products(data, given, len(data["user.indptr"]) - 1, 2)
    assert not np.asarray(to_users(np.eye(2, dtype=np.float32))).any()
    given["pair"] = np.array([0, 0, 0, 0], dtype=np.int32)
    wanted = graph.toarray()
    wanted[0, 0] = 0
    to_users, to_items = lightgcn._products(data, given, len(data["user.indptr"]) - 1, 2)
    np.testing.assert_allclose(np.asarray(to_users(np.eye(2, dtype=np.float32)))[:2], wanted, atol=1e-6)
    np.testing.assert_allclose(np.asarray(to_items(np.eye(len(data["user.indptr"]) - 1, dtype=np.float32)))[:, :2], wanted.T, atol=1e-6)


def test_neumf_takes_the_item_it_is_asked_for_out_of_the_history():
    """GMF with q = e = (1, 1, 0), (0, 1, 1), (0, 1, 0) and a history of the first two."""
    fitted = NeuMf(architecture="gmf", n_factors=3, n_epochs=0, pretrain_epochs=0).fit(
        world([(0, 0, 2.0, 1.0), (0, 1, 1.0, 1.0), (1, 2, 1.0, 1.0)], 2, 3)
    )
    table = np.zeros((128, 3), dtype=np.float32)
    table[:3] = [[1, 1, 0], [0, 1, 1], [0, 1, 0]]
    fitted.state.update({"gmf.history": table, "gmf.item": table})
    asked = Histories(np.array([0, 2]), np.array([0, 1], np.int32), np.array([1, 2]), np.ones(2, np.float32), 3, NOW)
    # Item 0: q_1 . e_0 / 1 = 1. Item 1: q_0 . e_1 / 1 = 1. Item 2: (q_0 + q_1) . e_2 / sqrt 2 = 2 / sqrt 2.
    np.testing.assert_allclose(fitted.score(asked, np.array([[0, 1, 2, -1]], np.int32)), [[1, 1, 2**0.5, -np.inf]], rtol=1e-6)


def test_neumf_begins_as_the_factors_learnt_alone():
    rng = np.random.default_rng(3)
    interactions = world([(user, int(rng.integers(9)), 9.0 - step, 1.0) for user in range(30) for step in range(5)], 30, 9)
    begun = NeuMf(n_factors=4, n_epochs=0, n_validation=0, pretrain_epochs=3, seed=5).fit(interactions)
    met = lightgcn._pairs(sequences.learnt_from(interactions))
    alone = Bpr(n_factors=4, n_epochs=3, seed=5).learnt(met, np.asarray(met.sum(axis=0)).ravel() > 0)
    asked = Histories(np.array([0, 2]), np.array([0, 1], np.int32), np.array([1, 2]), np.ones(2, np.float32), 9, NOW)
    wanted = alone["history"][:2].sum(axis=0) / 2**0.5 @ alone["factor"].T + alone["bias"]
    np.testing.assert_allclose(begun.score(asked, np.arange(2, 9, dtype=np.int32)[None])[0], wanted[2:], rtol=1e-5)
    assert np.ptp(wanted) > 0


def test_a_two_tower_reads_profiles_and_descriptions():
    """Users of Norway take even items and users of Peru odd ones."""
    rng = np.random.default_rng(1)
    events = [(user, int(rng.integers(6)) * 2 + user % 2, 10.0 - step, 1.0) for user in range(80) for step in range(6)]
    interactions = world(events, 80, 12)
    knobs = {"n_factors": 16, "max_history": 6, "batch_size": 64, "n_epochs": 8, "n_negatives": 12, "n_pool": 12, "n_hard": 2}
    fitted = TwoTower(**knobs, learning_rate=1e-2, warmup=1).fit(interactions)
    assert set(fitted.state["user_words"].tolist()) == {"country=NO", "country=PE", "age_band=25-34"}
    found = fitted.retrieve(everyone(interactions), 4, exclude_seen=False)
    assert (found.item % 2 == np.arange(80)[:, None] % 2).mean() > 0.95


def test_the_library_and_a_trained_source_do_not_import_jax():
    script = "import sys, pipelines.retrieval.lineup; sys.exit('jax' in sys.modules or 'optax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
