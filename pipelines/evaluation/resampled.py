"""How sure a figure is that is no mean over users: exposure, concentration, a ratio of means. Users are drawn again with replacement.

The standard error is that of the figure over the draws (bootstrap; Efron, 1979), the interval is normal about the figure itself:
the draws' own quantiles would be biased for coverage and concentration, which see fewer different users in each draw. Figures of
two lists for the same users are drawn alike, so their difference is paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

Doubles: TypeAlias = npt.NDArray[np.float64]
Figure: TypeAlias = Callable[[Doubles], Doubles]  # float64 [b, n_users], how often each user was drawn -> float64 [b]

DRAWS: Final = 200
AT_ONCE: Final = 4_000_000  # draws x users held at once


@dataclass(frozen=True)
class Drawn:
    """A figure, and what it is in each draw.

    Attributes:
        value: of the users as they are; NaN where it cannot be measured.
        draws: float64 [n_draws].
        n: users.
    """

    value: float
    draws: Doubles
    n: int

    def interval(self, confidence: float = 0.95) -> dict[str, float | int | None]:
        """Return {value, lower, upper, n}; None for what was not measured."""
        return {**_told(self.value, self.draws, self.n, confidence), "n": self.n}

    def minus(self, before: Drawn, confidence: float = 0.95) -> dict[str, float | None]:
        """Return {value, lower, upper} of the difference to a figure of the same users and seed."""
        return _told(self.value - before.value, self.draws - before.draws, self.n, confidence)


def _told(value: float, draws: Doubles, n: int, confidence: float) -> dict[str, float | None]:
    usable = draws[np.isfinite(draws)]
    enough = n > 1 and len(usable) > len(draws) / 2
    reach = float(stats.norm.ppf((1 + confidence) / 2) * usable.std(ddof=1)) if enough else np.nan
    told = {"value": value, "lower": value - reach, "upper": value + reach}
    return {name: float(number) if np.isfinite(number) else None for name, number in told.items()}


def drawn(figures: Mapping[str, Figure], n_users: int, seed: int, n_draws: int = DRAWS) -> dict[str, Drawn]:
    """Return some figures with their draws; the same users, seed and number of draws give the same draws of users."""
    once = np.ones((1, n_users))
    found: dict[str, list[Doubles]] = {name: [] for name in figures}
    rng = np.random.default_rng(seed)
    size = max(1, min(n_draws, AT_ONCE // max(n_users, 1)))
    for first in range(0, n_draws if n_users else 0, size):
        count = min(size, n_draws - first)
        picked = rng.integers(0, n_users, (count, n_users)) + n_users * np.arange(count)[:, None]
        times = np.bincount(picked.ravel(), minlength=count * n_users).reshape(count, n_users).astype(np.float64)
        for name, figure in figures.items():
            found[name].append(figure(times))
    return {
        name: Drawn(float(figure(once)[0]) if n_users else np.nan, np.concatenate([np.zeros(0), *found[name]]), n_users)
        for name, figure in figures.items()
    }


def ratio(above: Doubles, below: Doubles) -> Figure:
    """Return sum of `above` / sum of `below` over users, both float64 [n_users]; a user with NaN in either counts in neither."""
    known = np.isfinite(above) & np.isfinite(below)
    top, bottom = np.where(known, above, 0.0), np.where(known, below, 0.0)

    def figure(times: Doubles) -> Doubles:
        whole = times @ bottom
        return np.asarray(np.divide(times @ top, whole, out=np.full(len(times), np.nan), where=whole != 0))

    return figure


def mean(values: Doubles) -> Figure:
    """Return the mean over users; those with NaN do not count."""
    return ratio(np.where(np.isfinite(values), values, np.nan), np.where(np.isfinite(values), 1.0, np.nan))


def shown(item: npt.NDArray[np.integer], n_items: int, k: int, discount: Doubles | None = None) -> sparse.csr_matrix:
    """Return float64 [n_users, n_items], 1 (or the discount of the place) where an item stands in a user's first k."""
    first = item[:, :k]
    row, place = np.nonzero(first >= 0)
    weight = np.ones(len(row)) if discount is None else discount[place]
    return sparse.csr_matrix((weight, (row, first[row, place])), shape=(len(first), n_items))


def coverage(exposed: sparse.csr_matrix) -> Figure:
    """Return the share of the catalogue that is shown to anyone."""
    return lambda times: np.asarray((_exposure(exposed, times) > 0).mean(axis=1))


def gini(exposed: sparse.csr_matrix) -> Figure:
    """Return the concentration of exposure, as `spread.gini`."""

    def figure(times: Doubles) -> Doubles:
        sorted_ = np.sort(_exposure(exposed, times), axis=1)
        n, total = sorted_.shape[1], sorted_.sum(axis=1)
        each = sorted_ @ (2 * np.arange(1, n + 1) - n - 1)
        return np.asarray(np.divide(each, n * total, out=np.full(len(total), np.nan), where=total > 0))

    return figure


def _exposure(exposed: sparse.csr_matrix, times: Doubles) -> Doubles:
    """Return float64 [b, n_items], exposure of each item in each draw."""
    return np.asarray((exposed.T @ times.T).T)
