"""An explanation says what the model did, and what it would have done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from ranking_world import AS_OF

from pipelines import config
from pipelines.cli import explaining
from pipelines.datasets.interactions import load
from pipelines.errors import ReloopError
from pipelines.ranking import explain, training, training_set, two_stage
from pipelines.ranking.two_stage import BLEND
from pipelines.rerank_policies import RerankSettings
from pipelines.retrieval.cold_users import ColdUsers


@pytest.fixture(scope="module")
def model(shop):
    training_set.build(shop, AS_OF)
    training.train(shop, AS_OF)
    return two_stage.of_run(shop, AS_OF)


@pytest.fixture(scope="module")
def capped(model):
    return replace(model, rerank=RerankSettings.model_validate({"caps": {"category": 1, "window": 3}, "availability": None}))


def listed(shop, model, user="u003"):
    return two_stage.rank_users(shop, model, np.array([user]), AS_OF, 10)


def test_the_list_that_is_explained_is_the_list_that_is_served(shop, model):
    served, told = listed(shop, model), explain.explain(shop, model, "u003", AS_OF)
    assert [line["item"] for line in told["list"]] == served.item_ids[0].tolist()
    assert [line["score"] for line in told["list"]] == pytest.approx(served.score[0].tolist())
    assert [tuple(line["sources"]) for line in told["list"]] == [served.sources_of(0, place) for place in range(10)]
    assert told["item"]["item_id"] == told["list"][0]["item"]
    assert told["item"]["place"] == 1


def test_an_item_is_called_by_its_title_where_the_catalogue_has_one(shop, model):
    known = load(shop, AS_OF, config.load(shop).training, item_ids=model.item_ids)
    assert explain.ask(shop, model, "u003", AS_OF).question.titles == known.items["title"]
    question = explain.Question(shop, model, "u003", AS_OF, None, None, pa.chunked_array([["lamp", None]]))
    assert [question.title(0), question.title(1)] == ["lamp", None]
    assert replace(question, titles=None).title(0) is None


def test_what_the_features_add_makes_the_score(shop, model):
    asked = explain.ask(shop, model, "u003", AS_OF)
    told = explain.explain(shop, model, "u003", AS_OF)["item"]
    row = asked.row_of(int(np.flatnonzero(model.item_ids == told["item_id"])[0]))
    added = sum(feature["added"] for feature in told["features"])
    everyone = model.ranker.fitted().booster.predict(np.zeros((1, len(model.ranker.features))), pred_contrib=True)[0, -1]
    assert told["ranker"]["score"] == pytest.approx(asked.score[row])
    assert added + everyone == pytest.approx(told["ranker"]["score"], abs=1e-6)
    assert all(feature["meaning"] for feature in told["features"])


def test_an_item_nobody_proposed_is_told_where_it_would_have_come(shop, model):
    asked = explain.ask(shop, model, "u003", AS_OF)
    other = next(name for at, name in enumerate(model.item_ids) if at not in set(asked.candidates.item.tolist()))
    told = explain.explain(shop, model, "u003", AS_OF, item_id=str(other))["item"]
    assert (told["candidate"], told["place"], told["features"]) == (False, None, [])
    beyond = [source["place"] for source in told["sources"].values() if source["place"] is not None]
    assert beyond
    assert min(beyond) > model.k_per_source


def test_without_the_rule_the_item_stands_where_the_ranker_put_it(shop, capped):
    plain = replace(capped, rerank=RerankSettings.model_validate({"availability": None}))
    before = [line["item"] for line in explain.explain(shop, plain, "u003", AS_OF, k=plain.k_blend)["list"]]
    moved = next(name for place, name in enumerate(listed(shop, capped).item_ids[0]) if before.index(name) != place)
    told = explain.explain(shop, capped, "u003", AS_OF, item_id=str(moved))["item"]
    without = {change["without"]: change["place"] for change in told["counterfactuals"]}
    assert without["rule caps"] == before.index(moved) + 1 == told["rules"]["ranker"]
    assert told["rules"]["caps"] == told["place"] != without["rule caps"]


def test_without_its_only_source_an_item_is_no_candidate(shop, model):
    told = explain.explain(shop, model, "u003", AS_OF, k=50)
    only = next(line for line in told["list"] if len(line["sources"]) == 1)
    about = explain.explain(shop, model, "u003", AS_OF, item_id=only["item"])["item"]
    assert {"without": f"source {only['sources'][0]}", "place": None} in about["counterfactuals"]


def test_the_blend_is_explained_without_features(shop, model):
    told = explain.explain(shop, replace(model, serves=BLEND), "u003", AS_OF)
    assert told["serves"] == BLEND
    assert told["item"]["features"] == []
    assert told["item"]["blend"]["place"] == told["item"]["ranker"]["place"] == 1


def test_an_item_unknown_to_the_release_is_named(shop, model):
    with pytest.raises(ReloopError, match=r"item 'nonsense'.*unknown to this release"):
        explain.explain(shop, model, "u003", AS_OF, item_id="nonsense")


def test_without_the_ladder_a_newcomer_has_the_lists_that_it_had_silenced(shop, model):
    known = load(shop, AS_OF, config.load(shop).training, item_ids=model.item_ids)
    plain = replace(model, serves=BLEND, rerank=RerankSettings(availability=None))
    laddered = replace(plain, retrievers={**plain.retrievers, "cold_users": ColdUsers().fit(known)})
    others = listed(shop, plain, "nobody").item_ids[0].tolist()
    served = set(listed(shop, laddered, "nobody").item_ids[0].tolist()) - {""}
    both = next(name for name in others if name in served)
    about = explain.explain(shop, laddered, "nobody", AS_OF, item_id=both)["item"]
    assert {"without": "source cold_users", "place": others.index(both) + 1} in about["counterfactuals"]


def test_names_that_look_like_markup_are_told_as_they_are(shop, model, capsys):
    explaining._tell_list(explain.explain(shop, model, "[/nobody]", AS_OF) | {"version": 1})
    assert "[/nobody] as of" in capsys.readouterr().out
