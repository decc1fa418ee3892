"""Lambdarank on worlds whose right order is obvious, and models that must be refused."""

from __future__ import annotations

import sys

import lightgbm
import numpy as np
import pytest

from pipelines.errors import StateError
from pipelines.ranking import rankers, trees
from pipelines.ranking.lambdarank import LambdaRank
from pipelines.ranking.protocol import RankingRows, schema_hash

LISTS, LENGTH = 120, 12


def world(seed=3, n_windows=2):
    """Return lists where the second feature decides and the others are noise."""
    rng = np.random.default_rng(seed)
    n = LISTS * LENGTH
    features = rng.random((n, 3), dtype=np.float32)
    gain = np.select([features[:, 1] > 0.9, features[:, 1] > 0.7], [3.0, 1.0], 0.0).astype(np.float32)
    window = np.arange(LISTS, dtype=np.int32) * n_windows // LISTS
    return RankingRows(features, ("noise", "signal", "hiss"), gain, np.full(LISTS, LENGTH, np.int32), window)


@pytest.fixture(scope="module")
def fitted():
    return LambdaRank(min_data_in_leaf=10, n_rounds=40).fit(world())


def test_the_decisive_feature_orders_unseen_candidates_and_carries_the_gain(fitted):
    unseen = np.array([[0.9, 0.1, 0.9], [0.1, 0.95, 0.1], [0.5, 0.8, 0.5]], np.float32)
    assert np.argsort(-fitted.score(unseen)).tolist() == [1, 2, 0]
    assert next(iter(fitted.state.gain)) == "signal"
    assert fitted.state.gain["signal"] > 0.9


def test_the_same_rows_give_the_same_bytes(fitted):
    assert LambdaRank(min_data_in_leaf=10, n_rounds=40).fit(world()).state.text == fitted.state.text


@pytest.mark.parametrize(("better", "order"), [(1.1, [0, 1, 2]), (8.0, [1, 0, 2])])
def test_gains_are_what_is_maximised_not_their_rank(better, order):
    """Kind 0 is always worth 1; kind 1 is worth a little or much more, in four lists of five, and nothing in the fifth.

    Putting kind 1 first loses (1 - 1/log2 3) where it is worth nothing, and saves the (G - 1)/(G + 1/log2 3) part of it
    elsewhere: worth it for G = 8, not for G = 1.1, although the grades stand in the same order.
    """
    n = 400
    features = np.tile(np.array([[0.0], [1.0], [2.0]], np.float32), (n, 1))
    gain = np.zeros((n, 3), np.float32)
    gain[:, 0] = 1.0
    gain[: n * 4 // 5, 1] = better
    rows = RankingRows(features, ("kind",), gain.ravel(), np.full(n, 3, np.int32), np.zeros(n, np.int32))
    score = LambdaRank(min_data_in_leaf=5, n_rounds=60).fit(rows).score(features[:3])
    assert np.argsort(-score).tolist() == order


def test_rounds_stop_early_when_the_newest_window_contradicts_the_older_ones():
    rows = world()
    rng = np.random.default_rng(9)
    newest = np.repeat(rows.window == 1, rows.group)
    gain = np.where(newest, rng.permutation(rows.gain), rows.gain)
    stopped = LambdaRank(min_data_in_leaf=10, n_rounds=150).fit(RankingRows(rows.features, rows.names, gain, rows.group, rows.window))
    assert 1 <= stopped.state.n_trees < 75


def test_one_window_trains_the_rounds_it_was_asked_for():
    assert LambdaRank(min_data_in_leaf=10, n_rounds=12).fit(world(n_windows=1)).state.n_trees == 12


def test_missing_values_are_accepted():
    rows = world()
    rows.features[::3, 0] = np.nan
    score = LambdaRank(min_data_in_leaf=10, n_rounds=5).fit(rows).score(np.full((2, 3), np.nan, np.float32))
    assert np.isfinite(score).all()


def test_an_unfitted_ranker_and_a_matrix_of_another_width_are_refused(fitted):
    with pytest.raises(StateError, match="not fitted"):
        LambdaRank().score(np.zeros((1, 3), np.float32))
    with pytest.raises(StateError, match="2 columns"):
        fitted.score(np.zeros((1, 2), np.float32))


def test_no_rows_are_refused():
    nothing = RankingRows(np.zeros((0, 1), np.float32), ("a",), np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.int32))
    with pytest.raises(StateError, match="0 rows"):
        LambdaRank().fit(nothing)


def test_a_saved_ranker_scores_the_same_to_the_last_bit_and_loads_without_pickle(fitted, tmp_path):
    rankers.save(tmp_path, fitted)
    seen = []
    sys.addaudithook(lambda event, _: seen.append(event) if event == "pickle.find_class" else None)
    loaded = rankers.load(tmp_path)
    assert seen == []
    features = world(seed=11).features
    assert np.array_equal(loaded.score(features), fitted.score(features))
    assert loaded.state.gain == fitted.state.gain
    assert loaded.n_rounds == fitted.n_rounds


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "missing"])
def test_a_damaged_model_never_reaches_the_native_parser(fitted, tmp_path, damage, monkeypatch):
    rankers.save(tmp_path, fitted)
    model = tmp_path / trees.MODEL_FILE
    raw = bytearray(model.read_bytes())
    if damage == "truncate":
        model.write_bytes(raw[: len(raw) // 2])
    elif damage == "flip":
        raw[len(raw) // 3] ^= 4
        model.write_bytes(raw)
    elif damage == "empty":
        model.write_bytes(b"")
    else:
        model.unlink()
    monkeypatch.setattr(lightgbm, "Booster", lambda **_: pytest.fail("parsed a damaged model"))
    with pytest.raises(StateError, match=r"sha256|No such file"):
        rankers.load(tmp_path)


def test_features_in_another_order_are_refused(fitted, tmp_path):
    rankers.save(tmp_path, fitted)
    file = tmp_path / rankers.RANKER_FILE
    file.write_text(file.read_text().replace('"noise"', '"temporary"').replace('"hiss"', '"noise"').replace('"temporary"', '"hiss"'))
    with pytest.raises(StateError, match="sha256"):
        rankers.load(tmp_path)


def test_the_schema_hash_knows_order_and_word_boundaries():
    assert len({schema_hash(names) for names in [("a", "b"), ("b", "a"), ("ab",), ("a",), ()]}) == 5
