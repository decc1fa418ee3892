"""The line-up: every ranker keeps the contract, is named by the settings, and old releases still load."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import pytest
from ranker_contract import NAMES, NETWORK, SMALL, RankerContract, world

from pipelines import publish
from pipelines.errors import ReloopError, StateError
from pipelines.model_settings import RankingSettings, RetrievalSettings
from pipelines.ranking import rankers
from pipelines.ranking.ensemble import Ensemble
from pipelines.ranking.protocol import schema_hash
from pipelines.ranking.rerank import goods
from pipelines.rerank_policies import RerankSettings
from pipelines.retrieval import lineup

BY_RANK = {"scores": "rank", "weight": 0.7}


class TestLambdaRank(RankerContract):
    ranker = "lambdarank"
    knobs = SMALL


class TestXeNdcg(RankerContract):
    ranker = "xendcg"
    knobs = SMALL


class TestPointwise(RankerContract):
    ranker = "pointwise"
    knobs = SMALL
    learns_to = 0.9  # taken is taken: it does not tell a gain of 3 from one of 1


class TestLogistic(RankerContract):
    ranker = "logistic"
    learns_to = 0.85  # it sees the signal through the sources' fog


class TestRrf(RankerContract):
    ranker = "rrf"
    learns_to = 0.75  # and half of what one source does not propose


class TestEnsemble(RankerContract):
    ranker = "ensemble"

    def make(self):
        champion = rankers.make("xendcg", SMALL).fit(world(seed=21))
        return Ensemble().of(rankers.make("lambdarank", SMALL), champion)


class TestEnsembleByRank(RankerContract):
    ranker = "ensemble"
    knobs = BY_RANK

    def make(self):
        champion = rankers.make("logistic").fit(world(seed=21))
        return rankers.make("ensemble", self.knobs).of(rankers.make("lambdarank", SMALL), champion)


class TestDcn(RankerContract):
    ranker, knobs = "dcn", NETWORK | {"n_cross": 1}


class TestWideDeep(RankerContract):
    ranker, knobs = "wide_deep", NETWORK


class TestSharedBottom(RankerContract):
    ranker, knobs = "shared_bottom", NETWORK
    learns_to = 0.9  # where only the gain is known, taken is taken


class TestMmoe(RankerContract):
    ranker, knobs = "mmoe", NETWORK | {"n_experts": 2}
    learns_to = 0.9


def test_every_ranker_of_the_line_up_is_held_to_the_contract():
    held = {kind.ranker for kind in RankerContract.__subclasses__()}
    assert held == set(rankers.RANKERS), "add a class of three lines"


def test_the_settings_choose_a_ranker_and_its_knobs():
    settings = RankingSettings(
        ranker="pointwise", parameters={"pointwise": {"num_leaves": 7, "calibration": "platt"}}, n_rounds=33, num_leaves=9, seed=5
    )
    found = rankers.chosen(settings)
    assert (found.name, found.num_leaves, found.n_rounds, found.seed, found.calibration) == ("pointwise", 7, 33, 5, "platt")
    assert rankers.chosen(settings, "lambdarank").num_leaves == 9, "what is said of all trees"
    assert rankers.chosen(RankingSettings()).name == "lambdarank"
    assert rankers.chosen(settings, "logistic").regularization == 1.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ranker": "lambdarnak"}, "did you mean 'lambdarank'"),
        ({"parameters": {"catboost": {}}}, "ranker 'catboost': unknown; expected one of"),
        ({"parameters": {"xendcg": {"num_leafs": 3}}}, r"knobs \['num_leafs'\].*did you mean 'num_leaves'"),
        ({"parameters": {"xendcg": {"num_leaves": "many"}}}, "knob num_leaves: 'many'; expected a whole number at least 2"),
        ({"parameters": {"lambdarank": {"num_leaves": 1}}}, "expected a whole number at least 2"),
        ({"parameters": {"lambdarank": {"learning_rate": 0}}}, "above 0 and at most 1"),
        ({"parameters": {"lambdarank": {"debias": "magic"}}}, r"one of \['off', 'position', 'weight'\]"),
        ({"parameters": {"xendcg": {"debias": "position"}}}, r"one of \['off', 'weight'\]"),
        ({"parameters": {"ensemble": {"weight": 1.5}}}, "at least 0 and at most 1"),
        ({"ranker": "ensemble", "parameters": {"ensemble": {"ranker": "ensemble"}}}, "one ranker that learns on its own"),
        ({"ranker": "ensemble", "parameters": {"ensemble": {"ranker": "rff"}}}, "did you mean 'rrf'"),
        ({"baselines": ["ensemble"]}, "rankers that learn on their own"),
        ({"baselines": ["popular"]}, "ranker 'popular': unknown"),
        (
            {"parameters": {"pointwise": {"outcome": "click"}}, "baselines": ["pointwise"]},
            r"outcome: 'click'; expected one of \['', 'view'",
        ),
        ({"parameters": {"lambdarank": {"debias": "position", "n_workers": 2}}}, "learns such biases in one process"),
        ({"features": ["stored"]}, r"ranking.features: no 'retrieval', which \['logistic', 'rrf'\] read"),
        (
            {"features": ["stored"], "ranker": "ensemble", "baselines": [], "parameters": {"ensemble": {"ranker": "rrf"}}},
            "which .'rrf'. read",
        ),
    ],
)
def test_a_wrong_choice_is_refused_with_what_would_be_right(given, said):
    with pytest.raises(StateError, match=said):
        rankers.chosen(RankingSettings(**given))


@pytest.mark.parametrize(
    ("lacking", "given", "extra"),
    [
        ("jax", {"ranker": "dcn"}, "neural"),
        ("jax", {"baselines": ["wide_deep"]}, "neural"),
        ("jax", {"ranker": "ensemble", "parameters": {"ensemble": {"ranker": "mmoe"}}}, "neural"),
        ("dask", {"parameters": {"lambdarank": {"n_workers": 2}}}, "dask"),
    ],
)
def test_a_ranker_that_cannot_be_trained_here_is_refused_before_anything_is(lacking, given, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, lacking, None)  # as if it were not installed
    with pytest.raises(ReloopError, match=extra):
        rankers.chosen(RankingSettings(**given))


def before(folder, names=NAMES):
    """Write lambdarank as it was kept when there was no other ranker."""
    files = rankers.make("lambdarank", SMALL).fit(world()).dump()
    (folder / "model.txt").write_bytes(files["model.txt"])
    (folder / "importance.json").write_bytes(files["importance.json"])
    described = {
        "features": list(names),
        "schema_hash": schema_hash(NAMES),
        "model_sha256": hashlib.sha256(files["model.txt"]).hexdigest(),
        "knobs": {"learning_rate": 0.05, "num_leaves": 15, "n_rounds": 40, "min_data_in_leaf": 10, "num_threads": 1, "seed": 7},
    }
    (folder / "features.json").write_text(publish.to_json(described))


def test_a_ranker_of_before_there_were_others_loads_and_scores_as_ever(tmp_path):
    before(tmp_path)
    rows = world(seed=4)
    loaded = rankers.load(tmp_path)
    assert loaded.n_rounds == 40
    assert np.array_equal(loaded.score(rows.features), rankers.make("lambdarank", SMALL).fit(world()).score(rows.features))


def test_a_ranker_of_before_there_were_others_is_checked_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(rankers.LambdaRank, "restore", lambda *_: pytest.fail("parsed a damaged model"))
    before(tmp_path, names=NAMES[::-1])
    with pytest.raises(StateError, match="schema hash"):
        rankers.load(tmp_path)
    before(tmp_path)
    (tmp_path / "model.txt").write_bytes((tmp_path / "model.txt").read_bytes()[:-9])
    with pytest.raises(StateError, match="sha256"):
        rankers.load(tmp_path)


def test_what_describes_a_ranker_cannot_be_changed_unseen(tmp_path):
    rankers.save(tmp_path, rankers.make("rrf").fit(world()))
    file = tmp_path / rankers.RANKER_FILE
    said = json.loads(file.read_text())
    said["knobs"]["constant"] = 1.0
    file.write_text(publish.to_json(said))
    with pytest.raises(StateError, match=r"ranker\.json: sha256"):
        rankers.load(tmp_path)


def test_an_empty_folder_is_no_ranker(tmp_path):
    with pytest.raises(StateError, match=r"no ranker\.json"):
        rankers.load(tmp_path)


def test_comparing_items_by_the_vectors_of_a_source_without_any_is_refused_before_anything_is_trained():
    asked = RerankSettings(mmr={"trade_off": 0.5}, likeness={"by": "vectors", "source": "popular"})
    with pytest.raises(StateError, match="'popular', which has no vectors of items"):
        goods.vectored(asked, lineup.chosen(RetrievalSettings(sources=("popular", "als"))))
    with pytest.raises(StateError, match="'als', which is no source of the run"):
        goods.vectored(RerankSettings(mmr={"trade_off": 0.5}, likeness={"by": "vectors", "source": "als"}), {})
