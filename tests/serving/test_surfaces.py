"""Every surface answers every question: with what was asked for, or with a label; never NaN, never an item twice, never one left out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from full_path import ask, opened, some_users
from trained_shop import SECOND

from pipelines import columns as c
from pipelines.config import Home
from pipelines.retrieval.merging import Recipe
from pipelines.retrieval.popular import Popular
from pipelines.serving import alike, critique
from pipelines.serving.engine import Engine
from pipelines.serving.request import EMPTY, FULL, POPULAR, SEGMENT, Answer, Filters
from pipelines.serving.standing import meets
from pipelines.streaming.session import SessionEvent
from pipelines.window import micros

SURFACES = ("home", "similar", "bought_together", "because_you_viewed", "basket", "session", "trending", "like")


@pytest.fixture(scope="module")
def engine(served: Home) -> Engine:
    """Return a release over the served shop."""
    return opened(served)


def item(engine: Engine, at: int) -> str:
    return str(engine.model.item_ids[at])


def sound(answer: Answer, engine: Engine) -> None:
    """Check what must hold of any answer at all."""
    ids = [shown.item_id for shown in answer.items]
    assert len(ids) == len(set(ids)) <= answer.ask.k
    assert "" not in ids
    assert [shown.rank for shown in answer.items] == list(range(1, len(ids) + 1))
    assert all(math.isfinite(shown.score) and 0 < shown.propensity <= 1 for shown in answer.items)
    assert all(shown.why.text and shown.why.kind and shown.sources for shown in answer.items)
    for shown in answer.items:
        assert meets(answer.ask.filters, shown.item_id, engine.knowledge.about(shown.item_id))
        assert shown.about == engine.knowledge.about(shown.item_id)
    assert (answer.rung == EMPTY) == (not ids)


def test_similar_items_are_never_the_item_itself_and_say_what_they_are_like(engine):
    answer = engine.answer(ask("similar", item_ids=(item(engine, 3),)))
    sound(answer, engine)
    assert (answer.rung, len(answer.items)) == (FULL, 10)
    assert {shown.why.item_id for shown in answer.items} == {item(engine, 3)}
    assert item(engine, 3) not in {shown.item_id for shown in answer.items}


def test_a_basket_is_completed_by_none_of_its_own(engine):
    basket = tuple(item(engine, at) for at in (3, 4, 5))
    answer = engine.answer(ask("basket", item_ids=(*basket, "no such thing")))
    sound(answer, engine)
    assert len(answer.items) == 10
    assert not set(basket) & {shown.item_id for shown in answer.items}
    assert {shown.why.item_id for shown in answer.items} <= set(basket)


def test_because_you_viewed_is_a_list_for_each_of_the_last_items_one_after_the_other(served, engine):
    answer = engine.answer(ask("because_you_viewed", user_id=some_users(served, 5)[2], k=12))
    sound(answer, engine)
    anchors = [shown.why.item_id for shown in answer.items]
    assert len(answer.items) == 12
    assert len(set(anchors)) == 4  # three items each
    assert anchors == sorted(anchors, key=anchors.index)
    assert not set(anchors) & {shown.item_id for shown in answer.items}
    assert all(shown.why.text.startswith("Because you viewed ") for shown in answer.items)


def test_an_anonymous_session_is_answered_by_its_events_alone(engine):
    events = (SessionEvent(micros(SECOND) - 1, "e", item(engine, 7), c.VIEW),)
    told, nothing = (engine.answer(ask("session", events=some)) for some in (events, ()))
    for answer in (told, nothing):
        sound(answer, engine)
        assert answer.rung == FULL
    assert any(shown.why.item_id == item(engine, 7) for shown in told.items)
    assert [shown.item_id for shown in told.items] != [shown.item_id for shown in nothing.items]


def test_trending_is_of_the_country_where_that_is_known(engine):
    here, there = (engine.answer(ask("trending", country=country)) for country in ("DE", "ZZ"))
    for answer in (here, there):
        sound(answer, engine)
        assert answer.rung == FULL
    assert here.items[0].why.text == "Trending in DE"
    assert there.items[0].why.text == "Trending now"


@pytest.mark.parametrize("change", list(critique.WORDS))
def test_a_critique_holds_for_every_item(engine, change):
    about = engine.knowledge.about(item(engine, 3))
    answer = engine.answer(ask("like", item_ids=(item(engine, 3),), changes=(change,)))
    sound(answer, engine)
    assert answer.items
    for shown in answer.items:
        if change in {"cheaper", "dearer"}:
            assert (shown.about[c.PRICE] < about[c.PRICE]) == (change == "cheaper")
        else:
            name = c.BRAND if change.endswith("brand") else c.CATEGORY
            assert (shown.about[name] == about[name]) == change.startswith("same")
        assert shown.why.text == f"Like {about[c.TITLE]}, but {critique.WORDS[change]}"


def test_a_critique_finds_whatever_the_catalogue_holds(engine):
    shop = engine.knowledge.catalogue
    place = shop.place(item(engine, 3))
    eligible = critique.changed(shop, place, ("other_category", "dearer"), np.arange(len(shop.item_ids))) & shop.available
    answer = engine.answer(ask("like", item_ids=(item(engine, 3),), changes=("other_category", "dearer"), k=200))
    assert {shown.item_id for shown in answer.items} == {shop.item_ids[int(at)].as_py() for at in np.flatnonzero(eligible)}


@pytest.mark.parametrize("surface", ["similar", "bought_together", "basket", "like"])
def test_an_item_nobody_knows_gets_what_is_popular_and_a_label(engine, surface):
    answer = engine.answer(ask(surface, item_ids=("no such thing",), changes=("cheaper",), country="DE"))
    sound(answer, engine)
    assert answer.rung == SEGMENT
    assert answer.degraded == (f"{surface}: the catalogue knows none of ['no such thing']",)
    assert engine.answer(ask(surface, item_ids=("no such thing",))).rung == POPULAR


def test_a_user_nobody_knows_gets_a_list(engine):
    answer = engine.answer(ask(user_id="never seen"))
    sound(answer, engine)
    assert (answer.rung, len(answer.items)) == (FULL, 10)


def test_votes_of_several_lists_add_up_and_the_loudest_anchor_is_named():
    # 60 + rank is the denominator: item 5 has 1/61 of each anchor, item 6 has 1/62 of the first and 1/63 of the second
    found = alike.fused([(1, [("viewed_together", np.array([5, 6]))]), (2, [("viewed_together", np.array([5, 7, 6]))])])
    assert found.place.tolist() == [5, 6, 7]
    assert found.score.tolist() == pytest.approx([2 / 61, 1 / 62 + 1 / 63, 1 / 62])
    assert found.anchor.tolist() == [1, 1, 2]


def test_anything_at_all_may_be_asked(served, engine):
    rng, users = np.random.default_rng(0), some_users(served, 20)
    shop, rungs = engine.knowledge.catalogue, set()
    words = {name: ["no such", *shop.words[name][1]] for name in (c.CATEGORY, c.BRAND)}
    for _ in range(400):
        ids = [item(engine, int(at)) for at in rng.integers(0, len(engine.model.item_ids), 3)] + ["", "x" * 256, "😀"]

        def some(of: list, most: int) -> tuple:
            return tuple(of[int(at)] for at in rng.integers(0, len(of), rng.integers(0, most + 1)))

        filters = Filters(
            some(words[c.CATEGORY], 2),
            some(words[c.BRAND], 3),
            float(rng.uniform(0, 60)) if rng.random() < 0.2 else None,
            float(rng.uniform(0, 60)) if rng.random() < 0.2 else None,
            some(ids, 4) if rng.random() < 0.9 else tuple(engine.model.item_ids.tolist()),
            bool(rng.random() < 0.8),
        )
        events = tuple(
            SessionEvent(micros(SECOND) - int(rng.integers(-5, 10**7)), f"e{n}", one, c.VIEW) for n, one in enumerate(some(ids, 4))
        )
        question = ask(
            str(rng.choice(SURFACES)),
            user_id=users[int(rng.integers(0, len(users)))] if rng.random() < 0.7 else None,
            item_ids=some(ids, 5),
            events=events,
            k=int(rng.choice([1, 3, 10, 200])),
            filters=filters if rng.random() < 0.7 else Filters(),
            changes=some(list(critique.WORDS), 3),
            country=str(rng.choice(["DE", "ZZ"])) if rng.random() < 0.5 else None,
        )
        answer = engine.answer(question)
        sound(answer, engine)
        rungs.add(answer.rung)
    assert {FULL, POPULAR, SEGMENT, EMPTY} <= rungs


def poisoned(engine: Engine, **of: object) -> Engine:
    model = dataclasses.replace(engine.model, **of)
    return dataclasses.replace(engine, serving=dataclasses.replace(engine.serving, model=model), bindings={}, beside={})


class Mad:
    """A source that proposes what it should not: NaN and infinite scores, items twice."""

    state = None

    def __init__(self, score: float) -> None:
        self.told = score

    def retrieve(self, histories, k, *, exclude_seen):
        from pipelines.retrieval.protocol import Candidates

        found = np.full((1, k), -1, np.int32)
        found[0, :6] = np.arange(6)
        return Candidates(found, np.where(found >= 0, np.float32(self.told), -np.inf).astype(np.float32))


@pytest.mark.parametrize("score", [math.nan, math.inf, 1e38])
def test_a_source_gone_mad_poisons_no_answer(served, engine, score):
    mad = poisoned(engine, retrievers={**engine.model.retrievers, "item_knn": Mad(score)})
    for user in some_users(served, 4):
        sound(mad.answer(ask(user_id=user)), engine)


@pytest.mark.parametrize("n", [0, 1])
def test_a_release_of_one_item_and_one_of_none_answer(served, engine, n):
    one = engine.model.item_ids[:n]
    empty = dataclasses.replace(
        engine.model, item_ids=one, retrievers={"popular": fitted(one)}, ranker=None, serves="blend", recipe=Recipe(), memory=None
    )
    tiny = dataclasses.replace(engine, serving=dataclasses.replace(engine.serving, model=empty), placed={}, bindings={}, beside={})
    for surface in SURFACES:
        answer = tiny.answer(
            ask(surface, item_ids=(item(engine, 0), item(engine, 1)), user_id=some_users(served, 3)[1], changes=("cheaper",))
        )
        sound(answer, engine)
        if surface in {"home", "session"}:
            assert [shown.item_id for shown in answer.items] == list(one)


def fitted(item_ids: np.ndarray) -> Popular:
    n = len(item_ids)
    return Popular(state={"n_items": np.array([n]), "score": np.ones(n, np.float32), "order": np.arange(n, dtype=np.int32)})


@pytest.mark.parametrize(
    "changes", [("same_brand",), ("cheaper",), ("dearer", "same_category"), ("other_brand", "cheaper"), ("other_category",)]
)
def test_the_orders_of_brand_category_and_price_hold_what_a_look_through_the_catalogue_finds(engine, changes, monkeypatch):
    shop, alike = engine.knowledge.catalogue, engine.alike(engine.knowledge.known)
    everything, anything = np.arange(len(shop.item_ids)), 0
    for place in range(0, len(everything), 7):
        expected = np.flatnonzero(critique.changed(shop, place, changes, everything) & (everything % 3 > 0))
        for narrow in (0, 10**9):
            monkeypatch.setattr("pipelines.serving.alike.NARROW", narrow)
            found = alike.differing(place, changes, lambda some: some % 3 > 0)
            assert sorted(found.tolist()) == expected.tolist()
        monkeypatch.setattr("pipelines.serving.alike.SHELF", 5)
        met = shop.items["n_events"].to_numpy()
        best = alike.differing(place, changes, lambda some: some % 3 > 0)
        assert len(best) == min(5, len(expected))
        assert sorted(met[best])[:1] == sorted(-np.sort(-met[expected])[:5])[:1]
        monkeypatch.setattr("pipelines.serving.alike.SHELF", 5000)
        anything += len(expected)
    assert anything
