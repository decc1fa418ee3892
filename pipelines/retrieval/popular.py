"""What everybody likes: the baseline every model must beat, and the answer for users nobody knows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Histories, Interactions
from pipelines.retrieval import topk
from pipelines.retrieval.protocol import Candidates

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Popular:
    """Score of an item: the summed weight of its events, optionally only of late ones and fading with age.

    State: score float32 [n_items], 0 where an item has no event; order int32, items with a score, best first.

    Attributes:
        window_days: events older than this before the fit's as_of do not count; None counts all.
        half_life_days: after this long an event counts half; None never fades.
    """

    window_days: float | None = None
    half_life_days: float | None = None
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        weight = faded(interactions, self.window_days, self.half_life_days)
        return replace(self, state=state(np.bincount(interactions.item, weights=weight, minlength=len(interactions.item_ids))))

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the same items for everyone, less what each has seen if so asked."""
        return retrieve(topk.checked("popular", self.state, histories), histories, k, exclude_seen=exclude_seen)


def faded(interactions: Interactions, window_days: float | None, half_life_days: float | None) -> npt.NDArray[np.float64]:
    """Return float64 [n_events], weights of late events that fade with age; 0 for earlier ones."""
    age_days = (interactions.as_of - interactions.at) / DAY_US
    weight = interactions.weight.astype(np.float64)
    if window_days is not None:
        weight[age_days > window_days] = 0
    if half_life_days is not None:
        weight *= 0.5 ** (age_days / half_life_days)
    return weight


def state(scores: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.generic]]:
    """Return what `retrieve` serves from, of one score an item; 0 is never proposed."""
    score = scores.astype(np.float32)
    order = np.argsort(-score, kind="stable").astype(np.int32)
    return {"n_items": np.array([len(score)]), "score": score, "order": order[score[order] > 0]}


def retrieve(learnt: dict[str, npt.NDArray[np.generic]], histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
    """Return the first items of the order for everyone, less what each has seen if so asked."""
    longest = int(histories.lengths().max(initial=0)) if exclude_seen else 0
    order = learnt["order"][: k + longest].astype(np.int32)  # however much a user has seen of it, k are left
    score: Floats = learnt["score"][order].astype(np.float32)
    if histories.n_users == 1:
        left = ~np.isin(order, histories.item) if exclude_seen else slice(None)
        found, order, score = topk.nothing(1, k), order[left][:k], score[left][:k]
        found.item[0, : len(order)], found.score[0, : len(order)] = order, score
        return found
    if exclude_seen:
        place = np.full(histories.n_items, -1, dtype=np.int64)
        place[order] = np.arange(len(order))
    parts = []
    for first, last, rows in topk.blocks(histories, len(order)):
        block = np.broadcast_to(score, (last - first, len(order))).copy()
        if exclude_seen:
            met = place[rows.item]
            block[rows.row_of_event()[met >= 0], met[met >= 0]] = -np.inf
        ranked = topk.best(block, k)  # `order` is by (score, item), so ties stay in item order
        parts.append(Candidates(np.where(ranked.item < 0, -1, order[ranked.item] if len(order) else -1).astype(np.int32), ranked.score))
    return topk.stack(parts, k)
