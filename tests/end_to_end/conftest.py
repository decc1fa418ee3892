"""A real Airflow with everything on, on free ports, and a small shop that has been through the loop once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stack import FIRST, MINUTES, Stack, running

from pipelines.config import Home

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"


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


@pytest.fixture
def page() -> Iterator[Any]:
    """Yield a page of a headless Chromium."""
    if not CHROMIUM.is_file():
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()
