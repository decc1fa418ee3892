"""How sure a mean difference is, when both sides were measured on the same users.

From 1,000 users on: Student's t on the per-user differences. Below: the bias-corrected and
accelerated bootstrap (BCa; Efron, 1987), because most users' differences are zero and the rest skew.
An unpaired test of the two means has no power here: users differ far more than models do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipelines.errors import ReloopError

Differences: TypeAlias = npt.NDArray[np.floating[Any]]

MANY: Final = 1000  # users from which the normal theory holds
RESAMPLES: Final = 9999
BATCH: Final = 4_000_000  # draws held at once


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence interval.

    Attributes:
        mean, lower, upper, standard_error: NaN where too few users were measured to say.
        n: measured users.
    """

    mean: float
    lower: float
    upper: float
    n: int
    standard_error: float


def interval(differences: Differences, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean of per-user values or differences with its two-sided interval.

    Args:
        differences: one a user; NaN where the user was not measured.
        seed: of the bootstrap; the same values, seed and confidence give the same bounds.

    Raises:
        ReloopError: a value is infinite, or the confidence is not between 0 and 1.
    """
    measured, tail = _checked(differences, confidence), (1 - confidence) / 2
    if not len(measured):
        return Interval(np.nan, np.nan, np.nan, 0, np.nan)
    lower, upper = _bounds(measured, [tail, 1 - tail], seed)
    error = float(measured.std(ddof=1) / np.sqrt(len(measured))) if len(measured) > 1 else np.nan
    return Interval(float(measured.mean()), lower, upper, len(measured), error)


def lower_bound(differences: Differences, confidence: float, seed: int) -> float:
    """Return the value that the true mean difference exceeds with this confidence (one-sided).

    NaN for fewer than two measured users, so that `not lower > floor` fails closed.

    Raises:
        ReloopError: as `interval`.
    """
    return _bounds(_checked(differences, confidence), [1 - confidence], seed)[0]


def _checked(differences: Differences, confidence: float) -> npt.NDArray[np.float64]:
    if not 0 < confidence < 1:
        raise ReloopError("confidence", found=str(confidence), allowed="a number between 0 and 1")
    values = np.asarray(differences, dtype=np.float64)
    if np.isinf(values).any():
        raise ReloopError("paired differences", found=f"{int(np.isinf(values).sum())} infinite values", allowed="finite numbers, or NaN")
    return values[~np.isnan(values)]


def _bounds(values: npt.NDArray[np.float64], quantiles: list[float], seed: int) -> list[float]:
    """Return the bounds below which the true mean lies with the given probabilities."""
    n = len(values)
    if n < 2:
        return [float("nan")] * len(quantiles)
    if n >= MANY:
        error = values.std(ddof=1) / np.sqrt(n)
        return [float(values.mean() + stats.t.ppf(q, n - 1) * error) for q in quantiles]
    centred = values - values.mean()
    spread = float((centred**2).sum() ** 1.5)
    if values.min() == values.max() or not spread:  # subnormal differences have none either
        return [float(values.min())] * len(quantiles)  # nothing to resample; the caller's minimum of users guards this

    rng = np.random.default_rng(seed)
    sizes = [min(BATCH // n, RESAMPLES - done) for done in range(0, RESAMPLES, BATCH // n)]
    resampled = np.concatenate([values[rng.integers(0, n, size=(size, n))].mean(axis=1) for size in sizes])
    below = (resampled < values.mean()).mean() + (resampled == values.mean()).mean() / 2
    bias = stats.norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    # For a mean the jackknife has a closed form: its skewness is that of the values.
    acceleration = (centred**3).sum() / (6 * spread)
    z = bias + stats.norm.ppf(quantiles)
    adjusted = stats.norm.cdf(bias + z / (1 - acceleration * z))
    return [float(bound) for bound in np.quantile(resampled, adjusted)]
