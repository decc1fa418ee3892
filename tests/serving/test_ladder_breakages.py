"""Who tests the tests: each of these changes to the ladder, its caches and its breaker is noticed by the test that is about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import test_breaker
import test_caches
import test_ladder
from test_caches import shop as _shop
from test_ladder import ladder as _ladder

from pipelines.config import Home
from pipelines.serving import caches, ladder
from pipelines.serving.blocked import Blocked
from pipelines.serving.breaker import Breaker
from pipelines.serving.caches import Caches, Kept
from pipelines.serving.news import News

shop, rungs = _shop, _ladder  # fixtures of the tests that are tried

Patch = Callable[[pytest.MonkeyPatch], None]


def put(where: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(where, name, value)


def holding(forgets: str) -> Any:
    """Return `Kept.holds` that does not look at one thing."""

    def holds(self: Kept, wanted: Any, now_us: int, seconds: float) -> bool:
        same = {name: getattr(self.wanted, name) == getattr(wanted, name) for name in wanted._fields} | {
            "age": 0 <= now_us - self.at_us <= seconds * 1e6,
            "degraded": not self.answer.degraded,
        }
        return all(value for name, value in same.items() if name != forgets)

    return holds


def forgetting(field: str) -> Any:
    """Return `key_of` that leaves something out of what was asked."""
    return lambda ask: tuple(getattr(ask, name) for name in vars(ask) if name not in {field, "as_of", "request_id"})


BREAKAGES: dict[str, tuple[Patch, Callable[..., None], dict[str, Any]]] = {
    "takedowns are told to the engine and not taken out": (
        put(Blocked, "without", lambda self, answer: answer),
        test_ladder.test_a_blocked_item_is_on_no_rung,
        {},
    ),
    "takedowns are taken out of the engine's lists only": (
        put(Blocked, "items", frozenset()),
        test_ladder.test_a_blocked_item_is_on_no_rung,
        {},
    ),
    "an engine's list is not checked": (
        put(ladder, "check", lambda answer: None),
        test_ladder.test_what_is_no_list_is_never_shown,
        {"wrong": test_ladder.shown("i1", "i1")},
    ),
    "lower rungs know no filters": (put(ladder, "meets", lambda *_: True), test_ladder.test_filters_hold_on_the_lower_rungs, {}),
    "the breaker never opens": (
        put(Breaker, "failed", lambda self, why: None),
        test_breaker.test_it_opens_within_a_second_of_trouble_and_closes_within_ten_of_recovery,
        {"rate": 10},
    ),
    "the breaker never closes": (
        put(Breaker, "succeeded", lambda self: None),
        test_breaker.test_it_opens_within_a_second_of_trouble_and_closes_within_ten_of_recovery,
        {"rate": 10},
    ),
    "events end nothing that was remembered": (
        put(News, "of", lambda self, user: 0),
        test_caches.test_an_event_of_the_user_ends_what_was_remembered_and_nobody_elses,
        {},
    ),
    "news is looked up after the list was made": (
        put(Kept, "holds", holding("news")),
        test_caches.test_an_event_while_the_list_is_made_ends_it,
        {},
    ),
    "a release ends nothing that was remembered": (
        put(Kept, "holds", holding("digest")),
        test_caches.test_a_release_and_a_variant_end_it,
        {},
    ),
    "a variant ends nothing that was remembered": (
        put(Kept, "holds", holding("variant")),
        test_caches.test_a_release_and_a_variant_end_it,
        {},
    ),
    "a degraded answer is given as if it were new": (
        put(Kept, "holds", holding("degraded")),
        test_caches.test_an_answer_that_was_not_as_it_should_be_is_not_given_for_one_that_is,
        {},
    ),
    "a remembered list never grows old": (
        put(Kept, "holds", holding("age")),
        test_caches.test_whoever_asks_something_else_gets_something_else,
        {"other": {"as_of": test_caches.later(31)}},
    ),
    "everybody is given the same user's list": (
        put(caches, "key_of", forgetting("user_id")),
        test_caches.test_whoever_asks_something_else_gets_something_else,
        {"other": {"user_id": "eve"}},
    ),
    "filters are no part of what was asked": (
        put(caches, "key_of", forgetting("filters")),
        test_caches.test_whoever_asks_something_else_gets_something_else,
        {"other": {"filters": test_caches.Filters(max_price=100.0)}},
    ),
    "what was sold out stays in remembered lists": (
        put(ladder.Ladder, "_good", lambda self, ask, kept: ({shown.item_id: {} for shown in kept.items}, [True] * len(kept.items))),
        test_caches.test_what_was_sold_out_meanwhile_is_in_no_remembered_list,
        {},
    ),
    "every thread computes": (
        put(Caches, "_boarded", lambda self, wanted: (caches._Flight(), True)),
        test_caches.test_of_thirty_threads_that_lack_a_list_one_computes_it,
        {},
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_deliberate_breakage_is_noticed(name: str, request: pytest.FixtureRequest, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    change, test, given = BREAKAGES[name]
    names = [argument for argument in inspect.signature(test).parameters if argument not in given]
    fixtures = {argument: request.getfixturevalue({"ladder": "rungs"}.get(argument, argument)) for argument in names}
    change(monkeypatch)
    with pytest.raises((AssertionError, StopIteration)):
        test(**given, **fixtures)
