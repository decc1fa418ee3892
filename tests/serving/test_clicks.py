"""Clicks of a canary: counted on their user's side, once a request, added up over processes, a step at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scripted

from pipelines.config import Home
from pipelines.registry.releases import Pointer
from pipelines.registry.rollouts import Rollout
from pipelines.serving import clicks
from pipelines.serving.clicks import Clicks
from pipelines.serving.holder import gets_challenger
from pipelines.serving.request import EMPTY, FULL, Answer

STEP = Rollout("decide/7", 0, "canary", 0.5, 7, "e" * 64, None, Pointer(3, "d" * 64, None, None, None, 1), scripted.NOW, "the gate")
USERS = [f"u{number}" for number in range(100)]
CANARY = sum(gets_challenger(STEP, user) for user in USERS)


def answer(user: str | None, *, empty: bool = False) -> Answer:
    asked = scripted.ask(request_id=f"r-{user}", user_id=user)
    return Answer(asked, () if empty else scripted.shown("a"), EMPTY if empty else FULL, scripted.RELEASE)


def event(user: str | None, request: str | None = "", kind: str = "view") -> dict[str, object]:
    return {"user_id": user, "item_id": "a", "event_type": kind, "request_id": f"r-{user}" if request == "" else request}


def totals(home: Home, rollout: Rollout = STEP) -> list[list[int]]:
    return [side.sum(axis=0).tolist() for side in clicks.of(home, rollout)]


def test_answers_and_clicks_of_all_processes_fall_on_their_user_s_side(home: Home):
    processes = [Clicks(home, lambda: STEP), Clicks(home, lambda: STEP)]
    for number, user in enumerate(USERS):
        processes[number % 2](answer(user, empty=number % 3 == 0))
        processes[(number + 1) % 2].acted([event(user)])
    assert 30 < CANARY < 70
    assert totals(home) == [[CANARY, CANARY], [100 - CANARY, 100 - CANARY]], "an answer without items is one that nobody clicks"
    assert all((side[:, 1] <= side[:, 0]).all() for side in clicks.of(home, STEP)), "a user is in one bucket"
    assert totals(home, replace(STEP, step=1)) == [[0, 0], [0, 0]], "each step has its own"
    for process in processes:
        process.close()


@pytest.mark.parametrize(
    "told",
    [[event("u1"), event("u1", kind="purchase")], [event("u1"), event("u1", None), event(None), event("u2", kind="seen")]],
    ids=["twice", "what is no click of a request"],
)
def test_a_request_is_clicked_once(home: Home, told: list[dict[str, object]]):
    process = Clicks(home, lambda: STEP)
    process.acted(told)
    process(answer(None))
    side = 0 if gets_challenger(STEP, "u1") else 1
    assert totals(home)[side] == [0, 1]
    assert totals(home)[1 - side] == [0, 0]
    process.close()


def test_a_request_is_clicked_once_whichever_process_takes_its_events(home: Home):
    one, other = Clicks(home, lambda: STEP), Clicks(home, lambda: STEP)
    one(answer("u1"))
    one.acted([event("u1")])
    other.acted([event("u1", kind="purchase")])
    later = Clicks(home, lambda: STEP)
    later.acted([event("u1", kind="click")])
    assert totals(home)[0 if gets_challenger(STEP, "u1") else 1] == [1, 1]
    for process in (one, other, later):
        process.close()


def test_without_a_rollout_nothing_is_counted_and_old_steps_give_way_to_new_ones(home: Home):
    now: list[Rollout | None] = [None]
    process = Clicks(home, lambda: now[0])
    process(answer("u1"))
    for step in range(clicks.STEPS + 2):
        now[0] = replace(STEP, step=step)
        process(answer("u1"))
    counted = [sum(map(sum, totals(home, replace(STEP, step=step)))) for step in range(clicks.STEPS + 2)]
    assert counted == [0, 0, *[1] * clicks.STEPS]
    process.close()


def test_counts_of_dead_processes_stay_while_their_step_runs(home: Home):
    process = Clicks(home, lambda: STEP)
    process(answer("u1"))
    process.close()
    process.path.rename(process.path.with_name("999999999-5"))
    clicks.sweep(home, STEP)
    assert sum(map(sum, totals(home))) == 1
    clicks.sweep(home, None)
    assert list(clicks.folder(home).iterdir()) == []
