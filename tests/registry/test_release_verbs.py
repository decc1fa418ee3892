"""`reloop releases`, `rollback` and `review` on the command line: what they show, what they return, how they leave."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pointer_lab import ask, release
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import ledger, rollback


@pytest.fixture
def said(home: Home, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a call of the command line on a state folder of three releases and a rollback; MLflow is down."""
    monkeypatch.setenv("RELOOP_MLFLOW_URI", "http://127.0.0.1:9")
    for version in (1, 2, 3):
        release(home, version)
    rollback.roll_back(home, reason="clicks fell", author="reviewer-1")

    def call(*arguments: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, [*arguments, "--home", str(home.root)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    return call


def test_the_ledger_is_filtered_and_limited(said: Any) -> None:
    assert [entry["seq"] for entry in said("releases", "--json")] == [1, 2, 3, 4]
    assert [entry["seq"] for entry in said("releases", "--kind", "rolled back", "--kind", "kept", "--json")] == [4]
    assert [entry["seq"] for entry in said("releases", "--version", "1", "--limit", "1", "--json")] == [2]
    assert [entry["seq"] for entry in said("releases", "--as-of", "2025-03-03", "--json")] == [3]
    assert said("releases", "--since", "2999-01-01", "--json") == []
    table = said("releases")
    assert "rolled back" in table
    assert "by reviewer-1" in table
    with pytest.raises(StateError, match="--kind: promotion; expected promoted, kept"):
        said("releases", "--kind", "promotion")
    with pytest.raises(StateError, match="--since: 'yesterday'; expected an ISO 8601"):
        said("releases", "--since", "yesterday")


def test_one_version_is_shown_in_full(said: Any) -> None:
    assert [entry["kind"] for entry in said("releases", "show", "3", "--json")] == ["promoted", "rolled back"]
    assert "reason 3" in said("releases", "show", "3")
    with pytest.raises(StateError, match=r"version 9: not in the ledger; expected one of the versions \[1, 2, 3\]"):
        said("releases", "show", "9")


def test_the_ledger_is_verified_also_while_mlflow_is_down(said: Any, home: Home) -> None:
    found = said("releases", "--verify", "--json")
    assert found["entries"] == 4
    assert found["anchor"].startswith("entry 4")
    assert found["MLflow"] == "not asked: ConnectionError"
    ledger.anchor_file(home).write_text(json.dumps({"seq": 9, "hash": "0" * 64}))
    with pytest.raises(StateError, match="known to have been written"):
        said("releases", "--verify")
    assert said("releases", "recover", "--reason", "only this backup was left", "--author", "reviewer-1", "--json")["anchored_seq"] == 9
    assert said("releases", "--verify", "--json")["entries"] == 5


def test_reviews_are_listed_and_answered_by_whoever_runs_the_command(said: Any, home: Home) -> None:
    assert said("review", "--json") == []
    ask(home, 4)
    assert [entry["challenger"] for entry in said("review", "--json")] == [4]
    assert "reloop review approve 4" in said("review")
    assert "version 4, as of 2025-03-04: `reloop review`" in said("status", "--json")["waiting for review"]
    with pytest.raises(StateError, match="review of version 9: nothing that waits for an answer; expected one of the versions 4"):
        said("review", "reject", "9", "--reason", "no")


def test_rollback_says_what_serves(said: Any) -> None:
    assert said("rollback", "--to", "3", "--author", "reviewer-1", "--json")["champion_after"] == 3
