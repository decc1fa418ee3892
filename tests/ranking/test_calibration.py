"""Calibration on paper, in a world whose probabilities are known, and as it is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from pipelines.errors import StateError
from pipelines.ranking import calibration, rankers, reliability_plot
from pipelines.ranking.calibration import Calibration
from pipelines.ranking.protocol import Probable, RankingRows


def told(n=20_000, seed=1, slope=0.5, shift=-2.0):
    """Return scores and outcomes whose log odds are slope x score + shift."""
    rng = np.random.default_rng(seed)
    score = rng.normal(0, 2, n)
    truth = 1 / (1 + np.exp(-(slope * score + shift)))
    return score, rng.random(n) < truth, truth


def test_reliability_on_paper():
    """Four rows promised .2 of which one is taken, two promised .8 of which both are.

    Brier (3 x .04 + .64 + 2 x .04) / 6 = .14; ECE (4 x |.2 - .25| + 2 x |.8 - 1|) / 6 = .1; taken 3 of 6, so telling everyone .5 scores .25.
    """
    found = calibration.reliability(np.array([0.2, 0.2, 0.2, 0.2, 0.8, 0.8]), np.array([False, False, False, True, True, True]), n_bins=2)
    assert found["brier"] == pytest.approx(0.14)
    assert found["ece"] == pytest.approx(0.1)
    assert found["brier_of_mean"] == pytest.approx(0.25)
    assert [(one["n"], one["promised"], one["happened"]) for one in found["bins"]] == [
        (4, pytest.approx(0.2), 0.25),
        (2, pytest.approx(0.8), 1.0),
    ]
    assert found["log_loss"] == pytest.approx(-(3 * np.log(0.8) + np.log(0.2) + 2 * np.log(0.8)) / 6)


def test_the_wilson_interval_is_that_of_the_books():
    """10 of 100: [.0552, .1744] (Newcombe 1998, method 3)."""
    assert calibration.wilson(0.1, 100) == (pytest.approx(0.0552, abs=1e-4), pytest.approx(0.1744, abs=1e-4))
    assert calibration.wilson(0.0, 20)[0] == 0
    assert calibration.wilson(1.0, 20)[1] == 1


def test_a_row_of_weight_three_counts_as_three_rows():
    score, outcome, _ = told(500)
    weight = np.random.default_rng(4).integers(1, 4, 500)
    for method in ("isotonic", "platt"):
        weighed, repeated = (
            calibration.fit(method, *rows) for rows in ((score, outcome, weight), (score.repeat(weight), outcome.repeat(weight)))
        )
        np.testing.assert_allclose(weighed.probability(score), repeated.probability(score), atol=1e-6)
    ours = calibration.reliability(np.round(score), outcome, weight)
    theirs = calibration.reliability(np.round(score).repeat(weight), outcome.repeat(weight))
    assert {name: ours[name] for name in ("brier", "ece", "n")} == pytest.approx({name: theirs[name] for name in ("brier", "ece", "n")})


def test_isotonic_is_the_best_map_that_never_falls():
    score, outcome, _ = told(3000)
    peer = IsotonicRegression(out_of_bounds="clip").fit(score, outcome)
    found = calibration.fit("isotonic", score, outcome)
    asked = np.linspace(-8, 8, 400)
    np.testing.assert_allclose(found.probability(asked), peer.predict(asked), atol=1e-3)  # ours stays off 0 and 1
    assert (np.diff(found.probability(asked)) >= 0).all()
    assert 0 < found.probability(np.array([-1e9]))[0] < found.probability(np.array([1e9]))[0] < 1


def test_platt_is_a_logistic_curve_through_smoothed_targets():
    """With so many rows the targets are almost 0 and 1, and the curve that of any logistic regression."""
    score, outcome, _ = told()
    peer = LogisticRegression(C=np.inf, tol=1e-8).fit(score[:, None], outcome)
    found = calibration.fit("platt", score, outcome)
    assert found.x == (pytest.approx(peer.coef_[0, 0], abs=1e-3), pytest.approx(peer.intercept_[0], abs=1e-3))


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_promises_of_a_calibration_are_kept_on_rows_it_never_saw(method):
    score, outcome, _ = told(seed=1)
    later, happened, truth = told(seed=2)
    raw = calibration.reliability(1 / (1 + np.exp(-later)), happened)
    found = calibration.reliability(calibration.fit(method, score, outcome).probability(later), happened)
    assert raw["ece"] > 0.2
    assert found["ece"] < 0.02
    assert found["brier"] < raw["brier"] - 0.05
    assert found["brier"] == pytest.approx(float(np.mean((truth - happened) ** 2)), abs=0.002), "as good as knowing the truth"


def test_a_score_that_tells_the_wrong_way_round_gets_one_probability():
    score, outcome, _ = told()
    for method in ("isotonic", "platt"):
        found = calibration.fit(method, -score, outcome).probability(score)
        assert found.max() - found.min() < 0.02
        assert found.mean() == pytest.approx(outcome.mean(), abs=0.02)


def test_outcomes_all_alike_calibrate_nothing():
    assert calibration.fit("isotonic", np.arange(5.0), np.zeros(5, bool)) is None
    assert calibration.fit("platt", np.arange(5.0), np.ones(5, bool)) is None
    assert calibration.fit("platt", np.zeros(0), np.zeros(0, bool)) is None
    assert calibration.reliability(np.zeros(0), np.zeros(0, bool))["ece"] is None


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_kept_as_json_it_promises_the_same_to_the_last_bit(method):
    score, outcome, _ = told(2000)
    found = calibration.fit(method, score, outcome)
    assert Calibration.of_json(found.to_json()) == found
    assert np.array_equal(Calibration.of_json(found.to_json()).probability(score), found.probability(score))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"method": "isotonic", "x": [0, 1], "y": [0.5, 0.1], "n": 2, "n_positive": 1}',
        b'{"method": "isotonic", "x": [1, 0], "y": [0.1, 0.5], "n": 2, "n_positive": 1}',
        b'{"method": "isotonic", "x": [], "y": [], "n": 2, "n_positive": 1}',
        b'{"method": "platt", "x": [-1, 0], "y": [], "n": 2, "n_positive": 1}',
        b'{"method": "platt", "x": [NaN, 0], "y": [], "n": 2, "n_positive": 1}',
        b'{"method": "guess", "x": [1, 0], "y": [], "n": 2, "n_positive": 1}',
    ],
)
def test_a_map_that_falls_or_is_none_is_refused(content):
    with pytest.raises(StateError, match="calibration"):
        Calibration.of_json(content)


def rows(seed=1, n_windows=2, kept=1.0, n_lists=600):
    """Return lists of 20 in which candidates are taken by chance, more likely with the feature; ignored ones are kept by lot."""
    rng = np.random.default_rng(seed)
    feature = rng.random((n_lists, 20))
    taken = rng.random((n_lists, 20)) < 0.3 * feature**2
    there = taken | (rng.random((n_lists, 20)) < kept)
    group = there.sum(axis=1).astype(np.int32)
    return RankingRows(
        feature[there][:, None].astype(np.float32),
        ("feature",),
        taken[there].astype(np.float32),
        group,
        (np.arange(n_lists) * n_windows // n_lists).astype(np.int32),
        weight=np.where(taken[there], 1, 1 / kept).astype(np.float32),
    )


@pytest.mark.parametrize("method", ["off", "isotonic", "platt"])
def test_a_pointwise_ranker_promises_what_then_happens(method):
    fitted = rankers.make("pointwise", {"calibration": method, "num_threads": 1, "n_rounds": 40}).fit(rows())
    later = rows(seed=2)
    assert isinstance(fitted, Probable)
    assert fitted.told() == ""
    probability = fitted.probability(later.features)
    found = calibration.reliability(probability, later.gain > 0)
    assert found["ece"] < 0.02
    assert found["brier"] < found["brier_of_mean"]
    score = fitted.score(later.features)
    assert (np.diff(probability[np.argsort(score)]) >= 0).all(), "calibrating turns no order round"


def test_ignored_candidates_that_were_left_out_do_not_inflate_probabilities():
    """A tenth of the ignored ones is kept: without their weights, what is taken once in ten looks as likely as not."""
    later = rows(seed=2)
    fair, inflated = (
        rankers.make("pointwise", {"weighted": weighted, "num_threads": 1, "n_rounds": 40}).fit(rows(kept=0.1, n_lists=2000))
        for weighted in (True, False)
    )
    assert fair.probability(later.features).mean() == pytest.approx(float(later.gain.mean()), abs=0.02)
    assert inflated.probability(later.features).mean() > 3 * later.gain.mean()


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_a_calibration_repairs_the_promises_of_trees_that_learnt_too_little(method):
    few = {"num_threads": 1, "n_rounds": 5}
    later = rows(seed=2)
    timid, repaired = (
        calibration.reliability(
            rankers.make("pointwise", few | {"calibration": how}).fit(rows()).probability(later.features), later.gain > 0
        )
        for how in ("off", method)
    )
    assert timid["ece"] > 0.05
    assert repaired["ece"] < 0.7 * timid["ece"]


def test_without_a_held_out_window_a_calibration_that_was_asked_for_cannot_be_told():
    knobs = {"num_threads": 1, "n_rounds": 5, "calibration": "platt"}
    fitted = rankers.make("pointwise", knobs).fit(rows(n_windows=1))
    assert fitted.told() is None
    with pytest.raises(StateError, match="no calibration"):
        fitted.probability(np.zeros((1, 1), np.float32))
    assert rankers.make("pointwise", knobs).fit(rows(n_windows=2)).told() == ""


def test_an_outcome_by_name_is_told_instead_of_any_gain():
    world = rows()
    bought = world.features[:, 0] > 0.95
    told_of = replace(world, outcomes={"purchase": bought.astype(np.float32)})
    fitted = rankers.make("pointwise", {"outcome": "purchase", "num_threads": 1, "n_rounds": 20}).fit(told_of)
    assert fitted.told() == "purchase"
    assert np.diff(fitted.probability(np.array([[0.5], [0.99]], np.float32)))[0] > 0.5
    with pytest.raises(StateError, match=r"no outcome 'return'; expected one of \['purchase'\]"):
        rankers.make("pointwise", {"outcome": "return"}).fit(told_of)


def test_the_plot_is_an_svg_that_says_how_far_off_promises_are_and_stays_the_same():
    score, outcome, _ = told(2000)
    found = calibration.reliability(1 / (1 + np.exp(-score)), outcome)
    drawn = reliability_plot.svg(found, "pointwise")
    assert drawn == reliability_plot.svg(found, "pointwise")
    assert f"ECE {found['ece']:.4f}" in drawn
    assert reliability_plot.svg(calibration.reliability(np.zeros(0), np.zeros(0, bool)), "nobody").count("nothing to compare") == 1
