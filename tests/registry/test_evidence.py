"""What the gate is shown of two real bundles: everything that is guarded is measured, and what is broken on purpose shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from trained_shop import FIRST, SECOND

from pipelines import config, cycle
from pipelines.config import Home
from pipelines.decision_policies import GatePolicy
from pipelines.errors import StateError
from pipelines.ranking import features
from pipelines.ranking.protocol import Ranker
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle, evidence, evidence_lists, evidence_scoring, gate, gate_guardrails, ledger, releases
from pipelines.registry.evidence_scoring import Asked
from pipelines.registry.gate_guardrails import Exact, Timed


@dataclass(frozen=True)
class Weighed:
    """A real run and its bundle, ready to be measured against itself."""

    home: Home
    judged: evidence.Bench
    model: TwoStage
    asked: Asked


@pytest.fixture(scope="module")
def shop(trained: Home) -> Iterator[Weighed]:
    """Return the first run of the shop; nothing here writes to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELOOP_HOME", str(trained.root))
        model = bundle.load(trained, cycle.records(trained, FIRST, "bundle")[0]["digest"])
        judged = evidence.bench(trained, FIRST, config.load(trained))
        yield Weighed(
            trained, judged, model, evidence_scoring.ask(trained, model, judged.in_ids(model), judged.truth.user_ids[:120], judged.cutoff)
        )


@dataclass(frozen=True)
class Broken:
    """The ranker of a bundle with something wrong: `score` of a matrix is what `spoil` makes of it."""

    ranker: Ranker
    spoil: Any

    @property
    def features(self) -> tuple[str, ...]:
        return self.ranker.features

    def score(self, matrix: Any, group: Any = None) -> Any:
        return self.spoil(self.ranker, matrix, group)


def spoilt(shop: Weighed, spoil: Any) -> Asked:
    return replace(shop.asked, model=replace(shop.model, ranker=Broken(shop.model.ranker, spoil)))


def rule(name: str) -> gate_guardrails.Rule:
    return gate_guardrails.rules(GatePolicy())[name]


def holds(name: str, measure: Any) -> bool:
    return gate_guardrails.assess(name, measure, rule(name), 0.95, 7).holds


def test_two_weeks_of_a_real_shop_are_weighed_whole_and_kept(fresh: Home) -> None:
    """Every slice and guardrail of the settings is measured or says why it says nothing; the window is kept under its digest."""
    first, second = (cycle.records(fresh, moment, "bundle")[0]["digest"] for moment in (FIRST, SECOND))
    baseline = releases.Pointer(1, first, FIRST.isoformat(), None, None, 1)
    found = evidence.weigh(fresh, SECOND, baseline, bundle.load(fresh, second))
    policy = config.load(fresh).gate
    assert found.failed == {}
    assert set(policy.guardrails) == found.measures.keys() | found.inapplicable.keys()
    assert set(policy.slices) == found.slices.keys()
    assert {name.partition(":")[0] for name in found.segments} == {"country", "age_band", "device"}
    verdict = gate.judge(found, policy)
    assert verdict.figures["windows"][0]["as_of"] == SECOND.isoformat()
    assert verdict.figures["evidence"]["digest"] == found.kept["digest"]
    json.dumps(verdict.figures, allow_nan=False)
    assert not gate.judge(replace(found, challenger=found.champion), policy).promote


def test_every_look_at_a_first_model_spends_some_of_the_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was ever released: each week's first model is one more chance for noise to beat popularity."""
    users = np.array(["a", "b"])
    scored = evidence.Scored(np.array([0.1, 0.2]), np.array([0.1, 0.2]), np.zeros((2, evidence.K), np.int64))
    judged = SimpleNamespace(truth=SimpleNamespace(user_ids=users), world=SimpleNamespace(judged_by="so it is"), score=lambda _: scored)
    monkeypatch.setattr(evidence, "bench", lambda *_: judged)
    monkeypatch.setattr(evidence, "incumbents", lambda *_: {"popular_7d": scored.ndcg})
    monkeypatch.setattr(evidence.fairness_report, "broken", lambda *_: ())
    for week in range(3):
        spent = {"alpha_spent": 0.03 if week else 0.0}  # in the first there were too few users: nothing was tested
        body = {"as_of": FIRST.isoformat(), "challenger": week + 1, "champion_before": None, "champion_after": None, "figures": spent}
        ledger.record(home, ledger.KEPT, f"decide/{week}", body)
    (home.root / "reloop.toml").write_text('[retrieval]\nsources = ["popular", "item_knn"]\n')
    found = evidence.weigh(home, SECOND, releases.pointer(home), cast("TwoStage", None))
    assert found.champion is None
    assert (found.earlier_decisions, found.judged_by) == (2, "so it is")
    assert set(found.inapplicable) == {"sequence_rules"}, "switched off and not measured; item_knn is on, so it must be measured"
    (home.root / "reloop.toml").write_text('[gate]\nincumbents = ["item_kn"]\n')
    with pytest.raises(StateError, match="did you mean 'item_knn'"):
        evidence.weigh(home, SECOND, releases.pointer(home), cast("TwoStage", None))


