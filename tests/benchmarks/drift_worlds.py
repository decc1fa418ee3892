"""Worlds of which it is known whether they drifted, for the benchmark of drift: the same rows go to every test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pipelines.evaluation import psi

Draw = Callable[[np.random.Generator, int], np.ndarray]


def column(values: np.ndarray) -> pa.ChunkedArray:
    """Return values as a column; NaN is missing."""
    return pa.chunked_array([pa.array(values, from_pandas=True)])


def zipf(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return draws of 1,000 categories by Zipf's law, of exponent 1.1."""
    weights = np.arange(1, 1001) ** -1.1
    return rng.choice(1000, n, p=weights / weights.sum()).astype(str)


def holed(values: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Return the values with some missing."""
    return np.where(rng.random(len(values)) < share, np.nan, values)


# Name -> how it was, how it is now, whether that is drift.
WORLDS: dict[str, tuple[Draw, Draw, bool]] = {
    "normal, unchanged": (lambda r, n: r.normal(size=n), lambda r, n: r.normal(size=n), False),
    "log-normal, unchanged": (lambda r, n: r.lognormal(0, 1, n), lambda r, n: r.lognormal(0, 1, n), False),
    "Pareto, unchanged": (lambda r, n: r.pareto(1.5, n), lambda r, n: r.pareto(1.5, n), False),
    "1,000 Zipf categories, unchanged": (zipf, zipf, False),
    "counts, unchanged": (lambda r, n: r.poisson(1.2, n).astype(float), lambda r, n: r.poisson(1.2, n).astype(float), False),
    "log-normal grows by 2.7": (lambda r, n: r.lognormal(0, 1, n), lambda r, n: r.lognormal(1, 1, n), True),
    "heavy tail, doubled": (lambda r, n: r.pareto(1.5, n), lambda r, n: 2 * r.pareto(1.5, n), True),
    "mean moves by 0.3 sd": (lambda r, n: r.normal(size=n), lambda r, n: r.normal(0.3, 1, n), True),
    "mean moves by 0.5 sd": (lambda r, n: r.normal(size=n), lambda r, n: r.normal(0.5, 1, n), True),
    "mean moves by 0.5 sd, one outlier": (
        lambda r, n: r.normal(size=n),
        lambda r, n: np.append(r.normal(0.5, 1, n - 1), 1e6),
        True,
    ),
    "scale doubles": (lambda r, n: r.normal(size=n), lambda r, n: r.normal(0, 2, n), True),
    "10% missing": (lambda r, n: r.normal(size=n), lambda r, n: holed(r.normal(size=n), r, 0.1), True),
    "80% missing": (lambda r, n: r.normal(size=n), lambda r, n: holed(r.normal(size=n), r, 0.8), True),
    "10% of a new category": (
        lambda r, n: r.choice(["a", "b", "c"], n),
        lambda r, n: np.where(r.random(n) < 0.1, "new", r.choice(["a", "b", "c"], n)),
        True,
    ),
}


def fixed(before: np.ndarray, after: np.ndarray) -> float:
    """Return the textbook PSI: deciles of the reference, no correction (NaN left out, as usual there)."""
    reference = psi.reference(column(before), 10)
    return psi.psi(reference.counted, psi.counts(reference, column(after)), smoothing=1e-4)


def evidently_psi(before: np.ndarray, after: np.ndarray) -> float:
    """Return the PSI of Evidently's own drift metric, as it comes."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    numeric = before.dtype.kind == "f"
    kind = DataDefinition(numerical_columns=["x"]) if numeric else DataDefinition(categorical_columns=["x"])
    now, then = (Dataset.from_pandas(pd.DataFrame({"x": values}), kind) for values in (after, before))
    found = Report([ValueDrift(column="x", method="psi")]).run(now, then).dict()
    return float(found["metrics"][0]["value"])


def table(rows: int, columns: int, seed: int) -> dict[str, np.ndarray]:
    """Return a table like a mart's: a third normal, a third log-normal, a tenth counts, the others categories."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for place in range(columns):
        kind = place % 10
        if kind in {3, 7}:
            found[f"category_{place}"] = rng.integers(0, 40, rows).astype("U2")
        elif kind == 5:
            found[f"count_{place}"] = rng.poisson(3.0, rows).astype(float)
        elif kind % 2:
            found[f"heavy_{place}"] = rng.lognormal(0, 1, rows)
        else:
            found[f"normal_{place}"] = rng.normal(size=rows)
    return found
