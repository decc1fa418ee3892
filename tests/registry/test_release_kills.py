"""Promise 8: killed anywhere between a finished training and a release, a rerun ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ended, process
from trained_shop import FIRST

from pipelines.config import Home
from pipelines.registry import bundle, bundle_folder, tracking

LAB = Path(__file__).parents[1] / "release_lab.py"
CELLS = 80  # at least: the boundaries of a release, evenly spread where there are more


def matrix(trained: Home, root: Path, *wanted: str) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", str(LAB), str(trained.root), str(root), *wanted],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(LAB.parent)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def _built(root: Path, module: str, step: str) -> None:
    """Build a bundle, ended by SIGKILL on the way into a function."""
    import importlib

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(importlib.import_module(module), step, kill)
    bundle.build(Home(root), FIRST)


def test_a_bundle_that_was_logged_and_not_registered_becomes_one_version_and_not_two(fresh: Home) -> None:
    """The worst place to die: MLflow has the artifacts, and nothing says whose they are."""
    books = tracking.client(fresh)
    first = books.get_model_version(tracking.MODEL, "1")
    digest = first.tags["digest"]
    books.delete_model_version(tracking.MODEL, "1")
    books.delete_logged_model(first.source.removeprefix("models:/"))
    codes = ended([process(_built, fresh.root, "pipelines.registry.registering", "tags")])
    assert codes == [-signal.SIGKILL]
    assert {str(one.version) for one in books.search_model_versions(f"name = '{tracking.MODEL}'")} == {"2"}
    assert bundle.build(fresh, FIRST) == 3
    models = books.search_logged_models([tracking.experiment(fresh, "reloop/release")], filter_string=f"tags.digest = '{digest}'")
    assert len(models) == 1
    assert books.get_model_version(tracking.MODEL, "3").source == f"models:/{models[0].model_id}"
    assert str(books.get_model_version_by_alias(tracking.MODEL, "challenger").version) == "3"
    bundle_folder.checked(fresh, digest)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_at_any_boundary_of_a_release_a_rerun_ends_as_an_undisturbed_run(trained: Home, tmp_path: Path) -> None:
    """No half release, no alias to a missing artefact, no second version, no manual step, in every cell."""
    found = matrix(trained, tmp_path, "spread", str(CELLS))
    assert len(found["cells"]) >= 60
    sound = {"killed": -signal.SIGKILL, "looked": [0, ""], "again": [0, ""], "same": True}
    assert not [cell for cell in found["cells"] if {name: cell[name] for name in sound} != sound]
    steps = " ".join(found["names"])
    for step in ("rename", "before commit", "after commit"):
        assert step in steps, step
