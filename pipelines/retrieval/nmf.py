"""Tastes as parts that only add up: a non-negative factorisation, users solved from their history."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions
from pipelines.retrieval import factors, topk
from pipelines.retrieval.protocol import Candidates
from pipelines.retrieval.threads import limited


@dataclass(frozen=True)
class Nmf:
    """X ~ W H with W, H >= 0 in least squares (Lee, Seung, Nature 1999), by coordinate descent (Cichocki, Phan, 2009; scikit-learn).

    x_ui is the square root of the summed event weights, fading with age. No user is kept: a request
    solves for its own non-negative row w.
    State: factor float32 [n_items, n_factors], H'; known bool [n_items], whether the item was liked.

    Attributes:
        n_factors: parts; at most a quarter of the smaller side of X.
        regularization: of both sides, in scikit-learn's scale (times items for W, times users for H).
        n_epochs: rounds of the descent.
        n_epochs_asked: likewise, for the history that asks.
        half_life_days: after this long an event counts half, in the fit.
        recency_half_life_days: likewise, in the history that asks.
        max_history: newest events of a user that take part in the fit.
        seed: of the first parts.
        num_threads: of the matrix products.
    """

    n_factors: int = 32
    regularization: float = 0.0
    n_epochs: int = 40
    n_epochs_asked: int = 20
    half_life_days: float = 90.0
    recency_half_life_days: float = 30.0
    max_history: int = 1000
    seed: int = 7
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        users = factors.square_rooted(interactions, self.half_life_days, self.max_history)
        users = users[np.diff(users.indptr) > 0]
        factor = np.zeros((users.shape[1], 1), dtype=np.float32)
        if users.nnz:
            n_factors = factors.rank_within(self.n_factors, users.shape)
            solver = NMF(
                n_factors,
                init="nndsvda",
                tol=0,
                max_iter=self.n_epochs,
                random_state=self.seed,
                alpha_W=self.regularization,
                alpha_H="same",
            )
            with limited(self.num_threads), warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the rounds are the budget
                factor = solver.fit(users).components_.T
        state = {
            "n_items": np.array([users.shape[1]]),
            "factor": np.ascontiguousarray(factor, dtype=np.float32),
            "known": factors.known_items(interactions),
        }
        return replace(self, state=state)

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items that the user's parts add up to."""
        users, told = self.query_vectors(histories)
        factor, known = factors.placed("nmf", self.state)
        return factors.retrieve(users, factor, known, histories, k, exclude_seen=exclude_seen, num_threads=self.num_threads, told=told)

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return the items' factors, and which items may be proposed."""
        return factors.learnt("nmf", self.state)

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return the users' parts, and who liked an item that the model knows."""
        topk.checked("nmf", self.state, histories)
        factor, known = factors.placed("nmf", self.state)
        rows = histories.weighted(factors.faded(histories, self.recency_half_life_days, known))
        rows.data = np.sqrt(rows.data)
        return self._fold_in(rows, factor), factors.told_of(histories, known)

    def _fold_in(self, rows: sparse.csr_matrix, factor: Floats) -> Floats:
        """Return float32 [n_users, n_factors] >= 0 by the same descent, H held; zeros for a user without a known item."""
        gram = factor.T @ factor + np.float32(self.regularization * len(factor)) * np.eye(factor.shape[1], dtype=np.float32)
        wanted = rows @ factor
        users: Floats = np.zeros_like(wanted)
        for _ in range(self.n_epochs_asked):
            for part in np.flatnonzero(np.diag(gram) > 0):
                users[:, part] += (wanted[:, part] - users @ gram[:, part]) / gram[part, part]
                np.maximum(users[:, part], 0, out=users[:, part])
        return users
