"""The shop window in a real browser: lists, what a click changes, and why an item is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_service import Running, running

from pipelines.config import Home
from pipelines.serving import page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"


@pytest.fixture
def service(open_house: tuple[Home, Any]) -> Iterator[Running]:
    home, made = open_house
    with running(made, home) as found:
        yield found


@pytest.fixture
def browser() -> Iterator[Any]:
    if not CHROMIUM.is_file():
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        yield opened
        opened.close()


def items(window: Any, place: str) -> list[str]:
    return [card.get_attribute("data-item") for card in window.query_selector_all(f"{place} .card")]


def test_a_click_changes_the_lists_and_every_item_says_why(service: Running, browser: Any) -> None:
    window = browser.new_page(viewport={"width": 1400, "height": 1000})
    window.set_default_timeout(30_000)
    said: list[str] = []
    window.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
    window.on("pageerror", lambda error: said.append(str(error)))
    window.goto(f"{service.address}/#u00000005")
    window.wait_for_selector('body[data-ready="1"]')
    before = items(window, "#home")
    assert len(before) == 12
    assert len(items(window, "#because")) > 0
    assert len(items(window, "#trending")) > 0
    assert "version 1" in window.inner_text("#state")
    assert "rung" in window.inner_text("#state")

    window.click("#home .card .open >> nth=3")
    window.wait_for_selector('body[data-ready="2"]')
    window.wait_for_selector("#similar .row")
    window.wait_for_selector("#together .row, #together .none")
    assert "Your list knows of it after" in window.inner_text("#said")
    assert items(window, "#home") != before

    window.click("#home .card .cart >> nth=0")
    window.wait_for_selector("#basket .row")
    assert "added to basket" in window.inner_text("#visit")

    window.click('.like button[data-change="cheaper"]')
    window.wait_for_selector('#similar-title:has-text("cheaper")')

    window.click('#home .card [aria-label^="Why"] >> nth=0')
    window.wait_for_selector("#why[open]")
    told = window.inner_text("#why")
    assert all(word in told for word in ("proposed by", "bundle", "Where the time went", "What the ranker read"))
    window.keyboard.press("Escape")
    assert window.query_selector("#why[open]") is None
    assert said == []


def test_it_works_with_the_keyboard_and_at_the_width_of_a_phone(service: Running, browser: Any) -> None:
    window = browser.new_page(viewport={"width": 360, "height": 740})
    window.set_default_timeout(30_000)
    window.goto(f"{service.address}/#somebody-nobody-knows")
    window.wait_for_selector('body[data-ready="1"]')
    assert len(items(window, "#home")) == 12
    assert window.evaluate("document.documentElement.scrollWidth") <= 360
    window.focus("#home .card .open")
    window.keyboard.press("Enter")
    window.wait_for_selector("#item:not([hidden]) .looking .price")
    assert window.evaluate("document.activeElement.id") == "item-title"
    unnamed = "[...document.querySelectorAll('button,input')].filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim())).length"
    assert window.evaluate(unnamed) == 0


def test_the_page_holds_nothing_of_other_hosts() -> None:
    files = sorted(page.FOLDER.iterdir())
    assert [file.name for file in files] == ["index.html", "shop.css", "shop.js"]
    for file in files:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// Placeholder", "") or "http" not in text, file.name
        assert " style=" not in text
        assert "innerHTML" not in text
