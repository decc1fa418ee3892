"""People in front of lists: what they take follows their taste, the place, and the wish to leave."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pipelines.sources.request import World
from pipelines.sources.simulator import Shop
from pipelines.sources.simulator.shoppers import Shoppers, bias

DAY = 30


@cache
def crowd(share: float = 1.0) -> Shoppers:
    return Shoppers(Shop(World(seed=3, users=600, items=200, events_per_day=1500)), DAY, share=share)


def on_sale() -> np.ndarray:
    return np.flatnonzero(crowd().truth.available)


def shown(kind: str, call: int) -> list[str]:
    ids, rng = crowd().truth.item_ids.to_pylist(), np.random.default_rng(call)
    worth = crowd().utility(int(crowd().calls.user[call]))[on_sale()]
    order = {"best": np.argsort(-worth), "shuffled": np.argsort(-worth), "random": rng.permutation(len(worth)), "worst": np.argsort(worth)}[
        kind
    ]
    first = rng.permutation(order[:10]) if kind == "shuffled" else order[:10]
    return [ids[on_sale()[at]] for at in first]


def taken(kind: str) -> np.ndarray:
    """Return the places taken of the lists of all visits."""
    return np.array([place for call in range(len(crowd().calls)) for place, *_ in crowd().answer(call, shown(kind, call))])


def test_taste_decides_what_is_taken():
    best, random, worst = (len(taken(kind)) / len(crowd().calls) for kind in ("best", "random", "worst"))
    assert best > 4 * random
    assert random > 3 * worst


def test_the_first_places_are_looked_at_most():
    """Of the best ten in random order the first place is taken more often than two of the last: its odds are e^2 times theirs."""
    places = np.bincount(taken("shuffled"), minlength=10)
    assert places[0] > places[8:].sum()
    assert bias(8)[0] == 0
    assert bias(8)[-1] == pytest.approx(0.9 * np.log2(4.5))


def test_the_same_visit_answers_the_same_list_the_same_way_in_another_process_too():
    again = Shoppers(Shop(World(seed=3, users=600, items=200, events_per_day=1500)), DAY)
    for call in range(50):
        assert again.answer(call, shown("best", call)) == crowd().answer(call, shown("best", call))


def test_luck_belongs_to_visit_and_item_not_to_the_list():
    """An item moved up is taken no less: whoever took it at place 5 takes it at place 0."""
    for call in range(len(crowd().calls)):
        items = shown("best", call)
        for place, carted, bought in crowd().answer(call, items):
            moved = [items[place], *items[:place], *items[place + 1 :]]
            assert crowd().answer(call, moved)[0] == (0, carted, bought) or 0 in [at for at, *_ in crowd().answer(call, moved)]


def test_what_is_unknown_or_not_for_sale_is_passed_over():
    truth = crowd().truth
    gone = [item for item, there in zip(truth.item_ids.to_pylist(), truth.available, strict=True) if not there]
    assert gone
    assert all(crowd().answer(call, ["nonsense", *gone[:9]]) == [] for call in range(40))
    assert crowd().answer(0, []) == []


def test_a_share_of_the_visits_is_a_part_of_them_all():
    every, some = set(crowd().calls.session.tolist()), set(crowd(0.3).calls.session.tolist())
    assert some < every
    assert 0.2 < len(some) / len(every) < 0.4


def test_events_follow_the_visit_and_name_their_request():
    call = next(call for call in range(len(crowd().calls)) if any(bought for *_, bought in crowd().answer(call, shown("best", call))))
    items = shown("best", call)
    done = crowd().answer(call, items)
    events = crowd().events(call, items, "r1", done).to_pylist()
    assert [event["event_type"] for event in events].count("view") == len(done)
    assert {event["request_id"] for event in events} == {"r1"}
    assert len({event["event_id"] for event in events}) == len(events)
    bought = [event for event in events if event["event_type"] == "purchase"]
    assert bought
    assert all(event["value"] > 0 for event in bought)
    assert [event["event_at"] for event in events] == sorted(event["event_at"] for event in events)
