"""What two models' lists for the same users do beside being right: coverage, attention, variety, tastes met, emptiness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Histories, Ints
from pipelines.evaluation import resampled, spread, taste
from pipelines.evaluation.resampled import Drawn, Figure
from pipelines.ranking.rerank import greedy
from pipelines.registry.gate_guardrails import Measure, PerDraw, PerUser

K: Final = 10
DILUTION: Final = 0.01  # of miscalibration; the worst there is, is ln(1 / DILUTION)
AT_ONCE: Final = 4096  # users, where every user has a number a category
NO_CATEGORIES: Final = "no item of the catalogue has a category"

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shop:
    """What lists are measured against, on the same catalogue for both models.

    Attributes:
        n_items: of the catalogue.
        head: bool [n_items].
        category: int32 [n_items], -1 where unknown.
        users: histories of the judged users.
        seed: of the draws.
    """

    n_items: int
    head: npt.NDArray[np.bool_]
    category: Ints
    users: Histories
    seed: int


@dataclass(frozen=True)
class OfLists:
    """What one model's lists measure; the draws of two models are the same draws of users.

    Attributes:
        drawn: coverage, tail_exposure, gini.
        diversity, miscalibration: float64 [n_users]; the second is NaN for users without a taste.
        empty: float64 [n_users], 1 where a list is empty.
    """

    drawn: dict[str, Drawn]
    diversity: Doubles
    miscalibration: Doubles
    empty: Doubles


def of(item: npt.NDArray[np.integer[Any]], shop: Shop) -> OfLists:
    """Measure lists, int [n_users, K] of the catalogue's items, -1 pads.

    A list too short to vary has no diversity: 0. One that names no known category meets no taste: the worst there is.
    """
    exposed = resampled.shown(item, shop.n_items, K)
    attention = resampled.shown(item, shop.n_items, K, 1 / np.log2(np.arange(2, K + 2)))
    of_tail = np.asarray(attention @ (~shop.head).astype(np.float64))
    figures: dict[str, Figure] = {
        "coverage": resampled.coverage(exposed),
        "tail_exposure": resampled.ratio(of_tail, np.asarray(attention.sum(axis=1)).ravel()),
        "gini": resampled.gini(attention),
    }
    return OfLists(
        resampled.drawn(figures, len(item), shop.seed),
        np.nan_to_num(spread.intra_list_diversity(item, shop.category, K), nan=0.0),
        _miscalibration(item, shop),
        np.asarray((item < 0).all(axis=1), dtype=np.float64),
    )


def _miscalibration(item: npt.NDArray[np.integer[Any]], shop: Shop) -> Doubles:
    found = np.full(len(item), np.nan)
    for first in range(0, len(item), AT_ONCE):
        rows = slice(first, min(first + AT_ONCE, len(item)))
        liked = greedy.tastes(shop.users.rows(rows.start, rows.stop), shop.category, None)
        told = taste.miscalibration(item[rows], shop.category, liked, K, DILUTION)
        found[rows] = np.where(liked.sum(axis=1) > 0, np.nan_to_num(told, nan=-np.log(DILUTION)), np.nan)
    return found


def compared(before: OfLists, after: OfLists, shop: Shop) -> tuple[dict[str, Measure], dict[str, str]]:
    """Return what the gate guards of two models' lists, and what says nothing in this shop."""
    measures: dict[str, Measure] = {name: PerDraw(before.drawn[name], after.drawn[name]) for name in before.drawn}
    measures["empty_lists"] = PerUser(before.empty, after.empty)
    if not (shop.category >= 0).any():
        return measures, dict.fromkeys(("diversity", "miscalibration"), NO_CATEGORIES)
    measures["diversity"] = PerUser(before.diversity, after.diversity)
    measures["miscalibration"] = PerUser(before.miscalibration, after.miscalibration)
    return measures, {}
