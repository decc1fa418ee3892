"""How far lists are from what their users like: shares of groups (categories, head and tail) in the list against the history."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Doubles: TypeAlias = npt.NDArray[np.float64]
Lists: TypeAlias = npt.NDArray[np.integer]


def shares(item: Lists, group: npt.NDArray[np.integer], n_groups: int, k: int) -> Doubles:
    """Return float64 [n_users, n_groups], the share of each group among each user's first k of known group; 0 throughout where there is none."""
    first = item[:, :k]
    of = np.where(first >= 0, group[first], -1) if len(group) else np.full(first.shape, -1)
    row, place = np.nonzero(of >= 0)
    count = np.bincount(row * n_groups + of[row, place], minlength=len(first) * n_groups).reshape(len(first), n_groups)
    total = count.sum(axis=1, keepdims=True)
    return np.asarray(count / np.maximum(total, 1))


def miscalibration(item: Lists, group: npt.NDArray[np.integer], taste: Doubles, k: int, dilution: float = 0.01) -> Doubles:
    """KL(p || q~) of each user's first k, in nats: 0 when the list's groups stand as in the history (Steck, RecSys 2018, equation 6).

    p is the history's share of each group, q the list's, q~ = (1 - a) q + a p. NaN for a user without a history, or whose list
    names no item of a known group. What is worst depends on p: at most ln(1 / a).

    Args:
        group: int [n_items], -1 where unknown.
        taste: float64 [n_users, n_groups], p; 0 throughout for a user without one.
        dilution: a.
    """
    q = shares(item, group, taste.shape[1], k)
    mixed = (1 - dilution) * q + dilution * taste
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(taste > 0, taste * np.log(taste / mixed), 0.0)
    measured = (taste.sum(axis=1) > 0) & (q.sum(axis=1) > 0)
    return np.asarray(np.where(measured, np.maximum(each.sum(axis=1), 0.0), np.nan))


def mean_popularity(item: Lists, popularity: npt.NDArray[Any], k: int) -> Doubles:
    """Return float64 [n_users], the mean popularity of each user's first k; NaN for an empty list.

    Args:
        popularity: [n_items], of each item; the share of users who met it, as a rule.
    """
    first = item[:, :k]
    listed = first >= 0
    total = np.where(listed, popularity[first] if len(popularity) else 0.0, 0.0).sum(axis=1)
    n = listed.sum(axis=1)
    return np.asarray(np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0))
