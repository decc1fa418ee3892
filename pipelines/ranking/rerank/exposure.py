"""Items, brands or sellers that get little attention have a minimum of it."""

from __future__ import annotations

import numpy as np

from pipelines.datasets.interactions import Bools, Histories
from pipelines.ranking.rerank import greedy
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import ExposurePolicy


def protected(goods: Goods, policy: ExposurePolicy) -> Bools:
    """Return bool [n_items], the items of those with the least attention, who have at most `protected` of all attention together.

    Those with equal attention are protected together, or not at all. Items of no known brand or seller are not protected.
    """
    owner = {"item": np.arange(len(goods), dtype=np.int32), "brand": goods.brand, "seller": goods.seller}[policy.of]
    known = owner >= 0
    total = np.bincount(owner[known], goods.attention[known], int(owner.max(initial=-1)) + 1)
    if not len(total):
        return np.zeros(len(goods), np.bool_)
    levels, level = np.unique(total, return_inverse=True)
    together = np.cumsum(np.bincount(level, total)) <= policy.protected * total.sum()
    poor = together[level] & (levels[level] < levels[-1])  # where all have the same, nobody is poor
    return np.asarray(known & poor[np.maximum(owner, 0)])


def apply(lists: Ranked, goods: Goods, _users: Histories, policy: ExposurePolicy, depth: int) -> Ranked:
    """Return the lists with the policy's quota of items that are protected."""
    return greedy.with_quotas(lists, [(protected(goods, policy)[lists.item] & lists.listed, policy.share)], depth)
