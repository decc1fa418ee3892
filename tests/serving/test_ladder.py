"""Every rung of the ladder answers when those above it cannot, says which it is and why, and never shows what it must not."""

import threading
import time
from dataclasses import replace
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from scripted import HASTY, NOW, PATIENT, RELEASE, STOCK, Engine, ask, hanging, items, raising, shown

from pipelines.config import Home
from pipelines.features.catalogue_snapshot import CatalogueSnapshot
from pipelines.serving import blocked
from pipelines.serving.blocked import Blocked
from pipelines.serving.ladder import Ladder
from pipelines.serving.request import FULL, Answer, Filters, Release, Why
from pipelines.serving.standing import EVERYBODY, Standing, meeting, meets
from pipelines.serving_policies import DeadlinePolicy, ServingSettings
from pipelines.streaming.session import SessionEvent
from pipelines.window import micros

EVENT = SessionEvent(micros(NOW), "e1", "i7", "view")


@pytest.fixture
def ladder(home: Home):
    def made(engine: Engine | None, settings: ServingSettings | None = None, **more) -> Ladder:
        pick = None if engine is None else lambda asked: (engine, "")
        stock = more.pop("stock", STOCK)
        return Ladder(settings or PATIENT, pick, lambda: stock, Blocked(home, follow_seconds=0), **more)

    return made


def related(engine, asked, seeds, k):
    return [(f"i{n}", 1.0 / (n + 1), "item_knn") for n in range(k)]


def test_a_sound_engine_answers_on_the_rung_full_with_nothing_to_complain_of(ladder):
    answer = ladder(Engine()).answer(ask())
    assert (answer.rung, items(answer), answer.degraded, answer.release) == (FULL, ["i0", "i1", "i2"], (), RELEASE)


def test_before_the_first_release_popularity_answers_and_says_so(ladder):
    answer = ladder(None).answer(ask())
    assert (answer.rung, items(answer), answer.release.version) == ("popular", ["p0", "p1", "p2"], None)
    assert answer.degraded == ("full: no release yet",)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (("cheaper",), ["p0", "p1", "p2"]),
        (("dearer",), ["p11", "p12", "p13"]),
        (("dearer", "same_category"), ["p12", "p14", "p16"]),
        (("other_category", "cheaper"), ["p1", "p3", "p5"]),
        (("cheaper", "dearer"), []),
        (("other_brand",), []),
    ],
)
def test_a_critique_holds_on_every_rung_whatever_is_unknown_differs_in_no_way(ladder, changes, found):
    asked = ask(surface="like", item_ids=("p10",), changes=changes)
    answer = ladder(Engine(raising)).answer(asked)
    assert (items(answer), answer.rung) == (found, "popular" if found else "empty")
    by_session = ladder(Engine(raising), session=related).answer(asked)  # all of it costs 5, and is a pot
    fits = changes in {("cheaper",), ("other_category", "cheaper")}
    assert (by_session.rung == "session") == fits
    assert items(by_session) == (["i0", "i1", "i2"] if fits else found)


def test_what_an_engine_says_of_an_empty_list_is_told(ladder):
    empty = Engine(lambda asked: Answer(asked, (), "empty", RELEASE, ("like: nothing is cheaper",)))
    answer = ladder(empty).answer(ask(surface="like", item_ids=("p0",), changes=("cheaper",)))
    assert (answer.items, answer.degraded[0]) == ((), "full: nothing to show; like: nothing is cheaper")


def test_who_has_a_segment_gets_what_is_popular_there(ladder):
    answer = ladder(None).answer(ask(user_id="anna"))
    assert (answer.rung, items(answer)) == ("segment_popular", ["s0", "s1", "s2"])


def test_a_release_that_raises_is_answered_for_by_the_session(ladder):
    answer = ladder(Engine(raising), session=related).answer(ask(events=(EVENT,)))
    assert (answer.rung, items(answer)) == ("session", ["i0", "i1", "i2"])
    assert answer.degraded == ("full: ValueError: the ranker is broken",)
    assert answer.items[0].why.item_id == "i7"


