"""One hop over the graph of users and items: a linear low-pass filter, closed form, nothing trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Histories, Interactions
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class GraphFilter:
    """Weight from item i to item j: (sum_u x_ui x_uj / d_u^user_exponent / (d_i^from_exponent d_j^to_exponent))^power.

    x is the 0/1 matrix of who met what, d the degrees of its users and items. With exponents 1, 1/2
    and 1/2 and power 1 this is R~'R~ for the symmetrically normalised R~, the linear filter of GF-CF
    (Shen et al., CIKM 2021, eq. 16) without its ideal low-pass part; the power is Turbo-CF's
    (Park et al., SIGIR 2024, eq. 5). A user who met everything tells little of what belongs
    together, which plain cosine does not know. State: the weights as the arrays of a sparse matrix.

    Attributes:
        user_exponent: how much a user with a long history is discounted for each pair.
        from_exponent: how much an item met often is discounted where it asks.
        to_exponent: how much an item met often is discounted where it is proposed; more of it favours the tail.
        power: below 1 levels the weights, above 1 sharpens them.
        n_neighbours: weights kept per item.
        recency_half_life_days: in the history that asks, an event this old counts half.
        max_history: newest events of a user that take part in the fit.
    """

    user_exponent: float = 1.0
    from_exponent: float = 0.5
    to_exponent: float = 0.5
    power: float = 1.0
    n_neighbours: int = 400
    recency_half_life_days: float = 14.0
    max_history: int = 1000
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        users = neighbours.user_item(interactions, interactions.weight, self.max_history)
        users.data[:] = 1
        met = np.maximum(np.diff(users.indptr), 1).astype(np.float32)
        item = np.maximum(np.bincount(users.indices, minlength=users.shape[1]), 1).astype(np.float32)
        asks, proposed = (item**-exponent for exponent in (self.from_exponent, self.to_exponent))
        discounted = sparse.diags_array(met**-self.user_exponent, dtype=np.float32) @ users
        weights = neighbours.similar(
            users.T.tocsr(),
            sparse.csr_matrix(discounted),
            self.n_neighbours,
            lambda paths, i, j: ((paths * asks[i] * proposed[j]) ** np.float32(self.power)).astype(np.float32),
        )
        return replace(self, state=neighbours.state(weights))

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items that most paths lead to from the user's history, its late events first."""
        state = topk.checked("graph_filter", self.state, histories)
        liked = (histories.weight > 0).astype(np.float32)
        strength = (liked * 0.5 ** (topk.age_days(histories) / self.recency_half_life_days)).astype(np.float32)
        return neighbours.retrieve(state, histories, strength, k, exclude_seen=exclude_seen)
