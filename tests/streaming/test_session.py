"""The session: its definition on paper, and the same values from the batch SQL and from the stream."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming_world import DAYS, Event, day, events

from pipelines.config import Home
from pipelines.features import store
from pipelines.features.pushing import PushedView
from pipelines.streaming import session
from pipelines.streaming.bus import connect
from pipelines.streaming.consumer import Consumer
from pipelines.streaming.session import SessionEvent
from pipelines.streaming.shelves import Shelves
from pipelines.window import micros

HOUR = 3_600_000_000
MINUTE = 60_000_000
DAY_US = 24 * HOUR


def event(at: int, name: str = "", kind: str = "view", category: str | None = "c") -> SessionEvent:
    return SessionEvent(at, name or f"e{at}", f"i-{name or at}", kind, category)


def test_affinity_halves_a_day_and_a_purchase_counts_three_views():
    """A purchase a day before a view: 3 / 2 against 1."""
    found = session.features(session.newest([event(0, "a", "purchase", "old"), event(DAY_US, "b", "view", "new")]), DAY_US)
    assert found is not None
    assert found["categories"] == ["old", "new"]
    assert found["category_affinities"] == [1.5 / 2.5, 1.0 / 2.5]
    assert (found["top_category"], found["top_category_affinity"]) == ("old", 0.6)


def test_equal_affinities_stand_by_name_and_an_event_without_category_has_none():
    found = session.features(session.newest([event(0, "x", category="b"), event(0, "y", category="a"), event(0, "z", category=None)]), 0)
    assert found is not None
    assert (found["categories"], found["category_affinities"]) == (["a", "b"], [0.5, 0.5])
    bare = session.features([event(0, category=None)], 0)
    assert bare is not None
    assert (bare["categories"], bare["category_affinities"], bare["top_category"]) == (None, None, None)


def test_a_visit_ends_at_a_pause_of_more_than_half_an_hour():
    moments = [0, 31 * MINUTE, 61 * MINUTE, 91 * MINUTE]
    found = session.features(session.newest(event(at) for at in moments), moments[-1])
    assert found is not None
    assert (found["session_events"], found["session_seconds"]) == (3, 3600.0)


def test_fifty_events_are_remembered_and_none_thirty_days_older_than_the_newest():
    many = session.features(session.newest(event(n * MINUTE) for n in range(80)), 80 * MINUTE)
    assert many is not None
    assert many["last_item_ids"] == [f"i-{n * MINUTE}" for n in range(79, 29, -1)]
    assert many["session_events"] == 50
    old = session.features(session.newest([event(0, "gone"), event(1, "kept"), event(30 * DAY_US + 1, "new")]), 31 * DAY_US)
    assert old is not None
    assert old["last_event_ids"] == ["new", "kept"]
    assert session.features([event(0)], 30 * DAY_US) is not None
    assert session.features([event(0)], 30 * DAY_US + 1) is None
    assert session.features([], 0) is None


MADE = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abcdefgh"), st.sampled_from(["c1", "c2", None])), max_size=160)


@settings(max_examples=60, deadline=None)
@given(made=MADE, rng=st.randoms(use_true_random=False), cut=st.integers(0, 160))
def test_neither_order_nor_repetition_nor_the_cut_into_deliveries_shows(made: list, rng: random.Random, cut: int):
    every = [SessionEvent(at * HOUR, f"{name}{at}", name, "view", category) for at, name, category in dict.fromkeys(made)]
    every = list({(e.event_us, e.event_id): e for e in every}.values())
    shuffled = every + rng.sample(every, len(every) // 2)
    rng.shuffle(shuffled)
    kept = session.newest([*session.newest(shuffled[cut:]), *shuffled[:cut]])
    assert session.features(kept, 41 * HOUR) == session.features(session.newest(every), 41 * HOUR)


def known(user: str, as_of: datetime) -> list[Event]:
    return [e for e in events() if e["user_id"] == user and max(e["event_at"], e["received_at"]) < as_of]


def by_definition(shelves: Shelves, rows: list[Event], moment: datetime) -> dict[str, Any] | None:
    made = [SessionEvent(micros(e["event_at"]), e["event_id"], e["item_id"], e["event_type"]) for e in rows]
    return session.features(session.newest(shelves.place(made)), micros(moment))


def mart(home: Home, n: int) -> dict[str, dict[str, Any]]:
    """Return the rows of a day by user, features only."""
    rows = pq.read_table(home.features / "user_session" / f"as_of={day(n):%F}.parquet").to_pylist()
    return {
        row["user_id"]: {name: value for name, value in row.items() if name not in {"user_id", "as_of", "available_at"}} for row in rows
    }


def test_the_batch_has_every_value_of_the_definition_on_every_day(built: Home):
    """Bit for bit, where something became known that day and nowhere else, also behind the run that resumed."""
    shelves = Shelves(built)
    shelves.refresh()
    compared = 0
    for n in range(1, 14):
        expected = {}
        for user in (f"u{u}" for u in range(30)):
            rows = known(user, day(n))
            if len(rows) > len(known(user, day(n - 1))) and (found := by_definition(shelves, rows, day(n))) is not None:
                expected[user] = found
        assert mart(built, n) == expected, n
        compared += len(expected)
    assert compared > 200
    assert any(len(row["last_item_ids"]) == 50 and len(row["categories"]) > 3 for row in mart(built, 13).values())


def became_known(first: int, last: int) -> list[Event]:
    """Return the events that became known from one midnight to another."""
    return [e for e in events() if day(first) <= max(e["event_at"], e["received_at"]) < day(last)]


def online(home: Home, users: list[str]) -> dict[str, dict[str, Any]]:
    return dict(zip(users, PushedView(home, session.VIEW).read(users), strict=True))


EVERYONE = [f"u{n}" for n in range(30)]


@pytest.mark.usefixtures("online_store")
def test_a_day_through_the_stream_ends_in_the_values_of_the_batch(lived: Home, bus_address: str):
    """Shuffled, every third event twice, the consumer restarted in the middle of a delivery, beside a batch-loaded store."""
    store.materialize(lived, day(8))
    before = online(lived, EVERYONE)
    fed = became_known(8, 9)
    fed = fed + fed[::3]
    random.Random(1).shuffle(fed)
    bus = connect(bus_address, topic="events", group="sessions", consumer="a")
    bus.publish(fed)
    first = Consumer(lived, bus)
    first.step(20)
    assert len(bus.consume(15, 0.1)) == 15  # handed out, never seen through
    first.close()
    second = Consumer(lived, connect(bus_address, topic="events", group="sessions", consumer="a"))
    counts = second.run(count=17, idle_seconds=0.5)
    second.close()
    distinct = {e["event_id"] for e in fed}
    assert first.counts.accepted + counts.accepted == len(distinct)
    after, expected = online(lived, EVERYONE), mart(lived, 9)
    assert len(expected) > 10
    for user in EVERYONE:
        assert after[user] == expected.get(user, before[user]), user


def test_the_stream_alone_from_the_first_event_on_is_the_batch_of_every_user(lived: Home, bus_address: str):
    """Nothing was ever materialised: thirteen days of events, in order of receipt."""
    with_bus = connect(bus_address, topic="events", group="sessions", consumer="a")
    with_bus.publish(became_known(-1, 13))
    consumer = Consumer(lived, with_bus)
    counts = consumer.run(idle_seconds=0.5)
    consumer.close()
    assert (counts.accepted, counts.refused) == (len(became_known(-1, 13)), 0)
    newest: dict[str, dict[str, Any]] = {}
    for n in range(1, 14):
        newest |= mart(lived, n)
    found = online(lived, list(newest))
    assert found == newest
    assert len(newest) > 25


def test_the_batch_after_the_stream_changes_nothing_and_the_stream_goes_on_from_it(lived: Home, bus_address: str):
    """The day is materialised over what the stream wrote: the values stay, and an event of the next day adds to them."""
    bus = connect(bus_address, topic="events", group="sessions", consumer="a")
    store.materialize(lived, day(8))
    bus.publish(became_known(8, 9))
    consumer = Consumer(lived, bus)
    consumer.run(idle_seconds=0.5)
    streamed = online(lived, EVERYONE)
    store.materialize(lived, day(9))
    assert online(lived, EVERYONE) == streamed
    (late,) = [e for e in became_known(9, 10) if e["user_id"] == "u1"][:1] or became_known(9, 10)[:1]
    bus.publish([late])
    consumer.run(idle_seconds=0.5)
    consumer.close()
    shelves = Shelves(lived)
    shelves.refresh()
    user = late["user_id"]
    moment = max(late["event_at"], late["received_at"])
    assert online(lived, [user])[user] == by_definition(shelves, [*known(user, day(9)), late], moment)


def test_a_late_event_is_put_in_its_place_though_the_newest_stays_the_newest(shop: Home, bus_address: str):
    """The moment of the session does not move on, and still the online store takes the correction."""
    bus = connect(bus_address, topic="events", group="sessions", consumer="a")
    consumer = Consumer(shop, bus)
    base = {"user_id": "u1", "event_type": "view", "received_at": day(1)}
    for name, hours in (("b", 2), ("a", 1), ("c", 1.5)):
        bus.publish([{**base, "event_id": name, "item_id": f"i{hours}", "event_at": day(0) + timedelta(hours=hours)}])
        consumer.run(idle_seconds=0.1)
    consumer.close()
    assert online(shop, ["u1"])["u1"]["last_event_ids"] == ["b", "c", "a"]


def mart_row(home: Home, n: int, *happened: tuple[str, datetime]) -> None:
    """Write what the mart of a day holds of u1, as a load does."""
    made = session.newest(SessionEvent(micros(at), name, f"i-{name}", "view") for name, at in happened)
    values = session.features(made, micros(day(n)))
    assert values is not None
    PushedView(home, session.VIEW).push({"u1": (day(n), day(n), values)})


def of_u1(name: str, at: datetime) -> Event:
    base = {"event_id": name, "user_id": "u1", "item_id": f"i-{name}", "event_type": "view"}
    return {**base, "event_at": at, "received_at": at + timedelta(seconds=1)}


def hour(n: int, hours: float) -> datetime:
    return day(n) + timedelta(hours=hours)


@pytest.mark.usefixtures("online_store")
def test_an_event_consumed_after_the_mart_of_its_night_was_loaded_is_online_all_the_same(shop: Home, bus_address: str):
    """What the mart holds is newer than the event, and what unites the two is newer than both, until the next mart."""
    bus = connect(bus_address, topic="events", group="sessions", consumer="a")
    consumer = Consumer(shop, bus)
    mart_row(shop, 10, ("a", hour(9, 10)))
    for name, hours, expected in (("b", 23, ["b", "a"]), ("c", 22, ["b", "c", "a"])):
        bus.publish([of_u1(name, hour(9, hours))])
        assert consumer.run(idle_seconds=0.1).sessions == len(expected) - 1
        assert online(shop, ["u1"])["u1"]["last_event_ids"] == expected
    mart_row(shop, 10, ("a", hour(9, 10)))  # the same load again takes nothing away
    assert online(shop, ["u1"])["u1"]["last_event_ids"] == ["b", "c", "a"]
    mart_row(shop, 11, ("e", hour(10, 1)), ("b", hour(9, 23)))
    assert online(shop, ["u1"])["u1"]["last_event_ids"] == ["e", "b"]
    bus.publish([of_u1("d", hour(9, 12))])
    assert consumer.run(idle_seconds=0.1).sessions == 3
    assert online(shop, ["u1"])["u1"]["last_event_ids"] == ["e", "b", "c", "d", "a"]
    consumer.close()


@pytest.mark.usefixtures("online_store")
def test_a_mart_loaded_between_the_read_and_the_push_is_united_with(shop: Home, bus_address: str, monkeypatch: pytest.MonkeyPatch):
    bus = connect(bus_address, topic="events", group="sessions", consumer="a")
    consumer = Consumer(shop, bus)
    held = PushedView.held

    def overtaken(self: PushedView, users: list[str]) -> Any:
        found = held(self, users)
        monkeypatch.setattr(PushedView, "held", held)
        mart_row(shop, 10, ("a", hour(9, 10)))
        return found

    monkeypatch.setattr(PushedView, "held", overtaken)
    bus.publish([of_u1("b", hour(9, 23))])
    assert consumer.run(idle_seconds=0.1).sessions == 1
    consumer.close()
    assert online(shop, ["u1"])["u1"]["last_event_ids"] == ["b", "a"]


def test_point_in_time_rows_of_sessions_are_those_of_the_mart(lived: Home):
    """Training asks the same view: the newest row at or before the moment, lists and all."""
    asked = [("u0", day(10)), ("u1", day(12) + timedelta(hours=5)), ("u2", day(13)), ("nobody", day(13)), ("u3", day(1))]
    rows = pa.table(
        {"user_id": [user for user, _ in asked], "event_timestamp": pa.array([at for _, at in asked], pa.timestamp("us", "UTC"))}
    )
    found = store.historical(lived, rows, service=session.SERVICE).to_pylist()
    for (user, at), row in zip(asked, found, strict=True):
        past = [mart(lived, n).get(user) for n in range(1, 14) if day(n) <= at]
        newest = next((row for row in reversed(past) if row), None)
        for name, value in row.items():
            if name.startswith("user_session__"):
                assert value == (newest or {}).get(name.removeprefix("user_session__")), (user, name)


def test_the_world_is_what_the_tests_think():
    rows = events()
    assert sum(e["received_at"] - e["event_at"] > timedelta(days=1) for e in rows) > 50
    assert sum(e["received_at"] < e["event_at"] for e in rows) > 10
    assert len({(e["user_id"], e["event_at"]) for e in rows}) < len(rows)
    assert sum(e["user_id"] == "u0" for e in rows) > 50 * DAYS / 2
