"""`reloop bench retrieval`: from a state folder or a source to the files of a board."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pipelines import lake
from pipelines.cli import app
from pipelines.errors import ReloopError
from pipelines.retrieval.leaderboard import data_sets, session
from pipelines.retrieval.leaderboard.data_sets import DataSet
from pipelines.sources.request import Source, World
from pipelines.window import utc
from tests.retrieval.leaderboard.test_leaderboard import AS_OF, clubs


def test_the_lake_of_the_state_folder_is_ranked_and_written(home, tmp_path):
    lake.land_tables(home, events=clubs())
    file = tmp_path / "board.json"
    asked = ["bench", "retrieval", "--dataset", "lake", "--source", "repeat", "--source", "popular", "--line-up", "--json", str(file)]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0
    assert "lake: 24 users with 72 positives" in done.output
    assert done.output.index("repeat  ") < done.output.index("popular  ")
    figures = json.loads(file.read_text())
    assert figures["as_of"] == AS_OF.isoformat()
    assert [line["source"] for line in figures["lines"]] == ["repeat", "popular"]
    assert figures["line_ups"]["ndcg_at_10"][-1]["sources"] == ["repeat"]
    assert {file.name for file in (home.reports / "bench").iterdir()} == {f"retrieval-lake.{ending}" for ending in ("json", "csv", "svg")}


def test_an_unknown_data_set_is_refused_by_name(home):
    with pytest.raises(ReloopError, match="movielens-100k"):
        CliRunner().invoke(app, ["bench", "retrieval", "--dataset", "netflix", "--source", "popular"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["movielens-100k", "--as-of", "2025-01-01"], "--as-of for data set movielens-100k"),
        (["simulated", "--as-of", "2025-01-01"], "--as-of for data set simulated"),
        (["simulated", "--path", "shop.csv"], "--path for data set simulated"),
        (["lake", "--path", "shop.csv"], "--path for data set lake"),
    ],
)
def test_what_would_be_ignored_is_refused(home, asked, complaint):
    with pytest.raises(ReloopError, match=complaint):
        CliRunner().invoke(app, ["bench", "retrieval", "--source", "popular", "--dataset", *asked], catch_exceptions=False)


def test_a_board_has_a_scratch_folder_of_its_own_and_sweeps_those_of_the_dead(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], check=True, capture_output=True, text=True)
    for pid in (dead.stdout.strip(), "1"):
        (tmp_path / f"bench-lake.{pid}").mkdir()
    with session._scratch(tmp_path, "bench-lake") as mine:
        mine.mkdir()
        assert {folder.name for folder in tmp_path.iterdir()} == {"bench-lake.1", mine.name}
    assert {folder.name for folder in tmp_path.iterdir()} == {"bench-lake.1"}


@pytest.mark.slow
def test_a_data_set_comes_in_through_validation_once(home, monkeypatch):
    """Duplicates are counted once and refused rows stay out, as in the loop; a second board reads nothing again."""
    world = World(seed=3, users=200, items=60, events_per_day=300, faults=("duplicates@2025-01-20", "future_clock@2025-01-27"))
    monkeypatch.setitem(data_sets.DATA_SETS, "small", DataSet(Source.SIMULATED, horizon_days=7, world=world, days=35))
    told = []
    state, end = data_sets.prepare(home.root / "bench", "small", None, told.append)
    rows = data_sets.ingested(state)
    assert (end, len(told)) == (utc("2025-02-10"), 2)
    assert rows["duplicates"] > 0
    assert rows["quarantined"] > 0
    assert data_sets.prepare(home.root / "bench", "small", None, told.append) == (state, end)
    assert len(told) == 2
