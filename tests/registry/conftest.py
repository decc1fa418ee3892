"""A shop that was trained twice, shared by the tests of releases."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipelines.config import Home
from pipelines.registry import signing


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return the shop with two bundles; not to be changed."""
    import trained_shop

    base = tmp_path_factory.getbasetemp()
    return trained_shop.twice((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained")


@pytest.fixture
def fresh(trained: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a copy of the shop with two bundles, nothing released."""
    import trained_shop

    home = trained_shop.copied(trained, tmp_path / "var")
    monkeypatch.setenv("RELOOP_HOME", str(home.root))
    return home


@pytest.fixture
def shop(trained: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a state folder with the bundles, the key and the settings of the trained shop, and nothing else."""
    home = Home(tmp_path / "var")
    shutil.copytree(trained.bundles, home.bundles)
    shutil.copy(trained.root / signing.KEY_FILE, home.root)
    shutil.copy(trained.root / "reloop.toml", home.root)
    monkeypatch.setenv("RELOOP_HOME", str(home.root))
    return home
