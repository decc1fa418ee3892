"""Implicit matrix factorisation by alternating least squares; users are folded in from their history."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from pipelines.datasets.interactions import Floats, Histories, Interactions
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class Als:
    """Weighted factorisation of who met what (Hu, Koren, Volinsky, ICDM 2008), solved by `implicit`.

    The confidence of a pair is 1 + alpha * the summed weight of its events, each fading with age. No
    user is kept: a request solves for the user's factors from the history it brings.
    State: factor float32 [n_items, n_factors]; known bool [n_items], whether the item had an event.

    Attributes:
        n_factors: length of an item's vector.
        regularization: of the factors.
        alpha: how much an event adds to the confidence of its pair.
        n_epochs: rounds of solving for users, then items.
        half_life_days: after this long an event counts half, in the fit.
        recency_half_life_days: likewise, in the history that asks.
        seed: of the first factors.
        num_threads: rows are solved independently, so it changes no result.
    """

    n_factors: int = 64
    regularization: float = 10.0
    alpha: float = 4.0
    n_epochs: int = 15
    half_life_days: float = 90.0
    recency_half_life_days: float = 30.0
    seed: int = 7
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        age_days = (interactions.as_of - interactions.at) / 86_400e6
        strength = (interactions.weight * 0.5 ** (age_days / self.half_life_days)).astype(np.float32)
        users = neighbours.user_item(interactions, strength, newest=len(strength))
        n_items = users.shape[1]
        known = np.bincount(users.indices, minlength=n_items) > 0
        factor = np.zeros((n_items, self.n_factors), dtype=np.float32)
        if known.any():
            users.data = 1 + np.float32(self.alpha) * users.data
            with threadpool_limits(1, "blas"):  # implicit runs its own threads over rows
                solver = self._solver()
                solver.fit(users, show_progress=False)
            factor = np.where(known[:, None], solver.item_factors, np.float32(0))
        return replace(self, state={"n_items": np.array([n_items]), "factor": factor, "known": known})

    def _solver(self) -> AlternatingLeastSquares:
        return AlternatingLeastSquares(
            factors=self.n_factors,
            regularization=self.regularization,
            alpha=1.0,
            iterations=self.n_epochs,
            num_threads=self.num_threads,
            random_state=self.seed,
        )

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items nearest to the user's folded-in factors."""
        state = topk.checked("als", self.state, histories)
        known, factor = state["known"].astype(bool), state["factor"].astype(np.float32)
        users = self._fold_in(histories, known, factor)
        parts = []
        for first, last, rows in topk.blocks(histories, histories.n_items):
            with threadpool_limits(self.num_threads):
                scores = users[first:last] @ factor.T
            scores = np.where((scores > 0) & known, scores, np.float32(-np.inf))
            if exclude_seen:
                topk.hide_seen(scores, rows)
            parts.append(topk.best(scores, k))
        return topk.stack(parts, k)

    def _fold_in(self, histories: Histories, known: npt.NDArray[np.bool_], factor: Floats) -> Floats:
        """Return float32 [n_users, n_factors]; a user without a known item has zeros."""
        strength = (histories.weight * 0.5 ** (topk.age_days(histories) / self.recency_half_life_days)).astype(np.float32)
        strength[~known[histories.item]] = 0
        pairs = histories.weighted(strength)
        pairs.data = 1 + np.float32(self.alpha) * pairs.data
        with threadpool_limits(1, "blas"):
            solver = self._solver()
            solver.item_factors = factor
            users: Floats = solver.recalculate_user(np.arange(histories.n_users), pairs)
        return users
