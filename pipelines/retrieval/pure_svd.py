"""The strongest directions of who met what: a truncated SVD, users projected from their history."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.utils.extmath import randomized_svd

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions
from pipelines.retrieval import factors, topk
from pipelines.retrieval.protocol import Candidates
from pipelines.retrieval.threads import limited


@dataclass(frozen=True)
class PureSvd:
    """Score of item j for a user's row x: x V V_j' with V the first right singular vectors of X (Cremonesi et al., RecSys 2010, eq. 8).

    x_ui is the square root of the summed event weights, fading with age, over the item's degree to the power
    `item_exponent` (EigenRec; Nikolakopoulos et al., 2019): at 0 the first directions are popularity's. The SVD
    is the randomised one with power iterations (Halko et al., SIAM Review 2011), seeded.
    State: factor float32 [n_items, n_factors], V; scale float32 [n_items]; known bool [n_items], whether the item was liked.

    Attributes:
        n_factors: directions kept; at most a quarter of the smaller side of X.
        item_exponent: how much an item met often is scaled down.
        half_life_days: after this long an event counts half, in the fit.
        recency_half_life_days: likewise, in the history that asks.
        max_history: newest events of a user that take part in the fit.
        n_epochs: power iterations.
        seed: of the first directions.
        num_threads: of the matrix products.
    """

    n_factors: int = 64
    item_exponent: float = 0.0
    half_life_days: float = 90.0
    recency_half_life_days: float = 30.0
    max_history: int = 1000
    n_epochs: int = 5
    seed: int = 7
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        users = factors.square_rooted(interactions, self.half_life_days, self.max_history)
        n_items = users.shape[1]
        scale = (np.maximum(np.bincount(users.indices, minlength=n_items), 1) ** -self.item_exponent).astype(np.float32)
        users.data *= scale[users.indices]
        factor = np.zeros((n_items, 1), dtype=np.float32)
        if users.nnz:
            n_factors = factors.rank_within(self.n_factors, users.shape)
            with limited(self.num_threads):
                factor = randomized_svd(users, n_factors, n_iter=self.n_epochs, random_state=self.seed)[2].T
        state = {
            "n_items": np.array([n_items]),
            "factor": np.ascontiguousarray(factor, dtype=np.float32),
            "scale": scale,
            "known": factors.known_items(interactions),
        }
        return replace(self, state=state)

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items that the projected history holds most of."""
        users, told = self.query_vectors(histories)
        factor, known = factors.placed("pure_svd", self.state)
        return factors.retrieve(users, factor, known, histories, k, exclude_seen=exclude_seen, num_threads=self.num_threads, told=told)

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return the items' factors, and which items may be proposed."""
        return factors.learnt("pure_svd", self.state)

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return the users' projected histories, and who liked an item that the model knows."""
        state = topk.checked("pure_svd", self.state, histories)
        factor, known = factors.placed("pure_svd", self.state)
        scale = state["scale"].astype(np.float32)
        rows = histories.weighted(factors.faded(histories, self.recency_half_life_days, known))
        rows.data = np.sqrt(rows.data) * scale[rows.indices]
        return rows @ factor, factors.told_of(histories, known)
