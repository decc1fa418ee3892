"""Items that the same people like: similar by the users they share, who may count by how little they say and what they met."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Interactions, Ints, Longs
from pipelines.errors import ReloopError
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class ItemKnn:
    """Weight from item i to item j, i's `n_neighbours` largest; s_ij = sum_u x_ui x_uj.

    cosine: s_ij / (|x_i| |x_j| + shrinkage). jaccard: s_ij / (|x_i|^2 + |x_j|^2 - s_ij + shrinkage), which
    is shared over all users where every x is 0 or 1, and Tanimoto's extension of it otherwise.
    dot: s_ij itself. x_ui is the square root of the user's summed event weights w_ui, each fading with its
    age, so that ten views do not count ten times; or, with a weighting that takes items for documents and
    users for terms, idf_u = log(n_items / (1 + items of u)):
    tfidf: sqrt(w_ui) idf_u. bm25: w_ui (k1 + 1) / (w_ui + k1 (1 - b + b l_i / mean l)) idf_u, where l_i is the
    sum of w_i (Robertson and Zaragoza, 2009, eq. 3.15; idf as in `implicit`, whose defaults k1 and b have, too).
    State: the weights as the arrays of a sparse matrix.

    Attributes:
        similarity: see there.
        weighting: likewise.
        k1: how slowly bm25 levels off with w; b: how much a much liked item is discounted.
        n_neighbours: weights kept per item.
        shrinkage: pulls similarities that few users carry towards zero (Sarwar et al., 2001; Koren, 2008).
        half_life_days: after this long an event counts half, in the similarities.
        recency_half_life_days: likewise, in the history that asks.
        max_history: newest events of a user that are compared.
    """

    similarity: Literal["cosine", "jaccard", "dot"] = "cosine"
    weighting: Literal["none", "tfidf", "bm25"] = "none"
    k1: float = 100.0
    b: float = 0.8
    n_neighbours: int = 200
    shrinkage: float = 10.0
    half_life_days: float = 90.0
    recency_half_life_days: float = 14.0
    max_history: int = 400
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy; similarities are computed in blocks of items, never item by item in full.

        Raises:
            ReloopError: no such similarity.
        """
        if self.similarity not in {"cosine", "jaccard", "dot"}:
            raise ReloopError("item_knn", found=f"similarity {self.similarity!r}", allowed="cosine, jaccard or dot")
        age_days = (interactions.as_of - interactions.at) / 86_400e6
        strength = (interactions.weight * 0.5 ** (age_days / self.half_life_days)).astype(np.float32)
        users = neighbours.user_item(interactions, strength, self.max_history)
        users.data = self._weighted(users)
        items = users.T.tocsr()
        squared = np.asarray(items.multiply(items).sum(axis=1)).ravel().astype(np.float32)
        norm: Floats = np.sqrt(squared)
        shrinkage = np.float32(self.shrinkage)

        def cosine(shared: Floats, i: Longs, j: Ints) -> Floats:
            return shared / (norm[i] * norm[j] + shrinkage)

        def jaccard(shared: Floats, i: Longs, j: Ints) -> Floats:
            return shared / (squared[i] + squared[j] - shared + shrinkage)

        def dot(shared: Floats, *_: object) -> Floats:
            return shared

        weigh = cosine if self.similarity == "cosine" else jaccard if self.similarity == "jaccard" else dot
        return replace(self, state=neighbours.state(neighbours.similar(items, users, self.n_neighbours, weigh)))

    def _weighted(self, users: sparse.csr_matrix) -> Floats:
        """Return x of each stored w of [n_users, n_items]."""
        if self.weighting == "none":
            return np.asarray(np.sqrt(users.data))
        n_met = np.diff(users.indptr)
        # One who met everything tells no item from another.
        rarity = np.repeat(np.maximum(np.log(max(users.shape[1], 1)) - np.log1p(n_met), 0).astype(np.float32), n_met)
        if self.weighting == "tfidf":
            return np.asarray(np.sqrt(users.data) * rarity)
        length = np.bincount(users.indices, users.data, users.shape[1])
        relative = (length / max(length.mean(), np.finfo(float).tiny)).astype(np.float32)[users.indices]
        k1, b = np.float32(self.k1), np.float32(self.b)
        return np.asarray(users.data * (k1 + 1) / (users.data + k1 * (1 - b + b * relative)) * rarity)

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items most similar to the user's history, its late events first."""
        state = topk.checked("item_knn", self.state, histories)
        strength = (histories.weight * 0.5 ** (topk.age_days(histories) / self.recency_half_life_days)).astype(np.float32)
        return neighbours.retrieve(state, histories, strength, k, exclude_seen=exclude_seen)
