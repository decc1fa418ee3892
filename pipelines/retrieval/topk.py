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

BLOCK: Final = 40_000_000  # scores held at once: 160 MB of float32


def nothing(n_users: int, k: int) -> Candidates:
    """Return rows without any item."""
    return Candidates(np.full((n_users, k), -1, dtype=np.int32), np.full((n_users, k), -np.inf, dtype=np.float32))


def best(scores: Floats, k: int) -> Candidates:
    """Return the k largest of each row of a dense block; `-inf` (and NaN) is never proposed.

    Args:
        scores: float32 [n_users, n_items].
    """
    n_users, width = scores.shape
    scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)
    if width > k > 0:
        # The k-th value cuts; among items that equal it the first ones fill what room is left.
        cut = np.partition(scores, width - k, axis=1)[:, width - k, None]
        keep = scores > cut
        room = k - keep.sum(axis=1, keepdims=True)
        equal = scores == cut
        tied = np.flatnonzero(equal.sum(axis=1) > room[:, 0])
        equal[tied] &= np.cumsum(equal[tied], axis=1, dtype=np.int32) <= room[tied]
        item = np.nonzero(keep | equal)[1].reshape(n_users, k)
    else:
        item = np.broadcast_to(np.arange(min(width, k)), (n_users, min(width, k)))
    score = np.take_along_axis(scores, item, axis=1)
    order = np.argsort(-score, axis=1, kind="stable")
    item, score = np.take_along_axis(item, order, axis=1), np.take_along_axis(score, order, axis=1)
    found = nothing(n_users, k)
    found.item[:, : item.shape[1]] = np.where(score > -np.inf, item, -1)
    found.score[:, : item.shape[1]] = score
    return found


def best_sparse(scores: sparse.csr_matrix, k: int) -> Candidates:
    """Return the k largest stored values above zero of each row of a sparse block.

    Rows are packed to the left, so the work grows with what is stored and not with the catalogue.
    """
    scores.sort_indices()
    found = nothing(scores.shape[0], k)
    length = np.diff(scores.indptr)
    # Rows of like length share a block, so that one heavy user does not widen everybody's.
    order = np.argsort(length, kind="stable")
    for rows in _like_lengths(order, length):
        width = int(length[rows[-1]])
        if width == 0:
            continue
        begin = scores.indptr[rows]
        at = np.arange(width)[None, :]
        stored = at < length[rows, None]
        place = np.minimum(begin[:, None] + at, len(scores.data) - 1)
        value = np.where(stored, scores.data[place], 0)
        packed = best(np.where(value > 0, value, -np.inf).astype(np.float32), k)
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


def checked(name: str, state: dict[str, npt.NDArray[np.generic]] | None, histories: Histories) -> dict[str, npt.NDArray[np.generic]]:
    """Return the state of a fitted retriever whose catalogue is the histories' own.

    Raises:
        StateError: it was not fitted, or it was fitted on another catalogue.
    """
    if state is None:
        raise StateError(f"retriever {name}", found="not fitted", allowed="a fitted copy", hint="call fit, or load it from a bundle")
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
