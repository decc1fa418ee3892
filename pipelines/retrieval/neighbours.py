"""Item-to-item weights: a sparse matrix as arrays, kept to the best of each row, and applied to histories.

Three sources (item_knn, sequence_rules, ease) differ only in how they learn the weights: the score
of item j for a user is the sum over the user's events e of strength(e) * weight[item(e), j].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Interactions, Ints, Longs
from pipelines.retrieval import one_row, topk
from pipelines.retrieval.protocol import Candidates

State: TypeAlias = dict[str, npt.NDArray[np.generic]]
PRODUCTS: Final = 20_000_000  # stored values of a sparse product held at once, at most: about 240 MB
CACHED: Final = 1_000_000  # where a block is cheap to begin: it stays in the cache, and its memory is used again


def state(weights: sparse.csr_matrix) -> State:
    """Return the arrays that `matrix` turns back into the same weights."""
    weights.sort_indices()
    return {
        "n_items": np.array([weights.shape[0]]),
        "indptr": weights.indptr.astype(np.int64),
        "indices": weights.indices.astype(np.int32),
        "data": weights.data.astype(np.float32),
    }


def matrix(learnt: State) -> sparse.csr_matrix:
    """Return float32 [n_items, n_items]: from an item of the history to the items it speaks for."""
    n_items = int(learnt["n_items"][0])
    return sparse.csr_matrix((learnt["data"], learnt["indices"], learnt["indptr"]), shape=(n_items, n_items))


def strongest(weights: Any, k: int) -> sparse.csr_matrix:
    """Return the `k` weights of each row that are largest in magnitude; equal ones by item index.

    Args:
        weights: a sparse (CSR, no pair stored twice) or dense float32 block of rows.
    """
    if sparse.issparse(weights):
        kept = topk.largest(np.abs(weights.data), weights.indices, weights.indptr, k)
        indptr = np.searchsorted(kept, weights.indptr)
        return sparse.csr_matrix((weights.data[kept], weights.indices[kept], indptr), shape=weights.shape)
    parts, step = [], max(1, topk.BLOCK // max(weights.shape[1], 1))
    for first in range(0, weights.shape[0], step):
        block = np.asarray(weights[first : first + step])
        place, indptr = topk.contenders(np.abs(block), k)
        packed = (np.take(block, place), (place % max(block.shape[1], 1)).astype(np.int32), indptr)
        parts.append(strongest(sparse.csr_matrix(packed, shape=block.shape), k))
    return sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix(weights.shape, dtype=np.float32)


def within_bounds(cost: Longs, room: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of consecutive blocks of rows, each as long as what is stored for it stays within bounds.

    Args:
        cost: int64 [n_rows], an upper bound of what is stored for each row.
        room: the bound, where it is to be smaller than `PRODUCTS`.
    """
    room = min(room or PRODUCTS, PRODUCTS)
    total = np.concatenate([[0], np.cumsum(cost)])
    first = 0
    while first < len(cost):
        last = max(first + 1, int(np.searchsorted(total, total[first] + room, side="right")) - 1)
        yield first, last
        first = last


def by_rows(cost: Longs, build: Callable[[int, int], sparse.csr_matrix]) -> sparse.csr_matrix:
    """Return blocks of rows one below the other, each block small enough to hold.

    Args:
        cost: int64 [n_rows], an upper bound of what is stored for each row while it is built.
        build: returns the rows [first, last), pruned.
    """
    parts = [build(first, last) for first, last in within_bounds(cost, CACHED)]
    return sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix((0, 0), dtype=np.float32)


def similar(
    items: sparse.csr_matrix, users: sparse.csr_matrix, n_neighbours: int, weigh: Callable[[Floats, Longs, Ints], Floats]
) -> sparse.csr_matrix:
    """Return float32 [n_items, n_items], each row's strongest weights off the diagonal, in blocks of items.

    Args:
        items: float32 [n_items, n_features]; users: float32 [n_features, n_items].
        weigh: makes weights of stored entries of `items @ users`, given as (value, row, column).
    """
    n_items = items.shape[0]

    def build(first: int, last: int) -> sparse.csr_matrix:
        block = (items[first:last] @ users).tocsr()
        row = np.repeat(np.arange(first, last), np.diff(block.indptr))
        block.data = weigh(block.data, row, block.indices)
        block.data[row == block.indices] = 0
        return strongest(block, n_neighbours)

    reach = np.concatenate([[0], np.cumsum(np.diff(users.indptr)[items.indices])])
    return by_rows(np.minimum(np.diff(reach[items.indptr]), n_items), build)


def retrieve(learnt: State, histories: Histories, strength: Floats, k: int, *, exclude_seen: bool) -> Candidates:
    """Return the items with the largest positive sums of weights, blocks of users at a time.

    Args:
        strength: float32 [n_events], how much each event of the histories counts.
    """
    if histories.n_users == 1:
        scores = one_row.times(one_row.of(histories, strength), (learnt["data"], learnt["indices"], learnt["indptr"]), histories.n_items)
        return one_row.best(scores, k, seen=histories if exclude_seen else None)
    users = histories.weighted(strength)
    weights = matrix(learnt)
    reach = np.concatenate([[0], np.cumsum(np.diff(weights.indptr)[users.indices])])
    cost = np.minimum(np.diff(reach[users.indptr]), histories.n_items)
    parts = []
    for first, last in within_bounds(cost, CACHED):
        products = (users[first:last] @ weights).tocsr()
        parts.append(topk.best_sparse(products, k, seen=histories.rows(first, last) if exclude_seen else None))
    return topk.stack(parts, k)


def user_item(interactions: Interactions, strength: Floats, newest: int) -> sparse.csr_matrix:
    """Return float32 [n_users, n_items], summed strengths of each user's `newest` events; zeros are dropped.

    The limit bounds what one tireless user (a bot, a shared till) costs and says: pairs grow with its square.
    """
    kept = newest_first(interactions.user) < newest
    kept &= strength > 0
    shape = (len(interactions.user_ids), len(interactions.item_ids))
    pairs = sparse.coo_matrix((strength[kept], (interactions.user[kept], interactions.item[kept])), shape=shape, dtype=np.float32)
    return pairs.tocsr()


def newest_first(user: npt.NDArray[np.integer]) -> Longs:
    """Return int64 [n], how many later events of the same user follow each event (sorted by user and time)."""
    if not len(user):
        return np.empty(0, dtype=np.int64)
    last = np.flatnonzero(np.append(user[1:] != user[:-1], True))
    return np.repeat(last, np.diff(np.concatenate([[-1], last]))) - np.arange(len(user))


def first_of_run(user: npt.NDArray[np.integer], item: Ints) -> npt.NDArray[np.bool_]:
    """Tell which events are on another item than the user's event before."""
    first = np.ones(len(user), dtype=bool)
    first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return first
