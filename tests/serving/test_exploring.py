"""The service gives new items their places, by known chances that nobody repeats or forgets."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import served_shop
from full_path import ask, opened, some_users
from scripted import PATIENT, RELEASE, STOCK, Engine, shown
from scripted import ask as asked
from trained_shop import SECOND

from pipelines.config import Home
from pipelines.model_settings import ExplorationPolicy
from pipelines.ranking import two_stage
from pipelines.ranking.newcomers import SOURCE
from pipelines.serving import blocked, explanation
from pipelines.serving.blocked import Blocked
from pipelines.serving.caches import Caches
from pipelines.serving.experimenting import Drafting
from pipelines.serving.ladder import MOST_EXCLUDED, Ladder
from pipelines.serving.news import News
from pipelines.serving.request import CACHED, FULL, Answer, Ask, Filters
from pipelines.serving_policies import CachePolicy
from pipelines.window import utc

DRAWS = 'method = "epsilon_greedy"\nshare = 0.5\nslots = [2, 4]\nmax_age_days = 10000.0\nmax_events = 1000000\n'
DRAWN = tuple(replace(one, propensity=0.5 if one.rank == 2 else 1.0) for one in shown("a", "b", "c"))


@pytest.fixture(scope="module")
def shop(served: Home, tmp_path_factory):
    """Return a shop that explores, and its engine."""
    home = served_shop.copied(served, tmp_path_factory.mktemp("exploring") / "var")
    with (home.root / "reloop.toml").open("a") as file:
        file.write(f"\n[exploration]\n{DRAWS}")
    return home, opened(home)


def test_an_answer_is_drawn_as_the_offline_path_draws_with_the_same_chances(shop):
    home, engine = shop
    users = some_users(home, 12)
    with served_shop.environment(home):
        lists = two_stage.rank_users(home, engine.model, np.array(users), SECOND, 10)
    found = Counter()
    for row, user in enumerate(users):
        answer = engine.answer(replace(ask(user_id=user), request_id=utc(SECOND).isoformat()))
        assert (answer.rung, answer.degraded) == (FULL, ())
        kept = [(item, chance) for item, chance in zip(lists.item_ids[row], lists.propensity[row], strict=True) if item]
        assert [(one.item_id, one.propensity) for one in answer.items] == kept
        found += Counter(SOURCE in one.sources for one in answer.items)
        read = {one.item_id: all(math.isnan(values[at]) for values in answer.features.values()) for at, one in enumerate(answer.items)}
        assert all(SOURCE in one.sources for one in answer.items if read[one.item_id]), "what was not drawn was ranked"
    assert found[True] > 3, "somebody is shown something new"


def test_how_often_a_place_is_drawn_is_what_its_propensity_says(shop):
    home, engine = shop
    user = some_users(home, 5)[2]
    answers = [engine.answer(replace(ask(user_id=user), request_id=f"r{n}")) for n in range(120)]
    new = [any(SOURCE in one.sources for one in answer.items) for answer in answers]
    assert 40 < sum(new) < 80
    for answer in answers:
        assert [one.propensity < 1 for one in answer.items] == [one.rank in (2, 4) for one in answer.items]
    assert engine.answer(replace(ask(user_id=user), request_id="r7")).items == answers[7].items, "a request can be made again"


def test_what_may_not_be_shown_is_not_drawn_and_other_surfaces_draw_nothing(shop):
    home, engine = shop
    user = some_users(home, 5)[2]
    category = str(engine.answer(ask(user_id=user)).items[0].about["category"])
    for n in range(20):
        answer = engine.answer(replace(ask(user_id=user, filters=Filters(categories=(category,))), request_id=f"r{n}"))
        assert {one.about["category"] for one in answer.items} == {category}
    assert not engine.answer(ask("session")).drawn


def test_a_drawn_answer_is_not_remembered_as_good_as_new_and_given_again_its_chances_are_unknown(tmp_path):
    caches = Caches(CachePolicy(), News(Home(tmp_path)))
    calls = []

    def full() -> Answer:
        calls.append(1)
        return Answer(asked(), DRAWN, FULL, RELEASE)

    for _ in range(3):
        answer = caches.through(asked(), RELEASE, "", full, sound=lambda _: True, wait_ms=100)
        assert answer.items == DRAWN
    assert len(calls) == 3
    again = caches.before(asked())
    assert again.rung == CACHED
    assert all(math.isnan(one.propensity) for one in again.items)


def test_what_moved_up_stands_where_nothing_was_drawn_for_it():
    answer = Answer(asked(), DRAWN, FULL, RELEASE)
    assert [one.propensity for one in answer.keeping([True, True, False]).items] == [1.0, 0.5]
    first, second = answer.keeping([True, False, True]).items
    assert first.propensity == 1.0
    assert math.isnan(second.propensity)
    certain = Answer(asked(), shown("a", "b"), FULL, RELEASE).keeping([False, True])
    assert certain.items[0].propensity == 1.0


def test_a_list_that_was_asked_for_again_for_a_takedown_has_no_known_chances(home: Home):
    blocked.block(home, [*(f"a{n:03}" for n in range(MOST_EXCLUDED)), "z"], "recalled")

    def draws(told: Ask) -> Answer:
        items = [one for one in ("z", "b", "c", "d") if one not in told.filters.exclude][:3]
        return Answer(told, tuple(replace(one, propensity=0.5) for one in shown(*items)), FULL, RELEASE)

    way = Ladder(PATIENT, lambda _: (Engine(draws), ""), lambda: STOCK, Blocked(home, follow_seconds=0))
    answer = way.answer(asked())
    assert [one.item_id for one in answer.items] == ["b", "c", "d"]
    assert all(math.isnan(one.propensity) for one in answer.items)


def test_an_explanation_does_not_take_a_draw_for_a_difference(shop):
    home, engine = shop
    question = ask(user_id=some_users(home, 5)[2])
    told = explanation.explained(engine, question, shown=[one.item_id for one in engine.answer(question).items])
    assert told["reproduced"] is None


def test_of_a_draft_nobody_knows_the_chances():
    answer = Drafting(Engine(), Engine(), ("a", "b"), "salt").answer(asked())
    assert all(math.isnan(one.propensity) for one in answer.items)


def test_what_is_new_is_so_by_age_events_and_availability(shop):
    _, engine = shop
    binding = engine.binding(engine.knowledge.known)
    as_of = 2**62
    strict = ExplorationPolicy(max_age_days=1e-9, max_events=1_000_000_000)
    assert not binding.new_items(strict, as_of)[binding.born < as_of].any()
    assert (binding.new_items(ExplorationPolicy(max_age_days=1e12, max_events=10**9), as_of) == binding.available).all()
    assert (binding.met[binding.new_items(ExplorationPolicy(max_age_days=1e12, max_events=3), as_of)] <= 3).all()
