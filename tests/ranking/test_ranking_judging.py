"""The second stage must earn its place: what is measured, and what is then served."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from ranking_world import AS_OF, SOURCES

from pipelines import config, cycle, publish
from pipelines.config import Settings
from pipelines.datasets import universe
from pipelines.datasets.interactions import positions
from pipelines.evaluation import metrics
from pipelines.ranking import judging, training, training_set, two_stage

BASELINES = ("logistic", "rrf")


@pytest.fixture(scope="module")
def evaluated(shop):
    training_set.build(shop, AS_OF)
    training.train(shop, AS_OF)
    judging.evaluate(shop, AS_OF)
    return shop


def record(home, name):
    return next(iter(cycle.records(home, AS_OF, name)))


def test_the_ranked_list_beats_every_single_source_here_and_is_served(evaluated):
    found = record(evaluated, "ranking")
    assert found["serves"] == judging.served(evaluated, AS_OF) == "ranked"
    assert found["difference_lower"] > 0
    assert found["ndcg_at_10"] > found["best_single_ndcg_at_10"]
    assert found["lower"] < found["ndcg_at_10"] < found["upper"]


def test_everyone_with_a_positive_is_counted(evaluated):
    truth = universe.load(evaluated, AS_OF).labels("judge")
    table = pq.read_table(judging.folder(evaluated, AS_OF) / "per_user.parquet")
    assert table["user_id"].to_pylist() == truth.user_ids.tolist()
    assert record(evaluated, "ranking")["n_users"] == truth.n_users
    orders = {name.removeprefix("ndcg_at_10__") for name in table.column_names if name.startswith("ndcg")}
    assert orders == {"served", "ranked", "blend", *BASELINES, *SOURCES}


def test_what_was_judged_is_what_the_saved_model_serves(evaluated, tmp_path):
    """The figures of the evaluation, computed again from nothing but the model's folder, the lake and the marts."""
    world = universe.load(evaluated, AS_OF)
    truth = world.labels("judge")
    two_stage.of_run(evaluated, AS_OF, serves=judging.served(evaluated, AS_OF)).save(tmp_path / "model")
    model = two_stage.TwoStage.load(tmp_path / "model")
    lists = two_stage.rank_users(evaluated, model, truth.user_ids, world.fold("judge").cutoff, 10)
    item = positions(lists.item_ids.ravel(), world.item_ids).reshape(lists.item_ids.shape)
    ndcg = metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, truth.gain), 10)
    table = pq.read_table(judging.folder(evaluated, AS_OF) / "per_user.parquet")
    assert np.array_equal(ndcg, table["ndcg_at_10__served"].to_numpy())


def test_evaluating_twice_gives_the_same_bytes(evaluated):
    before = publish.manifest(judging.folder(evaluated, AS_OF))
    judging.evaluate(evaluated, AS_OF)
    assert publish.manifest(judging.folder(evaluated, AS_OF), verify=True) == before


def test_training_twice_gives_the_same_bytes(evaluated):
    before = publish.manifest(training.folder(evaluated, AS_OF))
    training.train(evaluated, AS_OF)
    assert publish.manifest(training.folder(evaluated, AS_OF), verify=True) == before


def test_the_report_holds_every_metric_of_every_order(evaluated):
    report = json.loads((judging.folder(evaluated, AS_OF) / "metrics.json").read_text())
    assert set(report["metrics"]) == {"served", "ranked", "blend", *BASELINES, *SOURCES}
    wanted = {"ndcg_at_10", "recall_at_50", "mrr_at_10", "map_at_10", "coverage_at_10", "diversity_at_10", "novelty_at_10", "gini_at_10"}
    assert all(wanted <= set(values) for values in report["metrics"].values())
    assert {"light_users", "heavy_users", "tail_items"} < set(report["slices"])


