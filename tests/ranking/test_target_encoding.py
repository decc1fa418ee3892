"""Target encoding: on paper, and that it finds what there is to find and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation import metrics
from pipelines.ranking.lambdarank import LambdaRank
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.target_encoding import Encoding, Tally

N_ITEMS, N_LISTS, K = 400, 300, 20
ITEMS = np.array([f"i{n:03d}" for n in range(N_ITEMS)])


def test_on_paper():
    """Two candidates with `a` gained 3 and 0, one with `b` 0: prior 1, so with smoothing 2 a = (3 + 2) / 4, b = (0 + 2) / 3, c = 1."""
    tally = Tally({"category": np.array(["a", "b", "c"])})
    tally.add({"category": np.array([0, 0, 1], np.int32)}, np.array([3, 0, 0], np.float32))
    assert tally.encoding(2.0).of("category", np.array(["b", "a", "c", "never seen"])) == pytest.approx([2 / 3, 5 / 4, 1, 1])


def test_blocks_add_up_and_an_item_without_a_category_counts_for_the_prior_alone():
    tally = Tally({"category": np.array(["a"])})
    tally.add({"category": np.array([0], np.int32)}, np.array([2], np.float32))
    tally.add({"category": np.array([-1], np.int32)}, np.array([0], np.float32))
    assert tally.encoding(1.0).of("category", np.array(["a", "z"])) == pytest.approx([1.5, 1.0])


def test_without_a_window_before_nothing_is_known():
    assert np.isnan(Encoding().of("item", ITEMS[:3])).all()
    assert np.isnan(Tally({"item": ITEMS}).encoding(5.0).of("item", ITEMS[:3])).all()


def test_what_is_saved_is_what_is_loaded(tmp_path):
    tally = Tally({"item": ITEMS, "category": np.array(["a", "b"])})
    tally.add({"item": np.array([3, 3, 7], np.int32), "category": np.array([0, 1, 1], np.int32)}, np.array([1, 0, 3], np.float32))
    kept = tally.encoding(4.0)
    kept.save(tmp_path / "encoding.parquet")
    loaded = Encoding.load(tmp_path / "encoding.parquet")
    for kind, keys in (("item", ITEMS), ("category", np.array(["a", "b", "c"])), ("brand", np.array(["x"]))):
        np.testing.assert_array_equal(loaded.of(kind, keys), kept.of(kind, keys))


def windows(rng, worth):
    """Return three windows of lists: items drawn alike, a positive where a draw falls below the item's worth."""
    item = np.stack([np.stack([rng.choice(N_ITEMS, K, replace=False) for _ in range(N_LISTS)]) for _ in range(3)])
    return item, (rng.random(item.shape) < worth[item]).astype(np.float32)


def encoded(item, gain, by):
    """Return the encoding of each window's candidates by another window, `by[w]`."""
    found = np.empty(item.shape, np.float32)
    for window, other in enumerate(by):
        tally = Tally({"item": ITEMS})
        tally.add({"item": item[other].ravel().astype(np.int32)}, gain[other].ravel())
        found[window] = tally.encoding(1.0).of("item", ITEMS)[item[window]]
    return found


def lift(item, gain, value):
    """Return the NDCG@10 of a ranker trained on two windows over that of a random order, on the third; in standard errors."""
    rng = np.random.default_rng(1)
    rows = RankingRows(
        value[:2].reshape(-1, 1), ("encoded_item",), gain[:2].ravel(), np.full(2 * N_LISTS, K, np.int32), np.repeat([0, 1], N_LISTS).astype(np.int32)
    )  # fmt: skip
    score = LambdaRank(n_rounds=20, min_data_in_leaf=20, num_threads=1).fit(rows).score(value[2].reshape(-1, 1)).reshape(N_LISTS, K)
    one = [
        np.array([metrics.ndcg(judged(gain[2], order), 10) for order in (np.argsort(-(score + 1e-9 * rng.random(score.shape)), axis=1),)])[
            0
        ]
    ]
    other = np.mean([metrics.ndcg(judged(gain[2], np.argsort(rng.random(score.shape), axis=1)), 10) for _ in range(20)], axis=0)
    difference = (one[0] - other)[gain[2].any(axis=1)]
    return difference.mean() / (difference.std() / np.sqrt(len(difference)))


def judged(gain, order):
    """Return lists as the metrics take them: item = position in the list."""
    row, place = np.nonzero(gain)
    indptr = np.append(0, np.cumsum((gain > 0).sum(axis=1))).astype(np.int64)
    return metrics.judge(order.astype(np.int32), indptr, place.astype(np.int32), gain[row, place])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_label_gives_no_lift(seed):
    """Encoded by the window before, noise stays noise; encoded by its own window, the same noise looks like knowledge."""
    item, gain = windows(np.random.default_rng(seed), np.full(N_ITEMS, 0.1))
    before = encoded(item, gain, by=(2, 0, 1))  # what comes before the first is any other window of noise
    itself = encoded(item, gain, by=(0, 1, 2))
    assert abs(lift(item, gain, before)) < 3
    assert lift(item, gain, itself) > 10, "a leak would be seen"


def test_items_that_are_worth_more_are_found():
    worth = np.random.default_rng(5).choice([0.02, 0.4], N_ITEMS)
    item, gain = windows(np.random.default_rng(3), worth)
    assert lift(item, gain, encoded(item, gain, by=(2, 0, 1))) > 10
