"""Policies on paper: four models, five weeks, two users, NDCG that anyone can add up."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest

from pipelines.decision_policies import GatePolicy
from pipelines.errors import NotEnoughData, StateError
from pipelines.replay import outcome, policies
from pipelines.replay.matrix import Cell, Matrix, Week
from pipelines.replay.policies import POLICIES, Rules
from pipelines.window import utc

START = utc("2025-03-03")
DAYS = [START + timedelta(days=7 * number) for number in range(5)]  # trained, and ends of the judged weeks
USERS = np.array(["ann", "bob"])
# Row: the model of DAYS[row]. Column: the week that ends at DAYS[column]. A model is judged on its own week and serves those that follow.
MEANS = np.array(
    [
        [0.30, 0.30, 0.20, 0.20, 0.10],
        [0.00, 0.31, 0.28, 0.30, 0.20],
        [0.00, 0.00, 0.10, 0.40, 0.30],
        [0.00, 0.00, 0.00, 0.35, 0.25],
        [0.00, 0.00, 0.00, 0.00, 0.50],
    ]
)
RULES = Rules(GatePolicy(guardrails=(), incumbents=(), slices=(), min_users=2))


def matrix(means: np.ndarray = MEANS, users: np.ndarray = USERS, spread: float = 0.1) -> Matrix:
    """Return the matrix whose cells have these means; users differ by twice the spread."""
    weeks = tuple(Week(end - timedelta(days=7), end, users) for end in DAYS)
    off = np.resize([spread, -spread], len(users))
    cells = {
        (DAYS[row], DAYS[column]): Cell(np.clip(means[row, column] + off, 0, 1), np.full(len(users), np.nan))
        for row in range(5)
        for column in range(row, 5)
    }
    return Matrix(tuple(DAYS), weeks, cells)


def served(name: str, rules: Rules = RULES, of: Matrix | None = None) -> list[int]:
    """Return which model a policy had in each of the four weeks after the first model."""
    table = of or matrix()
    weeks = policies.served(table, policies.walk(POLICIES[name], table, rules, DAYS[0]))
    assert [end for _, end in weeks] == DAYS[1:]
    return [DAYS.index(trained) for trained, _ in weeks]


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("never", [0, 0, 0, 0]),
        ("every cycle", [0, 1, 2, 3]),
        ("every 14 days", [0, 0, 2, 2]),
        ("every 28 days", [0, 0, 0, 0]),
        ("improved", [0, 1, 1, 3]),  # week 1: .31 > .30; week 2: .10 < .28; week 3: .35 > .30
        ("improved > 1%", [0, 1, 1, 3]),
        ("oracle", [0, 1, 2, 2]),
    ],
)
def test_each_policy_serves_what_can_be_read_off_the_table(name: str, models: list[int]):
    assert served(name) == models


def test_a_gain_below_the_bar_is_no_improvement():
    means = MEANS.copy()
    means[1, 1] = 0.302
    assert served("improved", of=matrix(means))[1] == 1
    assert served("improved > 1%", of=matrix(means))[1] == 0


def test_drift_trains_when_the_champion_of_that_very_walk_has_drifted_and_not_before():
    asked = []

    def drifted(champion: datetime, moment: datetime) -> str | None:
        asked.append((DAYS.index(champion), DAYS.index(moment)))
        return "it moved" if moment == DAYS[2] else None

    rules = Rules(RULES.gate, drifted=drifted)
    assert served("drift", rules) == [0, 0, 2, 2]
    assert asked == [(0, 1), (0, 2), (2, 3), (2, 4)]
    steps = policies.walk(POLICIES["drift"], matrix(), rules, DAYS[0])
    assert [step.trained for step in steps] == [True, False, True, False, False]
    assert steps[2].reason == "it moved"


def test_the_gate_is_shown_the_fresh_week_and_those_of_this_reign_before_it():
    table = matrix()
    now = policies.Situation(DAYS[3], DAYS[0], DAYS[2], (DAYS[1], DAYS[2]), 1, table, RULES)
    shown = policies.shown(now)
    assert shown.champion is not None
    assert shown.champion.mean() == pytest.approx(0.20)
    assert shown.challenger.mean() == pytest.approx(0.35)
    assert [(one.as_of[:10], round(one.champion.mean(), 2), round(one.challenger.mean(), 2)) for one in shown.earlier] == [
        ("2025-03-10", 0.30, 0.31),
        ("2025-03-17", 0.20, 0.10),
    ]
    assert shown.earlier_decisions == 1
    assert shown.champion_age_days == 21


def test_the_gate_is_what_the_ledger_says_it_released():
    assert served("gate", Rules(RULES.gate, frozenset({DAYS[2]}))) == [0, 0, 2, 2]
    assert served("gate") == [0, 0, 0, 0]
    entries = [{"kind": "promoted", "as_of": DAYS[2].isoformat()}, {"kind": "kept", "as_of": DAYS[3].isoformat()}, {"kind": "promoted"}]
    assert outcome.released(entries) == {DAYS[2]}


def test_the_gate_keeps_equal_retrains_and_releases_what_is_clearly_better():
    rng = np.random.default_rng(3)
    users = np.array([f"u{n:04d}" for n in range(3000)])
    weeks = tuple(Week(end - timedelta(days=7), end, users) for end in DAYS)
    taste = rng.uniform(0.1, 0.6, len(users))

    def world(gain: float) -> Matrix:
        def cell(row: int) -> Cell:
            return Cell(np.clip(taste + rng.normal(0, 0.05, len(users)) + gain * (row > 0), 0, 1), np.full(len(users), np.nan))

        cells = {(DAYS[row], DAYS[column]): cell(row) for row in range(5) for column in range(row, 5)}
        return Matrix(tuple(DAYS), weeks, cells)

    assert served("gate on quality", of=world(0.0)) == [0, 0, 0, 0]
    better = policies.walk(POLICIES["gate on quality"], world(0.03), RULES, DAYS[0])
    assert [step.promoted for step in better] == [True, False, True, False, False]  # two windows are needed, then nothing is better still
    assert sum(step.trained for step in better) == 5


def test_a_champion_without_a_cell_is_kept_and_said_so():
    table = matrix()
    cells = {place: cell for place, cell in table.cells.items() if place != (DAYS[0], DAYS[1])}
    choice = POLICIES["gate on quality"](
        policies.Situation(DAYS[1], DAYS[0], DAYS[0], (), 0, Matrix(table.trained, table.weeks, cells), RULES)
    )
    assert choice.release is None
    assert "not measured" in choice.reason


def test_the_table_adds_up_user_weeks_and_pairs_differences():
    found = {one.name: one for one in outcome.outcomes(matrix(), RULES, DAYS[0], reference="never")}
    assert found["never"].ndcg["value"] == pytest.approx((0.30 + 0.20 + 0.20 + 0.10) / 4)
    assert found["every cycle"].ndcg["value"] == pytest.approx((0.30 + 0.28 + 0.40 + 0.25) / 4)
    assert found["oracle"].ndcg["value"] == pytest.approx((0.30 + 0.28 + 0.40 + 0.30) / 4)
    assert found["every cycle"].regret == pytest.approx(0.05 / 4)
    versus = found["every cycle"].difference
    # Both users differ alike in every week, so the paired difference has no spread, though the means have.
    assert versus["value"] == pytest.approx(0.43 / 4)
    assert versus["upper"] - versus["lower"] == pytest.approx(0, abs=1e-9)
    assert found["never"].ndcg["upper"] - found["never"].ndcg["lower"] > 0.05
    assert (found["every cycle"].trainings, found["every cycle"].promotions, found["never"].trainings) == (4, 4, 0)


def test_weeks_that_a_policy_has_no_cell_for_count_for_none():
    table = matrix()
    cells = {place: cell for place, cell in table.cells.items() if place != (DAYS[0], DAYS[4])}  # too old by then
    found = outcome.outcomes(Matrix(table.trained, table.weeks, cells), RULES, DAYS[0], names=["never", "every cycle"], reference="never")
    assert {one.name: len(one.weeks) for one in found} == {"never": 3, "every cycle": 3, "oracle": 3}
    assert next(one for one in found if one.name == "never").ndcg["value"] == pytest.approx(0.70 / 3)


def test_no_policy_beats_the_oracle():
    rng = np.random.default_rng(5)
    for _ in range(20):
        found = outcome.outcomes(matrix(rng.uniform(0.1, 0.9, MEANS.shape)), RULES, DAYS[0])
        assert min(one.regret for one in found) >= -1e-12


def test_all_begin_with_the_first_release_of_the_ledger():
    ledger = [{"kind": "kept", "as_of": DAYS[0].isoformat()}, {"kind": "promoted", "as_of": DAYS[1].isoformat()}]
    assert outcome.first(ledger, DAYS) == DAYS[1]
    assert outcome.first([], DAYS) == DAYS[0]
    with pytest.raises(NotEnoughData, match="one more after"):
        outcome.first([{"kind": "promoted", "as_of": DAYS[4].isoformat()}], DAYS)


def test_an_incumbent_that_no_source_is_called_is_refused_and_one_that_is_off_guards_nothing() -> None:
    off = policies.asked_of(GatePolicy(incumbents=("popular_7d",)), matrix())
    assert (off.incumbents, off.guardrails) == ((), ())
    with pytest.raises(StateError, match="did you mean 'item_knn'"):
        policies.asked_of(GatePolicy(incumbents=("item_kn",)), matrix())
