"""The rules one after the other, in one declared order; what each did to a list can be told afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Histories
from pipelines.errors import ReloopError
from pipelines.ranking.rerank import (
    availability,
    boosts,
    calibration,
    caps,
    dpp,
    exposure,
    mmr,
    popularity,
    purchased,
    temporal,
)
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import RerankSettings

RULES: Final = {
    # What may not be shown at all.
    "availability": availability.apply,
    "purchased": purchased.apply,
    # What moves the scores.
    "boosts": boosts.apply,
    # What weighs relevance against the look of the whole list; each takes the order before it as relevance.
    "calibration": calibration.apply,
    "popularity": popularity.apply,
    "mmr": mmr.apply,
    "dpp": dpp.apply,
    # What is promised, whatever it costs; the later stands where two collide.
    "temporal": temporal.apply,
    "exposure": exposure.apply,
    "caps": caps.apply,
}
EXPLORATION: Final = "exploration"  # `ranking.newcomers`: draws for its slots in the finished list, with propensities
ORDER: Final = (*RULES, EXPLORATION)
FILTERS: Final = ("availability", "purchased")


@dataclass(frozen=True)
class Step:
    """What one rule made of the lists, and what they were before."""

    rule: str
    before: Ranked
    after: Ranked


def active(settings: RerankSettings) -> tuple[str, ...]:
    """Return the rules that are on, in their order; exploration has settings of its own."""
    return tuple(name for name in RULES if getattr(settings, name) is not None)


def without(settings: RerankSettings, *rules: str) -> RerankSettings:
    """Return the settings with some rules off.

    Raises:
        ReloopError: there is no such rule.
    """
    if strangers := [name for name in rules if name not in RULES]:
        raise ReloopError("re-ranking rules", found=f"{strangers}", allowed=f"some of {list(RULES)}")
    return settings.model_copy(update=dict.fromkeys(rules))


def steps(lists: Ranked, goods: Goods, users: Histories, settings: RerankSettings) -> Iterator[Step]:
    """Yield the lists after each rule that is on, in the declared order; the last is what is shown.

    Args:
        lists: row r belongs to row r of `users`; all of them index the goods.

    Raises:
        ReloopError: lists and users differ in number, or an item is none of the goods.
    """
    if len(lists.item) != users.n_users:
        raise ReloopError("re-ranking", found=f"{len(lists.item)} lists, {users.n_users} histories", allowed="one of each a user")
    if lists.item.size and int(lists.item.max()) >= len(goods):
        raise ReloopError("re-ranking", found=f"item {int(lists.item.max())}", allowed=f"one of {len(goods)} items")
    for name in active(settings):
        rule: Any = RULES[name]
        if name in {"mmr", "dpp"}:
            rule = partial(rule, compared=settings.likeness)
        after = rule(lists, goods, users, getattr(settings, name), settings.depth) if lists.listed.any() else lists
        yield Step(name, lists, after)
        lists = after


def reranked(lists: Ranked, goods: Goods, users: Histories, settings: RerankSettings) -> tuple[Ranked, npt.NDArray[np.uint32]]:
    """Return what is shown, and uint32 [n, m], which rules lifted the item at each place: bit r for `active(settings)[r]`."""
    fired = np.zeros(lists.item.shape, np.uint32)
    for number, step in enumerate(steps(lists, goods, users, settings)):
        lists = step.after
        order = _places(step.before, step.after)
        fired = np.where(order >= 0, np.take_along_axis(fired, np.maximum(order, 0), axis=1), np.uint32(0))
        fired |= lifted(step).astype(np.uint32) << np.uint32(number)
    return lists, fired


def _places(before: Ranked, after: Ranked) -> npt.NDArray[np.int64]:
    """Return int64 [n, m], at which place of `before` the item at each place of `after` stood; -1 pads."""
    n, m = after.item.shape
    known = np.full((n, max(m, 1)), -1, np.int64)
    row, place = np.nonzero(before.listed)
    known[row, before.origin[row, place]] = place
    return np.where(after.listed, np.take_along_axis(known, np.maximum(after.origin, 0), axis=1), -1)


def lifted(step: Step) -> npt.NDArray[np.bool_]:
    """Return bool [n, m], where an item stands that a rule put before others that had stood before it.

    Closing up over what a filter removed is no lift.
    """
    was = _places(step.before, step.after)
    still = np.sort(np.where(was >= 0, was, np.iinfo(np.int64).max), axis=1)
    return np.asarray((was > still) & (was >= 0))


def path(lists: Ranked, goods: Goods, users: Histories, settings: RerankSettings, *, row: int, item: int) -> dict[str, int | None]:
    """Return the place of one item of one list, from 1, as the ranker left it (`ranker`) and after each rule; None where it is not listed."""

    def place(of: Ranked) -> int | None:
        found = np.flatnonzero(of.item[row] == item)
        return int(found[0]) + 1 if len(found) else None

    return {"ranker": place(lists), **{step.rule: place(step.after) for step in steps(lists, goods, users, settings)}}
