"""Back to an earlier champion in seconds, with everything else down."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from pointer_lab import bundle, release

from pipelines.config import REPOSITORY, Home
from pipelines.errors import StateError
from pipelines.registry import ledger, releases, rollback
from pipelines.window import utc


def test_rollback_returns_to_the_release_before_or_to_any_that_served(home: Home) -> None:
    for version in (1, 2, 3):
        release(home, version)
    back = rollback.roll_back(home, reason="click-through fell", author="reviewer-1")
    assert (back["champion_before"], back["champion_after"], back["author"]) == (3, 2, "reviewer-1")
    assert releases.history(home)[3]["reasons"] == ["click-through fell"]
    assert rollback.roll_back(home, "3")["champion_after"] == 3
    assert releases.verify(home) == 5
    with pytest.raises(StateError, match=r"version 9, which was never released; expected one of the versions \[1, 2\]"):
        rollback.roll_back(home, "9")
    for target, found in (("3", "serves already"), (9, "never released")):
        with pytest.raises(StateError, match=found):
            rollback.roll_back(home, target)


def test_rolling_back_twice_goes_further_back_and_never_to_what_was_left(home: Home) -> None:
    for version in (1, 2, 3):
        release(home, version)
    assert [rollback.roll_back(home)["champion_after"] for _ in range(2)] == [2, 1]
    with pytest.raises(StateError, match=r"no earlier champion that nobody has rolled back from.*--to: \[2, 3\]"):
        rollback.roll_back(home)
    assert rollback.roll_back(home, 3)["champion_after"] == 3  # by name, a person may
    assert rollback.roll_back(home)["champion_after"] == 1


def test_what_was_left_is_withdrawn_until_it_serves_again(home: Home) -> None:
    digests = {version: release(home, version).digest for version in (1, 2, 3)}
    rollback.roll_back(home)
    assert rollback.withdrawn(ledger.history(home)) == {digests[3]}
    rollback.roll_back(home)
    assert rollback.withdrawn(ledger.history(home)) == {digests[2], digests[3]}
    rollback.roll_back(home, 3)
    assert digests[3] not in rollback.withdrawn(ledger.history(home))


def back_to(home: Home, serving: int) -> list[int]:
    return [entry["version"] for entry in rollback.candidates(releases.history(home), serving)]


def word(home: Home, kind: str, version: int) -> None:
    ledger.record(
        home, kind, None, {"challenger": version, "champion_before": 3, "champion_after": 3, "author": "reviewer-1", "words": ["no"]}
    )


def test_what_a_person_rejected_is_no_release_to_go_back_to_until_a_person_takes_it_back(home: Home) -> None:
    for version in (1, 2, 3):
        release(home, version)
    word(home, ledger.REJECTED, 2)
    assert back_to(home, 3) == [1]
    word(home, ledger.APPROVED, 2)
    assert back_to(home, 3) == [2, 1]
    for version in (1, 2):
        word(home, ledger.REJECTED, version)
    assert rollback.by_machine(home, 3, reason="p99 above its bound") is None
    with pytest.raises(StateError, match="no earlier champion that nobody has rolled back from or rejected"):
        rollback.roll_back(home)
    assert rollback.roll_back(home, 2)["champion_after"] == 2  # by name, a person may
    release(home, 4)
    assert back_to(home, 4) == [2], "which served again after the word, because somebody named it"


def test_going_back_never_goes_forth_however_the_release_before_was_reached(home: Home) -> None:
    """By hand in MLflow, by name over the head of another, and where versions were not released in the order of their numbers."""
    for version in (1, 5, 4, 6):
        release(home, version)
    assert rollback.roll_back(home, 5)["champion_after"] == 5
    assert back_to(home, 5) == [1], "4 was released after 5"
    first = releases.history(home)[0]
    body = {"champion_before": 5, "champion_after": 1, "as_of": first["as_of"]}
    releases.flip(home, releases.pointer(home), version=1, digest=first["digest"], as_of=None, key=None, body=body, kind=ledger.BY_HAND)
    assert back_to(home, 1) == []
    release(home, 7)
    assert back_to(home, 7) == [1, 4], "5 and 6 were left for an earlier one"


def test_rollback_without_a_release_before_says_so(home: Home) -> None:
    with pytest.raises(StateError, match="no earlier champion"):
        rollback.roll_back(home)
    release(home, 1)
    with pytest.raises(StateError, match=r"version 9, which was never released.*version 1, which serves, is the only one released"):
        rollback.roll_back(home, "9")


def test_rollback_to_a_damaged_or_missing_bundle_is_refused_and_the_champion_stays(home: Home) -> None:
    for version in (1, 2, 3):
        release(home, version)
    digests = [entry["digest"] for entry in releases.history(home)]
    (home.bundles / digests[1] / "model.txt").write_text("v2 with one byte more", encoding="utf-8")
    with pytest.raises(StateError, match="differ from its manifest"):
        rollback.roll_back(home)
    shutil.rmtree(home.bundles / digests[0])
    with pytest.raises(StateError, match="gone: removed by retention"):
        rollback.roll_back(home, 1)
    assert releases.pointer(home).version == 3
    assert releases.verify(home) == 3


def test_a_bundle_under_the_digest_of_another_is_refused(home: Home) -> None:
    release(home, 1)
    release(home, 2)
    other = bundle(home, "something else")
    folder = home.bundles / releases.history(home)[0]["digest"]
    shutil.rmtree(folder)
    shutil.copytree(home.bundles / other, folder)
    with pytest.raises(StateError, match="the content of bundle"):
        rollback.roll_back(home)


def test_a_machine_rolls_back_what_it_saw_fail_and_nothing_else(home: Home) -> None:
    for version in (1, 2, 3):
        release(home, version)
    assert rollback.by_machine(home, 2, reason="late alarm about version 2") is None
    damaged = home.bundles / releases.history(home)[1]["digest"] / "model.txt"
    damaged.write_text("no longer what it was", encoding="utf-8")
    back = rollback.by_machine(home, 3, reason="p99 above its bound", figures={"p99_ms": 80})
    assert back is not None
    assert back["champion_after"] == 1  # version 2 is damaged
    assert releases.history(home)[-1]["reasons"] == ["p99 above its bound (p99_ms 80)"]
    assert releases.history(home)[-1]["author"] == "reloop"
    assert rollback.by_machine(home, 1, reason="worse still") is None  # nothing sound is left: a person must act
    assert releases.pointer(home).version == 1


def test_the_command_needs_neither_mlflow_nor_redis_nor_airflow(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 7: MLflow and Redis are ports that nobody listens on. The pointer moves, and the command says what is missing."""
    release(home, 1)
    release(home, 2)
    for name, value in {
        "RELOOP_HOME": str(home.root),
        "RELOOP_MLFLOW_URI": "http://127.0.0.1:9",
        "RELOOP_REDIS": "127.0.0.1:9",
        "RELOOP_AIRFLOW_DB": "postgresql+psycopg2://nobody@127.0.0.1:9/airflow",
    }.items():
        monkeypatch.setenv(name, value)
    command = [
        sys.executable,
        "-c",
        "from pipelines.cli import main; main()",
        "rollback",
        "--reason",
        "clicks fell",
        "--author",
        "reviewer-1",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["champion_after"] == 1
    assert "MLflow was not told" in done.stderr
    assert releases.pointer(home).version == 1
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=REPOSITORY)
    assert again.returncode == 2
    assert "rolled back from" in again.stderr
    assert [entry["kind"] for entry in ledger.history(home)] == ["promoted", "promoted", "rolled back"]


def test_a_day_of_the_past_was_served_by_what_was_released_up_to_it(home: Home) -> None:
    """Judged by a later champion, a week that it learnt from would look like its best."""
    for version in (1, 3, 5):
        release(home, version)
    served = {day: releases.champion_of(home, utc(f"2025-03-{day:02d}")) for day in (1, 2, 3, 5, 9)}
    assert {day: found.version for day, found in served.items() if found} == {1: 1, 2: 1, 3: 3, 5: 5, 9: 5}
    assert releases.champion_of(home, utc("2025-02-28")) is None
    assert served[3] is not None
    shutil.rmtree(home.bundles / served[3].digest)
    assert releases.champion_of(home, utc("2025-03-04")) is None, "its bundle was collected since"
    assert releases.champion_of(home, utc("2025-03-09")) == releases.champion(home)
