"""A person in front of the browser: log in, open the ingest Dag, fill in its form, trigger it, see it run."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from stack import WORLD, Stack, reports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_a_person_triggers_the_ingest_from_its_form(decided: Stack, page: Any):
    stack = decided
    before = {run["dag_run_id"] for run in stack.runs("reloop_ingest")}
    password = json.loads((stack.home.airflow / "passwords.json").read_text())["admin"]
    page.goto(stack.url)
    page.fill('input[name="username"]', "admin")
    page.fill('input[name="password"]', password)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(re.escape(stack.url) + r"/?$"))

    page.goto(f"{stack.url}/dags/reloop_ingest")
    page.get_by_role("button", name="Trigger").first.click()
    page.locator('[name="element_from"]').fill("2025-02-27")
    page.locator('[name="element_to"]').fill("2025-02-28")
    for name in ("users", "items", "events_per_day"):
        page.locator(f'[name="element_{name}"]').fill(str(WORLD[name]))
    page.screenshot(path=reports("airflow-form.png"))
    page.get_by_role("dialog").get_by_role("button", name="Trigger").click()
    page.get_by_role("dialog").wait_for(state="hidden")

    new = [run for run in stack.runs("reloop_ingest") if run["dag_run_id"] not in before]
    assert [run["triggering_user_name"] for run in new] == ["admin"]
    assert new[0]["conf"]["users"] == WORLD["users"]
    assert new[0]["conf"]["to"] == "2025-02-28"
    page.goto(f"{stack.url}/dags/reloop_ingest/runs/{new[0]['dag_run_id']}")
    page.get_by_text("validate", exact=False).first.wait_for()
    stack.wait("reloop_ingest", len(before) + 1, seconds=300)
    page.reload()
    page.get_by_text("Success").first.wait_for()
    page.screenshot(path=reports("airflow-run.png"))
