"""Landing survives: a kill at any file-system call, a full disk, other writers, any time zone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def lab(root: Path, *scenario: str) -> dict:
    """Return what a scenario of the crash laboratory found."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = subprocess.run(
        [sys.executable, str(TESTS / "crash_lab.py"), str(root), *scenario],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_kills(found: dict) -> None:
    *kills, last = found["outcomes"]
    assert last["ended"] == 0, "the run without a kill must end the series"
    assert len(kills) >= 5
    for outcome in kills:
        assert outcome["ended"] == -9, outcome
        assert outcome["read"] == [0, ""], outcome
        assert (outcome["again"], outcome["same"], outcome["litter"]) == ([0, ""], True, []), outcome


def test_a_landing_killed_at_any_eleventh_file_system_call_is_whole_to_readers_and_ends_in_the_same_bytes(tmp_path):
    check_kills(lab(tmp_path, "kills", "3", "11"))


@pytest.mark.slow
def test_a_landing_killed_at_every_file_system_call_is_whole_to_readers_and_ends_in_the_same_bytes(tmp_path):
    found = lab(tmp_path, "kills")
    check_kills(found)
    assert len(found["outcomes"]) > 40


@pytest.mark.slow
def test_validation_and_landing_killed_at_any_moment_and_run_again_end_in_the_same_bytes(tmp_path):
    outcomes = lab(tmp_path, "whole_kills")["outcomes"]
    assert any(outcome["ended"] == -9 for outcome in outcomes)
    for outcome in outcomes:
        assert (outcome["again"], outcome["same"], outcome["litter"]) == ([0, ""], True, []), outcome


@pytest.mark.slow
def test_a_full_disk_tears_nothing_says_so_and_the_next_run_succeeds(tmp_path):
    outcomes = lab(tmp_path, "full_disk")["outcomes"]
    assert any(outcome["ended"][0] == 3 for outcome in outcomes)
    for outcome in outcomes:
        assert outcome["ended"][0] in {0, 3, 4}, outcome
        if outcome["ended"][0] == 3:
            assert "make room and run the stage again" in outcome["ended"][1]
            assert outcome["lake_same"], outcome
        assert (outcome["torn"], outcome["again"], outcome["same"], outcome["litter"]) == ([], [0, ""], True, []), outcome


def test_writers_wait_for_each_other_and_nothing_is_lost_or_doubled(tmp_path):
    found = lab(tmp_path / "together", "writers")
    assert found == {"ended": [0, 0, 0, 0], "same": True, "files": 3, "sequences": [1, 2, 3, 4]}


def test_the_bytes_of_the_lake_do_not_depend_on_the_time_zone_of_the_process(tmp_path):
    found = lab(tmp_path, "zones")
    assert set(map(tuple, found["ended"].values())) == {(0, "")}
    assert len(found["files"]) == 3
    assert all(files == found["files"][0] for files in found["files"])
    assert sorted(name for name in found["files"][0] if "/events/" in name) == [
        f"lake/events/event_date=2024-03-{day:02}/events.parquet" for day in ("09", "10", "11")
    ]
