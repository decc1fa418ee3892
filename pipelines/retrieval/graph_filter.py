"""One hop over the graph of users and items: a linear low-pass filter, closed form, nothing trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from pipelines.datasets.interactions import Histories, Interactions
from pipelines.knobs import Range
from pipelines.retrieval import factors, neighbours, topk
from pipelines.retrieval.protocol import Candidates
from pipelines.retrieval.threads import limited


@dataclass(frozen=True)
class GraphFilter:
    """Weight from item i to item j: (sum_u x_ui x_uj / d_u^user_exponent / (d_i^from_exponent d_j^to_exponent))^power.

    x is the 0/1 matrix of who met what, d the degrees of its users and items. With exponents 1, 1/2
    and 1/2 and power 1 this is R~'R~ for the symmetrically normalised R~, the linear filter of GF-CF
    (Shen et al., CIKM 2021); the exponents are LinkProp's (Fu et al., WSDM 2022), the power is Turbo-CF's
    (Park et al., SIGIR 2024). A user who met everything tells little of what belongs together, which
    plain cosine does not know. With `n_factors`, GF-CF's ideal low-pass filter is added: low_pass d_i^-1/2 (V V')_ij d_j^1/2,
    V the first right singular vectors of R~. State: the weights as the arrays of a sparse matrix; with
    `n_factors` also factor float32 [n_items, n_factors], V, and degree float32 [n_items], 0 for items nobody liked.

    Attributes:
        user_exponent: how much a user with a long history is discounted for each pair.
        from_exponent: how much an item met often is discounted where it asks.
        to_exponent: how much an item met often is discounted where it is proposed; more of it favours the tail.
        power: below 1 levels the weights, above 1 sharpens them.
        n_factors: of the low-pass filter; 0 leaves it out, and with it a dense product for each user.
        low_pass: how much it counts beside the paths.
        seed: of the first directions.
        num_threads: of the matrix products.
        n_neighbours: weights kept per item.
        recency_half_life_days: in the history that asks, an event this old counts half.
        max_history: newest events of a user that take part in the fit.
    """

    user_exponent: float = 1.0
    from_exponent: float = 0.5
    to_exponent: float = 0.5
    power: float = 1.0
    n_factors: Annotated[int, Range(0, 4096)] = 0
    low_pass: float = 0.3
    seed: int = 7
    num_threads: int = 2
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
        return replace(self, state=neighbours.state(weights) | (self._low_pass(users) if self.n_factors else {}))

    def _low_pass(self, users: sparse.csr_matrix) -> dict[str, npt.NDArray[np.generic]]:
        """Return V and the degrees of the items."""
        n_items = users.shape[1]
        degree = np.bincount(users.indices, minlength=n_items).astype(np.float32)
        factor = np.zeros((n_items, 1), dtype=np.float32)
        if users.nnz:
            normal = users.copy()
            normal.data = 1 / np.sqrt(np.repeat(np.diff(users.indptr), np.diff(users.indptr)) * degree[users.indices])
            with limited(self.num_threads):
                n_factors = factors.rank_within(self.n_factors, users.shape)
                factor = randomized_svd(normal, n_factors, n_iter=4, random_state=self.seed)[2].T
        return {"factor": np.ascontiguousarray(factor, dtype=np.float32), "degree": degree}

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items that most paths lead to from the user's history, its late events first."""
        state = topk.checked("graph_filter", self.state, histories)
        liked = (histories.weight > 0).astype(np.float32)
        strength = (liked * 0.5 ** (topk.age_days(histories) / self.recency_half_life_days)).astype(np.float32)
        if not self.n_factors:
            return neighbours.retrieve(state, histories, strength, k, exclude_seen=exclude_seen)
        weights, degree = neighbours.matrix(state), state["degree"].astype(np.float32)
        factor = state["factor"].astype(np.float32)
        asks, proposed = np.maximum(degree, 1) ** np.float32(-0.5), self.low_pass * np.sqrt(degree)
        users = histories.weighted(np.where(degree[histories.item] > 0, strength, np.float32(0)))
        told = np.diff(users.indptr) > 0
        parts = []
        for first, last, rows in topk.blocks(histories, histories.n_items):
            mine = users[first:last]
            with limited(self.num_threads):
                scores = ((mine.multiply(asks).tocsr() @ factor) @ (factor * proposed[:, None]).T).astype(np.float32)
            scores += (mine @ weights).toarray()
            scores[~told[first:last]] = -np.inf
            scores[:, degree == 0] = -np.inf
            if exclude_seen:
                topk.hide_seen(scores, rows)
            parts.append(topk.best(scores, k))
        return topk.stack(parts, k)
