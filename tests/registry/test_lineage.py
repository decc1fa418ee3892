"""Promises 24 and 25: from a decision to the data, in one command; and back, to the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trained_shop
from trained_shop import FIRST, SECOND

from pipelines import cycle, lake
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import assembling, bundle, lineage, releases


def digest_of(home: Home) -> str:
    return str(cycle.records(home, FIRST, "bundle")[0]["digest"])


@pytest.fixture
def released(fresh: Home) -> Home:
    """Return the shop with its first version released."""
    digest = digest_of(fresh)
    body = {
        "as_of": FIRST.isoformat(),
        "challenger": 1,
        "challenger_digest": digest,
        "champion_before": None,
        "champion_after": 1,
        "reasons": ["it is the first"],
        "author": "somebody",
    }
    releases.flip(fresh, releases.pointer(fresh), version=1, digest=digest, as_of=FIRST.isoformat(), key="decide/1", body=body)
    return fresh


def test_from_a_release_to_its_decision_its_run_its_data_and_its_code(released: Home) -> None:
    digest = digest_of(released)
    found = lineage.trace(released, "champion")
    assert found == lineage.trace(released, "1") == lineage.trace(released, digest) == lineage.trace(released, digest[:9])
    (decision,) = found["decisions"]
    assert (decision["kind"], decision["author"], decision["reasons"]) == ("promoted", "somebody", ["it is the first"])
    assert decision["hash"] == releases.history(released)[0]["hash"]
    assert found["run"]["as_of"] == FIRST.isoformat()
    assert {one["now"] for one in found["run"]["trained_on"].values()} == {"same"}
    days = {name.split("event_date=")[1].split("/")[0]: one for name, one in found["data"]["partitions"].items() if "event_date" in name}
    assert [day.isoformat() for day in lake.days(released) if day < FIRST.date()] == [
        day for day in sorted(days) if day < f"{FIRST:%Y-%m-%d}"
    ]
    for name, one in found["data"]["partitions"].items():
        content = (released.lake / name).read_bytes()
        assert one == {"sha256": hashlib.sha256(content).hexdigest(), "now": "same"}
    assert found["git_commit"] == bundle.git_commit() or found["git_commit"].removesuffix("-dirty").isalnum()
    assert {"lightgbm", "numpy"} <= set(found["libraries"])


def test_what_changed_or_went_since_is_said(released: Home) -> None:
    run = released.training / f"{FIRST:%Y-%m-%dT%H%M%S}"
    shutil.rmtree(run / "candidates")
    file = released.lake / "events" / f"event_date={trained_shop.START:%Y-%m-%d}" / "events.parquet"
    file.write_bytes(file.read_bytes() + b" ")
    found = lineage.trace(released, "champion")
    assert found["run"]["trained_on"]["candidates"]["now"] == "gone"
    changed = [name for name, one in found["data"]["partitions"].items() if one["now"] != "same"]
    assert changed == [str(file.relative_to(released.lake))]
    said = lineage.say(found)
    assert said["changed since"] == changed
    assert "landing 1" in said["data"]


def test_a_name_that_is_none_or_several_says_what_there_is(released: Home) -> None:
    with pytest.raises(StateError, match=r"version 9: unknown; expected one of \[1, 2\]"):
        lineage.trace(released, "9")
    with pytest.raises(StateError, match="0 bundles of that name"):
        lineage.trace(released, "abcdef0123")
    with pytest.raises(StateError, match="previous: nothing"):
        lineage.trace(released, "previous")


def test_the_lineage_of_a_damaged_bundle_is_not_told(released: Home) -> None:
    file = released.bundles / digest_of(released) / bundle.FACTS_FILE
    file.write_bytes(file.read_bytes().replace(b"2025", b"2024", 1))
    with pytest.raises(StateError, match="differ from its manifest"):
        lineage.trace(released, "champion")


def test_a_run_of_airflow_is_named_with_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CTX_DAG_ID", "reloop_train")
    monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", "manual__2025")
    assert assembling.airflow_run() == {"dag": "reloop_train", "run": "manual__2025"}
    monkeypatch.setenv("AIRFLOW_CTX_TASK_ID", "bundle")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://127.0.0.1:8080/")
    assert assembling.airflow_run() == {
        "dag": "reloop_train",
        "run": "manual__2025",
        "task": "bundle",
        "url": "http://127.0.0.1:8080/dags/reloop_train/runs/manual__2025",
    }


@pytest.mark.slow
def test_the_command_answers_in_words_and_in_json(released: Home) -> None:
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "lineage", "champion", "--home", str(released.root)]
    environment = {**os.environ, "RELOOP_HOME": str(released.root)}
    words = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert digest_of(released) in words.replace("\n", "").replace(" ", "").replace("│", "")
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, env=environment).stdout)
    assert found["digest"] == digest_of(released)


@pytest.mark.slow
def test_a_champion_is_rebuilt_from_what_its_manifest_names_to_the_same_bytes(
    released: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the data partitions and the settings are carried over; everything else is made anew, in another folder."""
    found = lineage.trace(released, "champion")
    again = Home(tmp_path / "again")
    for name in found["data"]["partitions"]:
        (again.lake / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(released.lake / name, again.lake / name)
    for name in ("_head.json", "_source.json", "_landings"):
        if (source := released.lake / name).is_dir():
            shutil.copytree(source, again.lake / name)
        elif source.is_file():
            shutil.copy(source, again.lake / name)
    (again.root / "reloop.toml").write_text(trained_shop.SETTINGS, encoding="utf-8")
    monkeypatch.setenv("RELOOP_HOME", str(again.root))
    trained_shop.train(again, FIRST)
    rebuilt = cycle.records(again, FIRST, "bundle")[0]["digest"]
    assert rebuilt == found["digest"]
    assert lineage.of_bundle(again, rebuilt)["run"]["trained_on"] == {
        name: one["digest"] for name, one in found["run"]["trained_on"].items()
    }
    assert SECOND > FIRST
