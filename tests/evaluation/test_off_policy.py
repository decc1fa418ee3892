"""Promise 30: off-policy figures are honest: they hold the truth as often as they say, or say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.errors import ReloopError
from pipelines.evaluation.off_policy import Valuation, Value, value


def test_the_estimators_on_paper():
    # Shown a, b, a, b by lot; the policy shows a with 3/4. w = 1.5, .5, 1.5, .5; rewards 1, 1, 0, 0, many times over.
    n = 1000
    reward, wanted = np.tile([1.0, 1, 0, 0], n), np.tile([0.75, 0.25, 0.75, 0.25], n)
    found = value(reward, wanted, np.full(4 * n, 0.5), model=(np.full(4 * n, 0.4), np.full(4 * n, 0.4)))
    assert found.ips.value == pytest.approx((1.5 + 0.5) / 4)
    assert found.snips.value == pytest.approx(2.0 / 4.0)
    # DR adds to .4 the mean of w (r - .4): 1.5 and .5 times .6, 1.5 and .5 times -.4, which is .1.
    assert found.dr is not None
    assert found.dr.value == pytest.approx(0.5)
    assert found.effective == pytest.approx(4 * n * 1.0 / 1.25)
    assert found.logged.value == 0.5
    assert found.refused == ()


def log(n: int, seed: int, n_items: int = 20, spread: float = 1.0) -> tuple[dict[str, np.ndarray], float]:
    """Return a log of a softmax policy over items that fit a context of five kinds, what another would show, and its true value."""
    rng = np.random.default_rng(seed)
    fit = np.random.default_rng(99).normal(0, 1, (5, n_items))
    rate = 0.05 + 0.25 / (1 + np.exp(-fit))
    logging, wanted = (np.exp(temper * fit) / np.exp(temper * fit).sum(axis=1, keepdims=True) for temper in (-0.3, spread))
    kind = rng.integers(0, 5, n)
    shown = (rng.random(n)[:, None] > logging[kind].cumsum(axis=1)).sum(axis=1).clip(0, n_items - 1)
    model = 0.8 * rate + 0.02  # wrong, but not by much
    columns = {
        "reward": (rng.random(n) < rate[kind, shown]).astype(float),
        "wanted": wanted[kind, shown],
        "propensity": logging[kind, shown],
        "model_policy": (wanted * model).sum(axis=1)[kind],
        "model_shown": model[kind, shown],
    }
    return columns, float((wanted * rate).sum(axis=1).mean())


def valued(columns: dict[str, np.ndarray]) -> Valuation:
    return value(columns["reward"], columns["wanted"], columns["propensity"], model=(columns["model_policy"], columns["model_shown"]))


def coverage(n_logs: int, n: int) -> dict[str, float]:
    held = {"ips": 0, "snips": 0, "dr": 0}
    for seed in range(n_logs):
        columns, truth = log(n, seed)
        found = valued(columns)
        assert not found.refused
        for name in held:
            one = getattr(found, name)
            held[name] += one.lower <= truth <= one.upper
    return {name: hits / n_logs for name, hits in held.items()}


def test_intervals_hold_the_truth():
    assert min(coverage(150, 6000).values()) >= 0.90


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_promised():
    assert min(coverage(1000, 10_000).values()) >= 0.92


def test_a_model_narrows_and_the_logs_own_mean_is_not_the_answer():
    columns, truth = log(20_000, 1)
    found = valued(columns)
    assert found.dr is not None
    assert found.dr.upper - found.dr.lower < found.ips.upper - found.ips.lower
    assert found.logged.upper < truth


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (np.ones(900), "effective sample size 900 of 900 rows, below 1,000"),
        (np.r_[np.full(2000, 1.0), np.full(300_000, 0.001)], "below 1%"),
        (np.r_[np.full(1, 400.0), np.ones(5000)], "one row carries 7.4% of the weight"),
        (np.zeros(5000), "effective sample size 0"),
        (np.zeros(0), "effective sample size 0 of 0 rows"),
    ],
)
def test_a_log_that_says_nothing_is_refused(weights: np.ndarray, said: str):
    mu = 1 / np.maximum(weights, 1) / 2
    found = value(np.ones(len(weights)), weights * mu, mu)
    assert any(said in reason for reason in found.refused)
    assert np.isnan([found.ips.value, found.snips.lower, found.snips.upper]).all()


def test_cut_weights_do_not_hide_that_a_log_says_nothing():
    """Cut at 1, five thousand rows look alike; a single one of them carries most of what the policy would do."""
    weight = np.r_[np.full(1, 400.0), np.ones(5000)]
    mu = 1 / weight / 2
    found = value(np.ones(5001), np.full(5001, 0.5), mu, clip=1)
    assert found.largest == pytest.approx(400 / 5400)
    assert any("one row carries 7.4% of the weight" in reason for reason in found.refused)
    assert any("effective sample size 177" in reason for reason in found.refused)
    assert np.isnan(found.snips.value)


def test_cutting_weights_is_told():
    weight = np.r_[np.full(1000, 5.5), np.full(9000, 0.5)]
    mu = np.full(10_000, 0.1)
    found = value(np.r_[np.ones(1000), np.zeros(9000)], weight * mu, mu, clip=4)
    assert found.clipped == 0.1
    assert found.refused == ()
    assert found.ips.value == pytest.approx(4 * 1000 / 10_000)  # not .55: cut weights pull towards the logger


def test_rows_of_one_user_are_no_independent_evidence():
    reward = np.repeat(np.random.default_rng(0).random(500) < 0.3, 20).astype(float)
    half = np.full(len(reward), 0.5)
    alone, together = value(reward, half, half), value(reward, half, half, users=np.repeat(np.arange(500), 20))
    width = [one.ips.upper - one.ips.lower for one in (alone, together)]
    assert width[1] / width[0] == pytest.approx(np.sqrt(20), rel=0.02)


@pytest.mark.parametrize(
    "bad", [([np.nan], [0.5], [0.5]), ([1.0], [0.5], [0.0]), ([1.0], [0.5], [np.nan]), ([1.0], [1.5], [0.5]), ([1.0, 1.0], [0.5], [0.5])]
)
def test_a_row_that_is_no_decision_is_an_error(bad: tuple[list[float], list[float], list[float]]):
    with pytest.raises(ReloopError, match="off-policy log"):
        value(*bad)


def bandit(folder: Path, policy: str) -> pd.DataFrame:
    found = pd.read_csv(folder / "open-bandit-men" / policy / "men.csv.gz", index_col=0)
    return found.assign(at=pd.to_datetime(found.timestamp, format="ISO8601")).sort_values("at", kind="stable")


def shares(rows: pd.DataFrame, bts: pd.DataFrame) -> np.ndarray:
    """Return with what probability Bernoulli Thompson sampling shows each row's item at its place: how often it did (it knows no context)."""
    often = bts.groupby(["position", "item_id"]).size() / bts.groupby("position").size()
    return often.reindex(pd.MultiIndex.from_frame(rows[["position", "item_id"]]), fill_value=0).to_numpy()


