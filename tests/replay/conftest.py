"""A shop that was trained twice, shared by the tests of replays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trained_shop

from pipelines.config import Home


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return the shop with two bundles; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    return trained_shop.twice((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained")


@pytest.fixture
def fresh(trained: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a copy of the shop with two bundles, nothing released."""
    home = trained_shop.copied(trained, tmp_path / "var")
    monkeypatch.setenv("RELOOP_HOME", str(home.root))
    return home
