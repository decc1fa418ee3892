import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from pipelines import publish
from pipelines.cli import app, further
from pipelines.config import REPOSITORY, Home, source_file
from pipelines.errors import SourceError, StateError


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
    "retrieval",
    "bench",
    "stream",
    "simulate",
    "releases",
    "rollback",
    "review",
    "lineage",
    "gc",
    "bundle",
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
    assert status["online features"] == "none materialized"


def test_doctor_warns_of_a_folder_that_is_not_there_and_makes_none(home: Home):
    done = _reloop(home, "doctor", "--json")
    assert json.loads(done.stdout)["state folder"].startswith(f"warning: {home.root} does not exist")
    assert done.returncode == 0
    assert not home.root.exists()


def test_doctor_finds_this_installation_sound(home: Home):
    home.root.mkdir()
    done = _reloop(home, "doctor", "--json")
    findings = json.loads(done.stdout)
    assert set(findings) >= {"python", "packages", "state folder", "lake", "champion"}
    assert [text for text in findings.values() if text.startswith("WRONG")] == []
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


EXAMPLES = REPOSITORY / "docs" / "mappings"
EUROPEAN = ("--source", "table", "--path", str(EXAMPLES / "european" / "verkauf.csv"), "--map", str(EXAMPLES / "european.yml"))


@pytest.mark.parametrize("verb", ["run", "ingest", "validate"])
def test_another_source_is_refused_before_it_is_read(home: Home, verb: str):
    publish.write_json(source_file(home), {"source": "simulated", "settings": {}})
    before = sorted(home.root.rglob("*"))
    more = ("--as-of", "2024-03-01") if verb == "validate" else ()
    done = CliRunner().invoke(app, [verb, *EUROPEAN, *more])
    assert isinstance(done.exception, StateError)
    for word in ("batch from table", "batches from simulated", "RELOOP_HOME=", "--home"):
        assert word in str(done.exception)
    assert sorted(home.root.rglob("*")) == before


@pytest.mark.parametrize("verb", ["run", "ingest"])
@pytest.mark.parametrize(
    ("flag", "named"),
    [
        (("--fault", "gremlins@2025-02-03"), "'nulls'"),
        (("--shift", "nulls@2025-02-03"), "'taste_shift'"),
        (("--fault", "nulls@2025-02-30"), "a day of the calendar"),
        (("--fault", "nulls@2024-12-31"), "a day from 2025-01-06 on"),
    ],
)
def test_what_cannot_befall_the_shop_is_refused_at_once(home: Home, verb: str, flag: tuple[str, str], named: str):
    done = CliRunner().invoke(app, [verb, *flag])
    assert isinstance(done.exception, SourceError)
    assert named in str(done.exception)
    assert not home.root.exists()


def test_ingest_of_nothing_says_what_the_source_has_and_what_the_lake_holds(home: Home):
    first = CliRunner().invoke(app, ["ingest", *EUROPEAN])
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(app, ["ingest", *EUROPEAN, "--json"])
    assert again.exit_code == 1
    said = json.loads(again.output)["landed"]
    assert said.startswith("nothing: table has 20")
    assert "the lake holds 20" in said
    assert "where the lake ends..its end asks for no day beyond" in said


def test_the_closing_hints_are_files_that_are_there_and_commands_for_this_state_folder(home: Home, capsys, monkeypatch):
    publish.write_json(home.reports / "run.json", {})
    further(home, [{"as_of": "2025-03-03T00:00:00"}])
    printed = capsys.readouterr().out
    assert str(home.reports / "run.json") in printed
    assert "Data Docs" not in printed
    assert "drift report" not in printed
    assert f"RELOOP_HOME={home.root} reloop releases" in printed
    assert "bin/activate" in printed
    monkeypatch.delenv("RELOOP_HOME")
    further(Home(REPOSITORY / "var"), [])
    assert "RELOOP_HOME" not in capsys.readouterr().out


LONG = """
import sys, duckdb
from pipelines.cli import entry
def long():
    print("begun", flush=True)
    duckdb.connect(config={"threads": 1}).execute("SELECT count(*) FROM range(1000000000000) AS many(n) WHERE hash(n) = 1").fetchall()
entry.app.command()(long)
sys.argv = ["reloop", "long"]
entry.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_is_told_to_stop_in_a_query_says_so_and_calls_it_no_defect(home: Home, number: signal.Signals):
    """DuckDB looks for signals while it works, and answers one with an error of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert f"interrupted by {number.name}" in said
    assert "defect" not in said
    assert "Traceback" not in said
