"""Maximal marginal relevance: the next item is relevant and unlike all that stand above it (Carbonell, Goldstein, SIGIR 1998)."""

from __future__ import annotations

import numpy as np

from pipelines.datasets.interactions import Floats, Histories, Longs
from pipelines.ranking.rerank import greedy
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.likeness import Likeness
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import LikenessPolicy, MmrPolicy


def select(relevance: Floats, alike: Likeness, k: int, trade_off: float) -> Longs:
    """Return int64 [min(k, m)], which items of one list are taken, in order.

    Each maximises trade_off x relevance - (1 - trade_off) x the largest likeness to any taken before; equals by place in the
    list, the first by relevance. The largest likeness is carried along, so a step costs one row of likenesses.

    Args:
        relevance: float32 [m], finite.
    """
    k = min(k, len(relevance))
    if not k:
        return np.empty(0, np.int64)
    gain = np.float32(trade_off) * relevance
    each, value = np.empty_like(gain), np.full_like(gain, np.inf)
    best = int((gain if trade_off > 0 else relevance).argmax())
    chosen = [best]
    for _ in range(1, k):
        alike(best, trade_off - 1, gain, each)
        np.minimum(value, each, out=value)
        value[best] = gain[best] = -np.inf
        best = int(value.argmax())
        chosen.append(best)
    return np.array(chosen, np.int64)


def apply(lists: Ranked, goods: Goods, _users: Histories, policy: MmrPolicy, depth: int, compared: LikenessPolicy) -> Ranked:
    """Return the lists with their first places chosen by `select` among the best `max_candidates`."""
    return greedy.picked(
        lambda relevance, alike, k: select(relevance, alike, k, policy.trade_off), lists, goods, policy.max_candidates, (depth, compared)
    )
