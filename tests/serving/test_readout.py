"""An experiment from end to end: declared, dealt out, shown, acted upon, read from the lake, told at the command line."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines import lake, tables
from pipelines.cli.entry import app
from pipelines.config import Home
from pipelines.errors import NotEnoughData, StateError
from pipelines.evaluation.interleaving import TEAM, team_draft
from pipelines.serving import assignment, readout
from pipelines.window import DAY, Window, utc

START, END = utc("2025-03-03"), utc("2025-03-10")
DECLARED = """
[lists]
start = 2025-03-03T00:00:00Z
end = 2025-03-10T00:00:00Z
guardrails = { revenue = 0.9 }
[lists.arms.control]
[lists.arms.better]
[lists.arms.mixed]
interleave = ["control", "better"]
"""
RATE = {"control": 0.10, "better": 0.2}


def live(home: Home, n_users: int = 1200, *, lost: float = 0.0, empty: float = 0.0) -> None:
    """Let users ask twice, see five items and click by the arm that placed them.

    A share of what the better arm showed is not logged; a share of its users gets nothing.
    """
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / assignment.FILE).write_text(DECLARED, encoding="utf-8")
    dealt, rng = assignment.load(home), np.random.default_rng(0)
    shown, events = [], []
    for number in range(n_users):
        user = f"u{number}"
        (found,) = dealt.assign({"user": user}, START)
        hidden = found.arm == "better" and rng.random() < lost
        nothing = found.arm == "better" and rng.random() < empty
        for visit in range(2):
            moment, request = START + timedelta(days=3 * visit, minutes=number), f"{user}-{visit}"
            if found.arm == "mixed":
                drafted = team_draft([f"a{n}" for n in range(5)], [f"b{n}" for n in range(5)], 5, seed=2 * number + visit)
                placed = [(item, ("control", "better")[side]) for item, side in zip(drafted.items, drafted.sides, strict=True)]
            else:
                placed = [(f"{found.arm[0]}{n}", found.arm) for n in range(5)]
            if nothing:
                shown.append({"request_id": request, "user_id": user, "item_id": "(nothing)", "rank": 0, "shown_at": moment,
                              "variant": f"other:x|{found.label}", "sources": []})  # fmt: skip
                continue
            for rank, (item, arm) in enumerate(placed, 1):
                if not hidden:
                    sources = [f"{TEAM}{arm}"] if found.arm == "mixed" else ["als"]
                    shown.append({"request_id": request, "user_id": user, "item_id": item, "rank": rank, "shown_at": moment,
                                  "variant": f"other:x|{found.label}", "sources": sources})  # fmt: skip
                if rng.random() < RATE[arm]:
                    events.append({"event_id": f"{request}-{rank}", "user_id": user, "item_id": item, "event_type": "view", "request_id": request,
                                   "event_at": moment + timedelta(minutes=1), "received_at": moment + timedelta(minutes=1), "quantity": 1})  # fmt: skip
        paid = START + timedelta(days=2)
        events.append({"event_id": f"{user}-buys", "user_id": user, "item_id": "elsewhere", "event_type": "purchase", "value": float(rng.integers(5, 15)),
                       "event_at": paid, "received_at": paid, "quantity": 1})  # fmt: skip
    for day in range(7):
        moment = START + day * DAY
        rows = [row for row in shown if moment <= row["shown_at"] < moment + DAY]
        if rows:
            file = home.lake / "impressions" / f"shown_date={moment:%Y-%m-%d}" / "impressions.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, tables.IMPRESSIONS), file)
    lake.land_tables(home, events=pa.Table.from_pylist(events, tables.EVENTS))


def analysed(home: Home, *arguments: str) -> tuple[int, dict]:
    done = CliRunner().invoke(app, ["experiment", "analyse", "lists", "--json", "--home", str(home.root), *arguments])
    return done.exit_code, json.loads(done.stdout)


def test_a_better_arm_is_read_from_the_lake(home: Home):
    live(home)
    code, found = analysed(home)
    assert code == 0
    assert found["verdicts"]["better"] == "better"
    assert found["srm"]["p"] > 0.001
    assert sum(found["srm"]["counts"]) == 1200
    assert found["impressions"] == {
        arm: 10 * count for arm, count in zip(("better", "control", "mixed"), np.array(found["srm"]["counts"])[[1, 0, 2]], strict=True)
    }
    ctr = next(one for one in found["effects"] if (one["arm"], one["metric"]) == ("better", "ctr"))
    assert ctr["control"] == pytest.approx(0.10, abs=0.01)
    assert ctr["treatment"] == pytest.approx(0.2, abs=0.015)
    assert ctr["always_lower"] < ctr["lower"] < 0.1 < ctr["upper"] < ctr["always_upper"]
    conversion = next(one for one in found["effects"] if (one["arm"], one["metric"]) == ("better", "conversion"))
    assert conversion["treatment"] == 1.0  # whatever users buy after exposure counts, shown or not
    mixed = found["interleaving"]["mixed"]
    assert mixed["winner"] == "b"
    assert mixed["wins"][1] > mixed["wins"][0]


def test_impressions_that_get_lost_in_one_arm_block_the_reading(home: Home):
    live(home, lost=0.3)
    code, found = analysed(home)
    assert found["verdicts"] == {"better": "blocked", "mixed": "blocked"}
    assert found["reasons"][0].startswith("sample ratio mismatch")
    assert found["interleaving"]["mixed"]["winner"] == "b"  # within one arm's own users nothing was lost
    assert code == 1


def test_who_was_shown_nothing_counts_in_his_arm(home: Home):
    """Left out, they would look like a sample ratio mismatch; in, they are users who did not click."""
    live(home, empty=0.4)
    _, found = analysed(home)
    assert found["srm"]["p"] > 0.001
    assert sum(found["srm"]["counts"]) == 1200
    assert found["empty"] == {"better": pytest.approx(0.4, abs=0.06), "control": 0.0, "mixed": 0.0}
    effects = {one["metric"]: one for one in found["effects"] if one["arm"] == "better"}
    assert effects["ctr"]["treatment"] == pytest.approx(0.2, abs=0.02), "of what was shown"
    assert effects["click_rate"]["treatment"] < 0.6 * (1 - 0.8**10) + 0.1, "of all users of the arm"


def test_only_what_came_into_view_is_an_exposure_where_that_is_asked_for(home: Home):
    """The two upper places of everybody's first visit are reported as seen."""
    live(home)
    for file in sorted((home.lake / "impressions").rglob("*.parquet")):
        rows = pq.read_table(file).to_pylist()
        marks = [
            {name: row[name] for name in ("request_id", "user_id", "item_id", "shown_at")} | {"rank": -1}
            for row in rows
            if row["rank"] <= 2 and row["request_id"].endswith("-0")
        ]
        pq.write_table(pa.Table.from_pylist(rows + marks, tables.IMPRESSIONS), file)
    _, everything = analysed(home)
    _, found = analysed(home, "--exposed", "seen")
    assert found["exposed"] == "seen"
    assert {arm: count / 5 for arm, count in everything["impressions"].items()} == found["impressions"]
    assert sum(found["srm"]["counts"]) == 1200
    wrong = CliRunner().invoke(app, ["experiment", "analyse", "lists", "--exposed", "x", "--home", str(home.root)])
    assert isinstance(wrong.exception, StateError)


