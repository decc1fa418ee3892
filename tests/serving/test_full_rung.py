"""Serving reads what training would: the same histories, features and lists, bit for bit; what fails or is late is left out and named."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import served_shop
from full_path import PATIENT, ask, line, offline, opened, some_users, told
from trained_shop import SECOND, land

from pipelines import columns as c
from pipelines import config, lake, tables
from pipelines.config import Home
from pipelines.datasets.interactions import histories, load
from pipelines.features.pushing import PushedView
from pipelines.ranking import two_stage
from pipelines.ranking.features import assemble
from pipelines.serving import moment
from pipelines.serving.deadline import Watch
from pipelines.serving.engine import Engine
from pipelines.serving.request import BLEND, FULL
from pipelines.streaming import session
from pipelines.streaming.session import SessionEvent
from pipelines.window import Window, micros


@pytest.fixture(scope="module")
def engine(served: Home) -> Engine:
    """Return the champion over the served shop."""
    return opened(served)


def same_lists(engine: Engine, home: Home, users: list[str], at=SECOND, **more: object) -> None:
    lists = offline(home, users, at, engine)
    for row, user in enumerate(users):
        answer = engine.answer(ask(at=at, user_id=user, **more))
        assert (answer.rung, answer.degraded) == (FULL, ())
        assert told(answer) == line(lists, row)
    assert any(line(lists, row) for row in range(len(users)))


def test_lists_served_are_those_of_the_offline_path(served, engine):
    same_lists(engine, served, some_users(served, 60))


def test_the_matrix_of_features_is_that_of_the_offline_path_bit_for_bit(served, engine):
    model = engine.model
    known = load(served, SECOND, config.load(served).training, item_ids=model.item_ids)
    names = some_users(served, 30)
    users = histories(known, np.array(names))
    proposed = model.propose(users)
    with served_shop.environment(served):
        context = model.context(served, proposed, users, np.array(names), SECOND)
    matrix = two_stage.chosen(*assemble(context, proposed), model.ranker)
    for row, user in enumerate(names):
        found, mine = engine.found(ask(user_id=user), Watch(PATIENT)), proposed.row == row
        assert np.array_equal(found.candidates.item, proposed.item[mine])
        assert found.matrix.tobytes() == np.ascontiguousarray(matrix[mine]).tobytes()
    assert (~np.isnan(matrix)).mean() > 0.5


@pytest.mark.slow
def test_lists_served_from_redis_are_those_of_the_offline_path(served, tmp_path, redis, monkeypatch):
    home = served_shop.copied(served, tmp_path / "var")
    monkeypatch.setenv("RELOOP_REDIS", redis)
    with served_shop.environment(home):
        served_shop.online(home)
        same_lists(opened(home), home, some_users(home, 20))


@pytest.fixture
def lively(served: Home, tmp_path) -> tuple[Home, object, list[str]]:
    """Return a shop in which ten hours of events came after the snapshot and are in the lake and in the sessions."""
    home, later = served_shop.copied(served, tmp_path / "var"), SECOND + timedelta(hours=10)
    with served_shop.environment(home):
        land(home, Window(SECOND, SECOND + timedelta(hours=12)))
        with lake.connect(home, before=later) as db:
            rows = db.sql(
                "SELECT user_id, epoch_us(event_at), event_id, item_id, event_type, category FROM events LEFT JOIN items USING (item_id)"
                " QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY valid_from DESC) = 1"
            ).fetchall()
        of: dict[str, list[SessionEvent]] = {}
        for user, *event in rows:
            of.setdefault(user, []).append(SessionEvent(*event))
        fresh = sorted(user for user, events in of.items() if max(events).event_us >= micros(SECOND))
        newest = {user: session.newest(of[user]) for user in fresh}
        pushed = {user: (later, later, session.features(events, micros(later))) for user, events in newest.items()}
        PushedView(home, session.VIEW).push(pushed)
    assert len(fresh) > 10
    return home, later, fresh


def test_what_happened_since_the_snapshot_comes_from_the_session_and_the_lists_stay_the_same(lively):
    home, later, fresh = lively
    engine = opened(home)
    same_lists(engine, home, fresh[:25], at=later)
    user = fresh[0]
    before = engine.answer(ask(user_id=user, at=SECOND))
    assert told(before) != told(engine.answer(ask(user_id=user, at=later)))


def test_an_event_that_the_caller_tells_and_the_session_holds_counts_once(lively):
    home, later, fresh = lively
    engine = opened(home)
    user = fresh[0]
    held = engine.knowledge.held(user, engine.knowledge.known, later)
    events = tuple(SessionEvent(*event) for event in held.session[:5])
    alone, twice = (engine.answer(ask(user_id=user, at=later, events=told_)) for told_ in ((), events))
    assert told(alone) == told(twice)


def test_events_that_only_the_caller_tells_are_history_too_and_those_of_the_future_are_not(served, engine):
    item = str(engine.model.item_ids[3])
    binding = engine.binding(engine.knowledge.known)
    now = micros(SECOND)
    events = (
        SessionEvent(now, "later", item, "view"),
        SessionEvent(now - 1, "e", item, "purchase"),
        SessionEvent(now - 2, "x", item, "nod"),
    )
    asked = ask(user_id="new", events=events)
    users = moment.history(asked, moment.told(asked, None), binding, engine.settings.training, engine.model.item_ids)
    assert (users.item.tolist(), users.at.tolist(), users.weight.tolist()) == ([3], [now - 1], [3.0])


def test_the_device_in_hand_is_the_requests_or_else_that_of_the_last_event(served, engine):
    known = load(served, SECOND, config.load(served).training, item_ids=engine.model.item_ids)
    users = some_users(served, 12)
    binding = engine.binding(engine.knowledge.known)
    expected = histories(known, np.array(users)).device.tolist()
    for device, codes in ((None, expected), ("Mobile", [1] * len(users)), ("tablet", [2] * len(users))):
        asks = [ask(user_id=user, device=device) for user in users]
        found = [moment.history(one, [], binding, engine.settings.training, engine.model.item_ids).device[0] for one in asks]
        assert found == codes
    assert len(set(expected)) > 1


def test_a_source_that_fails_is_left_out_and_named(served, engine):
    class Broken:
        state = None

        def retrieve(self, *_: object, **__: object) -> None:
            raise RuntimeError("out of order")

    broken = dataclasses.replace(engine.model, retrievers={**engine.model.retrievers, "item_knn": Broken()})
    patched = dataclasses.replace(engine, serving=dataclasses.replace(engine.serving, model=broken), bindings={}, beside={})
    answer = patched.answer(ask(user_id=some_users(served, 3)[1]))
    assert answer.rung == FULL
    assert answer.degraded == ("item_knn: RuntimeError: out of order",)
    assert len(answer.items) == 10
    assert all("item_knn" not in shown.sources for shown in answer.items)


def test_a_ranker_that_would_begin_too_late_is_skipped_and_the_blend_orders(served):
    late = opened(served, PATIENT.model_copy(update={"rank_by_ms": 1e-6}))
    answer = late.answer(ask(user_id=some_users(served, 3)[1]))
    assert answer.rung == BLEND
    assert [one.split(":")[0] for one in answer.degraded] == ["ranker"]
    assert len(answer.items) == 10


def test_sources_that_would_begin_too_late_are_skipped_and_named(served):
    late = opened(served, PATIENT.model_copy(update={"retrieve_by_ms": 1e-6}))
    answer = late.answer(ask(user_id=some_users(served, 3)[1]))
    assert [one.split(":")[0] for one in answer.degraded] == list(late.model.retrievers)
    assert answer.items == ()


def test_scores_that_are_no_numbers_order_nothing(served, engine):
    class Mad:
        features = engine.model.ranker.features

        def score(self, features: np.ndarray, group: object = None) -> np.ndarray:
            return np.where(np.arange(len(features)) % 2, np.nan, 1.0)

    mad = dataclasses.replace(engine.model, ranker=Mad())
    patched = dataclasses.replace(engine, serving=dataclasses.replace(engine.serving, model=mad), bindings={}, beside={})
    answer = patched.answer(ask(user_id=some_users(served, 3)[1]))
    assert answer.rung == BLEND
    assert answer.degraded[0].startswith("ranker: scores: ")
    assert all(np.isfinite(shown.score) for shown in answer.items)


def test_without_the_online_store_the_blend_answers_from_the_snapshots_history(served, tmp_path):
    home = served_shop.copied(served, tmp_path / "var")
    engine = opened(home)
    user = some_users(home, 3)[1]
    whole = engine.answer(ask(user_id=user))
    (home.feast / "online.db").unlink()
    for extra in ("online.db-wal", "online.db-shm"):
        (home.feast / extra).unlink(missing_ok=True)
    engine = opened(home)
    answer = engine.answer(ask(user_id=user))
    assert (whole.rung, answer.rung) == (FULL, BLEND)
    assert [one.split(":")[0] for one in answer.degraded] == ["store"]
    assert len(answer.items) == 10


def test_what_the_ranker_read_of_the_shown_items_can_be_logged(served, engine):
    user = some_users(served, 3)[1]
    answer = engine.answer(ask(user_id=user))
    found = engine.found(ask(user_id=user), Watch(PATIENT))
    assert tuple(answer.features) == engine.model.ranker.features
    place = {item: at for at, item in enumerate(engine.model.item_ids[found.candidates.item].tolist())}
    rows = found.matrix[[place[shown.item_id] for shown in answer.items]]
    for at, name in enumerate(engine.model.ranker.features):
        assert np.array_equal(np.array(answer.features[name], np.float32), rows[:, at], equal_nan=True)


def test_a_new_snapshot_is_followed_without_a_restart(served, tmp_path):
    from pipelines.features import request_snapshot

    home, clock = served_shop.copied(served, tmp_path / "var"), [0.0]
    engine = opened(home)
    engine.knowledge._ticks, engine.knowledge._looked = lambda: clock[0], 0.0
    before = engine.knowledge.known
    event = {c.EVENT_ID: "new", c.USER_ID: "brand new", c.ITEM_ID: str(engine.model.item_ids[0]), c.EVENT_TYPE: c.VIEW}
    event |= {c.EVENT_AT: SECOND, c.RECEIVED_AT: SECOND}
    row = pa.table({field.name: pa.array([event.get(field.name)], field.type) for field in tables.EVENTS})
    with served_shop.environment(home):
        lake.land_tables(home, events=row, source="simulated")
        request_snapshot.publish_snapshot(home, SECOND + timedelta(minutes=1))
        assert engine.knowledge.known is before
        clock[0] = 2.0
        answer = engine.answer(ask(user_id="brand new", at=SECOND + timedelta(minutes=2)))
    assert engine.knowledge.known is not before
    assert (answer.rung, answer.degraded) == (FULL, ())
    assert any(shown.sources and "repeat" in shown.sources for shown in answer.items)
