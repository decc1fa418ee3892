"""Drift on columns whose answer is obvious, and on a simulated shop that stays as it is or does not."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import trained_shop
from trained_shop import FIRST, SECOND

from pipelines import cycle
from pipelines.config import Home
from pipelines.decision_policies import DriftPolicy
from pipelines.errors import StateError
from pipelines.evaluation import psi
from pipelines.features import build
from pipelines.monitoring import comparison, drift, evidently_page
from pipelines.registry import bundle, population, promotion
from pipelines.window import Window, utc

POLICY = DriftPolicy()
DAY = utc("2025-03-03")


def columns(n: int = 2000, seed: int = 1, shift: float = 0.0) -> population.Columns:
    """Return an active and a quiet feature, and where people come from; `shift` moves the first."""
    rng = np.random.default_rng(seed)
    found = {
        "user_daily__events_7d": rng.lognormal(shift, 1, n),
        "item_daily__price": rng.normal(size=n),
        "traffic__device": rng.choice(["app", "web"], n),
    }
    return {name: pa.chunked_array([pa.array(values)]) for name, values in found.items()}


def profile(importance: dict[str, float] | None = None, **changes: object) -> population.Profile:
    references = {name: psi.reference(column, 10) for name, column in columns().items()}
    weights = {"user_daily__events_7d": 0.2, "item_daily__price": 0.3} if importance is None else importance
    return population.Profile(
        **{"day": DAY, "references": references, "movement": {}, "incomparable": {}, "importance": weights, **changes}
    )


def verdict(now: population.Columns, frozen: population.Profile | None = None) -> comparison.Check:
    return comparison.compare(frozen or profile(), now, DAY + timedelta(days=14), POLICY)


def test_another_draw_of_the_same_world_is_no_drift() -> None:
    found = verdict(columns(seed=2))
    assert found.verdict == drift.NO_DRIFT
    assert len(found.features) == 3
    assert not any(one.drifted for one in found.features.values())


def test_a_shift_of_a_feature_that_matters_is_drift_and_is_named() -> None:
    found = verdict(columns(seed=2, shift=1.0))
    assert found.verdict == drift.DRIFT
    assert found.features["user_daily__events_7d"].drifted
    assert "user_daily__events_7d" in found.reasons[-1]
    assert "40% of the gain" in found.reasons[0]


def test_a_shift_of_what_the_ranker_does_not_read_is_reported_but_calls_for_nothing() -> None:
    found = verdict(columns(seed=2, shift=1.0), profile({"item_daily__price": 0.5}))
    assert found.verdict == drift.NO_DRIFT
    assert found.features["user_daily__events_7d"].drifted
    assert "less than the 10%" in found.reasons[0]


def test_other_people_are_drift_whatever_the_ranker_reads() -> None:
    now = columns(seed=2) | {"traffic__device": pa.chunked_array([pa.array(["app"] * 1800 + ["watch"] * 200)])}
    found = verdict(now)
    assert found.verdict == drift.DRIFT
    assert "traffic__device" in found.reasons[1]


def test_what_was_usual_raises_the_threshold_of_that_feature_only() -> None:
    growing = profile(movement={"user_daily__events_7d": {7: 0.5, 14: 2.0, 21: 9.0}})
    found = verdict(columns(seed=2, shift=1.0), growing)
    assert not found.features["user_daily__events_7d"].drifted
    assert 2.0 < found.features["user_daily__events_7d"].threshold < 2.2  # 14 days have passed: the movement of 21 does not count
    assert found.features["item_daily__price"].threshold == POLICY.psi_threshold


def test_too_few_rows_is_an_answer_and_never_drift() -> None:
    found = verdict(columns(n=299, seed=2, shift=3.0))
    assert found.verdict == drift.NOT_ENOUGH
    assert "299 rows, 300 are needed" in found.reasons[0]
    assert verdict({}).verdict == drift.NOT_ENOUGH


def test_days_before_an_accepted_change_of_type_say_nothing_of_what_is_usual(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text became a number and a number a text, which a person accepted: the next bundle freezes what they are now."""
    now = columns()
    now["user_daily__spend"] = now.pop("user_daily__events_7d")
    texts, numbers = pa.chunked_array([pa.array(["old"] * 2000)]), pa.chunked_array([pa.array(np.arange(2000.0))])
    before = now | {"item_daily__price": texts, "traffic__device": numbers}
    monkeypatch.setattr(population, "columns", lambda *_: now)
    monkeypatch.setattr(population, "known", lambda *_: before)
    frozen = population.profile(home, DAY, {}, POLICY)
    assert set(frozen.references) == set(now)
    assert {name for name, lags in frozen.movement.items() if lags} == {"user_daily__spend"}
    assert len(frozen.weekdays) == 6
    assert all(set(counted) == {"user_daily__spend"} for counted in frozen.weekdays.values())


