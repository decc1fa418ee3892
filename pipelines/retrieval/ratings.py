"""Explicit ratings as a sparse matrix, and the ridge regressions that models of ratings are made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines import columns as c
from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions, Longs
from pipelines.retrieval import factors, topk
from pipelines.retrieval.protocol import Candidates

RATING: Final = c.EVENT_TYPES.index(c.RATING)


class RatingModel:
    """What models of ratings share: mean + b_i + (p, b_u)' (q_i, 1) for users who are solved from their history.

    Their state: factor float32 [n_items, n_factors + 1], q and a 1 that meets b_u; bias float32 [n_items]; mean float32
    [1]; known bool [n_items], whether the item was liked.
    """

    name: ClassVar[str]
    state: dict[str, npt.NDArray[np.generic]] | None
    num_threads: int

    @abstractmethod
    def folded_in(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return float32 [n_users, n_factors + 1], p and b, and whether anything places the user."""
        ...

    def predict(self, histories: Histories, row: Longs, item: npt.NDArray[np.integer]) -> Floats:
        """Return float32 [n], the ratings that the users of some rows would give some items; the item's mean where nothing places the user."""
        state = topk.checked(self.name, self.state, histories)
        bias, mean = state["bias"].astype(np.float32), state["mean"].astype(np.float32)
        users, _ = self.folded_in(histories)
        predicted: Floats = np.einsum("nf,nf->n", users[row], state["factor"].astype(np.float32)[item]) + bias[item] + mean
        return predicted

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items that the user would rate highest; none where nothing places the user."""
        users, told = self.query_vectors(histories)
        items, known = self.item_vectors()
        return factors.retrieve(users, items, known, histories, k, exclude_seen=exclude_seen, num_threads=self.num_threads, told=told)

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return the items' q, a 1 that meets b_u, and their means; and which items may be proposed."""
        return placed(self.name, self.state)

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return the users' p, b_u, and a 1 that meets an item's mean; and who is placed by anything."""
        users, told = self.folded_in(histories)
        return np.column_stack([users, np.ones(len(users), dtype=np.float32)]), told


def learnt_from(interactions: Interactions) -> tuple[sparse.csr_matrix, np.float32]:
    """Return float32 [n_users, n_items], the newest rating of each pair less their mean, and that mean; 0 without ratings."""
    rated = (interactions.event_type == RATING) & ~np.isnan(interactions.value)
    shape = (len(interactions.user_ids), len(interactions.item_ids))
    users = _newest(interactions.user[rated].astype(np.int64), interactions.item[rated], interactions.value[rated], shape)
    mean = np.float32(users.data.mean()) if users.nnz else np.float32(0)
    users.data -= mean
    return users, mean


def given(histories: Histories, mean: Floats) -> sparse.csr_matrix:
    """Return float32 [n_users, n_items], the newest rating of each pair of some histories, less a mean of ratings."""
    value = np.full(len(histories.item), np.nan, dtype=np.float32) if histories.rating is None else histories.rating
    rated = ~np.isnan(value)
    users = _newest(histories.row_of_event()[rated], histories.item[rated], value[rated], (histories.n_users, histories.n_items))
    users.data -= mean
    return users


def placed(name: str, state: dict[str, npt.NDArray[np.generic]] | None) -> tuple[Floats, Bools]:
    """Return float32 [n_items, n_factors + 2], vectors whose product with a user's [factors, bias, 1] is the rating; and which may be proposed.

    Raises:
        StateError: the model was not fitted.
    """
    factor, known = factors.placed(name, state)
    learnt = topk.fitted(name, state)
    return np.column_stack([factor, learnt["bias"].astype(np.float32) + learnt["mean"].astype(np.float32)]), known


def less(rows: sparse.csr_matrix, explained: Floats) -> sparse.csr_matrix:
    """Return the same pairs with what is left of each value, float32 [nnz] taken off."""
    return sparse.csr_matrix((rows.data - explained, rows.indices, rows.indptr), shape=rows.shape)


def shrunk_means(rows: sparse.csr_matrix, regularization: float) -> Floats:
    """Return float32 [n_rows], each row's sum over its number of values plus `regularization`."""
    total = np.bincount(np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), rows.data, rows.shape[0])
    shrunk: Floats = (total / (np.diff(rows.indptr) + regularization)).astype(np.float32)
    return shrunk


def ridge(rows: sparse.csr_matrix, other: Floats, regularization: float, bias_regularization: float) -> Floats:
    """Return float32 [n_rows, n_factors + 1], each row's factors and its bias, given the other side's factors; zeros for empty rows.

    Minimises over (x, b) the sum of (value - x' other - b)^2 plus n * regularization * |x|^2 + bias_regularization * b^2
    for a row of n values (ALS-WR; Zhou et al., AAIM 2008, eq. 6).
    """
    solved = np.zeros((rows.shape[0], other.shape[1] + 1), dtype=np.float32)
    for some, gram, wanted, penalty in normal_equations(rows, other, regularization, bias_regularization):
        _add_to_diagonal(gram, penalty)
        solved[some] = np.linalg.solve(gram, wanted[:, :, None])[:, :, 0]
    return solved


def normal_equations(
    rows: sparse.csr_matrix, other: Floats, regularization: float, bias_regularization: float
) -> Iterator[tuple[Longs, Floats, Floats, Floats]]:
    """Yield (rows, X'X, X'values, penalty) of the rows that are not empty, in blocks; X is [other, 1], a line a value.

    Returns:
        float32 [n], [n, f + 1, f + 1], [n, f + 1] and [n, f + 1], the diagonal that `ridge` adds.
    """
    n, f = np.diff(rows.indptr), other.shape[1]
    features = np.column_stack([other, np.ones(len(other), dtype=np.float32)])
    for some in _of_like_length(n, f + 1):
        width = int(n[some].max())
        at = np.arange(width)
        place = np.minimum(rows.indptr[some][:, None] + at, rows.nnz - 1)
        there = at < n[some][:, None]
        x = features[rows.indices[place]] * there[:, :, None]
        gram = np.matmul(x.transpose(0, 2, 1), x)
        wanted = np.einsum("nwf,nw->nf", x, np.where(there, rows.data[place], 0).astype(np.float32))
        penalty = np.full((len(some), f + 1), bias_regularization, dtype=np.float32)
        penalty[:, :f] = (n[some] * regularization)[:, None]
        yield some, gram, wanted, penalty


def eliminated(
    rows: sparse.csr_matrix, other: Floats, regularization: float, bias_regularization: float
) -> Iterator[tuple[Longs, Floats, Floats]]:
    """Yield (rows, H, h): what is left, once (x, b) of `ridge` are solved for, of a vector z that is added to x and costs nothing.

    The loss as a function of z is z' H z - 2 h' z + a constant, with H = D A^-1 X'X and h = D A^-1 X' values, for A = X'X + D and
    D the penalty (the Schur complement of x and b). Returns float32 [n, f, f] and [n, f].
    """
    f = other.shape[1]
    for some, gram, wanted, penalty in normal_equations(rows, other, regularization, bias_regularization):
        sides = np.concatenate([gram[:, :, :f], wanted[:, :, None]], axis=2)
        _add_to_diagonal(gram, penalty)
        solved = (penalty[:, :, None] * np.linalg.solve(gram, sides))[:, :f]
        yield some, solved[:, :, :f], solved[:, :, f]


def _add_to_diagonal(gram: Floats, penalty: Floats) -> None:
    place = np.arange(gram.shape[1])
    gram[:, place, place] += penalty


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