def overlap(one: Value, other: Value) -> bool:
    return max(one.lower, other.lower) <= min(one.upper, other.upper)


def test_real_logs_tell_what_the_other_policy_earned(real_data: Path):
    """ZOZO's two policies on 34 items at three places, each valued from the other's log and compared with what it did earn."""
    random, bts = bandit(real_data, "random"), bandit(real_data, "bts")
    thompson, lot = (value(rows.click, rows.propensity_score, rows.propensity_score).logged for rows in (bts, random))
    found = value(random.click, shares(random, bts), random.propensity_score)
    assert found.refused == ()
    assert found.mean_weight == pytest.approx(1, abs=0.05)
    assert found.snips.lower <= thompson.value <= found.snips.upper
    assert overlap(found.snips, thompson)

    back = value(bts.click, np.full(len(bts), 1 / 34), bts.propensity_score)
    assert back.refused == ("effective sample size 656 of 10,000 rows, below 1,000",)
    cut = value(bts.click, np.full(len(bts), 1 / 34), bts.propensity_score, clip=20)
    assert cut.refused == back.refused, "cutting weights adds no evidence"
    assert 0 < cut.clipped < 0.01
    assert lot.value > 0


def test_probabilities_that_cannot_be_right_are_refused(real_data: Path):
    """Thompson's probabilities as logged nearest in time are those of items that it chose, so too large: the weights' mean gives it away."""
    random, bts = bandit(real_data, "random"), bandit(real_data, "bts")
    told = bts[["at", "item_id", "position", "propensity_score"]].rename(columns={"propensity_score": "told"})
    nearest = pd.merge_asof(random, told, on="at", by=["item_id", "position"], direction="nearest")
    found = value(nearest.click, nearest.told, nearest.propensity_score)
    assert found.refused == ("the mean weight is 1.27, not 1: the policy's probabilities or the logged ones are not what they claim to be",)
