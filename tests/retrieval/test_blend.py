"""The blend of a run: what its files hold, and what its weights were learnt from."""

import numpy as np
import pytest

from pipelines.datasets.labels import Labels
from pipelines.model_settings import RetrievalSettings
from pipelines.retrieval import blend, blend_weights, merging
from pipelines.retrieval.protocol import Candidates


def source(*rows):
    """Return candidates from rows of items, scored 10, 9, 8 ..."""
    item = np.array(rows, dtype=np.int32)
    score = np.where(item < 0, -np.inf, 10 - np.arange(item.shape[1])).astype(np.float32)
    return Candidates(item, score)


def labels(wanted, n_items=40):
    """Return labels of gain 1, an item list a user."""
    indptr = np.cumsum([0, *(len(items) for items in wanted)]).astype(np.int64)
    item = np.concatenate([np.sort(items) for items in wanted]).astype(np.int32)
    names = np.array([f"u{row:04}" for row in range(len(wanted))])
    return Labels(names, np.array([f"i{item:03}" for item in range(n_items)]), indptr, item, np.ones(len(item), np.float32))


def window(n_users, seed):
    """Return a window in which `good` often has what the user wants high up, `twin` says the same, `noise` draws at random."""
    rng = np.random.default_rng(seed)
    orders = np.array([rng.permutation(40) for _ in range(n_users)])
    wanted = orders[np.arange(n_users), np.minimum(rng.geometric(0.3, n_users) - 1, 39)]
    noise = np.array([rng.permutation(40)[:10] for _ in range(n_users)])
    lists = {"noise": source(*noise), "good": source(*orders[:, :10]), "twin": source(*orders[:, :10])}
    return lists, labels([[item] for item in wanted])


def test_a_candidate_is_a_row_and_users_without_any_have_none():
    found = merging.merge({"a": source([-1, -1], [1, 0]), "b": source([-1, -1], [-1, -1])}, 3)
    table = blend.tabulate(found, np.array([70, 71], dtype=np.int32))
    assert table.select(["user", "item", "blend_rank"]).to_pylist() == [
        {"user": 71, "item": 1, "blend_rank": 1},
        {"user": 71, "item": 0, "blend_rank": 2},
    ]


def test_a_useless_source_weighs_nothing_and_a_planted_good_one_is_found_again():
    lists, truth = window(400, seed=0)
    found = blend_weights.learn([({name: lists[name] for name in ("noise", "good")}, truth)], seed=7)
    assert found.weights["noise"] < 0.02
    assert found.weights["good"] == pytest.approx(2 - found.weights["noise"], abs=1e-3), "their mean is 1"
    assert found.loss < found.loss_of_equals


def test_where_the_first_rank_says_much_more_than_the_second_the_constant_is_small():
    rng = np.random.default_rng(6)
    orders = np.array([rng.permutation(40)[:10] for _ in range(500)])
    steep = [[row[0]] if rng.random() < 0.8 else [row[rng.integers(1, 10)]] for row in orders]
    level = [[row[rng.integers(0, 10)]] for row in orders]
    noise = source(*(rng.permutation(40)[:10] for _ in range(500)))
    found = [blend_weights.learn([({"a": source(*orders), "b": noise}, labels(wanted))], seed=7) for wanted in (steep, level)]
    assert [learnt.constant for learnt in found] == [5, 60]


def test_two_sources_that_say_the_same_share_their_weight():
    lists, truth = window(400, seed=1)
    found = blend_weights.learn([(lists, truth)], seed=7)
    assert found.weights["good"] == pytest.approx(found.weights["twin"], abs=1e-3)


def test_the_gradient_is_that_of_the_loss():
    lists, truth = window(300, seed=2)
    windows = [({name: lists[name] for name in ("noise", "good")}, truth)]
    (flat,) = blend_weights._flat(windows, 7)
    rng = np.random.default_rng(0)
    for weights in rng.uniform(0, 3, (5, 2)):
        value = blend_weights.worth(flat.rank, 20.0)
        loss, gradient = flat.loss(weights, value)
        step = 1e-6 * np.eye(2)
        numeric = [(flat.loss(weights + step[i], value)[0] - flat.loss(weights - step[i], value)[0]) / 2e-6 for i in range(2)]
        np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-7)
        assert np.isfinite(loss)


def test_the_loss_of_a_list_is_that_of_the_formula_on_paper():
    """One user, items 5 and 6 from one source at ranks 1 and 2; the user took 6: -log softmax(w 61/62 over w 61/61, w 61/62)."""
    flat = next(iter(blend_weights._flat([({"a": source([5, 6])}, labels([[6]]))], 0)))
    w, far = 2.0, 61 / 62
    loss, _ = flat.loss(np.array([w]), blend_weights.worth(flat.rank, 60.0))
    assert loss == pytest.approx(np.log(np.exp(w) + np.exp(w * far)) - w * far + blend_weights.REGULARIZATION * w * w)


def test_the_same_windows_give_the_same_weights_also_where_users_are_drawn(monkeypatch):
    monkeypatch.setattr(blend_weights, "MOST_LISTS", 150)
    windows = [window(200, seed=3), window(200, seed=4)]
    first, again, other = (blend_weights.learn(windows, seed) for seed in (7, 7, 8))
    assert first == again
    assert first.n_lists <= 152
    assert first.weights != other.weights


def test_too_few_lists_teach_nothing():
    lists, truth = window(20, seed=5)
    assert blend_weights.learn([(lists, truth)], seed=7).weights == {}
    assert blend_weights.learn([], seed=7).weights == {}


def test_settings_become_the_recipe():
    settings = RetrievalSettings(
        sources=("popular", "ease"), blend="rrf", weights={"ease": 2.0}, quotas={"popular": {"least": 2, "most": 9}, "ease": {"least": 1}}
    )
    made = blend.recipe_of(settings, None)
    assert made == merging.Recipe({"ease": 2.0}, {"popular": 2, "ease": 1}, {"popular": 9})
    assert merging.Recipe.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"blend": "rrf", "weights": {"eese": 1.0}}, "eese"),
        ({"blend": "rrf", "weights": {"ease": -1.0}}, "greater than or equal to 0"),
        ({"blend": "rrf", "weights": {"ease": float("nan")}}, "finite"),
        ({"weights": {"ease": 1.0}}, "blend = 'rrf'"),
        ({"quotas": {"als": {"least": 1}}}, "als"),
        ({"quotas": {"ease": {"least": 60}}}, "asked for 50"),
        ({"quotas": {"ease": {"least": 5, "most": 4}}}, "below its least"),
        ({"k_blend": 50, "quotas": {"ease": {"least": 30}, "popular": {"least": 30}}}, "guarantee 60 places"),
        ({"blend": "rrf", "weights": {"ease": 0.0, "popular": 0.0}}, "0 for every source"),
        ({"sources": ()}, "sources"),
        ({"sources": ("popular", "ease", "popular")}, r"names \['popular'\] more than once"),
        ({"sources": tuple(f"s{n}" for n in range(64))}, "has 64, a list has room for 63"),
        ({"k_blend": 0}, "k_blend"),
        ({"k_per_source": 0}, "k_per_source"),
    ],
)
def test_a_line_up_that_cannot_hold_is_refused_by_name(knobs, complaint):
    with pytest.raises(ValueError, match=complaint):
        RetrievalSettings(**{"sources": ("popular", "ease"), **knobs})
