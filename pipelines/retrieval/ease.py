"""EASE: the linear item-to-item model that predicts each user's row from itself, in closed form."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Annotated, Final, Self

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

from pipelines.datasets.interactions import Floats, Histories, Interactions
from pipelines.errors import ReloopError
from pipelines.knobs import Range
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates
from pipelines.retrieval.threads import limited

log = logging.getLogger(__name__)

BLOCK: Final = 1024  # items multiplied at once


@dataclass(frozen=True)
class Ease:
    """B = I - P / diag(P) with P = (X'X + regularization I)^-1 (Steck, WWW 2019), X the 0/1 matrix of who met what.

    Memory is 4 bytes a pair of items and time its power 3/2, so only the `max_items` most frequent
    items take part; the log says how many were left out. Of each row the `n_neighbours` largest
    weights by magnitude are kept. State: the weights as the arrays of a sparse matrix.

    Attributes:
        regularization: on the diagonal; more of it trusts thin evidence less.
        max_items: 20,000 take 1.6 GB and minutes.
        n_neighbours: weights kept per item.
        recency_half_life_days: in the history that asks, an event this old counts half.
        max_history: newest events of a user that take part in the fit.
        num_threads: of the matrix inversion.
    """

    regularization: Annotated[float, Range(0, above=True)] = 500.0
    max_items: int = 20_000
    n_neighbours: int = 400
    recency_half_life_days: float = 14.0
    max_history: int = 1000
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy.

        Raises:
            ReloopError: X'X + regularization I is not positive definite, as with a regularization of zero.
        """
        users = neighbours.user_item(interactions, interactions.weight, self.max_history)
        users.data[:] = 1
        n_items = users.shape[1]
        frequency = np.bincount(users.indices, minlength=n_items)
        some = np.sort(np.argsort(-frequency, kind="stable")[: self.max_items])
        some = some[frequency[some] > 0]
        if left_out := int((frequency > 0).sum()) - len(some):
            log.warning(
                "ease: %d of %d items with events take part, the most frequent; %d are left out", len(some), len(some) + left_out, left_out
            )
        with limited(self.num_threads):
            weights = self._solve(users[:, some])
        pruned = neighbours.strongest(weights, self.n_neighbours).tocoo()
        of_all = sparse.csr_matrix((pruned.data, (some[pruned.row], some[pruned.col])), shape=(n_items, n_items), dtype=np.float32)
        return replace(self, state=neighbours.state(of_all))

    def _solve(self, users: sparse.csr_matrix) -> Floats:
        """Return float32 [n_some, n_some], row i holding what item i says for each other item; made in place, block by block."""
        n_items = users.shape[1]
        gram = np.zeros((n_items, n_items), dtype=np.float32, order="F")
        if not n_items:
            return gram
        items = users.T.tocsr()
        blocks = [(first, min(first + BLOCK, n_items)) for first in range(0, n_items, BLOCK)]
        for first, last in blocks:
            gram[:, first:last] = (items[first:last] @ users).toarray().T
        gram[np.diag_indices(n_items)] += np.float32(self.regularization)
        factor, failed = linalg.lapack.spotrf(gram, lower=1, overwrite_a=1)
        if not failed:
            factor, failed = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
        if failed:
            raise ReloopError("ease", found=f"regularization {self.regularization}", allowed="a number above zero", hint="raise it")
        weights: Floats = factor
        for first, last in blocks:  # LAPACK fills the lower triangle; the inverse is symmetric
            square = np.tril(weights[first:last, first:last])
            weights[first:last, first:last] = square + np.tril(square, -1).T
            weights[first:last, last:] = weights[last:, first:last].T
        weights /= -np.diag(weights).copy()
        weights[np.diag_indices(n_items)] = 0
        return weights

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items that the user's history predicts, its late events first."""
        state = topk.checked("ease", self.state, histories)
        liked = (histories.weight > 0).astype(np.float32)
        strength = (liked * 0.5 ** (topk.age_days(histories) / self.recency_half_life_days)).astype(np.float32)
        return neighbours.retrieve(state, histories, strength, k, exclude_seen=exclude_seen)
