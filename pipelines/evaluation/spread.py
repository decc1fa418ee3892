"""What lists do to the catalogue: coverage, concentration, novelty and variety. None of these knows the truth.

Lists are integers [n_users, width], best first; -1 pads and counts as nothing shown.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Doubles: TypeAlias = npt.NDArray[np.float64]
Lists: TypeAlias = npt.NDArray[np.integer]


def exposure(item: Lists, n_items: int, k: int) -> npt.NDArray[np.int64]:
    """Return int64 [n_items], in how many users' first k each item stands."""
    shown = item[:, :k]
    return np.bincount(shown[shown >= 0], minlength=n_items)


def coverage(item: Lists, n_items: int, k: int) -> float:
    """Share of the catalogue that stands in anyone's first k; NaN for an empty catalogue.

    It grows with the number of users, so compare it only between lists for the same users.
    """
    return float((exposure(item, n_items, k) > 0).mean()) if n_items else float("nan")


def gini(item: Lists, n_items: int, k: int) -> float:
    """Concentration of exposure over the whole catalogue: 0 when all items are shown alike, towards 1 when one is.

    G = sum_i (2 i - n - 1) x_i / (n sum x), x ascending, i from 1. NaN when nothing is shown.
    """
    shown = np.sort(exposure(item, n_items, k))
    if not shown.sum():
        return float("nan")
    return float(((2 * np.arange(1, n_items + 1) - n_items - 1) * shown).sum() / (n_items * shown.sum()))


def novelty(item: Lists, users_of_item: npt.NDArray[np.integer], n_users: int, k: int) -> Doubles:
    """Mean self-information, in bits, of each user's first k: -log2(share of users who met the item).

    Vargas and Castells (RecSys 2011). An item that nobody met counts as met by one. NaN for an
    empty list.

    Args:
        users_of_item: [n_items], users who met each item before the lists were made.
        n_users: users who could have met one.
    """
    bits = -np.log2(np.maximum(users_of_item, 1) / n_users)
    return _row_mean(np.where(item[:, :k] >= 0, bits[item[:, :k]], 0), item[:, :k] >= 0)


def intra_list_diversity(item: Lists, group: npt.NDArray[np.integer], k: int) -> Doubles:
    """Share of the pairs among each user's first k that belong to different groups (categories).

    1 when all differ, 0 when all are alike; NaN for lists of fewer than two items.

    Args:
        group: int [n_items], the group of each item; a negative one is unknown and unlike all others.
    """
    shown = item[:, :k]
    of = np.where(shown >= 0, group[shown], -1)
    listed = (shown >= 0).sum(axis=1)
    # Pairs alike = sum over groups of n (n - 1) / 2, counted by the runs of the sorted row.
    ordered = np.sort(of, axis=1)
    alike = np.zeros(len(ordered))
    run = np.zeros(len(ordered))
    for column in range(1, ordered.shape[1]):
        run = np.where((ordered[:, column] == ordered[:, column - 1]) & (ordered[:, column] >= 0), run + 1, 0)
        alike += run
    pairs = listed * (listed - 1) / 2
    share: Doubles = np.divide(pairs - alike, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return share


def _row_mean(values: Doubles, counted: npt.NDArray[np.bool_]) -> Doubles:
    n = counted.sum(axis=1)
    mean: Doubles = np.divide((values * counted).sum(axis=1), n, out=np.full(len(n), np.nan), where=n > 0)
    return mean
