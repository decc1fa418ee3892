"""Buy it again: the items of a user's own history, those met often and lately first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Histories, Interactions
from pipelines.retrieval import one_row, topk
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class Repeat:
    """Score of an item for a user: the summed weight of the user's own events on it, fading with age.

    It learns nothing from others, so its state is the size of the catalogue alone. With
    `exclude_seen` it has nothing to say.

    Attributes:
        half_life_days: after this long an event counts half.
    """

    half_life_days: float = 14.0
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        return replace(self, state={"n_items": np.array([len(interactions.item_ids)])})

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return each user's own items."""
        topk.checked("repeat", self.state, histories)
        if exclude_seen:
            return topk.nothing(histories.n_users, k)
        weight = (histories.weight * 0.5 ** (topk.age_days(histories) / self.half_life_days)).astype(np.float32)
        # Old events fade to nothing in float32; an item once liked is still the user's own.
        weight = np.where(histories.weight > 0, np.maximum(weight, np.finfo(np.float32).tiny), 0)
        if histories.n_users == 1:
            return one_row.best(one_row.of(histories, weight.astype(np.float32)), k)
        return topk.best_sparse(histories.weighted(weight.astype(np.float32)), k)
