"""What the shop would rather sell rises, by a bounded amount and a bounded number of places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Histories
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import BoostPolicy


def boost(goods: Goods, policy: BoostPolicy) -> npt.NDArray[np.float64]:
    """Return float64 [n_items] in [0, max_boost], by how much of a list's span of scores each item is raised; what is unknown adds 0."""
    fresh = 0.5 ** (np.maximum(np.nan_to_num(goods.age_days, nan=np.inf), 0) / policy.half_life_days)
    total = policy.margin * np.nan_to_num(goods.margin) + policy.promotion * goods.promoted + policy.freshness * fresh
    return np.asarray(np.clip(total, 0, policy.max_boost), np.float64)


def apply(lists: Ranked, goods: Goods, _users: Histories, policy: BoostPolicy, depth: int) -> Ranked:
    """Return the lists by relevance + boost, where nothing comes more than `max_places` before its old place; equals keep their order.

    A place is filled with the best of those that may have come so far, so nothing sinks below what the rises of others cost.
    """
    value = np.where(lists.listed, lists.relevance() + boost(goods, policy)[lists.item], -np.inf)
    n, m = lists.item.shape
    rows, chosen = np.arange(n), np.full((n, min(depth, m)), -1, np.int64)
    for place in range(chosen.shape[1]):
        reach = value[:, : place + policy.max_places + 1]
        best = reach.argmax(axis=1)
        left = reach[rows, best] > -np.inf
        chosen[left, place] = best[left]
        value[rows, best] = -np.inf
    return lists.led_by(chosen)
