"""What counts as drift: seasons, weekdays, days, people, missing values, and how often it is wrong either way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipelines.decision_policies import DriftPolicy
from pipelines.evaluation import psi
from pipelines.monitoring import comparison
from pipelines.monitoring.comparison import Past, compare
from pipelines.registry import population
from pipelines.window import DAY as ONE_DAY
from pipelines.window import utc

POLICY = DriftPolicy()
DAY = utc("2025-03-03")  # a Monday
NAME = "user_daily__events_7d"


def of(values: object, name: str = NAME) -> population.Columns:
    return {name: pa.chunked_array([pa.array(values)])}


def frozen(columns: population.Columns, **changes: object) -> population.Profile:
    references = {name: psi.reference(column, POLICY.bins) for name, column in columns.items()}
    return population.Profile(**{"day": DAY, "references": references, "movement": {}, "incomparable": {}, "importance": {}, **changes})


def normal(seed: int, mean: float = 0.0, n: int = 3000) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, size=n)


def test_a_shift_that_lasts_one_day_of_three_is_no_drift_and_two_of_three_are() -> None:
    profile, now, then = frozen(of(normal(1))), of(normal(2, 1.0)), DAY + timedelta(days=14)
    calm, shifted = of(normal(3)), of(normal(4, 1.0))
    one = compare(profile, now, then, POLICY, Past(earlier=[(then - ONE_DAY, calm), (then - 2 * ONE_DAY, calm)]))
    two = compare(profile, now, then, POLICY, Past(earlier=[(then - ONE_DAY, shifted), (then - 2 * ONE_DAY, calm)]))
    assert (one.features[NAME].days, one.verdict) == ((1, 3), comparison.NO_DRIFT)
    assert (two.features[NAME].days, two.verdict) == ((2, 3), comparison.DRIFT)
    assert "2 of 3 days" in two.reasons[-1]


def test_a_sunday_is_compared_with_a_sunday() -> None:
    """People do more at weekends: a Monday's reference would call every Sunday drift."""
    sunday = DAY + timedelta(days=13)
    profile = frozen(of(normal(1)))
    weekend = tuple(int(n) for n in psi.counts(profile.references[NAME], of(normal(2, 1.0))[NAME]))
    assert compare(profile, of(normal(3, 1.0)), sunday, POLICY).verdict == comparison.DRIFT
    assert compare(replace(profile, weekdays={7: {NAME: weekend}}), of(normal(3, 1.0)), sunday, POLICY).verdict == comparison.NO_DRIFT


@pytest.mark.parametrize(
    ("year_ago", "reference_year_ago", "drifts"),
    [
        (None, None, True),  # nothing is known of last year
        (1.0, None, False),  # it looks as it did in the same week
        (2.0, 1.0, False),  # it moved as it did then, from another level
        (0.0, 0.0, True),  # last year nothing moved
    ],
)
def test_a_season_that_last_year_had_is_no_drift(year_ago: float | None, reference_year_ago: float | None, drifts: bool) -> None:
    past = Past(
        year_ago={} if year_ago is None else of(normal(5, year_ago)),
        reference_year_ago={} if reference_year_ago is None else of(normal(6, reference_year_ago)),
    )
    found = compare(frozen(of(normal(1))), of(normal(2, 0.9)), DAY + timedelta(days=28), POLICY, past)
    assert (found.verdict == comparison.DRIFT) is drifts


def test_many_small_shifts_call_for_a_training_where_they_carry_most_of_the_gain() -> None:
    """A third of a standard deviation is PSI .09: below .2 one by one, and still half of what the ranker reads has moved."""
    names = [f"user_daily__f{i}" for i in range(4)]
    before = {name: of(normal(i), name)[name] for i, name in enumerate(names)}
    after = {name: of(normal(10 + i, 0.33), name)[name] for i, name in enumerate(names)}
    importance = {names[0]: 0.2, names[1]: 0.2, names[2]: 0.2, names[3]: 0.2}
    broad = compare(frozen(before, importance=importance), after, DAY, POLICY)
    narrow = compare(frozen(before, importance=importance), {**before, names[0]: after[names[0]]}, DAY, POLICY)
    assert not any(found.drifted for found in broad.features.values())
    assert broad.verdict == comparison.DRIFT
    assert "carry 100% of the gain" in broad.reasons[1]
    assert narrow.features[names[0]].moved
    assert narrow.verdict == comparison.NO_DRIFT


