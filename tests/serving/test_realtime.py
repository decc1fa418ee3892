"""An event of a user counts in the user's next answer, in every process, and in nobody else's; a bus in trouble takes nothing by half."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import served_shop
from trained_shop import SECOND

from pipelines import columns as c
from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features import repository
from pipelines.serving import assembly, engine, realtime
from pipelines.serving.assembly import House
from pipelines.serving.realtime import Follower, Intake
from pipelines.serving.recent import Recent
from pipelines.serving.request import Answer, Ask
from pipelines.serving_policies import EventPolicy
from pipelines.streaming import bus as buses
from pipelines.streaming.consumer import Consumer
from pipelines.streaming.sqlite_bus import SqliteBus
from pipelines.window import micros

NOW = SECOND + timedelta(hours=1)
PATIENT = "\n[serving.deadline]\nrequest_ms = 20000\nstore_ms = 5000\nretrieve_by_ms = 20000\nrank_by_ms = 20000\n[serving.rollout]\nwarm_asks = 0\n"


class Moving:
    """A clock of the shop: a second goes by with each look, so that what was taken lies before what is asked."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def shop(served: Home, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a copy of the served shop to change."""
    home = served_shop.copied(served, tmp_path / "var")
    with (home.root / "reloop.toml").open("a") as file:
        file.write(PATIENT)
    monkeypatch.setenv("RELOOP_HOME", str(home.root))
    return home


