"""From scores to probabilities, and how far these can be believed.

A calibration is fitted on rows of a later window than the scores were learnt on, and judged on a window
later still. Rows may stand for several (`weight`): candidates that were drawn by lot must, or
probabilities come out too high by the share that was left out.

Measures: Brier, "Verification of forecasts expressed in terms of probability" (1950); expected
calibration error over bins of equal mass, Naeini, Cooper and Hauskrecht, "Obtaining well calibrated
probabilities using Bayesian binning" (AAAI 2015).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from pipelines import publish
from pipelines.errors import StateError
from pipelines.ranking.logistic import Block, newton, sigmoid

Doubles = npt.NDArray[np.float64]
Method = Literal["isotonic", "platt"]
N_BINS: Final = 15
Z: Final = 1.959964  # two-sided 95%


@dataclass(frozen=True)
class Calibration:
    """A map from scores to probabilities that never falls.

    Attributes:
        method: `isotonic` or `platt`.
        x, y: of `isotonic` the knots, ascending, with straight lines between and level ends; of `platt` x is
            (slope, intercept) on the log odds and y is empty.
        n, n_positive: rows it was fitted on, and those that were positive, by weight.
    """

    method: Method
    x: tuple[float, ...]
    y: tuple[float, ...]
    n: float
    n_positive: float

    def probability(self, score: Doubles) -> Doubles:
        """Return float64 [n] in (0, 1)."""
        if self.method == "platt":
            return sigmoid(self.x[0] * score + self.x[1])
        return np.interp(score, self.x, self.y)

    def to_json(self) -> bytes:
        """Return it as canonical JSON; floats keep every bit."""
        return publish.to_json(asdict(self)).encode()

    @classmethod
    def of_json(cls, content: bytes) -> Calibration:
        """Return what `to_json` wrote.

        Raises:
            StateError: it is something else, or a map that falls.
        """
        try:
            said: dict[str, Any] = json.loads(content)
            found = cls(
                said["method"], tuple(map(float, said["x"])), tuple(map(float, said["y"])), float(said["n"]), float(said["n_positive"])
            )
            shaped = len(found.y) == len(found.x) >= 1 if found.method == "isotonic" else found.method == "platt" and len(found.x) == 2
        except (KeyError, TypeError, ValueError) as error:
            raise StateError("calibration", found=f"{type(error).__name__}: {error}", allowed="a saved calibration") from error
        rises = (np.diff(found.x) > 0).all() and (np.diff(found.y) >= 0).all() if found.method == "isotonic" else shaped and found.x[0] >= 0
        if not (shaped and np.isfinite([*found.x, *found.y]).all() and rises):
            raise StateError("calibration", found="knots out of order", allowed="a map that never falls", hint="run the rank stage again")
        return found


def fit(method: Method, score: Doubles, outcome: npt.NDArray[np.bool_], weight: npt.ArrayLike | None = None) -> Calibration | None:
    """Return the calibration of some scores; None where all outcomes are alike, which tells nothing.

    Isotonic: the best map that never falls, by squared error (Zadrozny and Elkan, KDD 2002); its ends are held
    off 0 and 1 by what one more row could say. Platt: a logistic curve through targets that are held off
    likewise (Platt 1999); a score that tells the wrong way round gets the same probability everywhere.

    Args:
        score: float64 [n].
        outcome: bool [n].
        weight: [n]; None: each row stands for itself.
    """
    mass = np.ones(len(score)) if weight is None else np.asarray(weight, np.float64)
    positive, total = float(mass[outcome].sum()), float(mass.sum())
    if not 0 < positive < total:
        return None
    if method == "platt":
        target = np.where(outcome, (positive + 1) / (positive + 2), 1 / (total - positive + 2))
        center, spread = float(np.average(score, weights=mass)), float(score.std()) or 1.0

        def read() -> Iterator[Block]:
            yield ((score - center) / spread)[:, None], target, mass

        slope, intercept = (float(value) for value in newton(read, 1, 0.0))
        if slope <= 0:
            slope, intercept = 0.0, float(np.log(positive / (total - positive)))
        return Calibration("platt", (slope / spread, intercept - slope / spread * center), (), total, positive)
    distinct, place = np.unique(score, return_inverse=True)
    of_score = np.bincount(place, weights=mass)
    rate = np.bincount(place, weights=mass * outcome) / of_score
    level = np.asarray(isotonic_regression(rate, weights=of_score).x)
    level = np.clip(level, 1 / (total + 2), 1 - 1 / (total + 2))
    # The first and the last score of each step are knots; those between them say nothing more.
    ends = np.concatenate([[True], np.diff(level) > 0]) | np.concatenate([np.diff(level) > 0, [True]])
    return Calibration("isotonic", tuple(map(float, distinct[ends])), tuple(map(float, level[ends])), total, positive)


def reliability(
    probability: Doubles, outcome: npt.NDArray[np.bool_], weight: npt.ArrayLike | None = None, n_bins: int = N_BINS
) -> dict[str, Any]:
    """Return how well probabilities agree with what happened.

    Returns:
        n, n_positive: by weight.
        brier: mean squared difference, 0 is perfect; brier_of_mean: that of telling everyone the same, true share.
        log_loss: mean -log of the probability of what happened, in nats.
        ece: mean difference between what a bin was promised and what it got, by mass, in [0, 1].
        bins: of about equal mass, equal probabilities never parted: {n, from, to, promised, happened, lower, upper}, the last two the Wilson
            interval of 95% (it takes weights for counts).
        None for what cannot be told without rows.
    """
    mass = np.ones(len(probability)) if weight is None else np.asarray(weight, np.float64)
    total, met = float(mass.sum()), outcome.astype(np.float64)
    if not total > 0:
        return {"n": 0.0, "n_positive": 0.0, "brier": None, "brier_of_mean": None, "log_loss": None, "ece": None, "bins": []}
    share = float(mass @ met) / total
    clipped = np.clip(probability, 1e-15, 1 - 1e-15)
    _, place = np.unique(probability, return_inverse=True)
    of_value = np.bincount(place, weights=mass)
    middle = np.cumsum(of_value) - of_value / 2
    bin_of = np.minimum((middle / total * n_bins).astype(np.int64), n_bins - 1)[place]
    bins = []
    for number in np.unique(bin_of):
        rows = bin_of == number
        n = float(mass[rows].sum())
        promised, happened = float(mass[rows] @ probability[rows]) / n, float(mass[rows] @ met[rows]) / n
        lower, upper = wilson(happened, n)
        of_bin = {"from": float(probability[rows].min()), "to": float(probability[rows].max())}
        bins.append({"n": n, **of_bin, "promised": promised, "happened": happened, "lower": lower, "upper": upper})
    return {
        "n": total,
        "n_positive": float(mass @ met),
        "brier": float(mass @ (probability - met) ** 2) / total,
        "brier_of_mean": share * (1 - share),
        "log_loss": float(-mass @ np.log(np.where(outcome, clipped, 1 - clipped))) / total,
        "ece": sum(one["n"] * abs(one["promised"] - one["happened"]) for one in bins) / total,
        "bins": bins,
    }


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the interval of 95% for a share of n (Wilson 1927)."""
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * float(np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)))
    return max(middle - reach, 0.0), min(middle + reach, 1.0)
