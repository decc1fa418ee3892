"""The feature matrix as a network wants it: every column within about [-2, 2], and a column that says where a value is missing.

    place float32 [n_features, n_knots], level float32 [n_features, n_knots]: of the quantiles
    mean, per_deviation float32 [n_features], 0 where nothing varies; gap int32 [n_gaps], the columns that lacked values

`standard`: (x - mean) / deviation, its logarithm kept beyond 1, so that a price of a million is far and not out of sight.
`quantile`: where the value stands among those learnt from, from -1 to 1, straight between the knots; whatever a
column's unit or tail, its values are spread evenly. A missing value is 0, the middle, and 1 in its own indicator.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats
from pipelines.retrieval.neural.backend import Params

SAMPLE: Final = 200_000  # rows that the statistics are of, a seeded draw
KNOTS: Final = 65


def learn(features: Floats, rng: np.random.Generator) -> Params:
    """Return the statistics of a matrix; NaN and infinity are missing values.

    Args:
        features: float32 [n, n_features]; may be mapped from disk.
    """
    rows = np.sort(rng.choice(len(features), SAMPLE, replace=False)) if len(features) > SAMPLE else slice(None)
    seen = np.where(np.isfinite(features[rows]), features[rows], np.nan).astype(np.float64)
    known = np.isfinite(seen)
    n = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, seen, 0).sum(axis=0) / n
    deviation = np.sqrt((np.where(known, seen - mean, 0) ** 2).sum(axis=0) / n)
    place, level = np.zeros((2, features.shape[1], KNOTS), dtype=np.float32)
    for column in range(features.shape[1]):
        values = seen[known[:, column], column]
        if len(values):
            place[column], level[column] = _knots(values)
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
    return {
        "mean": mean.astype(np.float32),
        "per_deviation": np.where(constant, 0, 1 / np.maximum(deviation, 1e-30)).astype(np.float32),
        "place": place,
        "level": np.where(constant[:, None], np.float32(0), level),
        "gap": np.flatnonzero(~known.all(axis=0)).astype(np.int32),
    }


def _knots(values: npt.NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Return quantiles of some values, ascending, and their levels from -1 to 1; equal quantiles share the mean of their levels."""
    place = np.quantile(values, np.linspace(0, 1, KNOTS), method="inverted_cdf").astype(np.float32)
    _, group = np.unique(place, return_inverse=True)
    levels = np.linspace(-1, 1, KNOTS)
    return place, (np.bincount(group, levels) / np.bincount(group))[group].astype(np.float32)


def width(learnt: Params) -> int:
    """Return how many inputs come of a row."""
    return len(learnt["mean"]) + len(learnt["gap"])


def made(learnt: Params, features: Floats, scaling: str) -> Floats:
    """Return float32 [n, n_inputs]: the features, then an indicator for each column that lacked values.

    Args:
        scaling: `standard` or `quantile`.
    """
    missing = ~np.isfinite(features)
    if scaling == "standard":
        found = (np.where(missing, learnt["mean"], features) - learnt["mean"]) * learnt["per_deviation"]
        found = np.where(np.abs(found) > 1, np.sign(found) * (1 + np.log(np.maximum(np.abs(found), 1))), found)
    else:
        found = np.empty(features.shape, dtype=np.float32)
        for column, (place, level) in enumerate(zip(learnt["place"], learnt["level"], strict=True)):
            found[:, column] = np.interp(features[:, column], place, level)
    found[missing] = 0
    return np.concatenate([found, missing[:, learnt["gap"]]], axis=1, dtype=np.float32)
