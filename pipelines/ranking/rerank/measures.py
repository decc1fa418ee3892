"""What each rule is for, as a number a user: its own measure of the first k places, to be laid beside what it costs in NDCG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Histories, Ints
from pipelines.evaluation import taste
from pipelines.ranking.rerank import boosts, exposure, greedy, likeness, popularity, purchased
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import RerankSettings

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A rule's own measure.

    Attributes:
        name: as tables call it.
        wanted: +1 where more is better, -1 where less is.
        of: (items [n, k], goods, users, settings) -> float64 [n], NaN where a list has nothing to measure.
    """

    name: str
    wanted: int
    of: Callable[[Ints, Goods, Histories, RerankSettings], Doubles]


def _share(flag: npt.NDArray[np.bool_], listed: npt.NDArray[np.bool_]) -> Doubles:
    """Return the share of each list's items for which a flag holds."""
    n = listed.sum(axis=1)
    return np.asarray(np.divide((flag & listed).sum(axis=1), n, out=np.full(len(n), np.nan), where=n > 0))


def _policy(settings: RerankSettings, rule: str) -> Any:
    """Return a rule's policy, its default strength where it is off."""
    held = getattr(settings, rule)
    return held if held is not None else getattr(RerankSettings.model_validate({rule: True}), rule)


def unavailable(item: Ints, goods: Goods, _users: Histories, _settings: RerankSettings) -> Doubles:
    """Share of places with what cannot be bought."""
    return _share(~goods.available[item], item >= 0)


def bought(item: Ints, goods: Goods, users: Histories, settings: RerankSettings) -> Doubles:
    """Share of places with what the user had bought, within the policy's days."""
    lists = Ranked.ordered(item, np.zeros(item.shape, np.float32))
    kept = purchased.apply(lists, goods, users, _policy(settings, "purchased"), item.shape[1])
    n = lists.lengths()
    return np.asarray(np.divide(n - kept.lengths(), n, out=np.full(len(n), np.nan), where=n > 0))


def boosted(item: Ints, goods: Goods, _users: Histories, settings: RerankSettings) -> Doubles:
    """Mean boost of the places, as a share of the largest allowed."""
    policy = _policy(settings, "boosts")
    value = boosts.boost(goods, policy)[item] / (policy.max_boost or 1.0)
    listed = item >= 0
    n = listed.sum(axis=1)
    return np.asarray(np.divide((value * listed).sum(axis=1), n, out=np.full(len(n), np.nan), where=n > 0))


def categories_missed(item: Ints, goods: Goods, users: Histories, settings: RerankSettings) -> Doubles:
    """KL of the history's categories from the list's, in nats."""
    policy = _policy(settings, "calibration")
    return taste.miscalibration(
        item, goods.category, greedy.tastes(users, goods.category, policy.half_life_days), item.shape[1], policy.dilution
    )


def popularity_missed(item: Ints, goods: Goods, users: Histories, settings: RerankSettings) -> Doubles:
    """KL of the history's head, torso and tail from the list's, in nats."""
    policy, part = _policy(settings, "popularity"), popularity.parts(goods)
    return taste.miscalibration(item, part, greedy.tastes(users, part, policy.half_life_days), item.shape[1], policy.dilution)


def unlikeness(item: Ints, goods: Goods, _users: Histories, settings: RerankSettings) -> Doubles:
    """1 - mean likeness of the pairs of a list, as MMR and DPP compare them; NaN for fewer than two items."""
    found = np.full(len(item), np.nan)
    for row, listed in enumerate(item):
        kept = listed[listed >= 0]
        if len(kept) > 1:
            alike, total, each = likeness.of(goods, kept, settings.likeness), 0.0, np.empty(len(kept), np.float32)
            for j in range(len(kept)):
                alike(j, 1.0, np.zeros(len(kept), np.float32), each)
                total += float(each.sum() - each[j])
            found[row] = 1 - total / (len(kept) * (len(kept) - 1))
    return found


def fresh(item: Ints, goods: Goods, _users: Histories, settings: RerankSettings) -> Doubles:
    """Share of places with new items, as the policy calls them."""
    return _share(goods.age_days[item] <= _policy(settings, "temporal").fresh_days, item >= 0)


def protected(item: Ints, goods: Goods, _users: Histories, settings: RerankSettings) -> Doubles:
    """Share of places with items of those who get the least attention."""
    return _share(exposure.protected(goods, _policy(settings, "exposure"))[item], item >= 0)


def crowded(item: Ints, goods: Goods, _users: Histories, settings: RerankSettings) -> Doubles:
    """Share of places that are over a cap of category or brand, in the window that ends there."""
    policy = _policy(settings, "caps")
    over = np.zeros(item.shape, np.bool_)
    for code, most in ((goods.category, policy.category), (goods.brand, policy.brand)):
        group = np.where(item >= 0, code[item], -1)
        for place in range(item.shape[1] if most else 0):
            window = group[:, max(0, place - policy.window + 1) : place + 1]
            over[:, place] |= (group[:, place] >= 0) & ((window == group[:, place, None]).sum(axis=1) > most)
    return _share(over, item >= 0)


MEASURES: Final = {
    "availability": Measure("unavailable", -1, unavailable),
    "purchased": Measure("bought_before", -1, bought),
    "boosts": Measure("boost", 1, boosted),
    "calibration": Measure("category_miscalibration", -1, categories_missed),
    "popularity": Measure("popularity_miscalibration", -1, popularity_missed),
    "mmr": Measure("unlikeness", 1, unlikeness),
    "dpp": Measure("unlikeness", 1, unlikeness),
    "temporal": Measure("fresh_share", 1, fresh),
    "exposure": Measure("protected_share", 1, protected),
    "caps": Measure("over_cap", -1, crowded),
}