def test_a_session_without_events_says_that_there_was_nothing_to_go_by(ladder):
    answer = ladder(Engine(raising), session=related).answer(ask())
    assert (answer.rung, answer.degraded[1]) == ("popular", "session: nothing to go by")


def test_an_engine_that_hangs_costs_the_deadline_and_no_more(ladder):
    way = ladder(Engine(hanging), HASTY)
    begun = time.perf_counter()
    answer = way.answer(ask())
    assert answer.rung == "popular"
    assert answer.degraded[0].startswith("full: not done within ")
    assert time.perf_counter() - begun < 5  # it would be for ever


def test_a_release_in_trouble_is_not_waited_for_by_the_fourth_request(ladder):
    way = ladder(Engine(hanging), HASTY)
    answers = [way.answer(ask()) for _ in range(4)]
    assert [answer.rung for answer in answers] == ["popular"] * 4
    assert "not asked for another" in answers[3].degraded[0]
    assert answers[3].stage_ms["full"] < answers[2].stage_ms["full"] / 2


def test_threads_that_hang_do_not_make_more_threads(ladder):
    calm = ServingSettings().ladder.breaker.model_copy(update={"failures": 1000, "trouble_seconds": 1000.0})
    settings = ServingSettings(
        deadline=DeadlinePolicy(request_ms=20),
        ladder=ServingSettings().ladder.model_copy(update={"threads": 2, "waiting": 1, "reserve_ms": 15, "breaker": calm}),
    )
    way = ladder(Engine(hanging), settings)
    told = [way.answer(ask()).degraded[0] for _ in range(5)]
    assert [text.split(" within")[0] for text in told[:3]] == ["full: not done", "full: not done", "full: not begun"]
    assert way._release(RELEASE).crew._started == 2


def test_a_release_that_hangs_takes_nothing_from_one_that_is_sound(home: Home) -> None:
    sound, stuck = Engine(), Engine(hanging, release=Release(7, "7" * 64))
    calm = ServingSettings().ladder.breaker.model_copy(update={"failures": 1000, "trouble_seconds": 1000.0})  # so that every thread hangs
    settings = ServingSettings(
        deadline=DeadlinePolicy(request_ms=200), ladder=ServingSettings().ladder.model_copy(update={"reserve_ms": 180, "breaker": calm})
    )
    way = Ladder(
        settings, lambda asked: (stuck if asked.user_id == "canary" else sound, ""), lambda: STOCK, Blocked(home, follow_seconds=0)
    )
    assert {way.answer(ask(user_id="canary")).rung for _ in range(10)} == {"popular"}
    way.settings = PATIENT
    assert [way.answer(ask()).rung for _ in range(3)] == [FULL] * 3


def test_releases_that_are_asked_no_more_leave_no_threads_and_the_newest_asked_stay(ladder) -> None:
    def engines() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("engine-")}

    way, before = ladder(None), engines()  # others hang still
    kept = way._release(RELEASE)
    for version in range(20):
        way._release(RELEASE)
        way._release(Release(version, f"{version}")).crew.call(lambda: Answer(ask(), (), FULL, RELEASE), 20_000)
    assert len(way.breakers()) == 8
    assert way._release(RELEASE) is kept
    begun = time.perf_counter()
    while len(engines() - before) > 8:
        assert time.perf_counter() - begun < 30
        time.sleep(0.01)


@pytest.mark.parametrize(
    "wrong",
    [shown("i1", "i2", score=float("nan")), shown("i1", "i1"), shown("i1", ""), shown("i1", score=float("inf"))],
    ids=["NaN", "twice", "no name", "infinite"],
)
def test_what_is_no_list_is_never_shown(ladder, wrong):
    answer = ladder(Engine(lambda asked: Answer(asked, wrong, FULL, RELEASE))).answer(ask())
    assert answer.rung == "popular"
    assert answer.degraded[0].startswith("full: list:")


