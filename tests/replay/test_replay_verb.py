"""`reloop replay` from an empty folder: a small shop lived through by the real stages, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli.entry import app
from pipelines.config import Home
from pipelines.registry import ledger
from pipelines.replay import live, page

SETTINGS = """
[retrieval]
sources = ["popular", "popular_7d", "item_knn", "sequence_rules", "repeat"]
[ranking]
n_rounds = 10
[gate]
min_users = 50
min_slice_users = 10
[drift]
min_rows = 60
output_users = 50
"""
SPAN = ["--from", "2025-01-06", "--warmup-days", "35", "--users", "500", "--items", "120", "--events-per-day", "800"]


def replayed(home: Home, *more: str) -> Result:
    """Run the verb on a small shop."""
    return CliRunner().invoke(app, ["replay", "--home", str(home.root), *SPAN, *more])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_shop_is_lived_through_and_a_longer_replay_adds_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = Home(tmp_path / "var")
    home.root.mkdir()
    (home.root / "reloop.toml").write_text(SETTINGS, encoding="utf-8")
    monkeypatch.setenv("RELOOP_HOME", str(home.root))
    first = replayed(home, "--to", "2025-02-17", "--json")
    assert first.exit_code == 0, first.output
    before = live.cycles(home)
    assert [f"{moment:%m-%d}" for moment in before] == ["02-10", "02-17"]
    found = json.loads(page.json_file(home).read_text())
    assert {one["policy"] for one in found["policies"]} >= {"never", "every cycle", "gate", "oracle", "drift", "improved"}
    assert all(len(one["weeks"]) == 1 and 0 < one["ndcg_at_10"]["value"] < 1 for one in found["policies"])
    assert len(found["ledger"]) == 2
    assert page.json_file(home).with_suffix(".svg").is_file()
    written = {file: file.stat().st_mtime_ns for file in home.bundles.rglob("manifest.json")}

    again = replayed(home, "--to", "2025-02-24")
    assert again.exit_code == 0, again.output
    assert "The ledger" in again.output
    assert "oracle" in again.output
    assert {moment: digest for moment, digest in live.cycles(home).items() if moment in before} == before
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert len(ledger.history(home)) == 3
    assert ledger.verify(home) == 3


def test_a_policy_that_nobody_knows_is_refused_before_anything_is_read(tmp_path: Path):
    refused = replayed(Home(tmp_path), "--policies", "luck")
    assert "luck" in str(refused.exception)
    assert "every cycle" in str(refused.exception)
    assert not list(tmp_path.iterdir())
