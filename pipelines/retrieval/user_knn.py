"""People like you: what the training users with the most similar histories met."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Interactions, Longs
from pipelines.retrieval import neighbours, one_row, topk
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class UserKnn:
    """Score of item j: sum over the `n_neighbours` training users v most like the user of sim(u, v)^power x_vj.

    sim(u, v) = sum_i x_ui x_vi / (|x_u| |x_v| + shrinkage) (Herlocker et al., SIGIR 1999, with implicit
    feedback), x_ui the square root of the summed event weights, fading with age, over d_i^item_exponent:
    to have met what everybody meets may say little of taste. Training users are evidence, not parameters:
    whoever asks is compared by the history it brings (a training user with its own row, too, which
    speaks for what it has met alone). State: the rows x_v without the discount as the arrays of a sparse
    matrix; discount float32 [n_items].

    Attributes:
        n_neighbours: users that are asked.
        shrinkage: pulls similarities that few items carry towards zero.
        item_exponent: how much an item met often is discounted, in the similarities.
        power: above 1 the nearest speak louder.
        half_life_days: after this long an event counts half, in the rows.
        recency_half_life_days: likewise, in the history that asks.
        max_history: newest events of a user that are kept.
        max_users: rows kept, the users whose last event is newest; it bounds the state.
    """

    n_neighbours: int = 100
    shrinkage: float = 10.0
    item_exponent: float = 0.0
    power: float = 3.0
    half_life_days: float = 90.0
    recency_half_life_days: float = 30.0
    max_history: int = 400
    max_users: int = 200_000
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        age_days = (interactions.as_of - interactions.at) / 86_400e6
        strength = (interactions.weight * 0.5 ** (age_days / self.half_life_days)).astype(np.float32)
        users = neighbours.user_item(interactions, strength, self.max_history)
        users.data = np.sqrt(users.data)
        frequency = np.maximum(np.bincount(users.indices, minlength=users.shape[1]), 1)
        last = np.zeros(users.shape[0], dtype=np.int64)
        last[interactions.user] = interactions.at  # sorted by time within a user, so the last assignment stays
        heard = np.flatnonzero(np.diff(users.indptr) > 0)
        heard = np.sort(heard[np.argsort(-last[heard], kind="stable")][: self.max_users])
        state = neighbours.state(users[heard]) | {
            "n_items": np.array([users.shape[1]]),
            "discount": (frequency**-self.item_exponent).astype(np.float32),
        }
        return replace(self, state=state)

    @cached_property
    def _evidence(self) -> tuple[sparse.csr_matrix, Floats, Floats, sparse.csr_matrix, int]:
        """The training rows, the items' discount, the rows' norms and columns with the discount, and the longest row."""
        state = topk.fitted("user_knn", self.state)
        discount = state["discount"].astype(np.float32)
        shape = (len(state["indptr"]) - 1, int(state["n_items"][0]))
        rows = sparse.csr_matrix((state["data"], state["indices"], state["indptr"]), shape=shape)
        compared = _discounted(rows, discount)
        return rows, discount, _norms(compared), compared.T.tocsr(), int(np.diff(rows.indptr).max(initial=0))

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return what the most similar users met, blocks of users at a time."""
        topk.checked("user_knn", self.state, histories)
        rows, discount, norm, columns, length = self._evidence
        shape = rows.shape
        if histories.n_users == 1:
            return self._alone(histories, k, seen=histories if exclude_seen else None)
        strength = (histories.weight * 0.5 ** (topk.age_days(histories) / self.recency_half_life_days)).astype(np.float32)
        asking = histories.weighted(strength)
        asking.data = np.sqrt(asking.data)
        asking = _discounted(asking, discount)
        own = _norms(asking)
        reach = np.concatenate([[0], np.cumsum(np.diff(columns.indptr)[asking.indices])])
        # What is stored for a user: its similarities, then the items of its neighbours.
        cost = np.minimum(np.diff(reach[asking.indptr]), shape[0]) + min(self.n_neighbours * length, shape[1])
        parts = []
        for first, last in neighbours.within_bounds(cost):
            similar = (asking[first:last] @ columns).tocsr()
            row = np.repeat(np.arange(first, last), np.diff(similar.indptr))
            similar.data /= own[row] * norm[similar.indices] + np.float32(self.shrinkage)
            nearest = neighbours.strongest(similar, self.n_neighbours)
            nearest.data **= np.float32(self.power)
            scores = (nearest @ rows).tocsr()
            parts.append(topk.best_sparse(scores, k, seen=histories.rows(first, last) if exclude_seen else None))
        return topk.stack(parts, k)

    def _alone(self, histories: Histories, k: int, *, seen: Histories | None) -> Candidates:
        """Return the same of one history, without a sparse matrix."""
        rows, discount, norm, columns, _ = self._evidence
        strength = (histories.weight * 0.5 ** (topk.age_days(histories) / self.recency_half_life_days)).astype(np.float32)
        item, value = one_row.of(histories, strength)
        asking = np.sqrt(value) * discount[item]
        own = np.sqrt(np.bincount(np.zeros(len(asking), np.intp), asking.astype(np.float64) ** 2, 1)).astype(np.float32)
        user, shared = one_row.times(one_row.Row(item, asking), (columns.data, columns.indices, columns.indptr), rows.shape[0])
        nearest = one_row.strongest(one_row.Row(user, shared / (own * norm[user] + np.float32(self.shrinkage))), self.n_neighbours)
        told = one_row.Row(nearest.column, nearest.value ** np.float32(self.power))
        return one_row.best(one_row.times(told, (rows.data, rows.indices, rows.indptr), rows.shape[1]), k, seen)


def _discounted(rows: sparse.csr_matrix, discount: Floats) -> sparse.csr_matrix:
    return sparse.csr_matrix((rows.data * discount[rows.indices], rows.indices, rows.indptr), shape=rows.shape)


def _norms(rows: sparse.csr_matrix) -> Floats:
    """Return float32 [n_rows], the Euclidean length of each row."""
    row: Longs = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    return np.sqrt(np.bincount(row, rows.data.astype(np.float64) ** 2, minlength=rows.shape[0])).astype(np.float32)
