"""Rollouts as the ledger has them: one at a time, in one reign, each step once."""

from __future__ import annotations

import pytest
from pointer_lab import ask, bundle, release

from pipelines.config import Home
from pipelines.decision_policies import RetentionPolicy
from pipelines.errors import StaleFence, StateError
from pipelines.registry import ledger, releases, retention, review, rollback, rollouts


def begun(home: Home, version: int, share: float = 0.01, kind: str = ledger.CANARY, key: str | None = None) -> rollouts.Rollout:
    return rollouts.begin(
        home, releases.pointer(home), key=key or f"rollout/{version}", kind=kind, share=share, version=version, digest=bundle(home, f"v{version}"),
        as_of=f"2025-03-{version:02d}T00:00:00+00:00", body={"reasons": ["asked for"], "author": "ada"},
    )  # fmt: skip


def on(home: Home, now: rollouts.Rollout, share: float) -> bool:
    return rollouts.step(home, now, kind=ledger.CANARY, share=share, reasons=["healthy"], author="reloop", figures={"requests": 5})


def test_a_rollout_goes_up_step_by_step_and_ends_as_the_pointer_s_own_flip(home: Home) -> None:
    release(home, 1)
    now = begun(home, 2)
    assert (now.share, now.step, now.baseline.version, now.author) == (0.01, 0, 1, "ada")
    assert on(home, now, 0.1)
    now = rollouts.current(home) or now
    assert (now.share, now.step, now.key) == (0.1, 1, "rollout/2")
    assert rollouts.promote(home, now, reasons=["healthy at 50%"], author="reloop", figures={})
    assert rollouts.current(home) is None
    assert (releases.pointer(home).version, releases.pointer(home).fence) == (2, 2)
    assert [entry["kind"] for entry in ledger.history(home)] == ["promoted", "canary", "canary", "promoted"]
    assert [entry["version"] for entry in rollback.candidates(ledger.history(home), 2)] == [1]
    ledger.verify(home)


def test_of_two_processes_that_take_the_same_step_the_first_counts(home: Home) -> None:
    release(home, 1)
    now = begun(home, 2)
    assert on(home, now, 0.1)
    assert not on(home, now, 0.5), "the second read a step that is over"
    assert rollouts.end(home, now, reasons=["errors"], author="reloop", figures={})
    assert not rollouts.end(home, now, reasons=["errors"], author="reloop", figures={})
    assert not rollouts.promote(home, now, reasons=["healthy"], author="reloop", figures={}), "it was ended"
    assert releases.pointer(home).version == 1
    assert not on(home, now, 0.5)


def test_a_rollout_is_over_once_the_pointer_has_moved(home: Home) -> None:
    release(home, 1)
    release(home, 2)
    now = begun(home, 3)
    rollback.roll_back(home)
    assert rollouts.current(home) is None
    assert not on(home, now, 0.1)
    with pytest.raises(StaleFence, match="stale fence"):
        rollouts.promote(home, now, reasons=["healthy"], author="reloop", figures={})
    assert releases.pointer(home).version == 1
    with pytest.raises(StaleFence, match="judged against"):
        rollouts.begin(
            home, now.baseline, key="late", kind=ledger.CANARY, share=0.1, version=3, digest=now.digest, as_of=None, body={"reasons": []}
        )


def test_a_second_rollout_ends_the_first_and_the_same_one_is_not_begun_twice(home: Home) -> None:
    release(home, 1)
    first = begun(home, 2)
    assert begun(home, 2) == first
    second = begun(home, 3)
    assert rollouts.current(home) == second
    ended = ledger.decision(home, first.end_key)
    assert ended is not None
    assert ended["reasons"] == ["version 3 is rolled out instead"]


def test_there_is_no_rollout_without_a_champion_nor_of_the_champion_itself(home: Home) -> None:
    with pytest.raises(StateError, match="no champion"):
        begun(home, 1)
    release(home, 1)
    with pytest.raises(StateError, match="serves already"):
        rollouts.begin(
            home,
            releases.pointer(home),
            key="k",
            kind=ledger.CANARY,
            share=0.1,
            version=1,
            digest=bundle(home, "v1"),
            as_of=None,
            body={"reasons": []},
        )


def test_a_follower_reads_the_ledger_only_where_the_head_has_moved(home: Home) -> None:
    release(home, 1)
    follower = rollouts.Follower(home)
    first = follower.look()
    assert follower.look() is first
    now = begun(home, 2)
    assert follower.look().rollout == now
    release(home, 3)
    assert follower.look().rollout is None
    assert follower.look().pointer.version == 3
    follower.close()


def test_a_person_s_yes_begins_the_rollout_that_the_settings_ask_for(home: Home) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "reloop.toml").write_text('[release]\nrollout = "shadow-then-canary"\n')
    release(home, 1)
    entry = ask(home, 2)
    assert review.approve(home, entry, author="ada", words="looks good")
    now = rollouts.current(home)
    assert now is not None
    assert (now.kind, now.share, now.version, now.author) == (ledger.SHADOW, 0.0, 2, "ada")
    assert releases.pointer(home).version == 1
    assert review.waiting(home) == []


def test_a_yes_that_comes_after_another_champion_is_refused_on_record(home: Home) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "reloop.toml").write_text('[release]\nrollout = "canary"\n')
    release(home, 1)
    entry = ask(home, 2)
    release(home, 3)
    assert not review.approve(home, entry, author="ada", words="looks good")
    assert rollouts.current(home) is None
    assert (ledger.decision(home, review.answer_key(entry["key"])) or {})["kind"] == ledger.REFUSED


def test_retention_keeps_what_is_being_rolled_out(home: Home) -> None:
    release(home, 1)
    release(home, 2)
    now = begun(home, 3)
    there = [retention.Bundle(now.digest, 3, "2025-01-01", 0, decided=True)]
    keeps_none = RetentionPolicy(keep_last=0)
    assert retention.kept(there, releases.pointer(home), ledger.history(home), keeps_none, {}) == {now.digest: "is being rolled out"}
    rollouts.end(home, now, reasons=["errors"], author="reloop", figures={})
    assert retention.kept(there, releases.pointer(home), ledger.history(home), keeps_none, {}) == {}
