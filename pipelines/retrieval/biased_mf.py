"""Ratings as means, biases and tastes: a matrix factorisation of explicit ratings, users solved from the ratings they gave."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions
from pipelines.retrieval import factors, ratings, topk
from pipelines.retrieval.ratings import RatingModel
from pipelines.retrieval.threads import limited


@dataclass(frozen=True)
class BiasedMf(RatingModel):
    """Rating of item i by user u: mean + b_u + b_i + p_u' q_i (Koren, Bell, Volinsky, IEEE Computer 2009, eq. 4).

    Learnt by alternating ridge regressions; a row of n ratings is regularised by n * regularization (ALS-WR; Zhou
    et al., AAIM 2008, eq. 6), its bias by `bias_regularization`. The newest rating of a pair counts. No user is kept: p_u
    and b_u are solved from the ratings in the history. Candidates are ordered by predicted rating, among items that
    somebody liked; it knows taste, not what will be met next, so it ranks worse than models of what was met.
    State: factor float32 [n_items, n_factors + 1], q and a 1 that meets b_u; bias float32 [n_items]; mean float32 [1];
    known bool [n_items], whether the item was liked.

    Attributes:
        n_factors: length of q.
        regularization: of p and q, for each rating.
        bias_regularization: of b_u and b_i, in ratings of the mean.
        n_epochs: rounds of solving for users, then items.
        seed: of the first factors.
        num_threads: of the matrix products.
    """

    name: ClassVar[str] = "biased_mf"

    n_factors: int = 32
    regularization: float = 0.15
    bias_regularization: float = 5.0
    n_epochs: int = 12
    seed: int = 7
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy; events that are no ratings are left aside."""
        users, mean = ratings.learnt_from(interactions)
        items = users.T.tocsr()
        q = (0.1 * np.random.default_rng(self.seed).standard_normal((users.shape[1], self.n_factors))).astype(np.float32)
        item_bias = ratings.shrunk_means(items, self.bias_regularization)
        with limited(self.num_threads):
            for _ in range(self.n_epochs if users.nnz else 0):
                p, user_bias = self._solve(users, q, item_bias)
                q, item_bias = self._solve(items, p, user_bias)
        unheard = np.diff(items.indptr) == 0
        q[unheard], item_bias[unheard] = 0, 0
        state = {
            "n_items": np.array([users.shape[1]]),
            "factor": np.column_stack([q, np.ones(users.shape[1], dtype=np.float32)]).astype(np.float32),
            "bias": item_bias,
            "mean": np.array([mean]),
            "known": factors.known_items(interactions),
        }
        return replace(self, state=state)

    def folded_in(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return float32 [n_users, n_factors + 1], p and b, and whether the user gave a rating."""
        state = topk.checked("biased_mf", self.state, histories)
        users = ratings.given(histories, state["mean"].astype(np.float32))
        with limited(self.num_threads):
            p, bias = self._solve(users, state["factor"].astype(np.float32)[:, :-1], state["bias"].astype(np.float32))
        return np.column_stack([p, bias]).astype(np.float32), np.diff(users.indptr) > 0

    def _solve(self, rows: sparse.csr_matrix, other: Floats, other_bias: Floats) -> tuple[Floats, Floats]:
        """Return float32 [n_rows, n_factors] and [n_rows], the ridge solution of each row given the other side; zeros for empty rows."""
        left = ratings.less(rows, other_bias[rows.indices])
        solved = ratings.ridge(left, other, self.regularization, self.bias_regularization)
        return solved[:, :-1], solved[:, -1]
