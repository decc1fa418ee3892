"""Snapshots are followed beside the requests: whole, bound before they answer, and those that cannot be read leave what was known."""

from __future__ import annotations

import json
import os
import threading
from datetime import timedelta

import numpy as np
import pytest
import served_shop
from scripted import PATIENT
from trained_shop import SECOND

from pipelines.config import Home
from pipelines.features import item_snapshot, request_snapshot
from pipelines.registry import choosing
from pipelines.serving import engine
from pipelines.serving.knowledge import RETRY_SECONDS, SETTLE_SECONDS, Knowledge
from pipelines.serving.request import FULL, Ask, Filters


@pytest.fixture
def home(served: Home, tmp_path) -> Home:
    return served_shop.copied(served, tmp_path / "var")


@pytest.fixture
def ticks() -> list[float]:
    return [0.0]


@pytest.fixture
def knowledge(home: Home, ticks: list[float]) -> Knowledge:
    return Knowledge(home, PATIENT, ticks=lambda: ticks[0])


def pointer(module, home: Home):
    return module.folder(home) / module.POINTER


def published(home: Home, minutes: int) -> None:
    with served_shop.environment(home):
        request_snapshot.publish_snapshot(home, SECOND + timedelta(minutes=minutes))


@pytest.mark.parametrize("module", [request_snapshot, item_snapshot])
def test_a_pointer_that_cannot_be_read_leaves_what_was_known_and_is_told(home, knowledge, ticks, module):
    before, good = knowledge.known, pointer(module, home).read_bytes()
    pointer(module, home).write_text("{")
    ticks[0] = 2.0
    assert knowledge.known is before
    assert knowledge.catalogue is not None
    assert "JSONDecodeError" in knowledge.trouble
    pointer(module, home).write_bytes(good)
    ticks[0] += RETRY_SECONDS
    assert knowledge.known.requests is not None
    assert knowledge.trouble == ""


def test_a_process_begins_with_nothing_known_where_nothing_can_be_read(home, ticks):
    pointer(request_snapshot, home).write_text(json.dumps({"folder": "no such folder"}))
    knowledge = Knowledge(home, PATIENT, ticks=lambda: ticks[0])
    assert (knowledge.known.requests, knowledge.catalogue) == (None, None)
    assert knowledge.trouble != ""


def test_engines_are_bound_to_a_new_snapshot_before_it_answers_and_no_request_binds(home, monkeypatch):
    knowledge = Knowledge(home, PATIENT, ticks=lambda: 0.0)
    with served_shop.environment(home):
        made = engine.bound(knowledge, choosing.serving(home))
    before, bound_in = knowledge.known, []
    bind = engine.bind
    monkeypatch.setattr(
        engine, "bind", lambda *given: (bound_in.append((threading.current_thread().name, knowledge.known)), bind(*given))[1]
    )
    published(home, 1)
    asked = lambda: made.answer(Ask("home", "r", SECOND + timedelta(minutes=2), 5, "u00000005"))  # noqa: E731
    thread = threading.Thread(target=knowledge.follow, name="follows")
    thread.start()
    while thread.is_alive():
        assert asked().rung == FULL
    thread.join()
    assert knowledge.known is not before
    assert asked().rung == FULL
    assert bound_in == [("follows", before)], "once, while the snapshots of before still answered"


def test_a_snapshot_that_the_champion_cannot_be_bound_to_does_not_answer(home, knowledge, ticks, monkeypatch):
    with served_shop.environment(home):
        made = engine.bound(knowledge, choosing.serving(home))
    before = knowledge.known
    assert made.follows(before)
    monkeypatch.setattr(engine, "bind", lambda *_: 1 / 0)
    published(home, 1)
    ticks[0] = 2.0
    assert knowledge.known is before
    assert knowledge.trouble.startswith("ZeroDivisionError")


def test_of_two_snapshots_of_which_one_is_published_yet_neither_answers_for_a_while(home, knowledge, ticks):
    before = knowledge.known
    published(home, 24 * 60)
    ticks[0] = 2.0
    assert knowledge.known is before
    ticks[0] += SETTLE_SECONDS
    assert knowledge.known.requests.as_of == SECOND + timedelta(days=1)
    assert knowledge.trouble == ""


def test_a_service_whose_snapshots_cannot_be_read_says_so_and_lives(open_house):
    home, made = open_house
    file = pointer(item_snapshot, home)
    good, stat = file.read_bytes(), file.stat()
    file.write_text("{")
    try:
        made.knowledge.follow()
        _, reasons, _ = made.ready()
        assert [reason for reason in reasons if reason.startswith("snapshots: ")]
        made.vitals()
        assert made.metrics.registry.get_sample_value("reloop_snapshots_refused") == 1.0
    finally:
        file.write_bytes(good)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    made.knowledge.follow()
    made.vitals()
    assert made.metrics.registry.get_sample_value("reloop_snapshots_refused") == 0.0


def test_the_whole_catalogue_is_sorted_once_a_snapshot_and_in_no_request(home, knowledge, monkeypatch):
    with served_shop.environment(home):
        made = engine.bound(knowledge, choosing.serving(home))
    shop, argsort, sizes = knowledge.catalogue, np.argsort, list[int]()
    monkeypatch.setattr(np, "argsort", lambda values, *given, **named: (sizes.append(len(values)), argsort(values, *given, **named))[1])
    answers = [made.answer(Ask(surface, "r", SECOND, 200)) for surface in ("trending", "similar")]
    assert [len(answer.items) for answer in answers] == [int(shop.available.sum())] * 2
    assert len(shop.item_ids) not in sizes
    met = shop.items["n_events"].to_numpy()[shop.most_met]
    assert (met[:-1] >= met[1:]).all()
    everything = made.answer(Ask("trending", "r", SECOND, len(shop.item_ids), filters=Filters(available_only=False)))
    assert len({item.item_id for item in everything.items}) == len(shop.item_ids)
