"""Monotone constraints: by name pattern, kept everywhere, refused where they say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.errors import StateError
from pipelines.ranking import rankers
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.trees import monotone

FEW = {"n_rounds": 40, "min_data_in_leaf": 5, "num_threads": 1}
NAMES = ("knn_rank", "als_rank", "price")


def bumpy() -> RankingRows:
    """Return lists whose gains rise and fall with every feature, so that free trees do, too."""
    rng = np.random.default_rng(2)
    features = rng.random((1200, 3), dtype=np.float32)
    gain = (np.sin(12 * features).sum(axis=1) > 1).astype(np.float32)
    return RankingRows(features, NAMES, gain, np.full(100, 12, np.int32), np.zeros(100, np.int32))


def steps(ranker, column):
    """Return how the score changes along one feature, the others held, from 40 places."""
    score = []
    start = np.random.default_rng(3).random((40, 3), dtype=np.float32)
    for value in np.linspace(0, 1, 60, dtype=np.float32):
        here = start.copy()
        here[:, column] = value
        score.append(ranker.score(here))
    return np.diff(score, axis=0)


@pytest.mark.parametrize("name", ["lambdarank", "xendcg", "pointwise"])
def test_a_constrained_score_only_falls_with_a_rank_and_only_rises_with_a_price(name):
    rows = bumpy()
    free = rankers.make(name, FEW).fit(rows)
    tied = rankers.make(name, {**FEW, "decreasing": ["*_rank"], "increasing": ["price"]}).fit(rows)
    for column in (0, 1):
        assert (steps(free, column) > 0).any(), "unconstrained it rises somewhere"
        assert (steps(tied, column) <= 0).all()
        assert (steps(tied, column) < 0).any(), "and it is not merely flat"
    assert (steps(free, 2) < 0).any()
    assert (steps(tied, 2) >= 0).all()
    assert (steps(tied, 2) > 0).any()


def test_patterns_on_paper():
    assert monotone(NAMES, ("price",), ("*_rank",)) == [-1, -1, 1]
    assert monotone(NAMES, (), ()) == [0, 0, 0]
    assert monotone(("k_rank", "K_rank"), (), ("K_*",)) == [0, -1], "letters are told apart"


def test_a_pattern_that_fits_nothing_or_contradicts_another_is_refused():
    with pytest.raises(StateError, match=r"'\*_rnak' fits no feature; expected a pattern of knn_rank"):
        monotone(NAMES, ("*_rnak",), ())
    with pytest.raises(StateError, match=r"\['knn_rank', 'als_rank'\] to rise and to fall"):
        monotone(NAMES, ("*_rank",), ("*rank",))
