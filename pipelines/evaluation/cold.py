"""How good every list is for users and items of whom little is known, each against the same baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.evaluation import metrics, paired, slices
from pipelines.evaluation.slices import Mask

COLD_ITEMS: Final = "cold_items"
K: Final = 10


def quality(
    lists: Mapping[str, npt.NDArray[np.integer]],
    baseline: str,
    *,
    indptr: npt.NDArray[np.integer],
    label_item: npt.NDArray[np.integer],
    label_gain: npt.NDArray[Any],
    users: Mapping[str, Mask],
    cold_items: Mask,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Return {slice: {n_users, baseline, lists: {list: figures}}}; JSON values, None where nothing was measured.

    Figures are ndcg_at_10, recall_at_50, and the mean difference of NDCG@10 to the baseline on the same users with its
    interval: difference, difference_lower, difference_upper (0 for the baseline itself). For `cold_items`, only labels on
    such items count, and only users who have one.

    Args:
        lists: name -> [n_users, k] items, best first, -1 pads; all of them, whatever slice is asked.
        baseline: one of them; without it there are no differences.
        indptr, label_item, label_gain: the labels, as `metrics.judge` takes them.
        users: slice -> bool [n_users].
        cold_items: bool [n_items].
    """
    everyone = np.ones(len(indptr) - 1, dtype=bool)
    asked = {name: (rows, label_gain) for name, rows in users.items()}
    asked[COLD_ITEMS] = (everyone, slices.labels_on(cold_items, label_item, label_gain))
    report: dict[str, Any] = {}
    for slice_name, (rows, gain) in asked.items():
        judged = {name: metrics.judge(item, indptr, label_item, gain) for name, item in lists.items()}
        ndcg = {name: metrics.ndcg(one, K)[rows] for name, one in judged.items()}
        measured = int(np.count_nonzero(~np.isnan(next(iter(ndcg.values()))))) if ndcg else 0
        report[slice_name] = {"n_users": measured, "baseline": baseline, "lists": {}}
        for name, one in judged.items():
            difference = ndcg[name] - ndcg[baseline] if baseline in ndcg else np.full(len(ndcg[name]), np.nan)
            found = paired.interval(difference, confidence, seed)
            bounds = {"difference": found.mean, "difference_lower": found.lower, "difference_upper": found.upper}
            report[slice_name]["lists"][name] = {
                "ndcg_at_10": metrics.mean(ndcg[name]),
                "recall_at_50": metrics.mean(metrics.recall(one, 50)[rows]),
                **{key: float(value) if np.isfinite(value) else None for key, value in bounds.items()},
            }
    return report