def test_small_shifts_call_for_nothing_where_no_ranker_reads_them() -> None:
    found = compare(frozen(of(normal(1))), of(normal(2, 0.33)), DAY, POLICY)
    assert found.features[NAME].moved
    assert found.verdict == comparison.NO_DRIFT
    assert "the champion has no ranker that reads any" in found.reasons[0]


def test_missing_values_that_rise_are_named_as_a_fault() -> None:
    values = normal(2).tolist()
    holed = of([None if i % 5 == 0 else value for i, value in enumerate(values)])
    found = compare(frozen(of(normal(1))), holed, DAY, POLICY)
    assert "20% of 3000 rows have no value, 0% had none" in found.null_bursts[NAME]
    assert not compare(frozen(of(normal(1))), of(normal(2)), DAY, POLICY).null_bursts


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([1.5, 2.5, 3.5], ["x"], "of another type: string, the reference holds numbers"),
        ([1.5, 2.5, 3.5], [True, False], "of another type: bool, the reference holds numbers"),
        (["a", "b"], [1.5, 2.5], "of another type: double, the reference holds categories"),
        ([1.5, 2.5], [1, 2], None),
        ([None], [1.5, 2.5], None),  # it never had a value: nothing says of which type it was
    ],
)
def test_a_column_of_another_type_is_named_and_the_others_are_compared(before: list[object], after: list[object], said: str | None) -> None:
    other = of(normal(1), "user_daily__other")
    found = compare(frozen(of(before * 900) | other), of(after * 900) | other, DAY, POLICY, Past(earlier=[(DAY, of(before * 900))]))
    assert found.skipped.get(NAME) == said
    assert "user_daily__other" in found.features


def test_a_column_that_turns_infinite_or_all_missing_is_a_fault_and_no_crash() -> None:
    for after, said in ((np.full(1000, np.inf), "100% of 1000 rows are infinite"), ([None] * 1000, "100% of 1000 rows have no value")):
        assert said in compare(frozen(of(normal(1))), of(after), DAY, POLICY).null_bursts[NAME]
    usual = np.where(np.arange(1000) % 2, np.inf, 1.0)
    assert not compare(frozen(of(usual)), of(usual), DAY, POLICY).null_bursts
    few = np.where(np.arange(3000) % 20 == 0, np.inf, normal(2))
    assert not compare(frozen(of(normal(1))), of(few), DAY, POLICY).null_bursts


def test_what_the_champion_shows_is_told_and_calls_only_where_the_policy_says_so() -> None:
    shown = [[f"i{i % 7}", f"i{(i + 1) % 7}"] for i in range(400)]
    other = [[f"j{i % 7}", f"i{(i + 1) % 7}"] for i in range(400)]
    profile = frozen(of(shown, "served__items"))
    assert compare(profile, of(shown, "served__items"), DAY, POLICY).verdict == comparison.NO_DRIFT
    for policy, verdict in ((POLICY, comparison.NO_DRIFT), (POLICY.model_copy(update={"outputs_call": True}), comparison.DRIFT)):
        found = compare(profile, of(other, "served__items"), DAY, policy)
        assert found.verdict == verdict
        assert found.features["served__items"].drifted
        assert "what the champion makes of them has changed: served__items" in found.reasons


def test_other_distances_stand_beside_psi_and_are_json() -> None:
    found = compare(frozen(of(normal(1))), of(normal(2, 0.5)), DAY, POLICY).to_json()["features"][NAME]
    assert found["beside"]["ks"] == pytest.approx(0.2, abs=0.03)
    assert found["beside"]["chi_square_p"] < 1e-6
    assert found["year_ago"] is None


