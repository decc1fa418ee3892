"""A person between the gate and the pointer: asked, answered once, by name; late answers and silence keep the champion."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import timedelta

import pytest
from pointer_lab import ask, release
from processes import SERVER, ended, process
from trained_shop import FIRST, SECOND

from pipelines import cycle
from pipelines.config import Home
from pipelines.decision_policies import ReleasePolicy
from pipelines.errors import StateError
from pipelines.registry import ledger, promotion, releases, review, tracking


def test_an_approval_flips_the_pointer_in_the_name_of_who_gave_it(home: Home) -> None:
    release(home, 1)
    entry = ask(home, 2)
    assert releases.pointer(home).version == 1
    assert review.approve(home, entry, author="reviewer-1", words="convinced")
    last = releases.history(home)[-1]
    assert (last["kind"], last["author"], last["words"], last["champion_after"]) == ("promoted", "reviewer-1", ["convinced"], 2)
    assert last["trigger"] == {"reasons": ["the world has drifted"]}
    assert releases.line(last)[4].startswith("reviewer-1: convinced\nbetter by")
    assert releases.line(last)[4].endswith("trained because: the world has drifted")
    assert releases.pointer(home).version == 2
    assert review.waiting(home) == []
    with pytest.raises(StateError, match="answered already: promoted by reviewer-1"):
        review.reject(home, entry, author="reviewer-2", words="no")
    with pytest.raises(StateError, match="nothing that waits"):
        review.of_version(home, 2)
    assert releases.verify(home) == 3


def test_a_rejection_keeps_the_champion_with_author_and_words(home: Home) -> None:
    release(home, 1)
    review.reject(home, ask(home, 2), author="reviewer-1", words="coverage is thin")
    last = releases.history(home)[-1]
    assert (last["kind"], last["author"], last["words"], last["champion_after"]) == ("rejected", "reviewer-1", ["coverage is thin"], 1)
    assert releases.pointer(home).version == 1


def test_a_late_approval_of_what_was_judged_against_another_champion_is_refused(home: Home) -> None:
    release(home, 1)
    entry = ask(home, 2)
    release(home, 3)
    assert not review.approve(home, entry, author="reviewer-1", words="convinced")
    last = releases.history(home)[-1]
    assert last["kind"] == "refused"
    assert "stale fence" in last["refusal"]
    assert releases.pointer(home).version == 3
    assert review.waiting(home) == []  # it is to be judged again


def test_an_answer_from_airflow_is_to_the_question_that_was_shown_and_to_no_later_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 was asked about against 1. It was approved in a shell when 3 served, so it was judged again, against 3, and waits."""
    monkeypatch.setattr(promotion, "sound", lambda *_: None)
    release(home, 1)
    old = ask(home, 2)
    release(home, 3)
    assert not review.approve(home, old, author="reviewer-1", words="convinced")
    told = {name: old[name] for name in old if name not in {"seq", "kind", "key", "hash", "recorded_at"}}
    key = f"{old['key']}/2"
    ledger.record(home, ledger.WAITING, key, {**told, "champion_before": 3, "baseline": asdict(releases.pointer(home))})
    for said in (
        {"approved": False, "author": None},
        {"approved": True, "author": "reviewer-2"},
        {"approved": False, "author": "reviewer-2"},
    ):
        assert not promotion.heard(home, old["key"], words="of what I saw", **said)  # type: ignore[arg-type]
    assert [entry["key"] for entry in review.waiting(home)] == [key]
    assert releases.pointer(home).version == 3
    assert promotion.heard(home, key, approved=True, author="reviewer-2", words="of what I saw")
    assert releases.pointer(home).version == 2


