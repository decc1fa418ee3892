"""When a training is due: the whole truth table, and the records it is read from."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_shop import shop

from pipelines import cycle, lake
from pipelines.config import Home
from pipelines.decision_policies import RetrainPolicy
from pipelines.monitoring import triggers
from pipelines.monitoring.triggers import Situation, judge
from pipelines.window import utc

NOW = utc("2025-03-10")
POLICY = RetrainPolicy()  # every 7 days, never within 1


def days_ago(days: float) -> tuple[object, ...]:
    return (NOW - timedelta(days=days),)


@pytest.mark.parametrize(
    ("trained", "requested", "due", "reason"),
    [
        ((), None, True, "nothing was ever trained"),
        (days_ago(7), None, True, "7.0 days ago"),
        (days_ago(6.9), None, False, "nobody asked"),
        (days_ago(3), "PSI of events_7d 0.4", True, "requested: PSI of events_7d 0.4"),
        (days_ago(0.5), "PSI of events_7d 0.4", False, "within the cooldown of 1 days"),
        (days_ago(1), "by hand", True, "requested: by hand"),
        (days_ago(0), "by hand", False, "is done already"),
        (days_ago(-7), None, False, "is the past"),
        ((*days_ago(30), *days_ago(2)), None, False, "2.0 days ago"),
    ],
)
def test_truth_table(trained: tuple, requested: str | None, due: bool, reason: str) -> None:
    found = judge(Situation(NOW, trained, requested), POLICY)
    assert found.due is due
    assert any(reason in said for said in found.reasons), found.reasons


@given(st.lists(st.floats(-40, 40)), st.one_of(st.none(), st.text(min_size=1)))
def test_a_training_never_follows_another_within_the_cooldown_and_every_answer_has_a_reason(
    ages: list[float], requested: str | None
) -> None:
    trained = tuple(NOW - timedelta(days=age) for age in ages)
    found = judge(Situation(NOW, trained, requested), POLICY)
    assert found.reasons
    if found.due:
        assert all(NOW - moment >= timedelta(days=POLICY.cooldown_days) for moment in trained)


def test_a_policy_that_is_no_number_is_refused_and_never_trains() -> None:
    unknown = {"cooldown_days": float("nan"), "cadence_days": float("nan")}
    with pytest.raises(ValidationError, match="finite number"):
        RetrainPolicy(**unknown)
    broken = RetrainPolicy.model_construct(**unknown)  # by a road that checks nothing
    assert not judge(Situation(NOW, days_ago(100), "by hand"), broken).due


def test_a_young_lake_is_not_due_until_it_has_grown(home: Home) -> None:
    """Whoever asks: the walk goes on to the next cycle instead of failing in the first retriever."""
    empty = triggers.decide(home, NOW, "by hand")
    assert not empty.due
    assert "no event before it" in empty.reasons[0]
    lake.land_tables(home, events=shop(28, first=NOW - timedelta(days=27), rows_a_day=2))
    young = triggers.decide(home, NOW)
    assert not young.due
    assert young.reasons[0].startswith("not enough data: ")
    assert "at least 28 days" in young.reasons[0]
    assert cycle.records(home, NOW, "trigger")[0]["reasons"] == list(young.reasons)
    assert triggers.decide(home, NOW + timedelta(days=1)).due


def test_only_trainings_that_ended_in_a_bundle_count(home: Home) -> None:
    lake.land_tables(home, events=shop(28, first=NOW - timedelta(days=28), rows_a_day=2))
    with cycle.stage(home, NOW - timedelta(days=2), "bundle"):
        pass
    with pytest.raises(ZeroDivisionError), cycle.stage(home, NOW - timedelta(days=1), "bundle"):
        raise ZeroDivisionError
    assert triggers.trained(home) == (NOW - timedelta(days=2),)
    assert not triggers.decide(home, NOW).due
    found = triggers.decide(home, NOW, "drift")
    assert found.due
    assert cycle.records(home, NOW, "trigger")[0]["reasons"] == list(found.reasons)