def weekly(rng: np.random.Generator, day: int, n: int, n_features: int) -> population.Columns:
    """Return a day of features with a week's rhythm in level and scale, heavy tails, holes and categories; nothing else ever changes."""
    level = 1.0 + 0.5 * (day % 7 in (5, 6))
    found = {f"user_daily__f{i}": rng.lognormal(level, 1.0, n) for i in range(n_features - 3)}
    found["user_daily__count"] = rng.poisson(3 * level, n).astype(float)
    found["user_daily__holed"] = np.where(rng.random(n) < 0.2, np.nan, rng.normal(level, 1.0, n))
    columns = {name: pa.chunked_array([pa.array(values, from_pandas=True)]) for name, values in found.items()}
    zipf = np.minimum(rng.zipf(1.4, n), 1000)
    return columns | {"traffic__category": pa.chunked_array([pa.array(zipf.astype(str))])}


def false_alarms(n_windows: int, n_features: int, n: int, policy: DriftPolicy, seed: int = 1) -> tuple[float, float]:
    """Return the share of checks with any alarm, and of features that alarm, in a world that has weeks and nothing else."""
    rng = np.random.default_rng(seed)
    checks = features = 0
    profile = None
    for window in range(n_windows):
        if window % 50 == 0:  # another reference now and then: one has its own luck
            week = {day: weekly(rng, day, n, n_features) for day in range(7)}
            references = {name: psi.reference(column, policy.bins) for name, column in week[0].items()}
            counted = {
                (DAY + day * ONE_DAY).isoweekday(): {
                    name: tuple(psi.counts(references[name], column).tolist()) for name, column in columns.items()
                }
                for day, columns in week.items()
                if day
            }
            profile = population.Profile(DAY, references, {}, {}, {}, counted)
        found = compare(profile, weekly(rng, window % 7, n, n_features), DAY + (7 + window % 7) * ONE_DAY, policy)
        alarms = sum(one.drifted or one.moved for one in found.features.values())
        checks, features = checks + bool(alarms), features + alarms
    return checks / n_windows, features / (n_windows * n_features)


@pytest.mark.parametrize("psi_threshold", [0.2, 0.0])
def test_a_world_of_weeks_alone_raises_next_to_no_alarm(psi_threshold: float) -> None:
    """Promise 17, small: 70 days x 6 features x 600 rows, also without any fixed threshold, where chance alone decides."""
    policy = DriftPolicy(psi_threshold=psi_threshold, psi_moved=min(0.05, psi_threshold))
    per_check, per_feature = false_alarms(70, 6, 600, policy)
    assert per_check <= 0.05
    assert per_feature < 0.01


def without_correction(*_: object, **__: object) -> float:
    return 0.0


def test_breaking_the_null_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tests the tests: without an estimate of chance every check alarms."""
    for estimate in ("critical_value", "simulated_value"):
        monkeypatch.setattr(psi, estimate, without_correction)
    assert false_alarms(7, 5, 600, DriftPolicy(psi_threshold=0.0, psi_moved=0.0))[0] > 0.9


def test_breaking_the_weekdays_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population.Profile, "reference", lambda profile, name, _: profile.references[name])
    assert false_alarms(14, 5, 600, POLICY)[0] > 0.2


SHIFTS: dict[str, Callable[[np.random.Generator, int], object]] = {
    "a mean by 0.3 sd": lambda rng, n: rng.normal(0.3, 1.0, n),
    "a scale by 2": lambda rng, n: rng.normal(0.0, 2.0, n),
    "10% missing": lambda rng, n: np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
    "10% of a new category": lambda rng, n: np.where(rng.random(n) < 0.1, "new", rng.choice(["a", "b", "c"], n)),
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_real_shift_is_seen_nine_times_in_ten(shift: str) -> None:
    """Promise 17: M = 5,000. Here all 10 draws; `make bench-drift` has the curves."""
    seen = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        after = SHIFTS[shift](rng, 5000)
        before = rng.choice(["a", "b", "c"], 5000) if "category" in shift else rng.normal(size=5000)
        others = {f"user_daily__other{i}": rng.normal(size=2000) for i in range(5)}
        columns = of(before) | {name: of(values, name)[name] for name, values in others.items()}
        found = compare(frozen(columns), columns | {NAME: pa.chunked_array([pa.array(after, from_pandas=True)])}, DAY, POLICY).features[
            NAME
        ]
        seen += found.drifted or found.moved
    assert seen >= 9