def test_a_measure_that_fails_is_told_and_keeps_the_champion(fresh: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(evidence_lists, "of", full)
    monkeypatch.setattr(evidence_scoring, "ask", full)
    digest = cycle.records(fresh, FIRST, "bundle")[0]["digest"]
    found = evidence.weigh(fresh, FIRST, releases.Pointer(1, digest, FIRST.isoformat(), None, None, 1), bundle.load(fresh, digest))
    assert {"coverage", "diversity", "latency", "null_rates", "score_psi"} <= found.failed.keys()
    verdict = gate.judge(found, config.load(fresh).gate)
    assert verdict.verdict == gate.KEEP
    assert "the evidence is damaged: coverage could not be measured: OSError: no space left on device" in verdict.reasons


def test_a_feature_that_went_missing_after_training_is_found(shop: Weighed, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = shop.judged.truth.take(np.arange(120))
    sound = evidence_scoring.missing(shop.home, FIRST, shop.asked, truth)
    assert holds("null_rates", sound)
    assemble = features.assemble

    def gone(*arguments: Any) -> Any:
        matrix, names = assemble(*arguments)
        matrix = matrix.copy()
        matrix[:, names.index("item_daily__events_7d")] = np.nan
        return matrix, names

    monkeypatch.setattr(evidence_scoring, "assemble", gone)
    broken = evidence_scoring.missing(shop.home, FIRST, shop.asked, truth)
    assert not holds("null_rates", broken)
    assert "item_daily__events_7d" in gate_guardrails.assess("null_rates", broken, rule("null_rates"), 0.95, 7).finding(harmed=True).reason


def test_scores_that_collapsed_or_are_no_numbers_are_found(shop: Weighed) -> None:
    fine = evidence_scoring.scores(shop.asked)
    alike = spoilt(shop, lambda ranker, matrix, group: np.zeros(len(matrix)))
    flat = evidence_scoring.scores(alike)
    before, after = evidence_scoring.tied(shop.asked, fine), evidence_scoring.tied(alike, flat)
    assert (before < 0.7, after) == (True, 1.0)
    assert not holds("score_ties", gate_guardrails.Exact(0.0, after))
    assert holds("score_ties", gate_guardrails.Exact(0.0, before))
    assert holds("score_psi", evidence_scoring.score_psi((shop.asked, fine), (shop.asked, 3 * fine + 5)))
    assert evidence_scoring.score_psi((shop.asked, fine), (alike, flat)).after > 1
    with pytest.raises(Exception, match="no numbers"):
        evidence_scoring.scores(spoilt(shop, lambda ranker, matrix, group: np.full(len(matrix), np.nan)))


def test_a_ranker_that_takes_thrice_as_long_is_found_and_the_same_one_is_not(shop: Weighed) -> None:
    def slow(ranker: Ranker, matrix: Any, group: Any) -> Any:
        for _ in range(60):
            found = ranker.score(matrix, group)
        return found

    same = evidence_scoring.timed(shop.asked, shop.asked, 12, 3)
    late = evidence_scoring.timed(shop.asked, spoilt(shop, slow), 12, 3)
    assert isinstance(same, Timed)
    assert isinstance(late, Timed)
    assert np.median(late.after / late.before) > 1.5 > np.median(same.after / same.before)
    other = evidence_scoring.timed(shop.asked, replace(shop.asked, model=replace(shop.model, serves="blend")), 12, 3)
    assert isinstance(other, Exact), "a list without features is no measure of one with them"
    assert other.after > 0


def test_lists_of_one_item_are_caught_by_what_is_guarded(shop: Weighed) -> None:
    """Everybody gets the same item and nothing else: little covered, no tail, no variety, no taste met; and nothing at all is empty."""
    world = shop.judged.shop()
    sound = shop.judged.score(shop.model)
    one = np.full_like(sound.item, -1)
    one[:, 0] = int(np.argmax(world.head))
    before = evidence_lists.of(sound.item, world)
    measures, silent = evidence_lists.compared(before, evidence_lists.of(one, world), world)
    assert silent == {}
    assert [name for name, measure in measures.items() if holds(name, measure)] == ["empty_lists"]
    nothing, _ = evidence_lists.compared(before, evidence_lists.of(np.full_like(one, -1), world), world)
    assert not any(holds(name, measure) for name, measure in nothing.items())
    assert all(holds(name, measure) for name, measure in evidence_lists.compared(before, before, world)[0].items())
