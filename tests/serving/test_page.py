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
    assert "rung full" in window.inner_text("#state")
    assert "variant none" in window.inner_text("#state")
    cut = "[...document.querySelectorAll('.card, .row')].filter((one) => one.scrollWidth > one.clientWidth).length"
    assert window.evaluate(cut) == 0, "nothing is cut off"

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


def test_another_shopper_is_picked_and_sees_other_lists(service: Running, browser: Any) -> None:
    window = browser.new_page(viewport={"width": 1400, "height": 1000})
    window.set_default_timeout(30_000)
    window.goto(service.address)
    window.wait_for_selector("#some button")
    window.fill("#user", "u00000003")
    window.click("#who button")
    window.wait_for_selector("#home .card")
    assert window.evaluate("location.hash") == "#u00000003"
    theirs = items(window, "#home")
    window.click('#some button:has-text("u00000001")')
    for _ in range(600):  # the page allows no eval, so nothing waits inside it
        if window.evaluate("location.hash") == "#u00000001" and items(window, "#home") not in ([], theirs):
            break
        window.wait_for_timeout(50)
    assert window.evaluate("location.hash") == "#u00000001"
    assert items(window, "#home") != theirs
    assert len(items(window, "#home")) == 12


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


@pytest.mark.parametrize(("propensity", "told"), [(None, "not known"), (0.0, "0.0 %"), (0.25, "25.0 %")])
def test_a_chance_that_nobody_knows_is_not_told_as_none(browser: Any, propensity: float | None, told: str) -> None:
    window = browser.new_page()
    place = {"item_id": "i", "propensity": propensity, "features": {}}
    explained = {"found": True, "items": [place], "answer": {"stage_ms": {"rank": 1.0}}}

    def answered(route: Any) -> None:
        path = route.request.url.removeprefix("http://shop.test/")
        if path in {"", "shop.css", "shop.js"}:
            route.fulfill(path=page.FOLDER / (path or "index.html"))
        elif path.endswith("/explanation"):
            route.fulfill(json=explained)
        else:
            route.fulfill(status=503, json={})

    window.route("**/*", answered)
    window.goto("http://shop.test/")
    item = {"item_id": "i", "rank": 1, "score": None, "reason": {"kind": "popular", "text": "Popular"}, "sources": [], "rules": []}
    answer = {"request_id": "r", "rung": "full", "model": {"version": 1, "bundle": "b"}, "variant": "", "degraded": [], "stage_ms": {}}
    window.evaluate("([item, answer]) => why(item, answer)", [item, answer])
    window.wait_for_selector("#why[open]", timeout=30_000)
    assert f"chance of standing here\n{told}" in window.inner_text("#why dl")


def test_the_page_holds_nothing_of_other_hosts() -> None:
    files = sorted(page.FOLDER.iterdir())
    assert [file.name for file in files] == ["index.html", "shop.css", "shop.js"]
    for file in files:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// Placeholder", "") or "http" not in text, file.name
        assert " style=" not in text
        assert "innerHTML" not in text
