"""The champion pointer under concurrency and kills, and a ledger in which nothing changes unseen."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StaleFence, StateError
from pipelines.registry import releases

FORK = multiprocessing.get_context("fork")


def bundle(home: Home, content: str) -> str:
    """Publish a folder named by its digest and return the digest."""
    building = home.bundles / "building"
    with publish.folder(building, {}) as out:
        (out / "model.txt").write_text(content, encoding="utf-8")
    digest = publish.manifest(building).digest
    building.rename(home.bundles / digest)
    return digest


def release(home: Home, version: int, baseline: releases.Pointer | None = None) -> releases.Pointer:
    now = baseline or releases.pointer(home)
    body = {
        "as_of": f"2025-03-{version:02d}T00:00:00+00:00",
        "champion_before": now.version,
        "champion_after": version,
        "reasons": [f"reason {version}"],
    }
    return releases.flip(
        home, now, version=version, digest=bundle(home, f"v{version}"), as_of=body["as_of"], key=f"decide/{version}", body=body
    )


def test_before_the_first_release_there_is_no_champion(home: Home) -> None:
    assert releases.champion(home) is None
    assert releases.history(home) == []
    assert releases.verify(home) == 0
    with pytest.raises(StateError, match="no earlier champion"):
        releases.rollback(home)


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
    with pytest.raises(StaleFence, match="version 2 at fence 2"):
        release(home, 3, baseline=stale)
    assert releases.pointer(home).version == 2
    assert [entry["kind"] for entry in releases.history(home)] == ["promoted", "promoted", "refused"]
    assert "stale fence" in releases.line(releases.history(home)[-1])[4]
    assert releases.verify(home) == 3


def test_a_champion_that_left_and_came_back_is_not_the_same_reign(home: Home) -> None:
    """ABA: version 1 serves again after a rollback, but what was judged against its first reign is stale."""
    first = release(home, 1)
    release(home, 2)
    releases.rollback(home)
    assert releases.pointer(home).version == first.version
    with pytest.raises(StaleFence):
        release(home, 3, baseline=first)


def _race(root: Path, version: int, baseline: releases.Pointer, start: object) -> None:
    home = Home(root)
    body = {"champion_before": baseline.version, "champion_after": version, "reasons": []}
    start.wait()  # type: ignore[attr-defined]
    try:
        releases.flip(home, baseline, version=version, digest=f"{version:064d}", as_of="2025-03-01", key=f"k{version}", body=body)
    except StaleFence:
        os._exit(7)
    os._exit(0)


def test_of_eight_processes_that_promote_at_once_one_wins_and_all_are_on_record(home: Home) -> None:
    for round_number in range(5):
        baseline, start = releases.pointer(home), FORK.Barrier(8)
        racers = [FORK.Process(target=_race, args=(home.root, 10 * round_number + n + 1, baseline, start)) for n in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(60)
        assert sorted(racer.exitcode or 0 for racer in racers) == [0] + [7] * 7
        winner = next(10 * round_number + n + 1 for n, racer in enumerate(racers) if racer.exitcode == 0)
        assert releases.pointer(home).version == winner
        assert releases.pointer(home).fence == round_number + 1
    assert releases.verify(home) == 40
    assert sum(entry["kind"] == "promoted" for entry in releases.history(home)) == 5


def test_the_first_start_of_many_processes_makes_one_database(home: Home) -> None:
    with FORK.Pool(8) as pool:
        found = pool.map(releases.pointer, [home] * 16)
    assert {one.fence for one in found} == {0}


@pytest.mark.parametrize("step", ["_append", "_hash"])
def test_killed_in_the_middle_of_a_flip_neither_pointer_nor_ledger_has_moved(
    home: Home, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    release(home, 1)
    pid = os.fork()
    if pid == 0:
        setattr(releases, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        release(home, 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert releases.pointer(home).version == 1
    assert releases.verify(home) == 1
    assert release(home, 3).version == 3


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
    with sqlite3.connect(home.releases) as database:
        assert database.execute(tampering).rowcount > 0
    with pytest.raises(StateError, match="ledger"):
        releases.verify(home)


def test_rollback_returns_to_the_previous_release_or_to_any_that_served(home: Home) -> None:
    for version in (1, 2, 3):
        release(home, version)
    assert releases.rollback(home, reason="click-through fell")["champion_after"] == 2
    assert releases.rollback(home, "1")["champion_after"] == 1
    assert releases.rollback(home)["champion_after"] == 2
    assert releases.history(home)[3]["reasons"] == ["click-through fell"]
    assert releases.verify(home) == 6
    with pytest.raises(StateError, match=r"version 9, which was never released; expected one of the versions \[1, 3\]"):
        releases.rollback(home, "9")
    for target, found in (("2", "serves already"), (9, "never released")):
        with pytest.raises(StateError, match=found):
            releases.rollback(home, target)


def test_rollback_of_the_only_release_says_which_that_is(home: Home) -> None:
    release(home, 1)
    with pytest.raises(StateError, match=r"version 9, which was never released.*version 1, which serves, is the only one released"):
        releases.rollback(home, "9")


def test_rollback_to_a_damaged_bundle_is_refused_and_the_champion_stays(home: Home) -> None:
    release(home, 1)
    release(home, 2)
    file = home.bundles / releases.history(home)[0]["digest"] / "model.txt"
    file.write_text("v1 with one byte more", encoding="utf-8")
    with pytest.raises(StateError, match="differ from its manifest"):
        releases.rollback(home)
    assert releases.pointer(home).version == 2


def test_the_same_decision_twice_is_one_entry(home: Home) -> None:
    body = {"champion_before": None, "champion_after": None, "reasons": ["too few users"]}
    releases.keep(home, "decide/1", body)
    releases.keep(home, "decide/1", body)
    assert len(releases.history(home)) == 1
    found = releases.decision(home, "decide/1")
    assert found is not None
    assert found["reasons"] == ["too few users"]
