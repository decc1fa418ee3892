"""No more than so many items of one category, or brand, among places that follow each other."""

from __future__ import annotations

import numpy as np

from pipelines.datasets.interactions import Histories
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked, codes
from pipelines.rerank_policies import CapsPolicy


def apply(lists: Ranked, goods: Goods, _users: Histories, policy: CapsPolicy, depth: int) -> Ranked:
    """Return the lists in which each place has the best item that keeps the caps of all windows ending there.

    Where no item left does, the one that is over by least stands, the better of equals. Items of unknown category or brand
    count against no cap.
    """
    n, m = lists.item.shape
    capped = [(codes(lists, code), most) for code, most in ((goods.category, policy.category), (goods.brand, policy.brand)) if most]
    if not capped:
        return lists
    free, rows = lists.listed.copy(), np.arange(n)
    chosen = np.full((n, min(depth, m)), -1, np.int64)
    inside = np.zeros((len(capped), n, m), np.int32)  # of each candidate's group, places of the window so far
    for place in range(chosen.shape[1]):
        if (gone := place - policy.window) >= 0:
            left = chosen[:, gone]
            for number, (group, _) in enumerate(capped):
                inside[number] -= (group == group[rows, left][:, None]) & (left >= 0)[:, None]
        over = np.zeros((n, m), np.int32)
        for number, (_, most) in enumerate(capped):
            over += np.maximum(inside[number] + 1 - most, 0)
        best = np.where(free, over, np.iinfo(np.int32).max).argmin(axis=1)
        found = free[rows, best]
        chosen[found, place] = best[found]
        free[rows, best] = False
        for number, (group, _) in enumerate(capped):
            inside[number] += (group == group[rows, best][:, None]) & found[:, None]
    return lists.led_by(chosen)
