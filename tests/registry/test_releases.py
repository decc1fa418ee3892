"""The champion pointer under concurrency and kills."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from pointer_lab import KILLED, quality, race, release, started_together
from processes import in_child

from pipelines.config import Home
from pipelines.errors import StaleFence, StateError
from pipelines.registry import ledger, release_database, releases


def test_before_the_first_release_there_is_no_champion(home: Home) -> None:
    assert releases.champion(home) is None
    assert releases.history(home) == []
    assert releases.verify(home) == 0


def test_a_flip_moves_pointer_and_ledger_together(home: Home) -> None:
    release(home, 1)
    now = release(home, 2)
    assert (now.version, now.previous_version, now.fence) == (2, 1, 2)
    champion = releases.champion(home)
    assert champion is not None
    assert champion.version == 2
    assert [entry["version"] for entry in releases.history(home)] == [1, 2]
    assert releases.line(releases.history(home)[1]) == ("2025-03-02T00:00", "promoted", "1", "2", "reason 2")
    assert releases.verify(home) == 2


def test_a_flip_against_a_champion_that_has_changed_is_refused_and_recorded(home: Home) -> None:
    stale = release(home, 1)
    release(home, 2)
    with pytest.raises(StaleFence, match="stale fence: version 2 at fence 2"):
        release(home, 3, baseline=stale)
    assert releases.pointer(home).version == 2
    assert [entry["kind"] for entry in releases.history(home)] == ["promoted", "promoted", "refused"]
    assert releases.history(home)[-1]["champion_after"] == 2
    assert "stale fence" in releases.line(releases.history(home)[-1])[4]
    assert releases.verify(home) == 3


def test_a_champion_that_left_and_came_back_is_not_the_same_reign(home: Home) -> None:
    """ABA: version 1 serves again after a rollback, but what was judged against its first reign is stale."""
    from pipelines.registry import rollback

    first = release(home, 1)
    release(home, 2)
    rollback.roll_back(home)
    assert releases.pointer(home).version == first.version
    with pytest.raises(StaleFence):
        release(home, 3, baseline=first)


def test_a_decision_that_was_taken_is_not_taken_a_second_time(home: Home) -> None:
    """A zombie whose retry has recorded "keep" comes to a yes: the champion has not changed, but the decision is made."""
    now = releases.pointer(home)
    releases.keep(home, "decide/1", {"champion_before": None, "champion_after": None, "reasons": ["too few users"]})
    with pytest.raises(StaleFence, match="the decision is in the ledger already"):
        release(home, 1, baseline=now)
    assert releases.pointer(home).version is None
    assert [entry["kind"] for entry in releases.history(home)] == ["kept", "refused"]


def test_of_eight_processes_that_promote_at_once_the_best_wins_and_all_are_on_record(home: Home) -> None:
    """Promise 6, on SQLite; two of the eight are killed between judging and flipping, and started again."""
    for trial in range(2):
        versions = [10 * trial + place for place in range(1, 9)]
        race(home, versions, dying=set(versions[::4]))
        assert releases.pointer(home).version == max((v for v in range(1, 10 * trial + 9) if v % 10 not in {0, 9}), key=quality)
    decided = [entry for entry in releases.history(home) if entry["kind"] != ledger.REFUSED]
    assert sorted(entry["key"] for entry in decided) == sorted(
        f"decide/{10 * trial + place}" for trial in range(2) for place in range(1, 9)
    )
    assert_linear(home)


def assert_linear(home: Home) -> None:
    """Check that every flip started from the champion that the flip before it had made."""
    assert releases.verify(home) == len(releases.history(home))
    champion = None
    for entry in releases.history(home):
        if entry["kind"] in ledger.REIGNS:
            assert entry["champion_before"] == champion
            champion = entry["version"]
    assert releases.pointer(home).version == champion


def test_the_first_start_of_many_processes_makes_one_database(home: Home) -> None:
    assert started_together(home) == [0] * 8
    assert releases.pointer(home).fence == 0


@pytest.mark.parametrize("step", ["append", "digest"])
def test_killed_in_the_middle_of_a_flip_neither_pointer_nor_ledger_has_moved(
    home: Home, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    release(home, 1)

    def dying() -> None:
        setattr(ledger, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        release(home, 2)

    assert in_child(dying) == KILLED
    assert releases.pointer(home).version == 1
    assert releases.verify(home) == 1
    assert release(home, 3).version == 3


def test_killed_between_flip_and_anchor_the_ledger_is_sound_and_the_anchor_catches_up(home: Home) -> None:
    release(home, 1)

    def dying() -> None:
        ledger.anchor = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,misc,return-value]
        release(home, 2)

    assert in_child(dying) == KILLED
    assert releases.pointer(home).version == 2
    assert releases.verify(home) == 2
    anchor = ledger.anchor(home)
    assert anchor is not None
    assert anchor.seq == 1
    release(home, 3)
    assert ledger.anchor(home) == ledger.newest(home)


def test_a_database_that_cannot_be_reached_is_named_without_its_password(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELOOP_RELEASES_URL", "postgresql+psycopg2://reloop:secret@127.0.0.1:9/releases")
    with pytest.raises(StateError, match=r"reloop:\*\*\*@127.0.0.1:9.*refused") as unreachable:
        releases.pointer(home)
    assert "secret" not in str(unreachable.value)


def test_the_same_decision_twice_is_one_entry(home: Home) -> None:
    body = {"champion_before": None, "champion_after": None, "reasons": ["too few users"]}
    releases.keep(home, "decide/1", body)
    releases.keep(home, "decide/1", body)
    assert len(releases.history(home)) == 1
    found = releases.decision(home, "decide/1")
    assert found is not None
    assert found["reasons"] == ["too few users"]


def unfenced(connection: object, baseline: releases.Pointer, version: int, digest: str, as_of: str | None) -> bool:
    """Move the pointer whatever it says now: what an alias without compare-and-set does."""
    values = {"version": version, "digest": digest, "as_of": as_of, "fence": baseline.fence + 1}
    connection.execute(release_database.POINTER.update().values(**values))  # type: ignore[attr-defined]
    return True


def test_without_the_fence_a_worse_release_overwrites_a_better_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deliberate breakage: if this passed with the fence, the tests above would prove nothing."""
    monkeypatch.setattr(releases, "_moved", unfenced)
    now = release(home, 1)
    release(home, 2, baseline=now)
    release(home, 3, baseline=now)
    assert releases.pointer(home).version == 3
    with pytest.raises(AssertionError):
        assert_linear(home)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_of_eight_processes_the_best_wins_a_hundred_times_out_of_a_hundred(tmp_path: Path) -> None:
    for trial in range(100):
        home = Home(tmp_path / str(trial))
        versions = [100 * trial + place for place in range(1, 9)]
        race(home, versions, dying={versions[trial % 8], versions[(trial + 3) % 8]})
        assert releases.pointer(home).version == max(versions, key=quality)
        assert_linear(home)
