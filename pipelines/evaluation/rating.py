"""How far predicted ratings are from given ones, for sources with explicit ratings.

Both return float64 [n_users] over a ragged array (`indptr`); NaN for a user without ratings. The
mean of a user's errors weighs users alike; for the error over all ratings pass one row,
`indptr = [0, n]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating[Any]]


def rmse(indptr: npt.NDArray[np.integer], predicted: Values, given: Values) -> npt.NDArray[np.float64]:
    """Root of the mean squared difference, in units of the rating."""
    return np.sqrt(_mean(indptr, (np.asarray(predicted, dtype=np.float64) - given) ** 2))


def mae(indptr: npt.NDArray[np.integer], predicted: Values, given: Values) -> npt.NDArray[np.float64]:
    """Mean absolute difference, in units of the rating."""
    return _mean(indptr, np.abs(np.asarray(predicted, dtype=np.float64) - given))


def _mean(indptr: npt.NDArray[np.integer], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    n = np.diff(indptr)
    total = np.bincount(np.repeat(np.arange(len(n)), n), values, minlength=len(n))
    mean: npt.NDArray[np.float64] = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
    return mean
