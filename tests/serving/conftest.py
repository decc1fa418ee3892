"""A shop that was trained twice, shared by the tests of the service."""

from __future__ import annotations

import pytest

from pipelines.config import Home


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, worker_id: str = "") -> Home:
    """Return the shop with two bundles; not to be changed."""
    import trained_shop

    base = tmp_path_factory.getbasetemp()
    return trained_shop.twice((base.parent if worker_id else base) / "trained")