def test_silence_keeps_the_champion_and_is_on_record(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    release(home, 1)
    ask(home, 2)
    clock = ledger.clock
    review.expire(home, ReleasePolicy(mode="review", review_hours=24))
    assert len(review.waiting(home)) == 1
    monkeypatch.setattr(ledger, "clock", lambda at: clock(at) + timedelta(hours=25))
    for _ in range(2):
        review.expire(home, ReleasePolicy(mode="review", review_hours=24))
    last = releases.history(home)[-1]
    assert (last["kind"], last["author"], last["seq"]) == ("unanswered", "nobody", 3)
    assert last["words"] == ["no answer within 24 hours: the champion stays"]
    assert releases.pointer(home).version == 1


def _approve(root: object, entry: dict[str, object], name: str, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    try:
        review.approve(Home(root), entry, author=name, words="me first")  # type: ignore[arg-type]
    except StateError:
        os._exit(3)
    os._exit(0)


def test_of_many_answers_at_once_one_counts(home: Home) -> None:
    release(home, 1)
    entry, start = ask(home, 2), SERVER.Barrier(6)
    assert set(ended([process(_approve, home.root, entry, f"person {n}", start) for n in range(6)])) <= {0, 3}
    kinds = [found["kind"] for found in releases.history(home)]
    assert kinds.count("promoted") == 2
    assert releases.pointer(home).version == 2
    assert releases.pointer(home).fence == 2
    assert releases.verify(home) == len(kinds)


def test_the_page_shows_the_evidence_and_renders_no_markup_of_its_own_data(home: Home) -> None:
    release(home, 1)
    entry = ask(home, 2)
    page = review.page(home, entry)
    assert review.subject(entry) == "Shall version 2 (as of 2025-03-02) replace version 1?"
    for expected in ("**promote**", "the world has drifted", "| difference | 0.0123 |", "| n users | 4,711 |", "make up"):
        assert expected in page
    assert r"better by \*much\* \[2\](http://evil)" in page
    (home.root / "stack.json").write_text('{"mlflow": "http://127.0.0.1:5000"}')
    assert "http://127.0.0.1:5000/#/models/reloop/versions/2" in review.page(home, entry)


def mode(home: Home, name: str) -> None:
    settings = home.root / "reloop.toml"
    settings.write_text(settings.read_text(encoding="utf-8") + f'\n[release]\nmode = "{name}"\n', encoding="utf-8")


def test_under_review_the_gates_yes_waits_for_a_person_and_then_serves(fresh: Home) -> None:
    mode(fresh, "review")
    asked = promotion.decide(fresh, FIRST)
    assert (asked["verdict"], asked["outcome"], asked["champion_after"]) == ("promote", "waiting for review", None)
    assert releases.pointer(fresh).version is None
    books = tracking.client(fresh)
    assert "champion" not in books.get_registered_model(tracking.MODEL).aliases
    assert books.get_model_version(tracking.MODEL, "1").tags["validation_status"] == "pending"
    assert promotion.decide(fresh, FIRST) == asked  # a rerun asks no second time
    answered = promotion.answer(fresh, 1, approved=True, author="reviewer-1", words="convinced")
    assert (answered["outcome"], answered["champion_after"], answered["author"]) == ("promoted", 1, "reviewer-1")
    assert answered["figures"] == asked["figures"]
    assert cycle.records(fresh, FIRST, "gate")[0]["outcome"] == "promoted"
    assert books.get_registered_model(tracking.MODEL).aliases["champion"] == 1 or "1"
    assert books.get_model_version(tracking.MODEL, "1").tags["validation_status"] == "approved"
    assert promotion.decide(fresh, FIRST) == answered
    assert [entry["kind"] for entry in releases.history(fresh)] == ["waiting for review", "promoted"]


@pytest.mark.slow
def test_what_is_approved_against_a_champion_of_before_is_judged_again(fresh: Home) -> None:
    mode(fresh, "review")
    assert promotion.decide(fresh, FIRST)["outcome"] == "waiting for review"
    digest = str(cycle.records(fresh, SECOND, "bundle")[0]["digest"])
    body = {"as_of": SECOND.isoformat(), "champion_before": None, "champion_after": 2, "reasons": []}
    releases.flip(fresh, releases.pointer(fresh), version=2, digest=digest, as_of=body["as_of"], key=None, body=body)
    said = promotion.answer(fresh, 1, approved=True, author="reviewer-1", words="convinced")
    assert (said["outcome"], said["champion_before"], said["champion_after"]) == ("kept", 2, 2)
    assert "never goes back in time" in said["reasons"][0]
    assert [entry["kind"] for entry in releases.history(fresh)] == ["waiting for review", "promoted", "refused", "kept"]
    assert promotion.decide(fresh, FIRST) == said
    assert releases.verify(fresh) == 4


@pytest.mark.slow
def test_with_releases_off_the_gate_speaks_and_nothing_moves(fresh: Home) -> None:
    mode(fresh, "off")
    said = promotion.decide(fresh, FIRST)
    assert (said["verdict"], said["outcome"]) == ("promote", "releases are off")
    assert "releases are off" in said["reasons"][-1]
    assert releases.pointer(fresh).version is None
    assert [entry["kind"] for entry in releases.history(fresh)] == ["kept"]