def test_with_too_few_lists_there_is_no_ranker_and_the_record_says_so(evaluated, monkeypatch):
    ample = config.load(evaluated)
    scarce = ample.model_copy(update={"ranking": ample.ranking.model_copy(update={"min_training_lists": 10**6})})
    with monkeypatch.context() as patched:
        patched.setattr(config, "load", lambda _: scarce)
        training.train(evaluated, AS_OF)
        judging.evaluate(evaluated, AS_OF)
    assert training.trained(evaluated, AS_OF) is None
    assert not record(evaluated, "ranker")["trained"]
    assert "the blend is served" in record(evaluated, "ranker")["reasons"][0]
    found = record(evaluated, "ranking")
    assert found["serves"] == "blend"
    assert "too little" in found["reasons"][0]
    assert two_stage.of_run(evaluated, AS_OF).ranker is None
    training.train(evaluated, AS_OF)
    judging.evaluate(evaluated, AS_OF)


N = 2000


def decided(ranked, best=0.5, blend=0.4):
    rng = np.random.default_rng(1)
    ndcg = {"popular": np.full(N, 0.1), "ease": best + rng.normal(0, 0.1, N), "blend": np.full(N, blend)}
    if ranked is not None:
        ndcg["ranked"] = ndcg["ease"] + ranked
    return judging.decide(ndcg, ("popular", "ease"), Settings())


def test_the_rival_is_the_best_source_not_the_blend():
    assert decided(np.full(N, 0.01), blend=0.9)["best_single"] == "ease"


def test_a_ranker_that_only_might_be_better_is_not_served():
    noise = np.random.default_rng(2).normal(0.001, 0.1, N)
    found = decided(noise)
    assert found["difference_lower"] < 0
    assert found["serves"] == "blend"
    assert "does not beat ease" in found["reasons"][0]


@pytest.mark.parametrize("blend", [0.05, 0.6])
@pytest.mark.parametrize("ranked", [None, np.full(N, -0.2)])
def test_the_blend_stands_in_whichever_did_best_on_the_judged_window(ranked, blend):
    """The gate judges what is served on these same users: a pick of the best of them would flatter itself."""
    found = decided(ranked, blend=blend)
    assert found["serves"] == "blend"
    assert found["best_single"] == "ease"


def test_a_clear_gain_is_served_without_excuse():
    found = decided(np.random.default_rng(2).normal(0.05, 0.1, N))
    assert (found["serves"], found["reasons"]) == ("ranked", [])
    assert found["difference_lower"] > 0.03


def test_a_baseline_that_is_not_clearly_beaten_is_named_and_a_clear_gain_over_it_is_not():
    rng = np.random.default_rng(2)
    ranked = 0.5 + rng.normal(0, 0.1, N)
    ndcg = {"popular": np.full(N, 0.1), "blend": np.full(N, 0.2), "ranked": ranked}
    ndcg |= {"rrf": ranked - rng.normal(0.05, 0.1, N), "logistic": ranked + rng.normal(0.002, 0.1, N)}
    found = judging.decide(ndcg, ("popular",), Settings())
    assert found["serves"] == "ranked", "it is the best source that decides"
    assert len(found["reasons"]) == 1
    assert "does not beat the baseline logistic" in found["reasons"][0]
    assert list(found["baselines"]) == ["logistic", "rrf"]
    assert found["baselines"]["rrf"]["lower"] > 0.04
    assert found["baselines"]["logistic"]["ndcg_at_10"] == pytest.approx(float(ndcg["logistic"].mean()))
    del ndcg["ranked"]
    assert judging.decide(ndcg, ("popular",), Settings())["baselines"] == {}


def test_cold_users_and_items_are_judged_on_every_list_against_the_baseline(evaluated):
    """Also in the record, from which run.json and MLflow are written."""
    report = json.loads((judging.folder(evaluated, AS_OF) / "metrics.json").read_text())
    settings, truth = config.load(evaluated), universe.load(evaluated, AS_OF).labels("judge")
    assert set(report["cold"]) == {"cold_users", "light_users", "cold_items"}
    assert record(evaluated, "ranking")["cold"] == report["cold"]
    for found in report["cold"].values():
        assert found["baseline"] == settings.gate.baseline
        assert set(found["lists"]) == {"served", "ranked", "blend", *BASELINES, *SOURCES}
        assert 0 <= found["n_users"] <= truth.n_users
    table = pq.read_table(judging.folder(evaluated, AS_OF) / "per_user.parquet")
    for name in ("cold_users", "light_users"):
        assert report["cold"][name]["n_users"] == table[f"slice__{name}"].to_numpy().sum()
