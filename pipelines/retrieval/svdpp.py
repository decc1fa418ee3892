"""SVD++: a matrix factorisation of ratings that also learns from which items a user met, rated or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions, Ints, Longs
from pipelines.retrieval import factors, ratings, topk
from pipelines.retrieval.ratings import RatingModel
from pipelines.retrieval.threads import limited

HELD: Final = 250_000_000  # numbers of the users' normal equations held at once, 1 GB; of more, they are made anew in each step


@dataclass(frozen=True)
class SvdPp(RatingModel):
    """Rating of item i by user u: mean + b_u + b_i + q_i' (p_u + |N(u)|^-1/2 * sum of y_j over N(u)) (Koren, KDD 2008, eq. 15).

    N(u) is whatever u met: views and purchases count as well as ratings, and a user who rated nothing is still
    placed by them. The paper's loss with its penalties in proportion to the ratings, minimised exactly by turns rather than
    by stochastic gradients: y by conjugate gradients with every p_u and b_u eliminated (`ratings.eliminated`), then
    p_u and b_u, then q_i and b_i by ridge regressions. No user is kept: p_u and b_u are solved from the ratings in the
    history. Candidates are ordered by predicted rating, among items that somebody liked.
    State: factor float32 [n_items, n_factors + 1], q and a 1 that meets b_u; implicit float32 [n_items, n_factors], y;
    bias float32 [n_items]; mean float32 [1]; known bool [n_items], whether the item was liked.

    Attributes:
        n_factors: length of q and y.
        regularization: of p and q, for each rating.
        implicit_regularization: of y_j, for each user who met j.
        bias_regularization: of b_u and b_i, in ratings of the mean.
        n_epochs: rounds of solving for y, users, items.
        n_steps: of conjugate gradients, a round; each round begins at the last one's y.
        seed: of the first factors.
        num_threads: of the matrix products.
    """

    name: ClassVar[str] = "svdpp"

    n_factors: int = 32
    regularization: float = 0.15
    implicit_regularization: float = 1.0
    bias_regularization: float = 5.0
    n_epochs: int = 12
    n_steps: int = 5
    seed: int = 7
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy; a shop without ratings teaches nothing."""
        users, mean = ratings.learnt_from(interactions)
        items = users.T.tocsr()
        met = _met(interactions.user.astype(np.int64), interactions.item, users.shape)
        q = (0.1 * np.random.default_rng(self.seed).standard_normal((users.shape[1], self.n_factors))).astype(np.float32)
        y = np.zeros_like(q)
        item_bias = ratings.shrunk_means(items, self.bias_regularization)
        with limited(self.num_threads):
            for _ in range(self.n_epochs if users.nnz else 0):
                y = self._implicit(users, met, q, item_bias, y)
                z = met @ y
                user = self._users(users, z, q, item_bias)
                left = ratings.less(items, user[items.indices, -1])
                item = ratings.ridge(left, user[:, :-1] + z, self.regularization, self.bias_regularization)
                q, item_bias = item[:, :-1], item[:, -1]
        if not users.nnz:
            q[:] = 0
        state = {
            "n_items": np.array([users.shape[1]]),
            "factor": np.column_stack([q, np.ones(len(q), dtype=np.float32)]).astype(np.float32),
            "implicit": y,
            "bias": np.ascontiguousarray(item_bias),
            "mean": np.array([mean]),
            "known": factors.known_items(interactions),
        }
        return replace(self, state=state)

    def _implicit(self, users: sparse.csr_matrix, met: sparse.csr_matrix, q: Floats, item_bias: Floats, y: Floats) -> Floats:
        """Return float32 [n_items, n_factors], y after some steps of conjugate gradients from where it stands.

        With M the matrix of |N(u)|^-1/2 and H, h of each user: (M' H M + penalty) y = M' h.
        """
        left = ratings.less(users, item_bias[users.indices])

        def blocks() -> Iterable[tuple[Longs, Floats, Floats]]:
            return ratings.eliminated(left, q, self.regularization, self.bias_regularization)

        held = list(blocks()) if users.shape[0] * self.n_factors**2 <= HELD else None
        wanted, scale = np.zeros((users.shape[0], q.shape[1]), dtype=np.float32), np.zeros((users.shape[0], q.shape[1]), dtype=np.float32)
        for some, curve, slope in blocks() if held is None else held:
            wanted[some], scale[some] = slope, np.einsum("nff->nf", curve)
        penalty = (self.implicit_regularization * np.bincount(met.indices, minlength=len(q)))[:, None].astype(np.float32)
        penalty[penalty == 0] = 1  # an item that nobody met: its y stays 0
        precision = penalty + met.power(2).T @ scale

        def apply(direction: Floats) -> Floats:
            z = met @ direction
            bent = np.zeros_like(z)
            for some, curve, _ in blocks() if held is None else held:
                bent[some] = np.einsum("nfg,ng->nf", curve, z[some])
            return np.asarray(met.T @ bent + penalty * direction, dtype=np.float32)

        residual = np.asarray(met.T @ wanted, dtype=np.float32) - apply(y)
        direction = residual / precision
        size = float(np.vdot(residual, direction))
        for _ in range(self.n_steps):
            if size <= 0:
                break
            ahead = apply(direction)
            step = np.float32(size / float(np.vdot(direction, ahead)))
            y, residual = y + step * direction, residual - step * ahead
            scaled = residual / precision
            before, size = size, float(np.vdot(residual, scaled))
            direction = scaled + np.float32(size / before) * direction
        return y

    def _users(self, users: sparse.csr_matrix, z: Floats, q: Floats, item_bias: Floats) -> Floats:
        """Return float32 [n_users, n_factors + 1], p and b, given the ratings and where the met items place the users."""
        row = np.repeat(np.arange(users.shape[0]), np.diff(users.indptr))
        explained = item_bias[users.indices]
        step = max(1, topk.BLOCK // self.n_factors)
        for first in range(0, users.nnz, step):
            some = slice(first, first + step)
            explained[some] += np.einsum("nf,nf->n", z[row[some]], q[users.indices[some]])
        return ratings.ridge(ratings.less(users, explained), q, self.regularization, self.bias_regularization)

    def folded_in(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return float32 [n_users, n_factors + 1], p + z and b, and whether anything places the user."""
        state = topk.checked("svdpp", self.state, histories)
        q, bias = state["factor"].astype(np.float32)[:, :-1], state["bias"].astype(np.float32)
        given = ratings.given(histories, state["mean"].astype(np.float32))
        met = _met(histories.row_of_event(), histories.item, given.shape)
        with limited(self.num_threads):
            z = met @ state["implicit"].astype(np.float32)
            users = self._users(given, z, q, bias)
        users[:, :-1] += z
        return users, (np.diff(given.indptr) > 0) | z.any(axis=1)


def _met(row: Longs, item: Ints, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return float32 [n_rows, n_items], 1 / sqrt of the items that a row met, at each of them."""
    key = np.unique(row * shape[1] + item)
    row, column = np.divmod(key, max(shape[1], 1))
    n = np.bincount(row, minlength=shape[0])
    indptr = np.concatenate([[0], np.cumsum(n)])
    return sparse.csr_matrix(((1 / np.sqrt(n[row])).astype(np.float32), column, indptr), shape=shape)
