"""The share of popular items in the list follows the user's history: who likes the tail gets it."""

from __future__ import annotations

import numpy as np

from pipelines.datasets.interactions import Histories, Ints
from pipelines.evaluation import slices
from pipelines.ranking.rerank import greedy
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import PopularityPolicy


def parts(goods: Goods) -> Ints:
    """Return int32 [n_items]: 0 for an item of the head, 1 of the torso, 2 of the tail (`slices.items`)."""
    found = slices.items(goods.attention)
    return np.select([found["head_items"], found["torso_items"]], [0, 1], 2).astype(np.int32)


def apply(lists: Ranked, goods: Goods, users: Histories, policy: PopularityPolicy, depth: int) -> Ranked:
    """Return the lists calibrated to head, torso and tail of the histories (Abdollahpouri et al., UMAP 2021, with Steck's objective)."""
    part = parts(goods)
    taste = greedy.tastes(users, part, policy.half_life_days)
    return greedy.calibrated(lists, part, taste, trade_off=policy.trade_off, dilution=policy.dilution, depth=depth)
