"""Who tests the tests: each deliberate breakage of pointer, ledger, review and rollback makes the claim it concerns fail."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import sqlalchemy as sa
from pointer_lab import bundle, release

from pipelines.config import Home
from pipelines.errors import ReloopError, StaleFence, StateError
from pipelines.registry import ledger, release_database, releases, review, rollback


def refused(error: type[ReloopError], action: Callable[[], Any]) -> bool:
    try:
        action()
    except error:
        return True
    return False


def a_stale_flip_is_refused(home: Home) -> None:
    first = release(home, 1)
    release(home, 2)
    assert refused(StaleFence, lambda: release(home, 3, baseline=first))
    assert releases.pointer(home).version == 2


def a_reign_that_came_back_is_another_reign(home: Home) -> None:
    first = release(home, 1)
    release(home, 2)
    rollback.roll_back(home)
    assert refused(StaleFence, lambda: release(home, 3, baseline=first))


def every_flip_is_on_record(home: Home) -> None:
    release(home, 1)
    assert [entry["version"] for entry in ledger.history(home)] == [1]
    assert ledger.verify(home) == 1


def one_decision_is_taken_once(home: Home) -> None:
    releases.keep(home, "decide/1", {"champion_before": None})
    assert refused(StaleFence, lambda: release(home, 1))
    assert releases.pointer(home).version is None


def a_changed_word_is_found(home: Home) -> None:
    release(home, 1)
    with sqlite3.connect(home.releases) as database:
        database.execute("DROP TRIGGER IF EXISTS ledger_no_update")
        database.execute("UPDATE ledger SET body = replace(body, 'reason 1', 'reason 9')")
    database.close()
    assert refused(StateError, lambda: ledger.verify(home))


def an_entry_cannot_be_changed(home: Home) -> None:
    release(home, 1)
    with sqlite3.connect(home.releases) as database, pytest.raises(sqlite3.IntegrityError):
        database.execute("UPDATE ledger SET kind = 'kept'")
    database.close()


def an_older_backup_is_found(home: Home) -> None:
    release(home, 1)
    backup = home.root / "backup.db"
    shutil.copy(home.releases, backup)
    release(home, 2)
    shutil.copy(backup, home.releases)
    assert refused(StateError, lambda: ledger.check_anchor(home))


def _asked(home: Home) -> dict[str, Any]:
    release(home, 1)
    now = releases.pointer(home)
    body = {"as_of": "2025-03-02T00:00:00+00:00", "challenger": 2, "challenger_digest": bundle(home, "v2"), "champion_before": 1}
    ledger.record(home, ledger.WAITING, "decide/2", {**body, "baseline": asdict(now), "reasons": []})
    return review.of_version(home, 2)


def the_first_answer_counts(home: Home) -> None:
    entry = _asked(home)
    review.reject(home, entry, author="reviewer-1", words="no")
    review._close(home, entry, ledger.UNANSWERED, "nobody", "too late")
    assert [found["kind"] for found in ledger.history(home)] == ["promoted", "waiting for review", "rejected"]


def a_late_approval_is_stale(home: Home) -> None:
    entry = _asked(home)
    release(home, 3)
    assert not review.approve(home, entry, author="reviewer-1", words="yes")
    assert releases.pointer(home).version == 3


def a_damaged_bundle_never_comes_back(home: Home) -> None:
    release(home, 1)
    release(home, 2)
    (home.bundles / ledger.history(home)[0]["digest"] / "model.txt").write_text("damaged", encoding="utf-8")
    assert refused(StateError, lambda: rollback.roll_back(home))


def what_was_left_is_not_gone_back_to(home: Home) -> None:
    for version in (1, 2, 3):
        release(home, version)
    assert [rollback.roll_back(home)["champion_after"] for _ in range(2)] == [2, 1]


CLAIMS = [value for value in dict(globals()).values() if callable(value) and getattr(value, "__module__", "") == __name__ and value is not refused and not value.__name__.startswith("_")]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_unbroken_every_claim_holds(home: Home, claim: Callable[[Home], None]) -> None:
    assert len(CLAIMS) == 11
    claim(home)


def _moved(*, fenced: bool, grows: bool) -> Callable[..., bool]:
    def moved(connection: sa.Connection, baseline: releases.Pointer, version: int, digest: str, as_of: str | None) -> bool:
        table = release_database.POINTER
        where = [table.c.version == baseline.version if baseline.version else table.c.version.is_(None)] if fenced else []
        values = {"version": version, "digest": digest, "as_of": as_of, "fence": baseline.fence + grows}
        values |= {"previous_version": baseline.version, "previous_digest": baseline.digest}
        return connection.execute(sa.update(table).where(*where).values(**values)).rowcount == 1

    return moved


def _shallow(previous: str, seq: int, kind: str, key: str | None, body: str) -> str:
    del body
    return f"{abs(hash(json.dumps([previous, seq, kind, key]))):064d}"[:64]


BREAKAGES: dict[str, tuple[Any, str, Any, Callable[[Home], None]]] = {
    "the flip asks for nothing": (releases, "_moved", _moved(fenced=False, grows=True), a_stale_flip_is_refused),
    "the flip asks for the version alone": (releases, "_moved", _moved(fenced=True, grows=False), a_reign_that_came_back_is_another_reign),
    "a flip is not recorded": (ledger, "append", lambda *_: 0, every_flip_is_on_record),
    "a key is not looked for": (ledger, "holds", lambda *_: False, one_decision_is_taken_once),
    "the chain leaves out what was said": (ledger, "digest", _shallow, a_changed_word_is_found),
    "there are no triggers": (release_database, "_TRIGGERS", {}, an_entry_cannot_be_changed),
    "the anchor is not kept": (ledger, "anchor", lambda _: None, an_older_backup_is_found),
    "answers have keys of their own": (review, "answer_key", lambda key, seen=[]: seen.append(key) or f"{key}/{len(seen)}", the_first_answer_counts),
    "an approval takes the pointer of now": (releases, "_moved", _moved(fenced=False, grows=True), a_late_approval_is_stale),
    "rollback checks no bytes": (rollback, "check", lambda *_: None, a_damaged_bundle_never_comes_back),
    "rollback toggles": (
        rollback,
        "candidates",
        lambda history, serving: [entry for entry in reversed(history) if entry["version"] != serving],
        what_was_left_is_not_gone_back_to,
    ),
}  # fmt: skip


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_breakage_is_caught(home: Home, monkeypatch: pytest.MonkeyPatch, breakage: str) -> None:
    module, name, broken, claim = BREAKAGES[breakage]
    monkeypatch.setattr(module, name, broken)
    with pytest.raises((AssertionError, pytest.fail.Exception, sa.exc.IntegrityError)):
        claim(home)