def test_early_days_are_not_yet_and_exit_1(home: Home):
    live(home, n_users=300)
    code, found = analysed(home, "--to", "2025-03-04")
    assert code == 1
    assert set(found["verdicts"].values()) == {"not yet"}
    done = CliRunner().invoke(app, ["experiment", "analyse", "lists", "--home", str(home.root)])
    assert done.exit_code == 1
    assert "sample ratio p" in done.stdout
    assert "below 200" in done.stdout


def test_who_is_in_which_arm_and_what_is_declared_are_told(home: Home):
    home.root.mkdir(parents=True)
    (home.root / assignment.FILE).write_text(DECLARED, encoding="utf-8")
    runner = CliRunner()
    found = json.loads(runner.invoke(app, ["experiment", "assign", "u1", "--at", "2025-03-05", "--json", "--home", str(home.root)]).stdout)
    assert found["variant"] == f"lists:{found['lists']}"
    assert list(json.loads(runner.invoke(app, ["experiment", "list", "--json", "--home", str(home.root)]).stdout)) == ["lists"]
    assert "better 33%" in runner.invoke(app, ["experiment", "list", "--home", str(home.root)]).stdout.replace("\n", " ")


def test_what_cannot_be_read_says_why(home: Home):
    home.root.mkdir(parents=True)
    (home.root / assignment.FILE).write_text(DECLARED, encoding="utf-8")
    declared = assignment.load(home)
    with pytest.raises(StateError, match="'other'; expected lists"):
        readout.named(declared, "other")
    experiment = declared.declared["lists"]
    with pytest.raises(NotEnoughData, match="no impression of it"):
        readout.read(home, "lists", experiment, Window(START, END))
    with pytest.raises(StateError, match="no --to, and none declared"):
        readout.window_of(experiment.model_copy(update={"end": None}), None, None)
    with pytest.raises(StateError, match="metric happiness"):
        readout.read(home, "lists", experiment.model_copy(update={"primary": "happiness"}), Window(START, END))
