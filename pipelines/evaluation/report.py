"""Per-user numbers become a table: each mean with its interval and how many users it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.evaluation import paired
from pipelines.evaluation.paired import Differences
from pipelines.evaluation.slices import Mask


def summary(
    per_user: Mapping[str, Differences], *, slices: Mapping[str, Mask] | None = None, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Return {metric: {mean, lower, upper, n, unmeasured}}, and the same per slice under "slices"; JSON values.

    What cannot be measured is None, never zero: a mean without users, a bound with fewer than two.

    Args:
        per_user: metric -> [n_users], NaN where unmeasured.
        slices: name -> bool [n_users].
    """
    table: dict[str, Any] = {name: _row(values, confidence, seed) for name, values in per_user.items()}
    if slices is not None:
        table["slices"] = {
            name: {metric: _row(values[mask], confidence, seed) for metric, values in per_user.items()} for name, mask in slices.items()
        }
    return table


def _row(values: Differences, confidence: float, seed: int) -> dict[str, float | int | None]:
    found = paired.interval(values, confidence, seed)
    numbers = {"mean": found.mean, "lower": found.lower, "upper": found.upper}
    return {
        **{name: float(number) if np.isfinite(number) else None for name, number in numbers.items()},
        "n": found.n,
        "unmeasured": len(values) - found.n,
    }
