"""The stage that fits the ranker the settings name: its baselines, its ensemble with the champion, its probabilities."""

from __future__ import annotations

import json

import pytest
from ranking_world import AS_OF

from pipelines import config, cycle
from pipelines.errors import StateError
from pipelines.ranking import judging, rankers, training, training_set
from pipelines.ranking.ensemble import Ensemble
from pipelines.ranking.lambdarank import LambdaRank


@pytest.fixture(scope="module")
def built(shop):
    training_set.build(shop, AS_OF)
    return shop


@pytest.fixture
def settled(built, monkeypatch):
    """Return a function that trains with other settings of ranking, and returns the record."""

    def trained(champion=None, **knobs):
        now = config.load(built)
        ranking = now.ranking.model_copy(update=knobs)
        monkeypatch.setattr(config, "load", lambda _: now.model_copy(update={"ranking": ranking}))
        training.train(built, AS_OF, champion)
        return next(iter(cycle.records(built, AS_OF, "ranker")))

    return trained


def test_the_baselines_are_fitted_beside_the_ranker_and_judged_with_it(built, settled):
    record = settled()
    assert record["ranker"] == "lambdarank"
    assert record["trees"] > 0
    assert set(training.baselines(built, AS_OF)) == {"logistic", "rrf"}
    assert isinstance(training.trained(built, AS_OF), LambdaRank)
    judging.evaluate(built, AS_OF)
    report = json.loads((judging.folder(built, AS_OF) / "metrics.json").read_text())
    assert all(found["lower"] > 0 for found in report["baselines"].values()), "coming back is in no source's score"
    assert report["calibration"] is None


def test_a_pointwise_ranker_is_judged_by_its_promises_too(built, settled):
    assert settled(ranker="pointwise", baselines=())["ranker"] == "pointwise"
    assert training.baselines(built, AS_OF) == {}
    judging.evaluate(built, AS_OF)
    report = json.loads((judging.folder(built, AS_OF) / "metrics.json").read_text())
    assert report["serves"] == "ranked"
    assert 0 <= report["calibration"]["ece"] < 0.1
    assert report["calibration"]["brier"] < report["calibration"]["brier_of_mean"]
    assert (judging.folder(built, AS_OF) / judging.RELIABILITY_FILE).read_text().startswith("<?xml")


def test_an_ensemble_joins_the_champions_ranker(built, settled):
    champion = rankers.make("rrf").fit(training_set.load(built, AS_OF))
    record = settled(champion, ranker="ensemble", parameters={"ensemble": {"weight": 0.8}})
    found = training.trained(built, AS_OF)
    assert record["ranker"] == "ensemble"
    assert record["reasons"] == []
    assert isinstance(found, Ensemble)
    assert found.weight == 0.8
    assert found.state.old == champion
    assert found.state.new.n_rounds == 60, "the new one has the settings' knobs"


def test_without_a_champion_the_new_ranker_stands_alone_and_the_record_says_so(built, settled):
    record = settled(ranker="ensemble")
    assert isinstance(training.trained(built, AS_OF), LambdaRank)
    assert record["ranker"] == "lambdarank"
    assert record["reasons"] == ["no ensemble: no champion has a ranker; lambdarank is trained alone"]


def test_a_champion_whose_features_are_gone_is_left_behind_and_the_record_says_so(built, settled):
    champion = rankers.make("rrf").restore({}, ("als_score", "als_rank"))
    record = settled(champion, ranker="ensemble")
    assert isinstance(training.trained(built, AS_OF), LambdaRank)
    assert "reads ['als_score', 'als_rank'], which are not made any more" in record["reasons"][0]


def test_a_ranker_that_nobody_knows_is_refused_before_anything_is_fitted(built, settled):
    before = training.trained(built, AS_OF)
    with pytest.raises(StateError, match="did you mean 'lambdarank'"):
        settled(ranker="lambdamart")
    assert rankers.files(training.trained(built, AS_OF)) == rankers.files(before)
