"""How far two samples lie apart, told in other ways than PSI: for people to read beside it, never to decide by.

All are of counts in the same frozen bins (`psi.Reference`), the last bin missing values, so that one
pass over the data serves them all. A distance over ordered values sees them through the bins: KS is
the largest gap at an edge, which is at most the true one, and Wasserstein counts what moves between
the outer edges. NaN where either sample is empty, or a distance needs an order and there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.spatial import distance

from pipelines.evaluation.psi import Counts, Reference, occupied

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distances:
    """What a change looks like in the usual measures.

    Attributes:
        kl: Kullback-Leibler divergence of now from the reference, nats.
        jensen_shannon: distance in [0, 1], the square root of the divergence in bits.
        wasserstein: mean way a value moved, in units of the span between the outer edges; numbers only.
        total_variation: share of rows that would have to change their bin.
        chi_square_p: chance of a difference this large under no change.
        ks, ks_p: largest gap between the cumulative shares, and its chance; numbers only.
    """

    kl: float
    jensen_shannon: float
    wasserstein: float
    total_variation: float
    chi_square_p: float
    ks: float
    ks_p: float


def between(reference: Reference, now: Counts, *, smoothing: float = 0.5, effect: float = 1.0) -> Distances:
    """Return every distance between a reference and a sample counted in its bins.

    Args:
        effect: design effect of `now`; p-values go by the rows that the samples are worth.
    """
    before, after = reference.counted, np.asarray(now)
    n, m = before.sum() / reference.design_effect, after.sum() / effect
    if not (n > 0 and m > 0):
        return Distances(*[float("nan")] * 7)
    p, q = _shares(before, smoothing), _shares(after, smoothing)
    gap, gap_p, way = _ordered(reference, before, after, n * m / (n + m))
    return Distances(
        kl=float(stats.entropy(q, p)),
        jensen_shannon=float(distance.jensenshannon(p, q, base=2)),
        wasserstein=way,
        total_variation=float(np.abs(before / before.sum() - after / after.sum()).sum() / 2),
        chi_square_p=_chi_square(before / reference.design_effect, after / effect),
        ks=gap,
        ks_p=gap_p,
    )


def _shares(counts: Counts, smoothing: float) -> Shares:
    return np.asarray((counts + smoothing) / (counts.sum() + smoothing * len(counts)))


def _chi_square(before: Shares, after: Shares) -> float:
    there = occupied(before, after)
    if len(there[0]) < 2:
        return 1.0
    return float(stats.chi2_contingency(np.vstack(there), correction=False).pvalue)


def _ordered(reference: Reference, before: Counts, after: Counts, worth: float) -> tuple[float, float, float]:
    """Return KS, its p-value and Wasserstein of the values that are not missing."""
    edges = np.asarray(reference.edges)
    if reference.kind != "numeric" or not (before[:-1].sum() > 0 and after[:-1].sum() > 0):
        return float("nan"), float("nan"), float("nan")
    below = [np.cumsum(counts[:-1])[:-1] / counts[:-1].sum() for counts in (before, after)]
    gaps = np.abs(below[0] - below[1])
    largest, span = float(gaps.max(initial=0.0)), float(edges[-1] - edges[0])
    way = float(np.sum((gaps[:-1] + gaps[1:]) / 2 * np.diff(edges)) / span) if span > 0 else 0.0
    return largest, float(stats.kstwobign.sf(np.sqrt(worth) * largest)), way


def holm(p_values: dict[str, float], asked: int | None = None) -> dict[str, float]:
    """Return p-values adjusted for their number (Holm 1979, Scand. J. Stat. 6): one below the rate holds for all together; NaN stays.

    Args:
        asked: how many there are; those that are numbers when None. One that is NaN and counted is taken for the least likely.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    known = sorted((p, name) for name, p in p_values.items() if p == p)  # noqa: PLR0124 - NaN alone differs from itself
    adjusted, running = dict(p_values), 0.0
    for place, (p, name) in enumerate(known):
        running = max(running, min(1.0, p * ((len(known) if asked is None else asked) - place)))
        adjusted[name] = running
    return adjusted