def test_an_empty_list_is_not_the_last_word(ladder):
    answer = ladder(Engine(lambda asked: Answer(asked, (), FULL, RELEASE))).answer(ask())
    assert (answer.rung, answer.degraded) == ("popular", ("full: nothing to show",))


def test_nothing_at_all_is_an_empty_answer_with_reasons(ladder):
    answer = ladder(None, stock=Standing()).answer(ask())
    assert (answer.rung, answer.items) == ("empty", ())
    assert answer.degraded == ("full: no release yet",)


def test_a_one_item_catalogue_gives_one_item(ladder):
    answer = ladder(None, stock=Standing({EVERYBODY: [("only", 1.0)]})).answer(ask(k=200))
    assert items(answer) == ["only"]


def test_even_a_broken_stock_is_an_answer(ladder):
    class Broken:
        def __getattr__(self, name):
            raise OSError("gone")

    answer = ladder(Engine(raising), stock=Broken(), session=related).answer(ask(events=(EVENT,)))
    assert (answer.rung, answer.items) == ("empty", ())
    assert [reason.split(":")[0] for reason in answer.degraded] == ["full", "session", "segment_popular", "popular"]


def test_filters_hold_on_the_lower_rungs(ladder):
    way = ladder(None)
    assert items(way.answer(ask(k=2, filters=Filters(categories=("pots",), min_price=4)))) == ["p5", "p7"]
    assert items(way.answer(ask(k=5))) == ["p0", "p1", "p2", "p3", "p5"]  # p4 cannot be bought
    assert items(way.answer(ask(k=2, filters=Filters(exclude=("p0", "p1"))))) == ["p2", "p3"]
    assert way.answer(ask(filters=Filters(brands=("nobody",)))).rung == "empty"


def test_a_filter_finds_what_no_standing_list_holds(ladder):
    stock = Standing({EVERYBODY: STOCK.lists[EVERYBODY]}, STOCK.catalogue)
    answer = ladder(None, stock=stock).answer(ask(filters=Filters(categories=("saunas",), max_price=1003, exclude=("s1",))))
    assert (answer.rung, items(answer)) == ("popular", ["s0", "s2", "s3"])
    both = ladder(None, stock=stock).answer(ask(k=13, filters=Filters(categories=("pots",), min_price=5)))
    assert items(both) == ["p5", "p7", "p9", "p11", "p13", "p15", "p17", "p19", "i0", "i1", "i2", "i3", "i4"], "the list first"
    assert [one.score for one in both.items] == sorted((one.score for one in both.items), reverse=True)
    assert ladder(None, stock=stock).answer(ask(filters=Filters(categories=("cars",)))).rung == "empty"


def test_a_catalogue_is_filtered_as_its_items_are_one_by_one():
    rows = {
        "item_id": ["a", "b", "d", "e", "f"], "category": ["tea", "pots", None, "tea", "zinc"], "brand": [None, "x", "x", "y", "y"],
        "price": [1.0, None, 3.0, 4.0, 5.0], "available": [True, None, False, False, True], "n_events": [5, 4, 3, 2, 1],
    }  # fmt: skip
    table = pa.table({name: pa.chunked_array([values]) for name, values in rows.items()})
    shop = CatalogueSnapshot(table["item_id"], table, {}, {})
    one = {row.pop("item_id"): row for row in table.to_pylist()}
    words, prices = ((), ("tea",), ("tea", "zinc"), ("nothing",), ("a", "pots")), (None, 1.0, 3.5)
    for categories, brand, low, high, available in product(words, ((), ("x",), ("y", "no")), prices, prices, (True, False)):
        filters = Filters(categories, brand, low, high, (), available)
        good = meeting(shop, filters, np.arange(5))
        assert good.tolist() == [meets(filters, item, about) for item, about in one.items()], filters


