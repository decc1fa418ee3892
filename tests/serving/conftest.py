"""A house that is open, and releases to swap, shared by the tests of the service."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shared_folder

from pipelines.config import Home


@pytest.fixture(scope="session")
def open_house(served: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Any]]:
    """Yield a state folder and one process of its service, in this process; who changes something puts it back."""
    import served_shop

    from pipelines.serving import assembly, clock

    home = served_shop.copied(served, tmp_path_factory.mktemp("open") / "var")
    # A busy machine may take its time: what is late is tried elsewhere.
    patient = "request_ms = 20000\nstore_ms = 5000\nretrieve_by_ms = 10000\nrank_by_ms = 15000\n[serving.limits]\nmax_wait_ms = 20000\nmax_late_ms = 20000\n"
    with (home.root / "reloop.toml").open("a") as settings:
        settings.write(f"\n[serving.deadline]\n{patient}")
    with served_shop.environment(home), assembly.house(home, clock.starting(home, "data")) as made:
        yield home, made


@pytest.fixture(scope="session")
def stable(trained: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return bundles of versions 1 to 4, marked in every part (`swap_lab`); not to be changed."""
    import swap_lab

    def mark(folder: Path) -> None:
        home = swap_lab.emptied(trained, folder)
        first, second = swap_lab.versions(home)
        found = [swap_lab.marked(home, first if version % 2 else second, version) for version in range(1, 5)]
        (folder / "digests").write_text("\n".join(found))

    return Home(shared_folder.once(shared_folder.root(tmp_path_factory) / "stable", mark, "digests"))


@pytest.fixture
def shop(stable: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a state folder with four bundles to swap (`swap_lab.digests`), nothing released."""
    home = Home(tmp_path / "var")
    shutil.copytree(stable.root, home.root)
    monkeypatch.setenv("RELOOP_HOME", str(home.root))
    return home
