"""A ledger in which nothing changes unseen: triggers refuse, the chain finds out, anchors betray a rewrite and an old backup."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from pointer_lab import release

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import ledger, releases, rollback
from pipelines.registry.ledger import Anchor


def edit(home: Home, *statements: str, triggers: bool = False) -> None:
    """Change the database as somebody with the file would; without its triggers, unless they are kept."""
    with sqlite3.connect(home.releases) as database:
        if not triggers:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert database.execute(statement).rowcount > 0
    database.close()


@pytest.mark.parametrize("change", ["UPDATE ledger SET kind = 'kept'", "DELETE FROM ledger"])
def test_the_database_refuses_to_change_or_drop_an_entry(home: Home, change: str) -> None:
    release(home, 1)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        edit(home, change, triggers=True)
    assert releases.verify(home) == 1


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE ledger SET body = replace(body, 'reason 1', 'reason 9') WHERE seq = 1",
        "UPDATE ledger SET kind = 'kept' WHERE seq = 2",
        'UPDATE ledger SET "key" = NULL WHERE seq = 2',
        "DELETE FROM ledger WHERE seq = 2",
        "DELETE FROM ledger WHERE seq = 3",
        "DELETE FROM ledger",
        "INSERT INTO ledger (seq, kind, body, previous, hash) SELECT 4, kind, body, hash, hash FROM ledger WHERE seq = 3",
        "UPDATE ledger SET seq = seq + 10 WHERE seq = 3",
    ],
)
def test_a_ledger_that_was_tampered_with_is_found_out(home: Home, tampering: str) -> None:
    for version in (1, 2, 3):
        release(home, version)
    assert releases.verify(home) == 3
    edit(home, tampering)
    with pytest.raises(StateError, match="ledger"):
        releases.verify(home)


def rewritten(home: Home, text: str) -> None:
    """Rewrite the first entry and everything that hangs on it, pointer's head included: a chain that is sound in itself."""
    with sqlite3.connect(home.releases) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        previous = "0" * 64
        for seq, kind, key, body in database.execute('SELECT seq, kind, "key", body FROM ledger ORDER BY seq').fetchall():
            said = body.replace("reason 1", text)
            digest = ledger.digest(previous, seq, kind, key, said)
            database.execute("UPDATE ledger SET body = ?, previous = ?, hash = ? WHERE seq = ?", (said, previous, digest, seq))
            previous = digest
        database.execute("UPDATE pointer SET head = ?", (previous,))
    database.close()


def test_a_wholesale_rewrite_is_betrayed_by_the_anchor(home: Home) -> None:
    for version in (1, 2):
        release(home, version)
    last = ledger.newest(home)
    assert last is not None
    rewritten(home, "a better reason")
    for check in (releases.verify, ledger.check_anchor):
        with pytest.raises(StateError, match="rewritten"):
            check(home)
    ledger.anchor_file(home).unlink()  # who rewrites the ledger may remove the file beside it, too
    assert releases.verify(home) == 2
    with pytest.raises(StateError, match="rewritten"):  # but MLflow keeps an anchor of its own
        ledger.verify(home, [last])


def test_a_restored_backup_is_recognised_and_says_what_to_do(home: Home) -> None:
    release(home, 1)
    backup = home.root / "backup.db"
    shutil.copy(home.releases, backup)
    release(home, 2)
    release(home, 3)
    shutil.copy(backup, home.releases)
    assert releases.pointer(home).version == 1
    with pytest.raises(StateError, match=r"1 entries, but entry 3 .* is known to have been written.*older backup.*reloop releases recover"):
        ledger.check_anchor(home)
    said = ledger.recover(home, reason="the disk is gone", author="reviewer-1")
    assert said["anchored_seq"] == 3
    assert releases.verify(home) == 2
    assert ledger.history(home)[-1]["kind"] == "recovered"
    ledger.check_anchor(home)
    assert release(home, 4).version == 4
    with pytest.raises(StateError, match="the one that was anchored"):
        ledger.recover(home, reason="again", author="reviewer-1")


def test_a_fork_after_a_restored_backup_is_recognised(home: Home) -> None:
    """Somebody went on with the old backup: the same number, another entry."""
    release(home, 1)
    backup = home.root / "backup.db"
    shutil.copy(home.releases, backup)
    release(home, 2)
    shutil.copy(backup, home.releases)
    release(home, 3)
    with pytest.raises(StateError, match="forked"):
        ledger.check_anchor(home)


def test_a_state_folder_of_before_gets_its_triggers_and_keeps_its_entries(home: Home) -> None:
    release(home, 1)
    edit(home)
    with sqlite3.connect(home.releases) as database:
        database.execute("DROP TABLE projection")
    database.close()
    assert releases.pointer(home).version == 1
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        edit(home, "DELETE FROM ledger", triggers=True)
    assert release(home, 2).fence == 2


def test_entries_are_found_by_kind_version_time_and_cycle(home: Home) -> None:
    for version in (1, 2, 3):
        release(home, version)
    rollback.roll_back(home, reason="clicks fell")
    assert [entry["seq"] for entry in ledger.query(home, kinds=["rolled back"])] == [4]
    assert [entry["seq"] for entry in ledger.query(home, version=3)] == [3, 4]
    assert [entry["seq"] for entry in ledger.query(home, version="1")] == [1, 2]
    assert [entry["seq"] for entry in ledger.query(home, as_of=ledger.utc("2025-03-02"))] == [2, 4]
    assert [entry["seq"] for entry in ledger.query(home, limit=2)] == [3, 4]
    assert len(ledger.query(home, since=ledger.utc("2020-01-01"))) == 4
    assert ledger.query(home, since=ledger.utc("2999-01-01")) == []
    json.dumps(ledger.query(home))


def test_the_database_stamps_entries_by_the_clock_it_answers_with(home: Home) -> None:
    release(home, 1)
    waited = ledger.clock(home) - ledger.utc(ledger.history(home)[0]["recorded_at"])
    assert 0 <= waited.total_seconds() < 60


def test_an_anchor_never_goes_back(home: Home) -> None:
    """Two processes append one after the other and anchor in the other order."""
    release(home, 1)
    release(home, 2)
    newest = ledger.anchor(home)
    ledger.anchor_file(home).write_text(json.dumps({"seq": 9, "hash": "0" * 64}))
    release(home, 3)
    assert ledger.anchor(home) == Anchor(9, "0" * 64)
    assert newest is not None
