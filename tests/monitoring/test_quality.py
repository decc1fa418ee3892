"""A fall of the champion on paper, and measured on the simulated shop."""

from __future__ import annotations

import numpy as np
import pytest
from trained_shop import FIRST, SECOND

from pipelines import cycle
from pipelines.config import Home
from pipelines.decision_policies import TriagePolicy
from pipelines.monitoring import quality
from pipelines.monitoring.quality import Measured, compare
from pipelines.registry import promotion


def measured(users: list[str], known: object, popular: object) -> Measured:
    known, popular = np.asarray(known, float), np.asarray(popular, float)
    return Measured(np.array(users), known, known, popular)


def test_the_lead_on_paper() -> None:
    """Leads 0.2, 0.4 then 0.1, 0.1 of other users: down by 0.2, the variances of both add up."""
    found = compare(measured(["a", "b"], [0.4, 0.5], [0.2, 0.1]), measured(["c", "d"], [0.3, 0.4], [0.2, 0.3]), 0.975)
    assert (found.before, found.now) == (pytest.approx(0.45), pytest.approx(0.35))
    assert found.difference == pytest.approx(-0.2)
    assert found.upper == pytest.approx(-0.2 + 1.959964 * np.sqrt(0.02 / 2))
    assert found.users_in_both == 0


def test_users_of_both_windows_are_paired() -> None:
    """The same users with leads that differ widely, each down by 0.05: apart nothing is sure, together all is."""
    rng = np.random.default_rng(1)
    before = rng.uniform(0.2, 0.9, 300)
    now = before - 0.05 + rng.normal(0, 0.01, 300)
    same, other = [f"u{i}" for i in range(300)], [f"w{i}" for i in range(300)]
    apart = compare(measured(same, before, before * 0), measured(other, now, now * 0), 0.99999999)
    together = compare(measured(same, before, before * 0), measured(same, now, now * 0), 0.99999999)
    assert apart.upper > 0 > together.upper


def test_a_week_that_is_hard_for_everyone_is_no_fall_and_one_that_popularity_weathers_is() -> None:
    rng, users = np.random.default_rng(2), [f"u{i}" for i in range(900)]
    before, rival = rng.uniform(0.2, 0.6, 900), rng.uniform(0.0, 0.2, 900)
    quiet = compare(measured(users, before, rival), measured(users, before - 0.1, rival - 0.1), 0.99)
    turned = compare(measured(users, before, rival), measured(users, before - 0.1, rival), 0.99)
    assert not quiet.fell(TriagePolicy())
    assert turned.fell(TriagePolicy())


def test_false_falls_are_as_rare_as_promised() -> None:
    """400 pairs of weeks of one world, 60% of the users in both: at 99% four falls are expected; ten would be chance of one in a hundred."""
    rng, falls = np.random.default_rng(3), 0
    anything = TriagePolicy(min_quality_fall=1e-9)
    for _ in range(400):
        own = rng.beta(1, 3, 700)
        first, second = np.arange(500), np.arange(200, 700)
        weeks = []
        for rows in (first, second):
            known = np.clip(own[rows] + rng.normal(0, 0.2, 500), 0, 1)
            weeks.append(measured([f"u{i:03d}" for i in rows], known, rng.beta(1, 6, 500)))
        falls += compare(*weeks, 0.99).fell(anything)
    assert falls <= 10


def test_nobody_in_a_window_is_unmeasured_and_no_fall() -> None:
    found = compare(measured(["a"], [0.5], [0.1]), measured(["b", "c"], [np.nan, np.nan], [np.nan, np.nan]), 0.99)
    assert not np.isfinite(found.difference)
    assert not found.fell(TriagePolicy())
    assert "not comparable yet" in found.says()


def test_the_champion_is_measured_on_the_window_after_it_and_keeps_its_users(fresh: Home) -> None:
    assert quality.check(fresh, FIRST) is None
    promotion.decide(fresh, FIRST)
    assert quality.check(fresh, FIRST) is None  # it was judged on this very window
    found = quality.check(fresh, SECOND)
    assert found is not None
    assert not found.fell(TriagePolicy())
    assert min(found.users, found.users_before) > 300 < found.users_in_both + 100
    record = cycle.records(fresh, SECOND, "quality")[0]
    assert record["champion"]["lower"] < record["champion"]["ndcg_at_10"] < record["champion"]["upper"]
    assert record["popular"]["ndcg_at_10"] < record["known"]["ndcg_at_10"]
    files = {file: file.read_bytes() for file in (fresh.reports / "quality").rglob("*.*") if file.is_file()}
    assert len(files) == 4  # two windows, two days
    quality.check(fresh, SECOND)
    assert {file: file.read_bytes() for file in files} == files
