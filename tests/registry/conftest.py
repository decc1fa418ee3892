"""The bundles of the shop that was trained twice, to release."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.config import Home
from pipelines.registry import signing


@pytest.fixture
def shop(trained: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a state folder with the bundles, the key and the settings of the trained shop, and nothing else."""
    home = Home(tmp_path / "var")
    shutil.copytree(trained.bundles, home.bundles)
    shutil.copy(trained.root / signing.KEY_FILE, home.root)
    shutil.copy(trained.root / "reloop.toml", home.root)
    monkeypatch.setenv("RELOOP_HOME", str(home.root))
    return home
