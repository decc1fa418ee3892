"""The shop of `ranking_world`, built once for all tests of ranking."""

from __future__ import annotations

import pytest
from ranking_world import fill

from pipelines.config import Home


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Home:
    """Return the shop; tests read it, and write no stage below the training set."""
    home = Home(tmp_path_factory.mktemp("shop"))
    fill(home)
    return home
