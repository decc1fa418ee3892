import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import REPOSITORY, Home


def _reloop(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RELOOP_HOME": str(home.root), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=REPOSITORY,
        check=False,
    )


VERBS = [
    "run",
    "ingest",
    "validate",
    "features",
    "train",
    "evaluate",
    "promote",
    "monitor",
    "simulate",
    "releases",
    "rollback",
    "status",
    "doctor",
]


def test_help_lists_every_verb(home: Home):
    printed = _reloop(home, "--help").stdout
    assert [verb for verb in VERBS if f" {verb} " not in printed] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str):
    done = CliRunner().invoke(app, [verb, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_an_error_is_one_line_with_a_hint_and_exit_code_2(home: Home):
    done = _reloop(home, "run", "--source", "online-retail", "--path", str(home.root / "nowhere.csv"))
    assert done.returncode == 2
    assert "nowhere.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_date_that_is_none_is_refused(home: Home):
    done = _reloop(home, "features", "--as-of", "tomorrow")
    assert done.returncode == 2
    assert "'tomorrow'" in done.stderr


def test_a_number_out_of_its_range_is_refused_by_name(home: Home):
    done = _reloop(home, "run", "--users", "0")
    assert done.returncode == 2
    assert "users: 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_of_an_empty_state_folder_says_that_nothing_ran(home: Home):
    done = _reloop(home, "status", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["days in the lake"] == "none"
    assert status["gate"] == "never ran"


def test_doctor_finds_this_installation_sound(home: Home):
    done = _reloop(home, "doctor", "--json")
def test_doctor_warns_of_a_folder_that_is_not_there_and_makes_none(home: Home):
    done = _reloop(home, "doctor", "--json")
    assert json.loads(done.stdout)["state folder"].startswith(f"warning: {home.root} does not exist")
    assert done.returncode == 0
    assert not home.root.exists()


    findings = json.loads(done.stdout)
    home.root.mkdir()
    assert set(findings) >= {"python", "packages", "state folder", "lake", "champion"}
    assert [text for text in findings.values() if not text.startswith("ok")] == []
    assert done.returncode == 0


def test_ingest_lands_days_and_accounts_for_every_row(home: Home):
    world = ("--users", "50", "--items", "30", "--events-per-day", "200")
    done = _reloop(home, "ingest", "--from", "2025-01-06", "--to", "2025-01-08", *world, "--json")
    assert done.returncode == 0, done.stderr
    (batch,) = json.loads(done.stdout).values()
    rows = batch["rows"]
    assert rows["read"] > 100
    assert rows["read"] == rows["accepted"] + rows["quarantined"] + rows["duplicates"]
    assert json.loads(_reloop(home, "status", "--json").stdout)["days in the lake"].startswith("2025-01-06 to 2025-01-07")
