"""Training rows are held in memory, mapped, or refused before the machine is out of both."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.errors import StateError
from pipelines.ranking import room


def test_what_exceeds_memory_is_refused_with_what_to_lower(tmp_path):
    with pytest.raises(StateError, match=r"training rows of 1000000 features.*max_users_per_window"):
        room.matrix(10**9, 10**6, 1.0, tmp_path)


def test_what_exceeds_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StateError, match="of disk left"):
        room.matrix(1000, 10, 1e-9, tmp_path)


def test_a_mapped_matrix_leaves_no_file_behind(tmp_path):
    found = room.matrix(1000, 10, 1e-9, tmp_path / "tmp")
    found[:] = 3
    assert isinstance(found, np.memmap)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert found.sum() == 30_000
