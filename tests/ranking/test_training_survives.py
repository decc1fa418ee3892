"""Training survives: a kill inside any of its stages shows a reader nothing torn, and a rerun ends in the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WHOLE = [
    "attribution",
    "candidates",
    "evaluation",
    "ranker",
    "retrieval/item_knn",
    "retrieval/popular",
    "retrieval/popular_7d",
    "training_set",
    "universe",
]


def check_kills(root: Path, state: str, kills: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1]))), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, str(HERE / "training_crash_lab.py"), str(root), state, str(kills)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["folders"] == WHOLE
    assert len(found["outcomes"]) == 7 * kills
    for outcome in found["outcomes"]:
        assert outcome["ended"] == -9, outcome
        assert (outcome["torn"], outcome["lost"]) == ([], []), outcome
        assert (outcome["again"], outcome["same"], outcome["litter"]) == ([0, ""], True, []), outcome


def test_each_training_stage_killed_in_its_middle_ends_in_the_same_bytes(tmp_path):
    check_kills(tmp_path, "missing", 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("state", ["missing", "there"])
def test_each_training_stage_killed_at_its_first_last_and_random_calls_ends_in_the_same_bytes(tmp_path, state):
    """Also where it was run before: its old result is the new one, whole."""
    check_kills(tmp_path, state, 4)
