"""Room for a matrix of training rows: in memory, or in a mapped file, or refused before the machine is out of both."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from pipelines.datasets.interactions import Floats
from pipelines.errors import StateError

GB: Final = 1 << 30
BYTES_LEARNT: Final = 2  # a value while a ranker learns: its bin, and what is sorted beside it
HINT: Final = "lower training.max_users_per_window, ranking.negatives_per_user, or leave groups out of ranking.features"


def matrix(n_rows: int, n_columns: int, in_memory_gb: float, folder: Path) -> Floats:
    """Return float32 [n_rows, n_columns], not initialised; a mapped file without a name where it exceeds `in_memory_gb`.

    Args:
        folder: where the file lies; it is gone when the matrix is.

    Raises:
        StateError: memory cannot hold what a ranker learns from, or the disk not the file.
    """
    size = 4 * n_rows * n_columns
    mapped = size > in_memory_gb * GB
    what = f"{n_rows:,} training rows of {n_columns} features"
    needed = n_rows * n_columns * BYTES_LEARNT + (0 if mapped else size)
    if needed > available():
        raise StateError(what, found=f"{available() / GB:.1f} GB of memory left", allowed=f"{needed / GB:.1f} GB", hint=HINT)
    if not mapped:
        return np.empty((n_rows, n_columns), np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    if size > shutil.disk_usage(folder).free:
        raise StateError(what, found=f"{shutil.disk_usage(folder).free / GB:.1f} GB of disk left", allowed=f"{size / GB:.1f} GB", hint=HINT)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float32, "w+", shape=(n_rows, n_columns))


def available() -> int:
    """Return the bytes of memory that this machine can still give."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
