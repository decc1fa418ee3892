"""Determinantal point process: the set that is relevant and spans much, found greedily (Chen, Zhang, Zhou, NeurIPS 2018, algorithm 1)."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipelines.datasets.interactions import Floats, Histories, Longs
from pipelines.ranking.rerank import greedy
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.likeness import Likeness
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import DppPolicy, LikenessPolicy

SPANNED: Final = 1e-5  # of an item's length 1, squared: what is left of it below this adds nothing to the set


def select(relevance: Floats, alike: Likeness, k: int, trade_off: float) -> Longs:
    """Return int64 [<= min(k, m)], which items of one list are taken, in order; fewer where nothing left adds to the set.

    The set S maximises t x sum of relevance + (1 - t) x log det of the likenesses within S (equation 9 of the paper), one item
    after the other; that is the kernel diag(q) L diag(q) with q = exp(t / (2 (1 - t)) x relevance). An item's likeness to itself
    is 1. Rows of the Cholesky factor are carried along, so a step costs O(k m). Equals by place in the list.

    Args:
        relevance: float32 [m], finite.
    """
    m = len(relevance)
    k = min(k, m)
    if trade_off >= 1:
        return np.argsort(-relevance, kind="stable")[:k].astype(np.int64)
    # q scales what is left of an item as it scales its diagonal, so the factor can be that of the likenesses alone.
    weight = np.exp(trade_off / (1 - trade_off) * (relevance - relevance.max(initial=-np.inf)).astype(np.float64)).astype(np.float32)
    weight = np.maximum(weight, np.finfo(np.float32).tiny)
    left, factor, chosen = np.ones(m, np.float32), np.empty((k, m), np.float32), np.empty(k, np.int64)
    value = weight.copy()
    for place in range(k):
        best = int(value.argmax())
        if not left[best] > SPANNED:
            return chosen[:place]
        chosen[place] = best
        row, times = factor[place], 1 / float(left[best]) ** 0.5
        np.dot(factor[:place, best] * np.float32(-times), factor[:place], out=row)  # zeros for the first
        alike(best, times, row, row)
        np.multiply(row, row, out=value)
        np.subtract(left, value, out=left)
        left[best] = 0
        np.multiply(left, weight, out=value)
        value[chosen[: place + 1]] = -1
    return chosen


def apply(lists: Ranked, goods: Goods, _users: Histories, policy: DppPolicy, depth: int, compared: LikenessPolicy) -> Ranked:
    """Return the lists with their first places chosen by `select` among the best `max_candidates`; what it leaves keeps its order."""
    return greedy.picked(
        lambda relevance, alike, k: select(relevance, alike, k, policy.trade_off), lists, goods, policy.max_candidates, (depth, compared)
    )
