"""Sessions like this one: what past sessions with the same items held near them, the last items first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Histories, Interactions, Longs
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class SessionKnn:
    """Vector multiplication session-kNN with item distances (Ludewig et al., UMUAI 2018 and 2021: VS-kNN, VSTAN).

    A session is a stretch of one user's events with no gap longer than `gap_minutes`; one of more than
    `max_length` steps is cut. The asking history weighs an item decay^(steps back). Similarity to a
    session s is the sum of the weights of the items in both, over sqrt(|s|). Each of the
    `n_neighbours` most similar sessions proposes its items j with
    similarity * distance_decay^(|step of j - step of a| - 1) / popularity(j)^popularity_exponent, where a
    is the latest item of the asking history that the session holds, and `backward` times that where j came before a.
    State: the sessions as ragged arrays of items, oldest first; popularity float32 [n_items].

    Attributes:
        gap_minutes: of silence that end a session.
        max_length: steps of a session, and of the history that asks.
        decay: of a step back in the history that asks.
        distance_decay: of a step between the item that was found and the one proposed.
        backward: how much what came before counts beside what came after.
        popularity_exponent: 0 favours what is popular anyway.
        n_neighbours: sessions that are asked.
        max_sessions: kept, the newest; it bounds the state.
    """

    gap_minutes: float = 60.0
    max_length: int = 50
    decay: float = 0.8
    distance_decay: float = 0.8
    backward: float = 0.5
    popularity_exponent: float = 0.25
    n_neighbours: int = 200
    max_sessions: int = 500_000
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        n_items = len(interactions.item_ids)
        step = neighbours.first_of_run(interactions.user, interactions.item) & (interactions.weight > 0)
        user, item, at = interactions.user[step], interactions.item[step], interactions.at[step]
        begins = np.ones(len(user), dtype=bool)
        begins[1:] = (user[1:] != user[:-1]) | (np.diff(at) > self.gap_minutes * 60e6)
        # A long session is cut from its end, so that its last steps stay together.
        begins |= (neighbours.newest_first(np.cumsum(begins)) + 1) % self.max_length == 0
        ends = np.append(begins[1:], True)[: len(begins)]
        first, last = np.flatnonzero(begins), np.flatnonzero(ends)
        told = last > first  # a session of one item says nothing of another
        first, last = first[told], last[told]
        newest = np.sort(np.argsort(-at[last], kind="stable")[: self.max_sessions])
        first, length = first[newest], (last - first + 1)[newest]
        indptr = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        take = np.arange(indptr[-1]) - np.repeat(indptr[:-1], length) + np.repeat(first, length)
        popularity = np.maximum(np.bincount(item, minlength=n_items), 1).astype(np.float32)
        return replace(
            self, state={"n_items": np.array([n_items]), "indptr": indptr, "item": item[take].astype(np.int32), "popularity": popularity}
        )

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return what the most similar sessions held, blocks of users at a time."""
        state = topk.checked("session_knn", self.state, histories)
        indptr, item = state["indptr"].astype(np.int64), state["item"].astype(np.int32)
        length = np.diff(indptr)
        shape = (len(length), histories.n_items)
        held = sparse.csr_matrix((np.ones(len(item), dtype=np.float32), item.copy(), indptr), shape=shape)
        held.sum_duplicates()  # in place, so the steps are copied: their order matters
        held.data = np.repeat((length**-0.5).astype(np.float32), np.diff(held.indptr))
        columns = held.T.tocsr()
        scale = (state["popularity"].astype(np.float32) ** -self.popularity_exponent).astype(np.float32)

        asking = self._asking(histories)
        reach = np.concatenate([[0], np.cumsum(np.diff(columns.indptr)[asking.indices])])
        widest = min(self.n_neighbours, len(length)) * int(length.max(initial=0))
        cost = np.minimum(np.diff(reach[asking.indptr]), len(length)) + 8 * widest  # a step of a neighbour takes eight times the memory
        parts = []
        for first, last in neighbours.within_bounds(cost):
            nearest = neighbours.strongest((asking[first:last] @ columns).tocsr(), self.n_neighbours)
            scores = self._proposed(asking[first:last], nearest, indptr, item)
            scores.data *= scale[scores.indices]
            parts.append(topk.best_sparse(scores, k, seen=histories.rows(first, last) if exclude_seen else None))
        return topk.stack(parts, k)

    def _asking(self, histories: Histories) -> sparse.csr_matrix:
        """Return float32 [n_users, n_items], decay^(steps back) of the last step on each item."""
        user = histories.row_of_event()
        step = neighbours.first_of_run(user, histories.item) & (histories.weight > 0)
        row, item = user[step], histories.item[step]
        back = neighbours.newest_first(row)
        key = row * histories.n_items + item
        near = np.flatnonzero(back < self.max_length)[::-1]  # the last one first
        near = near[np.unique(key[near], return_index=True)[1]]
        weight = (self.decay ** back[near]).astype(np.float32)
        return sparse.csr_matrix((weight, (row[near], item[near])), shape=(histories.n_users, histories.n_items))

    def _proposed(
        self, asking: sparse.csr_matrix, nearest: sparse.csr_matrix, indptr: Longs, item: npt.NDArray[np.int32]
    ) -> sparse.csr_matrix:
        """Return float32 [n_users, n_items], the summed proposals of each user's nearest sessions."""
        n_items = asking.shape[1]
        asker = np.repeat(np.arange(asking.shape[0]), np.diff(nearest.indptr))
        begin, length = indptr[nearest.indices], np.diff(indptr)[nearest.indices]
        pair = np.repeat(np.arange(len(begin)), length)
        before = np.concatenate([[0], np.cumsum(length)])
        step = np.arange(len(pair)) - before[pair]
        proposed = item[begin[pair] + step]

        asking.sort_indices()
        asked = np.repeat(np.arange(asking.shape[0]), np.diff(asking.indptr)) * n_items + asking.indices
        key = asker[pair] * n_items + proposed
        place = np.minimum(np.searchsorted(asked, key), max(len(asked) - 1, 0))
        shared = np.flatnonzero(asked[place] == key) if len(asked) else np.zeros(0, dtype=np.int64)
        # The anchor of a pair: the step whose item the asker met last; the latest of several. Each pair shares an item.
        in_order = shared[np.lexsort((step[shared], asking.data[place[shared]], pair[shared]))]
        anchor = np.zeros(len(begin), dtype=np.int64)
        anchor[pair[in_order]] = step[in_order]  # the last assignment of a pair stays
        distance = step - anchor[pair]
        share = nearest.data[pair] * self.distance_decay ** np.maximum(np.abs(distance) - 1, 0)
        share[distance < 0] *= self.backward
        return sparse.csr_matrix((share.astype(np.float32), (asker[pair], proposed)), shape=asking.shape)
