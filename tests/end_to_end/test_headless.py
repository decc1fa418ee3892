"""The loop through Airflow's Dags in one process: what `reloop run` starts, on a shop of a few hundred users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stack import WORLD, small_settings

from pipelines import config, cycle, publish
from pipelines.config import REPOSITORY, Home
from pipelines.window import utc

LOOP = ["reloop_ingest", "reloop_features", "reloop_train", "reloop_promote", "reloop_monitor"]
pytestmark = pytest.mark.timeout(2400)


def form(start: str, end: str, **added: Any) -> dict[str, Any]:
    return {**WORLD, "from": start, "to": end, "as_of": end, "batch_days": 49, **added}


def headless(home: Home, *forms: dict[str, Any]) -> tuple[int, list[dict[str, Any]], str]:
    """Run a plan and return the exit code, a line a Dag run, and what stderr said."""
    home.root.mkdir(parents=True, exist_ok=True)
    plan = home.root / "plan.json"
    plan.write_text(json.dumps(forms))
    command = [sys.executable, str(REPOSITORY / "dags" / "headless.py"), "--plan", str(plan)]
    environment = {**os.environ, "RELOOP_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=REPOSITORY)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, list[dict[str, Any]]]:
    """Return the state and the lines after seven weeks and then three days, with a shift in the three days."""
    home = Home(tmp_path_factory.mktemp("headless") / "var")
    small_settings(home)
    code, lines, said = headless(
        home, form("2025-01-06", "2025-02-24"), form("2025-02-24", "2025-02-27", shifts=["traffic_mix@2025-02-24"])
    )
    assert code == 0, (lines, said[-2000:])
    return home, lines


def test_assets_carry_the_first_ingest_to_the_decision_and_the_monitor(walked):
    _, lines = walked
    assert [line["dag_id"] for line in lines][:5] == LOOP
    assert {line["state"] for line in lines} == {"success"}
    assert {utc(line["as_of"]) for line in lines[:5]} == {utc("2025-02-24")}


def test_drift_starts_a_second_training_in_the_same_walk(walked):
    """Three days after the first no training is due; the monitor asks for one, and it goes through to a decision."""
    home, lines = walked
    assert [line["dag_id"] for line in lines][5:] == [
        "reloop_ingest",
        "reloop_features",
        "reloop_train",
        "reloop_monitor",
        "reloop_train",
        "reloop_promote",
    ]
    drift = cycle.records(home, utc("2025-02-27"), "drift")
    assert [record["verdict"] for record in drift] == ["drift"]
    trigger = cycle.records(home, utc("2025-02-27"), "trigger")
    assert trigger[0]["due"]
    assert "requested" in trigger[0]["reasons"][0]


def test_the_challenger_met_the_incumbent(walked):
    home, _ = walked
    first, second = (cycle.records(home, utc(day), "gate")[0] for day in ("2025-02-24", "2025-02-27"))
    assert (first["verdict"], first["champion_before"]) == ("promote", None)
    assert second["champion_before"] == first["champion_after"] is not None


def test_every_row_read_has_one_fate(walked):
    home, _ = walked
    landed = cycle.records(home, utc("2025-02-24"), "ingest")
    assert sum(record["rows"]["read"] for record in landed) > 10_000
    for record in landed:
        assert record["rows"]["read"] == record["rows"]["accepted"] + record["rows"]["quarantined"] + record["rows"]["duplicates"]


def test_a_backfill_of_what_the_lake_holds_changes_no_byte(walked):
    """Run as a person would from a shell, `airflow dags test`, over three days that landed in a batch of seven weeks."""
    sys.path.append(str(REPOSITORY / "dags"))
    from reloop_environment import environment

    home, _ = walked
    tables = [home.lake / "events", home.lake / "items", home.lake / "users", home.features]
    before = {file: publish.digest(file) for table in tables for file in sorted(table.rglob("*.parquet"))}
    assert len(before) > 50
    conf = json.dumps({**WORLD, "shifts": ["traffic_mix@2025-02-24"], "from": "2025-02-03", "to": "2025-02-06"})
    command = [str(Path(sys.executable).parent / "airflow"), "dags", "test", "reloop_backfill", "--conf", conf]
    done = subprocess.run(command, env=environment(home) | {"RELOOP_RETRIES": "0"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list((home.reports / "failures").glob("*/*.json"))
    assert {file: publish.digest(file) for table in tables for file in sorted(table.rglob("*.parquet"))} == before


def test_what_travels_between_tasks_is_small(walked):
    """Promise 40: XCom holds references, never frames."""
    import sqlite3

    home, _ = walked
    with sqlite3.connect(home.airflow / "airflow.db") as books:
        sizes = [size for (size,) in books.execute("select length(value) from xcom")]
    books.close()
    assert len(sizes) > 20
    assert max(sizes) <= 4096


def test_every_source_is_a_task_of_its_own_that_bears_its_name(walked):
    """What Airflow's pages show beside each mapped task of a training."""
    import sqlite3

    home, _ = walked
    query = "SELECT run_id, rendered_map_index FROM task_instance WHERE dag_id = 'reloop_train' AND task_id = 'retrieve' AND map_index >= 0"
    shown: dict[str, list[str]] = {}
    with sqlite3.connect(home.airflow / "airflow.db") as books:
        for run, name in books.execute(query):
            shown.setdefault(run, []).append(name)
    books.close()
    assert shown
    assert all(sorted(names) == sorted(config.load(home).retrieval.sources) for names in shown.values())


def test_a_blocked_batch_stops_the_walk_and_names_task_error_and_hint(tmp_path: Path):
    home = Home(tmp_path / "var")
    code, lines, _ = headless(home, form("2025-01-06", "2025-01-08", faults=["schema_change@2025-01-06"]))
    assert code == 1
    assert [line["dag_id"] for line in lines] == ["reloop_ingest"]
    assert lines[0]["failed_task"] == "validate[0]"
    assert "ValidationBlocked" in lines[0]["error"]
    assert "item_id" in lines[0]["error"]
    assert lines[0]["hint"]
    assert not (home.lake / "events").exists()


def test_a_form_that_does_not_fit_the_params_runs_nothing(tmp_path: Path):
    code, lines, _ = headless(Home(tmp_path / "var"), form("2025-01-06", "2025-01-08", path="{{ 7 * 7 }}"))
    assert code == 1
    assert (lines[0]["run_id"], lines[0]["failed_task"]) == (None, None)
    assert "7 * 7" in lines[0]["error"]


def test_a_running_scheduler_keeps_headless_runs_out(tmp_path: Path):
    """Its scheduler would pick our tasks up a second time. Any session leader stands for it here."""
    home = Home(tmp_path / "var")
    home.root.mkdir()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as leader:
        (home.root / "stack.json").write_text(json.dumps({"pid": leader.pid}))
        code, lines, said = headless(home, form("2025-01-06", "2025-01-08"))
        leader.terminate()
    assert (code, lines) == (2, [])
    assert "make down" in said
