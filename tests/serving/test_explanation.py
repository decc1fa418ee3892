"""An answer of before is explained by asking again: the same list, each place with its sources, features and rules."""

from __future__ import annotations

import json

import pytest
from full_path import ask, opened, some_users
from pydantic_core import to_json

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.serving import api, explanation
from pipelines.serving.engine import Engine
from pipelines.serving.request import Filters
from pipelines.streaming.session import SessionEvent


@pytest.fixture(scope="module")
def engine(served: Home) -> Engine:
    """Return a release over the served shop."""
    return opened(served)


def test_the_list_that_is_explained_is_the_one_that_was_shown(served, engine):
    for user in some_users(served, 4):
        question = ask(user_id=user)
        answer = engine.answer(question)
        told = explanation.explained(engine, question, shown=[shown.item_id for shown in answer.items])
        assert told["reproduced"] is True
        assert [line["item"] for line in told["list"]] == [shown.item_id for shown in answer.items]
        assert [tuple(line["sources"]) for line in told["list"]] == [shown.sources for shown in answer.items]
        json.dumps(told, allow_nan=False)


def test_the_contributions_of_features_add_up_to_the_score(served, engine):
    question = ask(user_id=some_users(served, 3)[1])
    answer = engine.answer(question)
    about = explanation.explained(engine, question, item_id=answer.items[2].item_id)["item"]
    assert about["place"] == 3
    assert {feature["feature"] for feature in about["features"]} == set(engine.model.ranker.features)
    added = sum(feature["added"] for feature in about["features"])
    other = explanation.explained(engine, question, item_id=answer.items[5].item_id)["item"]
    added_other = sum(feature["added"] for feature in other["features"])
    # what every score begins with is the same for both
    assert about["ranker"]["score"] - other["ranker"]["score"] == pytest.approx(added - added_other, abs=1e-6)
    assert about["counterfactuals"]


def test_an_item_that_was_not_shown_can_be_asked_about_and_a_stranger_not(served, engine):
    question = ask(user_id=some_users(served, 3)[1])
    listed = {shown.item_id for shown in engine.answer(question).items}
    other = next(item for item in engine.model.item_ids.tolist() if item not in listed)
    assert explanation.explained(engine, question, item_id=other)["item"]["item_id"] == other
    with pytest.raises(StateError, match="unknown to the release"):
        explanation.explained(engine, question, item_id="no such thing")
    with pytest.raises(StateError, match="surface similar"):
        explanation.explained(engine, ask("similar", item_ids=(other,)))


def test_a_question_comes_back_from_json_as_it_was():
    filters = Filters(("tea",), (), 1.0, None, ("i1", "i2"), available_only=False)
    events = (SessionEvent(5, "e", "i", "view", None),)
    question = ask("like", user_id="ann", item_ids=("i",), changes=("cheaper",), events=events, filters=filters, device="phone")
    assert explanation.read(json.loads(explanation.written(question))) == question


def test_a_process_tells_why_of_what_it_answered(open_house):
    home, made = open_house
    answer = made.service.answer(ask(at=made.clock(), user_id=some_users(home, 3)[1]))
    made.keep(answer, to_json(api.told(answer), inf_nan_mode="null"))
    found = made.remembered(answer.ask.request_id)
    assert found["why"]["reproduced"] is True
    assert [line["item"] for line in found["why"]["list"]] == [shown.item_id for shown in answer.items]
