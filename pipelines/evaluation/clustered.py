"""How sure a change of a mean is, when a user may be measured several times: rows of one user are one cluster.

The change is a ratio of two sums over users: of the differences, over the old values (a relative change) or over the number of
rows (a plain one). Rows of a user go together, because they are no independent evidence: taken for such, five rows a user raised
false promotions from 5% to 9%.

`Change.bound`: from 1,000 users on Student's t with the standard error of a ratio linearised over clusters (Cochran, Sampling
Techniques, 1977, 6.3; cluster-robust). Below: the bias-corrected and accelerated bootstrap over users (BCa; Efron, 1987), whose
acceleration is that of the linearised values. Where a tail holds fewer than `RESOLVED` of the resamples, as late decisions of a
long sequence ask, the wider of BCa and t is taken. t needs no resampling, so that a decision on 20,000 users takes milliseconds.

`Change.p_above`: the sign-flip permutation test. Under the null each user's difference is as likely as its opposite, so the sum of
the differences has a known distribution over all 2^n flips of signs (Fisher, 1935). Its tail is the saddlepoint approximation of
Robinson (JRSS B 44, 1982), with Lugannani and Rice's formula (1980): deterministic, accurate in relative terms where drawing flips would need
millions, and cheap. Up to 16 users all flips are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from pipelines.errors import ReloopError

Doubles: TypeAlias = npt.NDArray[np.float64]

MANY: Final = 1000  # clusters from which the normal theory holds
RESAMPLES: Final = 9999
RESOLVED: Final = 20.0  # resamples in a tail, below which its quantile is not to be trusted
AT_ONCE: Final = 4_000_000  # draws held at once
STEPS: Final = 100  # of Newton's method; four are enough but in the farthest tail
COUNTED: Final = 16  # clusters up to which every flip of signs is counted


@dataclass(frozen=True)
class Change:
    """A change of a mean, as sums over clusters.

    Attributes:
        top: float64 [n_clusters], summed differences; larger is better.
        bottom: float64 [n_clusters], what they are divided by: summed old values, or rows.
        n_rows: rows they were summed over.
    """

    top: Doubles
    bottom: Doubles
    n_rows: int

    @property
    def n(self) -> int:
        """Return the number of clusters."""
        return len(self.top)

    @property
    def value(self) -> float:
        """Return the change; NaN where there is nothing to relate it to."""
        whole = float(self.bottom.sum())
        return float(self.top.sum()) / whole if whole > 0 else float("nan")

    @property
    def influence(self) -> Doubles:
        """Return float64 [n_clusters], what each cluster adds to the change, linearised; they sum to zero."""
        return np.asarray((self.top - self.value * self.bottom) / self.bottom.sum())

    @property
    def error(self) -> float:
        """Return the standard error; NaN for fewer than two clusters."""
        if self.n < 2 or not self.bottom.sum() > 0:
            return float("nan")
        return float(np.sqrt(self.n / (self.n - 1) * (self.influence**2).sum()))

    def bound(self, tail: float, seed: int = 0, resamples: int = RESAMPLES) -> float:
        """Return the value below which the true change lies with probability `tail`: a lower bound for .05, an upper one for .95.

        NaN for fewer than two clusters, or where there is nothing to relate to, so that `not bound > floor` fails closed.

        Raises:
            ReloopError: the probability is not between 0 and 1.
        """
        if not 0 < tail < 1:
            raise ReloopError("tail", found=str(tail), allowed="a number between 0 and 1")
        error = self.error
        if not error >= 0:
            return float("nan")
        influence = self.influence
        spread = float((influence**2).sum() ** 1.5)
        if not spread:  # nothing varies; the caller's minimum of users guards this
            return self.value
        by_t = self.value + float(stats.t.ppf(tail, self.n - 1)) * error
        if self.n >= MANY:
            return by_t
        resampled = self._resampled(seed, resamples, high=tail > 0.5)
        below = float((resampled < self.value).mean() + (resampled == self.value).mean() / 2)
        bias = stats.norm.ppf(np.clip(below, 1 / resamples, 1 - 1 / resamples))
        acceleration = float((influence**3).sum()) / (6 * spread)
        z = bias + stats.norm.ppf(tail)
        adjusted = float(stats.norm.cdf(bias + z / (1 - acceleration * z)))
        by_bca = float(np.quantile(resampled, adjusted, method="inverted_cdf"))
        if min(tail, 1 - tail, adjusted, 1 - adjusted) * resamples >= RESOLVED:
            return by_bca
        return min(by_bca, by_t) if tail < 0.5 else max(by_bca, by_t)

    def _resampled(self, seed: int, resamples: int, *, high: bool) -> Doubles:
        """Return float64 [resamples], the change of users drawn again; a draw of nothing to relate to counts against the claim."""
        rng, size = np.random.default_rng(seed), max(1, AT_ONCE // self.n)
        parts = []
        for done in range(0, resamples, size):
            picked = rng.integers(0, self.n, size=(min(size, resamples - done), self.n))
            top, bottom = self.top[picked].sum(axis=1), self.bottom[picked].sum(axis=1)
            parts.append(np.divide(top, bottom, out=np.full(len(top), np.inf if high else -np.inf), where=bottom > 0))
        return np.concatenate(parts)

    def p_above(self, floor: float) -> float:
        """Return the chance that flipping signs gives at least this change, were the true one `floor`; NaN without clusters."""
        return sign_flip(self.top - floor * self.bottom)


def change(before: npt.ArrayLike, after: npt.ArrayLike, users: npt.NDArray[Any] | None = None, *, relative: bool = True) -> Change:
    """Return the change of a mean from `before` to `after`.

    Args:
        before, after: [n], in one order; a row with NaN in either counts in neither.
        users: [n], whose row it is, of any type that sorts; None: each row is a user of its own.
        relative: to the mean of `before`; where that is zero the change is a plain one.

    Raises:
        ReloopError: the lengths differ, or a value is infinite.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if len(old) != len(new) or (users is not None and len(users) != len(old)):
        raise ReloopError("paired values", found=f"{len(old)} before, {len(new)} after", allowed="one of each for every row")
    if np.isinf(old).any() or np.isinf(new).any():
        raise ReloopError("paired values", found="infinite values", allowed="finite numbers, or NaN")
    known = ~(np.isnan(old) | np.isnan(new))
    old, new = old[known], new[known]
    bottom = old if relative and old.sum() > 0 else np.ones(len(old))
    if users is None:
        return Change(new - old, bottom, len(old))
    _, found = np.unique(users[known], return_inverse=True)
    cluster = found.ravel()
    n = int(cluster.max(initial=-1)) + 1
    top, below = (np.bincount(cluster, values, n).astype(np.float64) for values in (new - old, bottom))
    return Change(top, below, len(old))


