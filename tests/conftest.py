"""Fixtures every test may use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import shared_folder

from pipelines.config import REPOSITORY, Home


def pytest_configure(config: pytest.Config) -> None:
    """Compile networks without optimising them: in fast tests they run for moments, and compiling is most of what they cost."""
    if config.getoption("markexpr") != "slow":
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return an empty state folder, also the one that RELOOP_HOME names."""
    monkeypatch.setenv("RELOOP_HOME", str(tmp_path / "var"))
    return Home.from_environment()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return a shop that was trained twice, two bundles and nothing released (`trained_shop`); not to be changed."""
    import trained_shop

    return trained_shop.twice(shared_folder.root(tmp_path_factory) / "trained")


@pytest.fixture(scope="session")
def served(trained: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return it with a release that serves, features in SQLite, snapshots published; not to be changed (`served_shop.copied`)."""
    import served_shop

    return served_shop.released(trained, shared_folder.root(tmp_path_factory) / "served")


@pytest.fixture
def fresh(trained: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a copy of the shop that was trained twice, to change."""
    import trained_shop

    home = trained_shop.copied(trained, tmp_path / "var")
    monkeypatch.setenv("RELOOP_HOME", str(home.root))
    return home


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data sets, or skip: they are not redistributed with the project."""
    import os

    folder = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RELOOP_REAL_DATA to a folder that holds it")
    return folder


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """Return HOST:PORT of a Redis of our own, on a free loopback port, that keeps nothing."""
    if (binary := shutil.which("redis-server")) is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
        server.kill()
