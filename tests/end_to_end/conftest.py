"""A real Airflow with everything on, on free ports, and a small shop that has been through the loop once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stack import FIRST, MINUTES, Stack, running

from pipelines.config import Home


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(Home(tmp_path_factory.mktemp("stack") / "var"), {}) as started:
        yield started


@pytest.fixture(scope="session")
def decided(stack: Stack) -> Stack:
    """Return the stack after one REST trigger of reloop_ingest has run through to the gate's decision."""
    stack.trigger("reloop_ingest", FIRST)
    stack.wait("reloop_promote", 1, seconds=20 * MINUTES)
    return stack
