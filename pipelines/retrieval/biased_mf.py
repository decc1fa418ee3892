"""Ratings as means, biases and tastes: a matrix factorisation of explicit ratings, users solved from the ratings they gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse
from threadpoolctl import threadpool_limits

from pipelines import columns as c
from pipelines.datasets.interactions import Floats, Histories, Interactions, Longs
from pipelines.retrieval import factors, topk
from pipelines.retrieval.protocol import Candidates

RATING: Final = c.EVENT_TYPES.index(c.RATING)


@dataclass(frozen=True)
class BiasedMf:
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

    n_factors: int = 32
    regularization: float = 0.1
    bias_regularization: float = 5.0
    n_epochs: int = 12
    seed: int = 7
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy; events that are no ratings are left aside."""
        rated = (interactions.event_type == RATING) & ~np.isnan(interactions.value)
        shape = (len(interactions.user_ids), len(interactions.item_ids))
        users = _newest(interactions.user[rated].astype(np.int64), interactions.item[rated], interactions.value[rated], shape)
        mean = np.float32(users.data.mean()) if users.nnz else np.float32(0)
        users.data -= mean
        items = users.T.tocsr()
        q = (0.1 * np.random.default_rng(self.seed).standard_normal((shape[1], self.n_factors))).astype(np.float32)
        item_bias = self._biases(items, np.zeros(shape[0], dtype=np.float32))
        with threadpool_limits(self.num_threads):
            for _ in range(self.n_epochs if users.nnz else 0):
                p, user_bias = self._solve(users, q, item_bias)
                q, item_bias = self._solve(items, p, user_bias)
        unheard = np.diff(items.indptr) == 0
        q[unheard], item_bias[unheard] = 0, 0
        state = {
            "n_items": np.array([shape[1]]),
            "factor": np.column_stack([q, np.ones(shape[1], dtype=np.float32)]).astype(np.float32),
            "bias": item_bias,
            "mean": np.array([mean]),
            "known": factors.known_items(interactions),
        }
        return replace(self, state=state)

    def predict(self, histories: Histories, row: Longs, item: npt.NDArray[np.integer]) -> Floats:
        """Return float32 [n], the ratings that the users of some rows would give some items; the item's mean for a user without ratings."""
        state = topk.checked("biased_mf", self.state, histories)
        bias, mean = state["bias"].astype(np.float32), state["mean"].astype(np.float32)
        users, _ = self._fold_in(histories)
        predicted: Floats = np.einsum("nf,nf->n", users[row], state["factor"].astype(np.float32)[item]) + bias[item] + mean
        return predicted

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items that the user would rate highest; none for a user without ratings."""
        state = topk.checked("biased_mf", self.state, histories)
        known, bias = state["known"].astype(bool), state["bias"].astype(np.float32) + state["mean"].astype(np.float32)
        users, told = self._fold_in(histories)
        return factors.retrieve(
            np.column_stack([users, np.ones(len(users), dtype=np.float32)]),
            np.column_stack([state["factor"].astype(np.float32), bias]),
            known,
            histories,
            k,
            exclude_seen=exclude_seen,
            num_threads=self.num_threads,
            told=told,
        )

    def _fold_in(self, histories: Histories) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return float32 [n_users, n_factors + 1], p and b, and whether the user gave a rating."""
        state = topk.checked("biased_mf", self.state, histories)
        given = np.full(len(histories.item), np.nan, dtype=np.float32) if histories.rating is None else histories.rating
        rated = ~np.isnan(given)
        shape = (histories.n_users, histories.n_items)
        users = _newest(histories.row_of_event()[rated], histories.item[rated], given[rated], shape)
        users.data -= state["mean"].astype(np.float32)
        with threadpool_limits(self.num_threads):
            p, bias = self._solve(users, state["factor"].astype(np.float32)[:, :-1], state["bias"].astype(np.float32))
        return np.column_stack([p, bias]).astype(np.float32), np.diff(users.indptr) > 0

    def _biases(self, rows: sparse.csr_matrix, other: Floats) -> Floats:
        """Return float32 [n_rows], shrunk mean residuals of each row."""
        row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        residual = np.bincount(row, rows.data - other[rows.indices], rows.shape[0])
        shrunk: Floats = (residual / (np.diff(rows.indptr) + self.bias_regularization)).astype(np.float32)
        return shrunk

    def _solve(self, rows: sparse.csr_matrix, other: Floats, other_bias: Floats) -> tuple[Floats, Floats]:
        """Return float32 [n_rows, n_factors] and [n_rows], the ridge solution of each row given the other side; zeros for empty rows."""
        n, f = np.diff(rows.indptr), other.shape[1]
        solved = np.zeros((rows.shape[0], f + 1), dtype=np.float32)
        features = np.column_stack([other, np.ones(len(other), dtype=np.float32)])
        residual = rows.data - other_bias[rows.indices]
        for some in _of_like_length(n, f + 1):
            width = int(n[some].max())
            at = np.arange(width)
            place = np.minimum(rows.indptr[some][:, None] + at, len(residual) - 1)
            there = at < n[some][:, None]
            x = features[rows.indices[place]] * there[:, :, None]
            gram = np.matmul(x.transpose(0, 2, 1), x)
            gram[:, np.arange(f), np.arange(f)] += (n[some] * self.regularization)[:, None].astype(np.float32)
            gram[:, f, f] += np.float32(self.bias_regularization)
            wanted = np.einsum("nwf,nw->nf", x, np.where(there, residual[place], 0).astype(np.float32))
            solved[some] = np.linalg.solve(gram, wanted[:, :, None])[:, :, 0]
        return solved[:, :-1], solved[:, -1]


def _newest(row: Longs, item: npt.NDArray[np.integer], value: Floats, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return float32 [n_rows, n_items], the last value of each pair; a zero stays stored."""
    key = (row * shape[1] + item)[::-1]
    key, first = np.unique(key, return_index=True)
    indptr = np.searchsorted(key, np.arange(shape[0] + 1) * shape[1])
    return sparse.csr_matrix((value[::-1][first].astype(np.float32), key % max(shape[1], 1), indptr), shape=shape)


def _of_like_length(length: npt.NDArray[np.integer], n_features: int) -> Iterator[Longs]:
    """Yield the rows that are not empty, those of like length together, so many that their padded features stay within bounds."""
    order = np.argsort(length, kind="stable")
    order = order[length[order] > 0]
    first = 0
    while first < len(order):
        widest = int(np.searchsorted(length[order], 2 * length[order[first]], side="right"))
        room = max(1, topk.BLOCK // int(2 * length[order[first]] * n_features))
        last = min(widest, first + room)
        yield order[first:last]
        first = last