def sign_flip(sums: npt.ArrayLike) -> float:
    """Return the chance that the sum of some numbers, each with a sign drawn by lot, is at least their own sum; NaN without any.

    >>> sign_flip([1.0, 2.0, 3.0])  # of 8 flips only that without a minus
    0.125
    """
    values = np.asarray(sums, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        return float("nan")
    size = np.abs(values[values != 0.0])
    if not len(size):
        return 1.0
    size = size / size.max()  # only ratios count; squares of subnormal numbers would vanish
    total = float((values / np.abs(values).max()).sum())
    if len(size) <= COUNTED:
        signs = 1.0 - 2.0 * ((np.arange(1 << len(size))[:, None] >> np.arange(len(size))) & 1)
        return float((signs @ size >= total - 1e-9 * size.sum()).mean())
    if total < 0:
        return 1.0 - _tail(size, -total)
    return _tail(size, total)


def _tail(size: Doubles, total: float) -> float:
    """Return the chance that a sum of numbers with signs drawn by lot exceeds `total` >= 0."""
    normal = float(stats.norm.sf(total / np.sqrt((size**2).sum())))
    reach = float(size.sum())
    if total >= reach * (1 - 1e-9):  # all of one sign
        return float(0.5 ** len(size))

    # The slope of the cumulant is concave, and its tangent at zero gives a point left of the root: Newton's steps never pass it.
    t = total / float((size**2).sum())
    for _ in range(STEPS):
        lean = np.tanh(t * size)
        curve = float((size**2 * (1 - lean**2)).sum())
        step = (total - float(size @ lean)) / curve if curve > 0 else 0.0
        t += step
        if step <= 1e-9 * t:
            break
    x = t * size
    cumulant = float((x + np.log1p(np.exp(-2 * x)) - np.log(2)).sum())  # log cosh
    w = np.sqrt(max(2 * (t * total - cumulant), 0.0))
    u = t * np.sqrt(float((size**2 * (1 - np.tanh(x) ** 2)).sum()))
    if w < 1e-3 or not u > 0:
        return normal
    return float(np.clip(special.ndtr(-w) + np.exp(-(w**2) / 2) / np.sqrt(2 * np.pi) * (1 / u - 1 / w), 0.0, 1.0))