def test_a_feature_that_is_gone_or_new_is_said() -> None:
    now = columns(seed=2)
    now["user_daily__brand_new"] = now.pop("item_daily__price")
    skipped = verdict(now).skipped
    assert "gone" in skipped["item_daily__price"]
    assert "does not have it" in skipped["user_daily__brand_new"]


def test_false_alarms_of_a_whole_check_stay_under_the_rate() -> None:
    """200 checks of 12 unchanged heavy-tailed features with few rows, the fixed threshold out of the way: 1% is two alarms, more than six would be chance of one in two hundred."""
    policy = DriftPolicy(psi_threshold=0.0, psi_moved=0.0)
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        draw = [{f"user_daily__f{i}": pa.chunked_array([rng.lognormal(size=n)]) for i in range(12)} for n in (1500, 400)]
        frozen = population.Profile(DAY, {name: psi.reference(column, 10) for name, column in draw[0].items()}, {}, {}, {})
        alarms += comparison.compare(frozen, draw[1], DAY, policy).verdict == drift.DRIFT
    assert alarms <= 6


def test_the_page_shows_our_bins_and_our_thresholds(home: Home) -> None:
    frozen, now = profile(), columns(seed=2, shift=1.0)
    found = verdict(now)
    page = evidently_page.render(home, DAY, frozen, now, {name: one.threshold for name, one in found.features.items()})
    assert page is not None
    assert "user_daily__events_7d" in page.read_text(encoding="utf-8")
    shown = {metric["config"]["column"]: metric for metric in json.loads(page.with_suffix(".json").read_text())["metrics"]}
    assert set(shown) == set(now)
    assert shown["user_daily__events_7d"]["config"]["threshold"] == found.features["user_daily__events_7d"].threshold
    # The sample is drawn in proportion, so that Evidently's figure is ours but for rounding to 2,000 rows.
    assert shown["user_daily__events_7d"]["value"] == pytest.approx(found.features["user_daily__events_7d"].psi, rel=0.05)
    assert evidently_page.render(home, DAY, frozen, now, {}) is None


def test_nothing_released_nothing_to_compare(home: Home) -> None:
    assert drift.check(home, DAY).verdict == drift.NO_CHAMPION
    assert cycle.records(home, DAY, "drift")[0]["features"] == {}


def test_a_shop_that_stays_as_it_is_does_not_drift_week_after_week(fresh: Home) -> None:
    promotion.decide(fresh, FIRST)
    for as_of in (FIRST, SECOND):
        found = drift.check(fresh, as_of)
        assert found.verdict == drift.NO_DRIFT, found.reasons
        assert len(found.features) > 15
        record = cycle.records(fresh, as_of, "drift")[0]
        assert set(record["features"]["user_daily__events_7d"]) == {"psi", "threshold"}
        assert drift.report_file(fresh, as_of).is_file()
        assert evidently_page.page_file(fresh, as_of).is_file()


@pytest.mark.parametrize("shift", ["taste_shift", pytest.param("traffic_mix", marks=pytest.mark.slow)])
def test_a_shop_that_changes_drifts_within_two_weeks(fresh: Home, shift: str) -> None:
    """The same shop, but from the last known day on everybody's taste turns, or other people come."""
    promotion.decide(fresh, SECOND)
    trained_shop.land(fresh, Window(SECOND, SECOND + timedelta(days=14)), (f"{shift}@{SECOND:%Y-%m-%d}",))
    build.build(fresh, SECOND + timedelta(days=14))
    found = drift.check(fresh, SECOND + timedelta(days=14))
    assert found.verdict == drift.DRIFT, found.reasons
    assert found.reasons[0].split()[0].isdigit()


def test_a_day_without_marts_is_an_error_that_says_what_to_run(fresh: Home) -> None:
    promotion.decide(fresh, FIRST)
    with pytest.raises(StateError, match="reloop features"):
        drift.check(fresh, SECOND + timedelta(days=70))


def test_a_damaged_reference_is_refused(fresh: Home) -> None:
    promotion.decide(fresh, FIRST)
    digest = cycle.records(fresh, FIRST, "bundle")[0]["digest"]
    file: Path = bundle.folder(fresh, digest) / bundle.REFERENCE_FILE
    file.write_text(file.read_text().replace("edges", "Edges", 1), encoding="utf-8")
    with pytest.raises(StateError, match="differ from its manifest"):
        drift.check(fresh, SECOND)
