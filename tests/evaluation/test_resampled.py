"""Intervals of figures that are no mean over users."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation import resampled, spread

LISTS = np.array([[0, 1, 2], [0, 1, -1], [0, -1, -1], [-1, -1, -1]])


def test_the_figures_of_nobody_drawn_twice_are_those_of_spread():
    exposed = resampled.shown(LISTS, 5, 3)
    found = resampled.drawn({"coverage": resampled.coverage(exposed), "gini": resampled.gini(exposed)}, 4, seed=1)
    assert found["coverage"].value == spread.coverage(LISTS, 5, 3)
    assert found["gini"].value == pytest.approx(spread.gini(LISTS, 5, 3))


def test_a_draw_counts_each_user_as_often_as_drawn():
    exposed = resampled.shown(LISTS, 5, 3)
    assert resampled.coverage(exposed)(np.array([[0.0, 2, 2, 0], [0, 0, 0, 4]])).tolist() == [2 / 5, 0.0]
    # exposure 4 and 2 of five items
    assert resampled.gini(exposed)(np.array([[0.0, 2, 2, 0]]))[0] == pytest.approx((2 * 2 + 4 * 4) / (5 * 6))


def test_a_place_may_count_less():
    exposed = resampled.shown(LISTS, 3, 2, np.array([1.0, 0.5]))
    assert np.asarray(exposed.sum(axis=0)).ravel().tolist() == [3.0, 1.0, 0.0]


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(3).normal(1, 2, 400)
    values[:10] = np.nan
    found = resampled.drawn({"mean": resampled.mean(values)}, 400, seed=5, n_draws=4000)["mean"].interval()
    error = np.nanstd(values, ddof=1) / np.sqrt(390)
    assert found["value"] == pytest.approx(np.nanmean(values))
    assert (found["upper"] - found["lower"]) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_a_difference_is_paired():
    """Users differ by much, the two sides by little: drawn alike, the little is seen."""
    rng = np.random.default_rng(3)
    before = rng.normal(0, 100, 500)
    found = resampled.drawn({"a": resampled.mean(before), "b": resampled.mean(before + rng.normal(1, 0.1, 500))}, 500, seed=5)
    difference = found["b"].minus(found["a"])
    assert 0.9 < difference["lower"] < difference["value"] < difference["upper"] < 1.1
    alone = found["a"].interval()
    assert alone["upper"] - alone["lower"] > 10


def test_the_same_seed_gives_the_same_draws_in_blocks_of_any_size(monkeypatch):
    values = {"mean": resampled.mean(np.arange(50.0))}
    whole = resampled.drawn(values, 50, seed=2, n_draws=20)["mean"].draws
    monkeypatch.setattr(resampled, "AT_ONCE", 150)
    assert resampled.drawn(values, 50, seed=2, n_draws=20)["mean"].draws.tolist() == whole.tolist()


def test_what_cannot_be_measured_is_none():
    assert resampled.drawn({"mean": resampled.mean(np.zeros(0))}, 0, seed=2)["mean"].interval() == {
        "value": None,
        "lower": None,
        "upper": None,
        "n": 0,
    }
    nobody = resampled.drawn({"ratio": resampled.ratio(np.ones(3), np.zeros(3))}, 3, seed=2)["ratio"].interval()
    assert nobody["value"] is None
    one = resampled.drawn({"mean": resampled.mean(np.ones(1))}, 1, seed=2)["mean"].interval()
    assert (one["value"], one["lower"]) == (1.0, None)
