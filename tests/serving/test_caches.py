"""A remembered list is given again only while it is as good as a new one; of many threads that lack it one computes it."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from scripted import HASTY, NOW, PATIENT, RELEASE, STOCK, Engine, ask, hanging, items, raising, shown

from pipelines.config import Home
from pipelines.serving import blocked
from pipelines.serving.blocked import Blocked
from pipelines.serving.caches import Caches, Wanted, key_of
from pipelines.serving.ladder import Ladder
from pipelines.serving.news import News
from pipelines.serving.request import CACHED, FULL, Answer, Filters, Release
from pipelines.serving.shared_cache import SharedCache
from pipelines.serving_policies import BreakerPolicy, CachePolicy


class Shop:
    """A ladder over an engine, with caches, and the news of a state folder."""

    def __init__(
        self, home: Home, engine: Engine, policy: CachePolicy | None = None, shared: SharedCache | None = None, stock=STOCK
    ) -> None:
        self.engine, self.variant, self.stock = engine, "", stock
        self.news = News(home)
        self.withdrawn: frozenset[str] = frozenset()
        self.caches = Caches(policy or CachePolicy(), self.news, shared=shared, withdrawn=lambda: self.withdrawn)
        pick = lambda asked: (self.engine, self.variant)  # noqa: E731 - what it picks changes
        self.ladder = Ladder(PATIENT, pick, lambda: self.stock, Blocked(home, follow_seconds=0), cached=self.caches)

    def answer(self, **said) -> Answer:
        return self.ladder.answer(ask(**said))


@pytest.fixture
def shop(home: Home) -> Shop:
    return Shop(home, Engine())


def later(seconds: float):
    return NOW + timedelta(seconds=seconds)


def test_the_second_answer_is_remembered_and_is_its_own(shop):
    first, second = shop.answer(request_id="a"), shop.answer(request_id="b", as_of=later(29))
    assert [(answer.rung, answer.remembered) for answer in (first, second)] == [(FULL, False), (FULL, True)]
    assert (items(second), second.ask.request_id, second.degraded, second.release) == (items(first), "b", (), RELEASE)
    assert len(shop.engine.asked) == 1
    assert (shop.caches.counts.hits, shop.caches.counts.misses) == (1, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"user_id": "eve"}, {"k": 4}, {"filters": Filters(categories=("pots",))}, {"device": "phone"}, {"country": "SE"},
        {"surface": "because_you_viewed"}, {"item_ids": ("p1",)}, {"as_of": later(31)}, {"as_of": later(-1)},
    ],
    ids=str,
)  # fmt: skip
def test_whoever_asks_something_else_gets_something_else(shop, other):
    shop.answer()
    assert not shop.answer(**other).remembered
    assert len(shop.engine.asked) == 2


def test_an_event_of_the_user_ends_what_was_remembered_and_nobody_elses(shop):
    shop.answer(user_id="bo")
    shop.answer(user_id="eve")
    shop.news.touch(["bo"])
    assert [shop.answer(user_id="bo").remembered, shop.answer(user_id="eve").remembered] == [False, True]


def test_an_event_that_another_process_was_told_ends_it_too(shop, home):
    shop.answer()
    code = f"from pathlib import Path; from pipelines.config import Home; from pipelines.serving.news import News; News(Home(Path({str(home.root)!r}))).touch(['bo'])"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not shop.answer().remembered


def test_an_event_while_the_list_is_made_ends_it(shop):
    def slow(asked):
        shop.news.touch(["bo"])
        return Answer(asked, shown("i1"), FULL, RELEASE)

    shop.engine.does = slow
    shop.answer()
    shop.engine.does = None
    assert not shop.answer().remembered


def test_a_release_and_a_variant_end_it(shop):
    shop.answer()
    shop.variant = "shorter-memory:arm"
    assert not shop.answer().remembered
    shop.engine = Engine(release=Release(4, "e" * 64))
    answer = shop.answer()
    assert (answer.rung, answer.release.version) == (FULL, 4)


def test_a_blocked_item_is_in_no_remembered_list(shop, home):
    assert "i1" in items(shop.answer())
    blocked.block(home, ["i1"], "recalled")
    answer = shop.answer()
    assert (answer.rung, items(answer)) == (FULL, ["i0", "i2", "i3"])  # made anew, so that it is full
    shop.engine.does = raising
    shop.news.touch(["bo"])
    blocked.block(home, ["i2"], "recalled")
    answer = shop.answer()
    assert (answer.rung, items(answer)) == (CACHED, ["i0", "i3"])


def test_what_was_sold_out_meanwhile_is_in_no_remembered_list(shop):
    shop.answer()
    shop.stock = replace(STOCK, catalogue={**STOCK.catalogue, "i0": {"available": False}})
    shop.engine.does = lambda asked: Answer(asked, shown("i5"), FULL, RELEASE)
    assert items(shop.answer()) == ["i5"]


def test_where_the_release_fails_the_list_of_before_answers_and_says_its_age(shop):
    shop.answer()
    shop.engine.does = raising
    answer = shop.answer(as_of=later(600))
    assert (answer.rung, items(answer), answer.remembered) == (CACHED, ["i0", "i1", "i2"], False)
    assert answer.degraded == ("full: ValueError: the ranker is broken", "cached: of 600 s ago")
    shop.news.touch(["bo"])
    assert shop.answer(as_of=later(600)).degraded[-1] == "cached: of 600 s ago, and something has happened since"
    assert shop.answer(as_of=later(3601)).rung == "popular"


def test_a_list_is_labelled_with_an_arm_only_where_the_arms_own_engine_made_it(shop):
    shop.variant = "x:a"
    assert [shop.answer().variant, shop.answer().variant] == ["x:a", "x:a"]
    shop.engine.does = raising
    before = shop.answer(as_of=later(600))
    assert (before.rung, before.variant, before.assigned) == (CACHED, "x:a", "x:a")
    shop.variant = "x:b"
    other, lower = shop.answer(as_of=later(600)), shop.answer(user_id="eve")
    assert [(answer.rung, answer.variant, answer.assigned) for answer in (other, lower)] == [(CACHED, "", "x:b"), ("popular", "", "x:b")]


def test_what_a_release_made_that_was_rolled_back_from_is_shown_to_nobody_any_more(shop):
    shop.answer()
    shop.engine = Engine(raising, release=Release(2, "c" * 64))
    assert shop.answer(as_of=later(600)).rung == CACHED
    shop.withdrawn = frozenset({RELEASE.digest})
    answer = shop.answer(as_of=later(600))
    assert (answer.rung, answer.degraded[-1]) == ("popular", "cached: nothing kept")


def test_a_list_of_before_that_is_none_is_shown_on_no_rung(shop):
    shop.answer()
    (kept,) = shop.caches._kept.values()
    shop.caches._kept[kept.wanted.key] = replace(kept, answer=replace(kept.answer, items=shown("i1", score=float("nan"))))
    assert not shop.answer().remembered
    (kept,) = shop.caches._kept.values()
    shop.caches._kept[kept.wanted.key] = replace(kept, answer=replace(kept.answer, items=shown("i1", "i1")))
    shop.engine.does = raising
    answer = shop.answer(as_of=later(600))
    assert (answer.rung, answer.degraded[-1]) == ("popular", "cached: list: an item twice, or one without a name")


def test_an_answer_that_was_not_as_it_should_be_is_not_given_for_one_that_is(shop):
    shop.engine.does = lambda asked: Answer(asked, shown("i1"), "blend", RELEASE, degraded=("ranker: late",))
    assert [(answer.rung, answer.remembered) for answer in (shop.answer(), shop.answer())] == [("blend", False)] * 2


def test_of_thirty_threads_that_lack_a_list_one_computes_it(shop):
    begun, go = threading.Event(), threading.Event()

    def slow(asked):
        begun.set()
        assert go.wait(10)
        return Answer(asked, shown("i1"), FULL, RELEASE)

    shop.engine.does = slow
    found: list[Answer] = []
    shop.caches.policy = CachePolicy(wait_ms=20_000)
    threads = [threading.Thread(target=lambda n=n: found.append(shop.answer(request_id=str(n)))) for n in range(30)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    time.sleep(0.1)  # long enough for the others to get there; who comes later finds the list remembered
    go.set()
    for thread in threads:
        thread.join()
    assert len(shop.engine.asked) == 1
    assert sorted(answer.remembered for answer in found) == [False] + [True] * 29
    assert len({answer.ask.request_id for answer in found}) == 30


def test_who_waits_too_long_for_another_thread_computes_for_itself(shop):
    shop.caches.policy = CachePolicy(wait_ms=1.0)
    wanted = Wanted(key_of(ask()), RELEASE.digest, "", 0)
    shop.caches._boarded(wanted)  # a thread that never lands
    assert not shop.answer().remembered


def test_while_a_new_one_is_made_the_others_get_the_old_one(shop):
    shop.answer()
    shop.caches._boarded(Wanted(key_of(ask()), RELEASE.digest, "", 0))
    answer = shop.answer(as_of=later(45))
    assert (answer.rung, answer.degraded) == (CACHED, ("cached: of 45 s ago, a new one is being made",))


def test_it_stays_within_its_bounds(home):
    few = Shop(home, Engine(), CachePolicy(entries=10))
    for n in range(50):
        few.answer(user_id=str(n))
    assert few.caches.record()["entries"] == 10
    assert few.answer(user_id="49").remembered
    assert not few.answer(user_id="0").remembered
    small = Shop(home, Engine(), CachePolicy(max_bytes=10_000))
    for n in range(50):
        small.answer(user_id=str(n))
    assert 0 < small.caches.record()["bytes"] <= 10_000


def test_nothing_is_remembered_where_it_is_switched_off(home):
    shop = Shop(home, Engine(), CachePolicy(list_seconds=0))
    assert [shop.answer().remembered, shop.answer().remembered] == [False, False]


class TestShared:
    """Two machines over one Redis."""

    @pytest.fixture
    def two(self, tmp_path, redis):
        policy = CachePolicy(redis=f"redis://{redis}/0", redis_ms=200, prefix="shop")
        homes = [Home(tmp_path / name) for name in ("one", "two")]
        return [Shop(home, Engine(), policy, SharedCache(home, policy, BreakerPolicy())) for home in homes]

    def test_what_one_remembered_the_other_gives(self, two):
        first, second = two[0].answer(), two[1].answer(request_id="b")
        assert (second.remembered, second.rung, items(second)) == (True, FULL, items(first))
        assert (second.items[0], second.release) == (first.items[0], first.release)
        assert two[1].caches.counts.shared == 1
        assert two[1].answer().remembered
        assert two[1].engine.asked == []

    def test_what_one_has_taken_down_is_in_no_list_that_the_other_remembered(self, two, tmp_path):
        two[0].answer()
        blocked.block(Home(tmp_path / "two"), ["i1"], "recalled")
        taken = two[1].answer()
        assert (taken.rung, items(taken)) == (FULL, ["i0", "i2", "i3"])
        two[1].engine.does = raising
        blocked.block(Home(tmp_path / "two"), ["i2"], "recalled")
        assert "i1" not in items(left := two[1].answer())
        assert "i2" not in items(left)
        assert items(left)

    def test_another_shop_in_the_same_redis_is_another(self, two, tmp_path):
        two[0].answer()
        policy = two[0].caches._shared.policy
        for home, word in ((Home(tmp_path / "one"), "staging"), (Home(tmp_path / "other"), ""), (Home(tmp_path / "one"), "")):
            other = policy.model_copy(update={"prefix": word})
            assert not Shop(home, Engine(), other, SharedCache(home, other, BreakerPolicy())).answer().remembered
        assert len(two[0].caches._shared._redis.keys("reloop:*:list:*")) == 4
        with pytest.raises(ValueError, match="prefix"):
            CachePolicy(prefix="a:*")

    def test_an_event_at_one_ends_it_for_the_other(self, two):
        two[0].answer()
        two[0].caches._shared.touch(["bo"])
        assert not two[1].answer().remembered

    def test_an_event_while_one_computes_ends_it_for_the_other(self, two):
        def slow(asked):
            two[1].caches._shared.touch(["bo"])
            return Answer(asked, shown("i1"), FULL, RELEASE)

        two[0].engine.does = slow
        two[0].answer()
        assert not two[1].answer().remembered

    def test_another_release_does_not_take_it(self, two):
        two[0].answer()
        two[1].engine = Engine(release=Release(4, "e" * 64))
        assert not two[1].answer().remembered

    def test_damage_in_it_is_passed_over(self, two):
        two[0].answer()
        client = two[0].caches._shared._redis
        (key,) = client.keys("reloop:shop:list:*")
        client.set(key, b"{")
        assert not two[1].answer().remembered

    def test_a_redis_that_is_gone_costs_nothing_but_its_lists(self, two):
        two[1].caches._shared._redis.shutdown(nosave=True)
        answers = [two[0].answer(user_id=str(n)) for n in range(20)]
        assert {answer.rung for answer in answers} == {FULL}
        assert two[0].caches._shared.breaker.state == "open"


def test_a_hanging_release_is_answered_for_by_the_list_of_before(shop):
    shop.answer()
    shop.engine.does, shop.ladder.settings = hanging, HASTY
    answer = shop.answer(as_of=later(31))
    assert (answer.rung, answer.degraded[-1]) == (CACHED, "cached: of 31 s ago")
