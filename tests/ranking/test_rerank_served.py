"""Rules of re-ranking as they run: what is judged is what is served, saved with the model, told step by step."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from ranking_world import AS_OF, SOURCES
from typer.testing import CliRunner

from pipelines import columns as c
from pipelines import config, cycle, publish, summary
from pipelines.cli.entry import app
from pipelines.datasets import universe
from pipelines.datasets.interactions import histories, load, positions
from pipelines.decision_policies import FairnessSettings
from pipelines.errors import StateError
from pipelines.evaluation import fairness, metrics
from pipelines.model_settings import ExplorationPolicy
from pipelines.ranking import attribution, fairness_report, judging, rules_tried, training, training_set, two_stage
from pipelines.ranking.rerank import chain
from pipelines.rerank_policies import RerankSettings

RULES = RerankSettings(purchased={"within_days": 3}, mmr={"trade_off": 0.5}, temporal={"fresh_share": 0.2}, caps={"category": 2}, depth=10)


@pytest.fixture(scope="module")
def evaluated(shop):
    """The shop with five rules on, judged."""
    training_set.build(shop, AS_OF)
    training.train(shop, AS_OF)
    usual = config.load(shop)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(config, "load", lambda _: usual.model_copy(update={"rerank": RULES}))
        judging.evaluate(shop, AS_OF)
        yield shop


@pytest.fixture(scope="module")
def served(evaluated, tmp_path_factory):
    """Return the saved model, loaded again."""
    path = tmp_path_factory.mktemp("model")
    two_stage.of_run(evaluated, AS_OF, serves=judging.served(evaluated, AS_OF)).save(path / "model")
    return two_stage.TwoStage.load(path / "model")


def test_the_rules_are_saved_with_the_model(served):
    assert served.rerank == RULES
    assert chain.active(served.rerank) == ("availability", "purchased", "mmr", "temporal", "caps")


def test_what_was_judged_with_rules_is_what_the_saved_model_serves(evaluated, served):
    world = universe.load(evaluated, AS_OF)
    truth = world.labels("judge")
    lists = two_stage.rank_users(evaluated, served, truth.user_ids, world.fold("judge").cutoff, 10)
    item = positions(lists.item_ids.ravel(), world.item_ids).reshape(lists.item_ids.shape)
    ndcg = metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, truth.gain), 10)
    table = pq.read_table(judging.folder(evaluated, AS_OF) / "per_user.parquet")
    assert np.array_equal(ndcg, table["ndcg_at_10__served"].to_numpy())
    assert not np.array_equal(ndcg, table["ndcg_at_10__ranked"].to_numpy())
    assert (np.diff(lists.score, axis=1) <= 0).all()
    assert (lists.sources > 0).all()
    fired = {name for row in range(20) for place in range(10) for name in lists.rules_of(row, place)}
    assert {"mmr", "caps"} <= fired <= set(chain.active(served.rerank))


def test_rules_that_were_not_judged_are_no_part_of_a_release(evaluated, monkeypatch):
    judging.check(evaluated, AS_OF, two_stage.of_run(evaluated, AS_OF))
    usual = config.load(evaluated)
    monkeypatch.setattr(config, "load", lambda _: usual.model_copy(update={"rerank": RerankSettings()}))
    with pytest.raises(StateError, match=r"judged under another rerank; expected .*evaluate again"):
        judging.check(evaluated, AS_OF, two_stage.of_run(evaluated, AS_OF))


def test_nobody_is_shown_what_they_just_bought(evaluated, served):
    cutoff = universe.load(evaluated, AS_OF).fold("judge").cutoff
    known = load(evaluated, cutoff, config.load(evaluated).training, item_ids=served.item_ids)
    users = histories(known, known.user_ids)
    lists = two_stage.rank_users(evaluated, served, known.user_ids, cutoff, 10)
    bought = (known.event_type == 3) & (known.at >= known.as_of - 3 * 86_400_000_000)
    pairs = set(zip(known.user_ids[known.user[bought]], served.item_ids[known.item[bought]], strict=True))
    assert len(pairs) > 20
    assert users.event_type is not None
    assert not pairs & {(user, item) for user, row in zip(lists.user_ids, lists.item_ids, strict=True) for item in row}


def test_fewer_places_are_the_beginning_of_more(evaluated, served):
    users, cutoff = universe.load(evaluated, AS_OF).labels("judge").user_ids[:20], universe.load(evaluated, AS_OF).fold("judge").cutoff
    few, many = (two_stage.rank_users(evaluated, served, users, cutoff, k) for k in (3, 40))
    assert many.item_ids[:, :3].tolist() == few.item_ids.tolist()
    assert many.item_ids.shape == (20, 40)


def test_a_bundle_of_before_there_were_rules_has_none(served, tmp_path):
    served.save(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "two_stage.json").read_text())
    del facts["rerank"]
    files = {str(file.relative_to(tmp_path / "model")): file.read_bytes() for file in (tmp_path / "model").rglob("*") if file.is_file()}
    with publish.folder(tmp_path / "old", {}) as out:
        for name, content in files.items():
            if name != publish.MANIFEST:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).write_bytes(content)
        publish.write_json(out / "two_stage.json", facts)
    assert chain.active(two_stage.TwoStage.load(tmp_path / "old").rerank) == ()


def test_rules_without_goods_are_refused(evaluated, served):
    users = histories(universe.load(evaluated, AS_OF).interactions(AS_OF, config.load(evaluated).training), np.array(["u000"]))
    proposed = served.propose(users)
    with pytest.raises(StateError, match="no goods"):
        served.listed(np.array(["u000"]), proposed, proposed.blend_score.astype(float), 5)


def test_vectors_that_no_source_has_are_refused_by_name(evaluated, served):
    by_vectors = served.rerank.model_copy(update={"likeness": served.rerank.likeness.model_copy(update={"by": "vectors"})})
    known = universe.load(evaluated, AS_OF).interactions(AS_OF, config.load(evaluated).training)
    with pytest.raises(StateError, match="no source of the run"):
        replace(served, rerank=by_vectors).goods(known)


def test_every_step_is_told_with_the_one_before_it(evaluated):
    steps = attribution.nested(attribution.load(evaluated, AS_OF))
    assert list(steps) == [*SOURCES, "blend", "ranked", "availability", "purchased", "mmr", "temporal", "caps"]
    report = json.loads((judging.folder(evaluated, AS_OF) / "metrics.json").read_text())
    before = {"blend": report["best_single"], "ranked": "blend", "availability": report["serves"], "purchased": "availability"}
    before |= {"mmr": "purchased", "temporal": "mmr", "caps": "temporal"}
    assert {name: step["against"] for name, step in steps.items() if step["against"]} == before
    for name, against in before.items():
        for metric in ("ndcg_at_10", "recall_at_50", "coverage_at_10", "gini_at_10"):
            found = steps[name]["metrics"][metric]
            assert found["difference"] == pytest.approx(found["value"] - steps[against]["metrics"][metric]["value"], abs=1e-12)
            assert found["lower"] <= found["difference"] <= found["upper"]
    assert steps["caps"]["metrics"]["ndcg_at_10"]["value"] == pytest.approx(report["ndcg_at_10"])
    assert steps["ranked"]["metrics"]["ndcg_at_10"]["value"] == pytest.approx(report["ranked_ndcg_at_10"])


def test_each_rule_shows_its_gain_in_what_it_is_for(evaluated):
    steps = attribution.nested(attribution.load(evaluated, AS_OF))
    assert steps["purchased"]["metrics"]["bought_before"]["value"] == 0
    assert steps["purchased"]["metrics"]["bought_before"]["upper"] < 0
    assert steps["mmr"]["metrics"]["unlikeness"]["lower"] > 0
    assert steps["caps"]["metrics"]["over_cap"]["difference"] <= 0
    assert steps["purchased"]["metrics"]["ndcg_at_10"]["upper"] < 0  # here people come back for what they bought


def test_slices_are_those_of_users_items_and_devices(evaluated):
    slices = attribution.nested(attribution.load(evaluated, AS_OF))["ranked"]["slices"]
    assert {"heavy_users", "head_items", "torso_items"} <= set(slices)
    assert all(set(found) == {"ndcg_at_10", "recall_at_50"} for found in slices.values())
    assert all(found["ndcg_at_10"]["users"] >= attribution.MIN_USERS for found in slices.values())


def test_the_table_is_in_run_json_and_in_the_log(evaluated):
    steps = next(iter(cycle.records(evaluated, AS_OF, "ranking_attribution")))["steps"]
    assert steps == attribution.nested(attribution.load(evaluated, AS_OF))
    assert summary.figures(evaluated, AS_OF)["ranking_attribution"] == steps
    shown = attribution.text(evaluated, AS_OF)
    assert "over_cap" in shown
    assert len(shown.splitlines()) == 2 + len(steps)


def test_the_fairness_report_is_about_what_is_served_and_says_the_same_twice(evaluated):
    file = fairness_report.file(evaluated, AS_OF)
    found, page = json.loads(file.read_text()), file.with_suffix(".html").read_text()
    report = json.loads((judging.folder(evaluated, AS_OF) / "metrics.json").read_text())
    assert found["quality"]["all"]["value"] == pytest.approx(report["ndcg_at_10"])
    assert {"brand 0", "brand 1", "brand 2"} <= set(found["providers"])
    assert found["reasons"] == []
    assert "<svg" in page
    assert "heavy_users" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    before = file.read_bytes(), page
    judging.evaluate(evaluated, AS_OF)
    assert (file.read_bytes(), file.with_suffix(".html").read_text()) == before


def test_bounds_that_are_set_are_judged(evaluated):
    bounds = fairness_report.bounds(FairnessSettings(max_relative_quality_gap=0.0, max_miscalibration=100.0))
    assert set(bounds) == {"max_relative_quality_gap", "max_miscalibration"}
    found = json.loads(fairness_report.file(evaluated, AS_OF).read_text())
    reasons = fairness.verdict(found, bounds)
    assert len(reasons) <= 1
    assert all("max_relative_quality_gap" in reason for reason in reasons)


def test_every_rule_can_be_tried_before_it_is_switched_on(evaluated):
    rows = rules_tried.tried(evaluated, AS_OF)
    lines = rules_tried.lines(rows)
    assert [line["rule"] for line in lines] == list(chain.RULES)
    by = {(row["step"], row["metric"]): row for row in rows if row["slice"] == "all"}
    assert by["purchased", "bought_before"]["upper"] < 0
    assert by["mmr", "unlikeness"]["lower"] > 0
    assert by["dpp", "ndcg_at_10"]["against"] == judging.served(evaluated, AS_OF)


def test_a_comparison_that_cannot_be_tried_is_named_as_it_would_be_when_served(evaluated, monkeypatch):
    usual = config.load(evaluated)
    by_vectors = RerankSettings.model_validate({"likeness": {"by": "vectors", "source": "popular"}})
    monkeypatch.setattr(config, "load", lambda _: usual.model_copy(update={"rerank": by_vectors}))
    with pytest.raises(StateError, match=r"rerank.likeness.source: 'popular', which has no vectors"):
        rules_tried.tried(evaluated, AS_OF)


def test_exploration_does_not_bring_back_what_a_filter_took_out(evaluated, served, monkeypatch):
    usual, world = config.load(evaluated), universe.load(evaluated, AS_OF)
    eager = ExplorationPolicy(
        method="epsilon_greedy", slots=tuple(range(1, 11)), share=1.0, epsilon=1.0, max_events=10**6, max_age_days=1000
    )
    monkeypatch.setattr(config, "load", lambda _: usual.model_copy(update={"exploration": eager}))
    users, cutoff = world.labels("judge").user_ids, world.fold("judge").cutoff
    ever = replace(served, rerank=RerankSettings.model_validate({"purchased": True}))
    lists = two_stage.rank_users(evaluated, ever, users, cutoff, 10)
    past = histories(world.interactions(cutoff, usual.training), users)
    bought = past.event_type == c.EVENT_TYPES.index(c.PURCHASE)
    taken = set(zip(past.row_of_event()[bought].tolist(), past.item[bought].tolist(), strict=True))
    item = positions(lists.item_ids.ravel(), world.item_ids).reshape(lists.item_ids.shape)
    assert taken
    assert not taken & {(row, one) for row, some in enumerate(item.tolist()) for one in some if one >= 0}


def test_exploration_is_the_last_rule_and_says_where_it_drew(evaluated, served, monkeypatch):
    usual = config.load(evaluated)
    eager = ExplorationPolicy(method="epsilon_greedy", slots=(3,), share=1.0, max_events=10**6, max_age_days=1000)
    monkeypatch.setattr(config, "load", lambda _: usual.model_copy(update={"exploration": eager}))
    users, cutoff = universe.load(evaluated, AS_OF).labels("judge").user_ids[:20], universe.load(evaluated, AS_OF).fold("judge").cutoff
    lists = two_stage.rank_users(evaluated, served, users, cutoff, 5)
    assert lists.rule_names == (*chain.active(served.rerank), chain.EXPLORATION)
    drawn = np.array([[chain.EXPLORATION in lists.rules_of(row, place) for place in range(5)] for row in range(20)])
    assert drawn[:, 2].any()
    assert not np.delete(drawn, 2, axis=1).any()


def test_the_command_line_shows_steps_slices_and_rules_and_refuses_an_unknown_slice(evaluated):
    def reloop(*words):
        return CliRunner().invoke(app, ["ranking", *words, "--home", str(evaluated.root)])

    steps = json.loads(reloop("attribution", "--json").stdout)
    assert steps["steps"] == attribution.nested(attribution.load(evaluated, AS_OF))
    assert "over_cap" in reloop("attribution").stdout
    assert reloop("attribution", "--slice", "heavy_users").exit_code == 0
    assert isinstance(reloop("attribution", "--slice", "nobody").exception, StateError)
    tried = reloop("rules")
    assert tried.exit_code == 0
    assert all(rule in tried.stdout for rule in chain.RULES)