@pytest.fixture(params=["sqlite", "redis"])
def stored(request: pytest.FixtureRequest, shop: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Let the online store be SQLite, then Redis."""
    if request.param == "redis":
        monkeypatch.setenv(repository.REDIS, request.getfixturevalue("redis"))
        served_shop.online(shop)
    return shop


@pytest.fixture
def process() -> Iterator[Callable[..., House]]:
    """Return a maker of houses, each what a process of the service is, with a clock of its own."""
    opened = []

    def made(home: Home, **knobs) -> House:
        opened.append(assembly.house(home, Moving(), **knobs))
        return opened[-1].__enter__()

    yield made
    for house in opened:
        house.__exit__(None, None, None)


def asked(house: House, user: str | None = "u00000005", **said) -> Answer:
    return house.service.answer(Ask("home", "r", house.clock(), 10, user, **said))


def items(answer: Answer) -> list[str]:
    return [shown.item_id for shown in answer.items]


def shelf(house: House, category: str, n: int) -> list[str]:
    """Return some items of a category."""
    ids = house.knowledge.catalogue.item_ids.to_pylist()
    return [item for item in ids if house.knowledge.about(item).get("category") == category][:n]


def viewed(user: str, some: list[str]) -> list[dict[str, str]]:
    return [{c.USER_ID: user, c.ITEM_ID: item, c.EVENT_TYPE: "view"} for item in some]


def waited(until: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def test_an_event_counts_in_the_users_next_answer_in_every_process_and_in_nobody_elses(stored, process):
    here, there = process(stored), process(stored)
    before, others = asked(here), asked(here, "u00000007")
    assert before.rung == "full"
    assert before.degraded == ()
    assert items(asked(there)) == items(before)
    category = Counter(shown.about["category"] for shown in before.items).most_common()[-1][0]
    fresh = shelf(here, category, 6)

    verdicts = here.take(viewed("u00000005", fresh))

    assert all(verdict.accepted for verdict in verdicts)
    after = asked(here)
    assert not after.remembered, "what was remembered is out of date"
    assert items(after) != items(before)
    share = [sum(shown.about["category"] == category for shown in answer.items) for answer in (before, after)]
    assert share[1] > share[0], "the category of the moment comes to the fore"
    waited(lambda: items(asked(there)) == items(after))
    assert items(asked(here, "u00000007")) == items(others)
    assert asked(here, "u00000007").remembered, "what was remembered of others still holds"


def test_who_is_not_known_at_all_is_after_one_event(shop, process):
    here = process(shop)
    before = asked(here, "newcomer")
    here.take(viewed("newcomer", shelf(here, "garden", 1)))
    after = asked(here, "newcomer")
    assert items(after) != items(before)
    assert after.degraded == ()


def test_a_clock_that_is_ahead_delays_nothing(shop, process):
    here, there = process(shop), process(shop)
    before = asked(here)
    item = next(item for item in shelf(here, "kitchen", 30) or here.knowledge.catalogue.item_ids.to_pylist() if item not in items(before))
    ahead = {**viewed("u00000005", [item])[0], c.EVENT_AT: here.clock() + timedelta(minutes=4), c.EVENT_ID: "ahead"}
    far = {**ahead, c.EVENT_AT: here.clock() + timedelta(days=4), c.EVENT_ID: "far"}
    assert [verdict.accepted for verdict in here.take([ahead, far])] == [True, False]
    assert any(shown.why.item_id == item for shown in asked(here).items)
    waited(lambda: any(shown.why.item_id == item for shown in asked(there).items))


def test_what_happened_at_once_keeps_its_order():
    rows = [{c.EVENT_AT: NOW + timedelta(seconds=ahead)} for ahead in (3, 0, 1, -5, 400)]
    stamped = [row[c.EVENT_AT] - NOW for row in realtime._by_receipt(rows, NOW, timedelta(minutes=5))]
    assert stamped == [
        timedelta(microseconds=-1),
        timedelta(microseconds=-3),
        timedelta(microseconds=-2),
        timedelta(seconds=-5),
        timedelta(seconds=400),
    ]


def test_what_was_just_seen_is_left_out_where_seen_items_are(shop, process):
    here = process(shop)
    held = here.holder.held
    serving = held.champion.serving
    hiding = engine.bound(here.knowledge, replace(serving, model=replace(serving.model, exclude_seen=True)))
    here.holder.held = replace(held, champion=hiding)
    before = items(asked(here))
    here.take(viewed("u00000005", before[:3]))
    assert not set(before[:3]) & set(items(asked(here)))


def test_a_process_that_was_told_nothing_answers_with_the_event_once_it_is_in_the_store(shop, process):
    with (shop.root / "reloop.toml").open("a") as file:
        file.write("[serving.events]\nrecent_seconds = 0\n")
    here = process(shop)
    before = items(asked(here))
    here.take(viewed("u00000005", shelf(here, "garden", 3)))
    waited(lambda: items(asked(here)) != before)


def test_sending_a_batch_again_changes_nothing(shop, process):
    here = process(shop)
    batch = [{**row, c.EVENT_AT: NOW.isoformat()} for row in viewed("u00000005", shelf(here, "garden", 3))]
    first = [verdict.event_id for verdict in here.take(batch)]
    after = items(asked(here))
    again = [verdict.event_id for verdict in here.take(list(reversed(batch)))]
    assert sorted(first) == sorted(again)
    assert len(here.recent.of("u00000005", micros(here.clock()))) == 3
    waited(lambda: _consumed(shop))
    assert items(asked(here)) == after


def test_two_rows_alike_are_two_events_and_the_same_request_again_brings_no_more():
    """Without a time of their own, nothing but their places tells them apart; a row that names its time or itself is known by that."""
    view = {"user_id": "u1", "item_id": "i1", "event_type": "view"}
    timed = {**view, c.EVENT_AT: NOW.isoformat()}
    batch = [view, timed, view, {**view, "item_id": "i2"}, timed, {**view, c.EVENT_ID: "mine"}]

    def names(request_id: str, now: datetime = NOW) -> list[str]:
        met: Counter[bytes] = Counter()
        return [str(realtime._completed(row, now, request_id, met)[c.EVENT_ID]) for row in batch]

    first = names("r1")
    assert len(set(first)) == 5
    assert first[1] == first[4]
    assert first[5] == "mine"
    assert names("r1", NOW + timedelta(minutes=1)) == first, "whenever it is sent again"
    other = names("r2")
    assert [one == two for one, two in zip(first, other, strict=True)] == [False, True, False, False, True, True]
    assert names("") == names("")
    assert not {names("")[0], names("")[2]} & {names("", NOW + timedelta(seconds=1))[0]}


def _consumed(home: Home) -> bool:
    with closing(buses.of(home, group="sessions", consumer="looks")) as bus:
        return bus.waiting() == 0


def test_a_bad_row_is_told_why_and_is_in_quarantine_and_the_good_ones_count(shop, process):
    here = process(shop)
    good = viewed("u00000005", ["i00000001"])[0]
    late = {**good, c.EVENT_AT: (NOW - timedelta(days=40)).isoformat()}
    ahead = {**good, c.EVENT_AT: (NOW + timedelta(days=1)).isoformat()}
    strange = {**good, c.EVENT_TYPE: "stare"}
    broken = {**good, c.VALUE: float("nan")}
    half = {**good, c.ITEM_ID: "\ud800"}
    verdicts = here.take([good, late, ahead, strange, broken, half])
    assert [verdict.accepted for verdict in verdicts] == [True] + [False] * 5
    assert "more than 30 days after" in verdicts[1].reasons[0]
    assert "minutes after" in verdicts[2].reasons[0]
    assert "event_type is not one of" in verdicts[3].reasons[0]

    def quarantined() -> int:
        manifests = [publish.manifest(folder) for folder in shop.quarantine.glob("stream-*")]
        return len(manifests)

    waited(lambda: quarantined() > 0 and _consumed(shop))
    import pyarrow.parquet as pq

    rows = [row for file in shop.quarantine.glob("stream-*/events.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(rows) == 5
    assert all(row[c.REASONS] for row in rows)


def test_a_bus_that_is_gone_takes_nothing_and_says_so(shop, redis):
    bus = buses.connect(f"redis://{redis}/0", topic="events", group="sessions", consumer="x")
    recent, told = Recent(EventPolicy()), []
    with closing(Intake(shop, bus, recent, told.extend)) as intake:
        intake.take(viewed("u1", ["i1"]), NOW)
        assert told == ["u1"]
        bus._redis.shutdown(nosave=True)
        with pytest.raises(StateError, match="event bus"):
            intake.take(viewed("u2", ["i1"]), NOW)
    assert told == ["u1"]
    assert recent.of("u2", micros(NOW) + 1) == ()
    assert recent.of("u1", micros(NOW) + 1) != ()


def test_a_full_bus_takes_a_batch_whole_or_not_at_all(shop, tmp_path):
    bus = SqliteBus(tmp_path / "bus.db", topic="events", group="sessions", consumer="x", max_length=4)
    bus.waiting()
    told: list[str] = []
    with closing(Intake(shop, bus, Recent(EventPolicy()), told.extend)) as intake:
        intake.take(viewed("u1", ["i1", "i2", "i3"]), NOW)
        with pytest.raises(StateError, match="4 at most"):
            intake.take(viewed("u2", ["i1", "i2"]), NOW)
        assert [message.payload.count(b"u2") for message in bus.consume(10, 0)] == [0, 0, 0]
    assert told == ["u1"]


def test_only_one_process_consumes_and_another_takes_over_when_it_ends(shop):
    followers = [Follower(shop, lambda users: None) for _ in range(3)]
    for follower in followers:
        follower.start()
    waited(lambda: sum(follower.leads for follower in followers) == 1)
    time.sleep(0.1)
    (first,) = [follower for follower in followers if follower.leads]
    first.stop()
    waited(lambda: sum(follower.leads for follower in followers) == 1)
    assert first.leads is False
    for follower in followers:
        follower.stop()


def test_a_follower_goes_on_when_its_bus_comes_back(shop, tmp_path):
    bus_file = shop.stream / "bus.db"
    bus_file.parent.mkdir(parents=True, exist_ok=True)
    bus_file.mkdir()
    touched: list[str] = []
    follower = Follower(shop, touched.extend)
    follower.start()
    waited(lambda: bool(follower.trouble))
    bus_file.rmdir()
    with closing(Intake.of(shop, Recent(EventPolicy()), lambda users: None)) as intake:
        intake.take(viewed("u00000005", ["i00000001"]), NOW)
    waited(lambda: "u00000005" in touched)
    waited(lambda: not follower.trouble)
    follower.stop()


def test_what_a_process_keeps_in_mind_is_bounded():
    from pipelines.streaming.session import SessionEvent

    recent = Recent(EventPolicy(recent_users=3, recent_seconds=10))
    for n in range(5):
        recent.add({f"u{n}": [SessionEvent(n, f"e{n}", "i1", "view")]}, n * 1_000_000)
    assert [bool(recent.of(f"u{n}", 5_000_000)) for n in range(5)] == [False, False, True, True, True]
    assert recent.of("u4", 4_000_000 + 10_000_001) == ()
    recent.add({"u4": [SessionEvent(1000 + n, f"f{n}", "i1", "view") for n in range(100)]}, 5_000_000)
    assert len(recent.of("u4", 5_000_000)) == 50


def test_a_consumer_tells_of_users_only_after_their_sessions_are_in_the_store(shop):
    found: list[list[str]] = []

    def told(users):
        found.append([row["last_item_ids"] for row in consumer._view.read(list(users))])

    with closing(Intake.of(shop, Recent(EventPolicy()), lambda users: None)) as intake:
        intake.take(viewed("newcomer", ["i00000003"]), NOW)
    with closing(buses.of(shop, group="sessions", consumer="1")) as bus, closing(Consumer(shop, bus, on_pushed=told)) as consumer:
        consumer.step()
    assert found == [[["i00000003"]]]
