"""A person in the loop, through the real scheduler: asked on Airflow's own page, answered over its API, and nobody answering."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trained_shop
from stack import Stack, reports, running

from pipelines import cycle, publish
from pipelines.config import REPOSITORY, Home
from pipelines.registry import ledger, releases, review
from pipelines.registry.markdown import plain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
MINUTE = 60


def settings(stack: Stack, hours: float) -> None:
    publish.write_text(stack.home.root / "reloop.toml", f'{trained_shop.SETTINGS}\n[release]\nmode = "review"\nreview_hours = {hours}\n')


@pytest.fixture(scope="module")
def asked(trained: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a running Airflow over a shop that was trained twice, where nothing is released without a person."""
    with running(trained_shop.copied(trained, tmp_path_factory.mktemp("review") / "var"), {}) as stack:
        yield stack


def until(stack: Stack, holds: Callable[[], Any], seconds: float = 20 * MINUTE) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        stack.fail_on_failure()
        assert time.monotonic() < deadline
        time.sleep(1)
    return found


def promote(stack: Stack, **conf: Any) -> str:
    """Trigger reloop_promote and return the run's path in the API."""
    return f"/dags/reloop_promote/dagRuns/{stack.trigger('reloop_promote', {'as_of': trained_shop.FIRST.isoformat(), **conf})}"


def question(stack: Stack, run: str) -> dict[str, Any]:
    """Wait until the run waits for a person, and return what it asks."""
    until(stack, lambda: stack.api().call("GET", f"{run}/taskInstances/review")["state"] == "awaiting_input")
    return stack.api().call("GET", f"{run}/taskInstances/review/-1/hitlDetails")


def ended(stack: Stack, run: str) -> str:
    return until(stack, lambda: (state := stack.api().call("GET", run)["state"]) in {"success", "failed"} and state)


def test_where_nobody_answers_in_time_the_champion_stays(asked: Stack) -> None:
    settings(asked, 0.0003)  # a second
    run = promote(asked, again=True)
    assert ended(asked, run) == "success"
    last = releases.history(asked.home)[-1]
    assert (last["kind"], last["author"]) == ("unanswered", "nobody")
    assert releases.pointer(asked.home).version is None
    assert outcomes(asked)[-1] == "unanswered"


def test_a_person_is_shown_the_evidence_and_the_answer_is_recorded_by_name(asked: Stack, page: Any) -> None:
    settings(asked, 4.0)
    run = promote(asked, again=True)
    shown = question(asked, run)
    assert shown["subject"] == "Shall version 1 (as of 2025-02-10) replace popularity?"
    assert shown["options"] == ["Promote", "Keep"]
    entry = ledger.history(asked.home)[-1]
    assert entry["kind"] == "waiting for review"
    assert len(entry["reasons"]) > 1
    assert all(plain(reason) in shown["body"] for reason in entry["reasons"])
    _look(asked, page, run)
    answer = {"chosen_options": ["Promote"], "params_input": {"why": "the intervals convince"}}
    asked.api().call("PATCH", f"{run}/taskInstances/review/-1/hitlDetails", answer)
    assert ended(asked, run) == "success"
    last = releases.history(asked.home)[-1]
    assert (last["kind"], last["author"], last["words"]) == ("promoted", "admin", ["the intervals convince"])
    assert releases.pointer(asked.home).version == 1
    assert outcomes(asked)[-1] == "promoted"


def outcomes(stack: Stack) -> list[str]:
    """Return what the decisions that were announced came to, oldest first."""
    return [event["extra"]["outcome"] for event in stack.asset_events() if event["name"] == "champion_decision"]


def _look(stack: Stack, page: Any, run: str) -> None:
    """Log in as a person and look at the page that asks."""
    password = json.loads((stack.home.airflow / "passwords.json").read_text())["admin"]
    page.goto(stack.url)
    page.fill('input[name="username"]', "admin")
    page.fill('input[name="password"]', password)
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "login" not in url)
    page.goto(f"{stack.url}{run.replace('dagRuns', 'runs')}/tasks/review/required_actions")
    page.get_by_text("What was measured").first.wait_for()
    page.screenshot(path=reports("airflow-review.png"), full_page=True)


def test_the_rollback_dag_goes_back_in_the_name_of_who_filled_in_its_form(asked: Stack) -> None:
    home = asked.home
    for version, as_of in ((1, trained_shop.FIRST), (2, trained_shop.SECOND)):
        now = releases.pointer(home)
        if now.version != version:
            digest = str(cycle.records(home, as_of, "bundle")[0]["digest"])
            body = {"as_of": as_of.isoformat(), "champion_before": now.version, "champion_after": version, "reasons": []}
            releases.flip(home, now, version=version, digest=digest, as_of=body["as_of"], key=None, body=body)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        asked.trigger("reloop_rollback", {})  # a reason is required
    run = f"/dags/reloop_rollback/dagRuns/{asked.trigger('reloop_rollback', {'reason': 'clicks fell'})}"
    assert ended(asked, run) == "success"
    last = releases.history(home)[-1]
    assert (last["kind"], last["champion_after"], last["author"], last["reasons"]) == ("rolled back", 1, "admin", ["clicks fell"])
    assert releases.pointer(home).version == 1


def test_a_headless_run_asks_nobody_and_leaves_the_review_open(trained: Home, tmp_path: Path) -> None:
    """`reloop run` has no scheduler and nobody to ask: without this it would wait for ever."""
    sys.path.append(str(REPOSITORY / "dags"))
    from reloop_environment import environment

    home = trained_shop.copied(trained, tmp_path / "var")
    publish.write_text(home.root / "reloop.toml", f'{trained_shop.SETTINGS}\n[release]\nmode = "review"\n')
    airflow = [str(Path(sys.executable).parent / "airflow")]
    around = environment(home) | {"RELOOP_RETRIES": "0", "RELOOP_HEADLESS": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*airflow, "db", "migrate"], env=around, capture_output=True, check=True)
    conf = json.dumps({"as_of": trained_shop.FIRST.isoformat()})
    done = subprocess.run(
        [*airflow, "dags", "test", "reloop_promote", "--conf", conf], env=around, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nobody is asked in a headless run: `reloop review approve 1`" in done.stdout + done.stderr
    assert [entry["challenger"] for entry in review.waiting(home)] == [1]
    assert releases.pointer(home).version is None
