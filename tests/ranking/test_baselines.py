"""The cheap baselines and the ensemble on paper: reciprocal ranks, a logistic blend, two rankers made comparable."""

from __future__ import annotations

import numpy as np
import pytest
from ranker_contract import NAMES, SMALL, world
from sklearn.linear_model import LogisticRegression

from pipelines.errors import StateError
from pipelines.ranking import logistic, rankers
from pipelines.ranking.ensemble import Ensemble, comparable
from pipelines.ranking.protocol import RankingRows, source_columns

NAN = np.nan
TWO = ("als_score", "als_rank", "knn_score", "knn_rank", "blend_score", "blend_rank", "best_rank", "price_rank")


def table(*rows, names=TWO):
    features = np.full((len(rows), len(names)), NAN, np.float32)
    for at, row in enumerate(rows):
        features[at, : len(row)] = row
    return features


def as_rows(features, gain, names=TWO):
    return RankingRows(features, names, np.array(gain, np.float32), np.array([len(gain)], np.int32), np.zeros(1, np.int32))


def test_a_source_is_what_has_a_score_and_a_rank():
    assert source_columns(TWO) == [(0, 1), (2, 3)]
    assert source_columns(("price", "own_item_count")) == []


def test_reciprocal_rank_fusion_on_paper():
    """Ranks 1 and 3: 1/61 + 1/63. Rank 2 of one source alone: 1/62. The blend's own rank is no source, nor is a feature's."""
    features = table((9.0, 1, 0.2, 3, 1, 1, 1, 1), (8.0, 2), (NAN, NAN, NAN, NAN, 1, 1, 1, 1))
    ranker = rankers.make("rrf").fit(as_rows(features, [1, 0, 0]))
    assert ranker.score(features).tolist() == [1 / 61 + 1 / 63, 1 / 62, 0]
    assert rankers.make("rrf", {"constant": 0}).fit(as_rows(features, [1, 0, 0])).score(features).tolist() == [1 + 1 / 3, 1 / 2, 0]
    assert ranker.importance == {"als_rank": 0.5, "knn_rank": 0.5}


@pytest.mark.parametrize("name", ["rrf", "logistic"])
def test_without_a_source_there_is_nothing_to_blend(name):
    features = np.array([[1.0], [2.0]], np.float32)
    with pytest.raises(StateError, match=r"SOURCE_score and SOURCE_rank"):
        rankers.make(name).fit(as_rows(features, [1, 0], ("price",)))


@pytest.mark.parametrize("gain", [[0, 0], [1, 2]])
@pytest.mark.parametrize("name", ["logistic", "pointwise"])
def test_rows_of_one_outcome_teach_nothing(name, gain):
    with pytest.raises(StateError, match=r"of 2 taken"):
        rankers.make(name).fit(as_rows(table((1, 1), (2, 2)), gain))


def test_the_logistic_blend_finds_the_weights_that_scikit_learn_finds(monkeypatch):
    rows = world(n_lists=300)
    ranker = rankers.make("logistic", {"regularization": 3.0}).fit(rows)
    inputs = (ranker._inputs(rows.features, NAMES) - ranker.state.mean) / ranker.state.scale
    peer = LogisticRegression(C=1 / 3, tol=1e-10, max_iter=1000).fit(inputs, rows.gain > 0)
    np.testing.assert_allclose(ranker.state.weight, peer.coef_[0], atol=1e-5)
    np.testing.assert_allclose(ranker.score(rows.features), peer.decision_function(inputs), atol=1e-4)
    monkeypatch.setattr(logistic, "ROWS_AT_ONCE", 100)
    cut = rankers.make("logistic", {"regularization": 3.0}).fit(rows)
    np.testing.assert_allclose(cut.state.weight, ranker.state.weight, rtol=1e-6)


def test_an_input_that_never_varies_gets_no_weight():
    features = table((5, 1, 7, 1), (4, 2, 7, 1), (3, 3, 7, 1), (2, 4, 7, 1))
    ranker = rankers.make("logistic").fit(as_rows(features, [1, 1, 0, 0]))
    assert np.count_nonzero(ranker.state.weight) == 2, "score and rank of the first source"
    assert (np.diff(ranker.score(features)) < 0).all()


