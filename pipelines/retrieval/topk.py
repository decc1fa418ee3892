"""The best k of each row, exactly: ties go to the lower item index, and what may not be proposed never is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Ints
from pipelines.errors import StateError
from pipelines.retrieval.protocol import Candidates

BLOCK: Final = 20_000_000  # scores held at once: 80 MB of float32, and as much again to rank them
DENSE: Final = 16  # a sparse block with more than one stored value in so many is ranked as a dense one


def nothing(n_users: int, k: int) -> Candidates:
    """Return rows without any item."""
    return Candidates(np.full((n_users, k), -1, dtype=np.int32), np.full((n_users, k), -np.inf, dtype=np.float32))


def best(scores: Floats, k: int) -> Candidates:
    """Return the k largest of each row of a dense block; `-inf` (and NaN) is never proposed.

    Args:
        scores: float32 [n_users, n_items].
    """
    n_users, width = scores.shape
    if width > k > 0:
        # The k-th value cuts; among items that equal it the first ones fill what room is left.
        top = np.partition(scores, width - k, axis=1)[:, width - k :]
        if np.isnan(top).any():  # NaN sorts last, so a row that has one shows it here
            return best(np.where(np.isnan(scores), np.float32(-np.inf), scores), k)
        cut = top.min(axis=1, keepdims=True)
        keep = scores >= cut
        for row in np.flatnonzero(np.count_nonzero(keep, axis=1) > k):
            tied = np.flatnonzero(scores[row] == cut[row])
            keep[row, tied[k - np.count_nonzero(scores[row] > cut[row]) :]] = False
        item = (np.flatnonzero(keep) % width).reshape(n_users, k)
    else:
        item = np.broadcast_to(np.arange(min(width, k)), (n_users, min(width, k)))
    score = np.take_along_axis(scores, item, axis=1)
    order = np.argsort(-score, axis=1, kind="stable")  # NaN sorts last here too
    item, score = np.take_along_axis(item, order, axis=1), np.take_along_axis(score, order, axis=1)
    found = nothing(n_users, k)
    found.item[:, : item.shape[1]] = np.where(score > -np.inf, item, -1)
    found.score[:, : item.shape[1]] = np.where(score > -np.inf, score, -np.inf)
    return found


def best_sparse(scores: sparse.csr_matrix, k: int, seen: Histories | None = None) -> Candidates:
    """Return the k largest stored values above zero of each row of a sparse block.

    Args:
        scores: no pair stored twice.
        seen: the users' histories, where what they met must not be proposed.
    """
    n_users, n_items = scores.shape
    if scores.nnz * DENSE < n_users * n_items:
        return _best_packed(scores if seen is None else without_seen(scores, seen), k)
    parts, step = [], max(1, BLOCK // max(n_items, 1))
    for first in range(0, n_users, step):
        block = scores[first : first + step].toarray()
        if seen is not None:
            hide_seen(block, seen.rows(first, min(first + step, n_users)))
        np.copyto(block, -np.inf, where=block <= 0)
        parts.append(best(block, k))
    return stack(parts, k)


def _best_packed(scores: sparse.csr_matrix, k: int) -> Candidates:
    """Do the same with each row packed to the left, so that the work grows with what is stored."""
    scores.sort_indices()
    found = nothing(scores.shape[0], k)
    length = np.diff(scores.indptr)
    # Rows of like length share a block, so that one heavy user does not widen everybody's.
    order = np.argsort(length, kind="stable")
    for rows in _like_lengths(order, length):
        width = int(length[rows[-1]])
        if width == 0:
            continue
        at = np.arange(width, dtype=np.int32)
        place = np.minimum(scores.indptr[rows][:, None] + at, len(scores.data) - 1)
        value = scores.data[place]
        value[(at >= length[rows, None]) | (value <= 0)] = -np.inf
        packed = best(value, k)
        item = np.take_along_axis(scores.indices[place], np.maximum(packed.item, 0), axis=1)
        found.item[rows] = np.where(packed.item < 0, -1, item)
        found.score[rows] = packed.score
    return found


def _like_lengths(order: npt.NDArray[np.int64], length: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield slices of rows, shortest first, whose padded block stays within bounds and below twice its shortest row."""
    first = 0
    while first < len(order):
        shortest = max(int(length[order[first]]), 8)
        last = int(np.searchsorted(length[order], 2 * shortest, side="right"))
        last = min(max(last, first + 1), first + max(1, BLOCK // (8 * shortest)))
        yield order[first:last]
        first = last


def hide_seen(scores: Floats, histories: Histories) -> None:
    """Set to `-inf`, in place, every item that its user already met (whatever the event's weight)."""
    scores[histories.row_of_event(), histories.item] = -np.inf


def without_seen(scores: sparse.csr_matrix, histories: Histories) -> sparse.csr_matrix:
    """Return a sparse block whose stored values on items their user already met are zero."""
    rows = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
    key = rows * scores.shape[1] + scores.indices
    seen = histories.row_of_event() * scores.shape[1] + histories.item
    data = np.where(np.isin(key, seen), np.float32(0), scores.data)
    return sparse.csr_matrix((data, scores.indices, scores.indptr), shape=scores.shape)


def blocks(histories: Histories, width: int) -> Iterator[tuple[int, int, Histories]]:
    """Yield (first, last, rows) so that a dense block of `width` columns a user stays within bounds."""
    step = max(1, BLOCK // max(width, 1))
    for first in range(0, histories.n_users, step):
        last = min(first + step, histories.n_users)
        yield first, last, histories.rows(first, last)


def stack(parts: list[Candidates], k: int) -> Candidates:
    """Return blocks of users one below the other."""
    if not parts:
        return nothing(0, k)
    return Candidates(np.concatenate([part.item for part in parts]), np.concatenate([part.score for part in parts]))


def fitted(name: str, state: dict[str, npt.NDArray[np.generic]] | None) -> dict[str, npt.NDArray[np.generic]]:
    """Return the state of a fitted retriever.

    Raises:
        StateError: it was not fitted.
    """
    if state is None:
        raise StateError(f"retriever {name}", found="not fitted", allowed="a fitted copy", hint="call fit, or load it from a bundle")
    return state


def checked(name: str, state: dict[str, npt.NDArray[np.generic]] | None, histories: Histories) -> dict[str, npt.NDArray[np.generic]]:
    """Return the state of a fitted retriever whose catalogue is the histories' own.

    Raises:
        StateError: it was not fitted, or it was fitted on another catalogue.
    """
    state = fitted(name, state)
    n_items = int(state["n_items"][0])
    if n_items != histories.n_items:
        raise StateError(
            f"retriever {name}",
            found=f"histories over {histories.n_items} items",
            allowed=f"histories over its own {n_items}",
            hint="remap them first (pipelines.datasets.interactions.remap)",
        )
    return state


def age_days(histories: Histories) -> Floats:
    """Return float32 [n_events], how long before `as_of` each event happened."""
    return ((histories.as_of - histories.at) / 86_400e6).astype(np.float32)


def steps_back(histories: Histories) -> Ints:
    """Return int32 [n_events], how many events of the same row came after each event; 0 for the last."""
    ends = np.repeat(histories.indptr[1:], histories.lengths())
    return (ends - 1 - np.arange(len(histories.item))).astype(np.int32)
