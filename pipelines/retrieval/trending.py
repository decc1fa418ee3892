"""What is rising: items met more often of late than they used to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Histories, Interactions
from pipelines.retrieval import popular, topk
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class Trending:
    """Score of an item: its weight a day in the last `window_days` over its usual weight a day plus `prior`.

    The usual is that of the `baseline_days` before the window, or of what there is of them. The prior
    is what an item must bring before its ratio means much: without it, one event on a new item beats all.
    State: as of `Popular`.

    Attributes:
        window_days: what counts as of late.
        baseline_days: what the rise is measured against.
        prior: weight a day that is added to the usual one, in units of the mean item's weight a day of late.
    """

    window_days: float = 3.0
    baseline_days: float = 21.0
    prior: float = 5.0
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        n_items = len(interactions.item_ids)
        late = popular.faded(interactions, self.window_days, None)
        usual = popular.faded(interactions, self.window_days + self.baseline_days, None) - late
        oldest = (interactions.as_of - interactions.at.min(initial=interactions.as_of)) / popular.DAY_US
        days = min(max(oldest - self.window_days, 1.0), self.baseline_days)
        now = np.bincount(interactions.item, late, n_items) / self.window_days
        before = np.bincount(interactions.item, usual, n_items) / days
        mean = now[now > 0].mean() if (now > 0).any() else 1.0
        return replace(self, state=popular.state(now / (before + self.prior * mean)))

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the same items for everyone, less what each has seen if so asked."""
        return popular.retrieve(topk.checked("trending", self.state, histories), histories, k, exclude_seen=exclude_seen)