def test_separable_outcomes_keep_finite_weights():
    features = table(*((100.0 - n, n + 1) for n in range(40)))
    ranker = rankers.make("logistic", {"regularization": 1e-6}).fit(as_rows(features, [1] * 20 + [0] * 20))
    assert np.isfinite(ranker.score(features)).all()
    assert (ranker.score(features)[:20] > 0).all()
    assert (ranker.score(features)[20:] < 0).all()


def test_scores_made_comparable_on_paper():
    """(1, 2, 3): mean 2, deviation sqrt(2/3). Places of (5, 5, 9): one candidate is ahead of both fives, so -1/2 each, and +1."""
    score, sizes = np.array([1.0, 2, 3, 5, 5, 9, 7, 4, 4]), np.array([3, 3, 1, 2])
    reach = np.sqrt(3 / 2)
    np.testing.assert_allclose(comparable(score, sizes, "z_score")[:3], [-reach, 0, reach])
    np.testing.assert_allclose(comparable(score, sizes, "rank"), [-1, 0, 1, -0.5, -0.5, 1, 0, 0, 0])
    assert comparable(score, sizes, "z_score")[6:].tolist() == [0, 0, 0], "a list of one, and a list of equals"
    np.testing.assert_allclose(comparable(1e6 + 1e3 * score, sizes, "z_score"), comparable(score, sizes, "z_score"), atol=1e-9)


class TestEnsembles:
    def fitted(self, weight, scores="z_score"):
        self.old = rankers.make("rrf").fit(world(seed=21))
        return Ensemble(weight=weight, scores=scores).of(rankers.make("lambdarank", SMALL), self.old).fit(world())

    @pytest.mark.parametrize("scores", ["z_score", "rank"])
    def test_its_weight_goes_from_the_old_order_to_the_new_one(self, scores):
        rows = world(seed=8, n_lists=20)
        group = rows.group
        new = rankers.make("lambdarank", SMALL).fit(world()).score(rows.features)
        old = rankers.make("rrf").fit(world()).score(rows.features)
        for weight, whole in ((1.0, new), (0.0, old)):
            np.testing.assert_allclose(self.fitted(weight, scores).score(rows.features, group), comparable(whole, group, scores))
        mixed = 0.3 * comparable(new, group, scores) + 0.7 * comparable(old, group, scores)
        np.testing.assert_allclose(self.fitted(0.3, scores).score(rows.features, group), mixed)

    def test_the_old_ranker_reads_its_own_columns_whatever_was_added_since(self):
        rows = world(seed=8, n_lists=20)
        swapped = RankingRows(rows.features[:, ::-1], NAMES[::-1], rows.gain, rows.group, rows.window)
        old = rankers.make("lambdarank", SMALL).fit(world())
        joined = Ensemble(weight=0.0).of(rankers.make("rrf"), old).fit(swapped)
        np.testing.assert_allclose(joined.score(swapped.features, rows.group), comparable(old.score(rows.features), rows.group, "z_score"))

    def test_a_champion_that_reads_what_is_not_made_any_more_is_refused(self):
        old = rankers.make("lambdarank", SMALL).fit(world())
        rows = world()
        fewer = RankingRows(rows.features[:, :6], NAMES[:6], rows.gain, rows.group, rows.window)
        with pytest.raises(StateError, match=r"no \['signal', 'hiss'\] among the features"):
            Ensemble().of(rankers.make("rrf"), old).fit(fewer)

    def test_of_an_ensemble_that_was_champion_only_its_own_ranker_is_joined(self):
        first = self.fitted(0.5)
        second = Ensemble().of(rankers.make("xendcg", SMALL), first).fit(world())
        assert second.state.old is first.state.new
        assert second.size == {"trees": second.state.new.size["trees"] + first.state.new.size["trees"]}

    def test_lists_that_do_not_tile_the_rows_are_refused(self):
        with pytest.raises(StateError, match="5 rows in lists; expected the 4 rows"):
            self.fitted(0.5).score(np.zeros((4, len(NAMES)), np.float32), np.array([2, 3]))

    def test_without_a_champion_it_cannot_be_fitted(self):
        with pytest.raises(StateError, match="no champion to join"):
            rankers.make("ensemble").fit(world())
