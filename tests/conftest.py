"""Fixtures every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config import REPOSITORY, Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return an empty state folder, also the one that RELOOP_HOME names."""
    monkeypatch.setenv("RELOOP_HOME", str(tmp_path / "var"))
    return Home.from_environment()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data sets, or skip: they are not redistributed with the project."""
    import os

    folder = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RELOOP_REAL_DATA to a folder that holds it")
    return folder
