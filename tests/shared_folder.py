"""A folder that all processes of one test run share: made by whoever asks first, waited for by the others, gone with the run."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def root(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder of the run: what pytest-xdist gives a worker is one below it."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder: Path, make: Callable[[Path], object], proof: str = "ready") -> Path:
    """Return the folder, made once however many processes ask for it; what a killed process left half made is made again.

    Args:
        make: fills a folder that is not there yet.
        proof: the file in it that says it is whole, written last; made here if `make` does not.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / proof).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            (folder / proof).touch()
    return folder