def test_the_item_that_is_looked_at_is_not_its_own_neighbour(ladder):
    answer = ladder(Engine(raising), session=related).answer(ask(surface="similar", item_ids=("i0",)))
    assert (answer.rung, items(answer)) == ("session", ["i1", "i2", "i3"])


def test_events_of_a_moment_ago_reach_the_engine_with_those_of_the_request_newest_first(ladder):
    engine = Engine()
    fresh = SessionEvent(micros(NOW) + 1, "e2", "i9", "view")
    answer = ladder(engine, recent=lambda user, now_us: [fresh] if user == "bo" else []).answer(ask(events=(EVENT,)))
    assert engine.asked[0].events == (fresh, EVENT)
    assert answer.ask == ask(events=(EVENT,))


def test_a_blocked_item_is_on_no_rung(ladder, home):
    engine, bad = Engine(), Engine(raising)
    blocked.block(home, ["i0", "s0", "p0"], "recalled")
    assert items(ladder(engine).answer(ask())) == ["i1", "i2", "i3"]  # told to the engine: the list stays full
    stubborn = Engine(lambda asked: Answer(asked, shown("i0", "i1"), FULL, RELEASE))
    taken = ladder(stubborn).answer(ask())
    assert (items(taken), taken.items[0].rank, taken.degraded) == (["i1"], 1, ("blocked: 1 taken out",))
    assert items(ladder(bad, session=related).answer(ask(events=(EVENT,)))) == ["i1", "i2", "i3"]
    assert items(ladder(None).answer(ask(user_id="anna"))) == ["s1", "s2", "s3"]
    assert items(ladder(None).answer(ask())) == ["p1", "p2", "p3"]


def test_a_takedown_of_more_than_is_told_at_once_leaves_lists_full(ladder, home):
    engine = Engine()
    blocked.block(home, [*(f"a{n:03d}" for n in range(300)), "i0", "i1", "i2"], "recalled")
    answer = ladder(engine).answer(ask())
    assert (answer.rung, items(answer), answer.degraded) == (FULL, ["i3", "i4", "i5"], ())
    assert len(engine.asked) == 2


def test_a_list_that_a_takedown_empties_is_no_list(ladder, home):
    blocked.block(home, ["i0", "i1"], "recalled")
    stubborn = Engine(lambda asked: Answer(asked, shown("i0", "i1"), FULL, RELEASE))
    answer = ladder(stubborn).answer(ask())
    assert (answer.rung, items(answer)) == ("popular", ["p0", "p1", "p2"])
    assert answer.degraded[0] == "full: blocked: all that there was"
    answer = ladder(stubborn, stock=Standing()).answer(ask())
    assert (answer.rung, answer.items) == ("empty", ())


def test_no_reason_names_what_is_blocked(ladder, home):
    blocked.block(home, ["i7"], "recalled")
    told = replace(shown("i1")[0], why=Why("similar_to", "Similar to a recalled toaster", "i7"))
    answer = ladder(Engine(lambda asked: Answer(asked, (told, *shown("i2")), FULL, RELEASE))).answer(ask())
    assert [(place.why.text, place.why.item_id) for place in answer.items] == [("Picked for you", None)] * 2
    answer = ladder(Engine(raising), session=related).answer(ask(events=(EVENT,)))
    assert {(place.why.kind, place.why.item_id) for place in answer.items} == {("for_you", None)}
    other = SessionEvent(micros(NOW) - 1, "e0", "i9", "view")
    answer = ladder(Engine(raising), session=related).answer(ask(events=(EVENT, other)))
    assert {place.why.item_id for place in answer.items} == {"i9"}


def test_no_engine_for_this_request_is_a_reason_not_an_error(home):
    def pick(asked):
        raise RuntimeError("no release is sound")

    answer = Ladder(ServingSettings(), pick, lambda: STOCK, Blocked(home)).answer(ask())
    assert (answer.rung, answer.degraded) == ("popular", ("full: RuntimeError: no release is sound",))
