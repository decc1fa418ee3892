"""Lists that are filled place by place: quotas, and shares that follow the user's history."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.datasets import newness
from pipelines.datasets.interactions import Bools, Floats, Histories, Ints, Longs
from pipelines.ranking.rerank import likeness
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.likeness import Likeness
from pipelines.ranking.rerank.ranked import Ranked, codes
from pipelines.rerank_policies import LikenessPolicy

Doubles = npt.NDArray[np.float64]


def picked(
    select: Callable[[Floats, Likeness, int], Longs],
    lists: Ranked,
    goods: Goods,
    max_candidates: int,
    asked: tuple[int, LikenessPolicy],
) -> Ranked:
    """Return the lists with their first places chosen one list at a time; what is left keeps its order.

    Args:
        select: is given relevance float32 [m], the likenesses of the m items, and how many to take; returns int64, which, in order.
        max_candidates: of the beginning of a list that are chosen among.
        asked: how many places to fill, and what makes items alike.
    """
    depth, compared = asked
    relevance, length = lists.relevance(), np.minimum(lists.lengths(), max_candidates)
    chosen = np.full((len(length), min(depth, lists.item.shape[1])), -1, np.int64)
    for row, m in enumerate(length.tolist()):
        found = select(relevance[row, :m], likeness.of(goods, lists.item[row, :m], compared), chosen.shape[1])
        chosen[row, : len(found)] = found
    return lists.led_by(chosen)


def with_quotas(lists: Ranked, quotas: Sequence[tuple[Bools, float]], depth: int) -> Ranked:
    """Return the lists in which each kind of item has at least floor(share x p) of the first p places, for every p up to `depth`.

    A place goes to the best item left, unless a kind is short of its share there: then to the best left of that kind, if there
    is any. Where two kinds fall short at one place, the second gets the next.

    Args:
        quotas: of each kind bool [n, m], the items of the lists that are of it, and its share, 0 to 1. An item is of one kind.
    """
    n, m = lists.item.shape
    free, rows = lists.listed.copy(), np.arange(n)
    chosen = np.full((n, min(depth, m)), -1, np.int64)
    had = np.zeros((len(quotas), n), np.int64)
    for place in range(chosen.shape[1]):
        pick, found = free.argmax(axis=1), free.any(axis=1)
        undecided = found.copy()
        for number, (kind, share) in enumerate(quotas):
            of_kind = kind & free
            due = undecided & (had[number] < int(share * (place + 1) + 1e-9)) & of_kind.any(axis=1)
            pick[due] = of_kind[due].argmax(axis=1)
            undecided &= ~due
        chosen[found, place] = pick[found]
        free[rows[found], pick[found]] = False
        for number, (kind, _) in enumerate(quotas):
            had[number] += found & kind[rows, pick]
    return lists.led_by(chosen)


def tastes(users: Histories, code: Ints, half_life_days: float | None) -> Doubles:
    """Return float64 [n_users, n_codes], the share of each group in a user's history, by event weight; 0 throughout for a user without one.

    Args:
        code: int32 [n_items], -1 where unknown: such events do not count.
        half_life_days: after which an event counts half.
    """
    n_codes = int(code.max(initial=-1)) + 1
    weight = users.weight.astype(np.float64)
    if half_life_days is not None:
        weight = weight * 0.5 ** ((users.as_of - users.at) / (newness.DAY_US * half_life_days))
    of = code[users.item]
    known = of >= 0
    key = users.row_of_event()[known] * max(n_codes, 1) + of[known]
    total = np.bincount(key, weight[known], users.n_users * n_codes).reshape(users.n_users, n_codes)
    whole = total.sum(axis=1, keepdims=True)
    return np.asarray(total / np.where(whole > 0, whole, 1.0))


def calibrated(lists: Ranked, code: Ints, taste: Doubles, *, trade_off: float, dilution: float, depth: int) -> Ranked:
    """Return the lists that greedily maximise (1 - t) x sum of relevance - t x KL(p || q~), place by place.

    Steck (RecSys 2018), equations 3, 6 and 7 with equal weights of places: p is the user's taste, q the share of each group in
    the list so far, q~ = (1 - a) q + a p. The list's marginal optimum is (1 - 1/e) of the best. Users without a taste keep
    their order; items of no known group add relevance alone.

    Args:
        code: int32 [n_items], the group of each item, -1 where unknown.
        taste: float64 [n, n_codes], p.
        trade_off, dilution: t, and Steck's alpha.
    """
    n, m = lists.item.shape
    group, rows = codes(lists, code), np.arange(n)
    known = group >= 0
    p = np.where(known, taste[rows[:, None], np.maximum(group, 0)], 0.0) if taste.shape[1] else np.zeros((n, m))
    value = np.where(lists.listed, (1 - trade_off) * lists.relevance().astype(np.float64), -np.inf)
    count, chosen = np.zeros((n, m)), np.full((n, min(depth, m)), -1, np.int64)
    mixed = dilution * p
    for place in range(chosen.shape[1]):
        # KL falls by p log(q~ with the item / q~ without it); all else is the same whichever item comes.
        each = (1 - dilution) / (place + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(p > 0, p * np.log((each * (count + 1) + mixed) / (each * count + mixed)), 0.0)
        best = (value + trade_off * gain).argmax(axis=1)
        left = value[rows, best] > -np.inf
        chosen[left, place] = best[left]
        value[rows, best] = -np.inf
        count += group == group[rows, best][:, None]
    decided = taste.sum(axis=1) > 0
    return lists.led_by(np.where(decided[:, None], chosen, -1))
