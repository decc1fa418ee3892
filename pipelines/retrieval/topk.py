"""The best k of each row, exactly: ties go to the lower item index, and what may not be proposed never is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Ints, Longs
from pipelines.errors import StateError
from pipelines.retrieval.protocol import Candidates

BLOCK: Final = 20_000_000  # scores held at once: 80 MB of float32
GROUPS: Final = 64  # a row is looked over in so many groups for each item wanted, before any of it is ranked


def nothing(n_users: int, k: int) -> Candidates:
    """Return rows without any item."""
    return Candidates(np.full((n_users, k), -1, dtype=np.int32), np.full((n_users, k), -np.inf, dtype=np.float32))


def best(scores: Floats, k: int) -> Candidates:
    """Return the k largest of each row of a dense block; `-inf` (and NaN) is never proposed.

    Args:
        scores: float32 [n_users, n_items].
    """
    place, indptr = contenders(scores, k)
    value = np.take(scores, place)
    return _best(value, (place % max(scores.shape[1], 1)).astype(np.int32), indptr, np.ones(len(place), dtype=bool), k)


def contenders(scores: Floats, k: int) -> tuple[Longs, Longs]:
    """Return places in the flattened block that hold the k largest of each row, and few others; and the row pointers of these places.

    The items are dealt into groups. The k-th largest of the groups' maxima is a bound that at least k
    items reach, and hardly more: one pass finds it, where ranking the row takes many.
    """
    n_users, width = scores.shape
    n_groups = GROUPS * k
    least = np.full(n_users, np.finfo(np.float32).min, dtype=np.float32)
    if 0 < 2 * n_groups <= width:
        size = width // n_groups
        top = scores[:, : size * n_groups].reshape(n_users, size, n_groups).max(axis=1)
        if np.isnan(top).any():  # what is left over has no bearing on the bound
            np.copyto(top, -np.inf, where=np.isnan(top))
        least = np.maximum(least, np.partition(top, n_groups - k, axis=1)[:, n_groups - k])
    place = np.flatnonzero(scores >= least[:, None])  # false for NaN
    return place, np.searchsorted(place, np.arange(n_users + 1) * width)


def best_sparse(scores: sparse.csr_matrix, k: int, seen: Histories | None = None) -> Candidates:
    """Return the k largest stored values above zero of each row of a sparse block.

    Args:
        scores: no pair stored twice; rows need not be sorted.
        seen: the users' histories, where what they met must not be proposed.
    """
    proposed = scores.data > 0
    if seen is not None:
        proposed &= ~_met(scores, seen)
    return _best(scores.data, scores.indices, scores.indptr, proposed, k)


def largest(value: Floats, column: Ints, indptr: Longs, k: int) -> Longs:
    """Return int64 places, ascending, of the k values above zero of each ragged row that are largest; of equal ones the lower columns."""
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    key = keys(value, column, value > 0)
    kept = []
    for rows, width in _like_lengths(indptr):
        place, inside = _places(indptr, rows, width, len(key))
        packed = np.where(inside, key[place], _NEVER)
        cut = np.partition(packed, width - k, axis=1)[:, width - k, None] if width > k else _NEVER
        kept.append(place[(packed >= cut) & (packed > _NEVER)])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, dtype=np.int64)


def _best(value: Floats, column: Ints, indptr: Longs, proposed: npt.NDArray[np.bool_], k: int) -> Candidates:
    """Return the k largest of each ragged row, the work growing with what is stored."""
    found = nothing(len(indptr) - 1, k)
    if k <= 0:
        return found
    key = keys(value, column, proposed)
    for rows, width in _like_lengths(indptr):
        place, inside = _places(indptr, rows, width, len(key))
        packed = np.where(inside, key[place], _NEVER)
        if width > k:
            packed = np.partition(packed, width - k, axis=1)[:, width - k :]
        packed.sort(axis=1)
        item, score = unkeyed(packed[:, ::-1])
        found.item[rows, : item.shape[1]] = item
        found.score[rows, : item.shape[1]] = score
    return found


_NEVER: Final = np.uint64(0)  # the key of what may not be proposed; every other one is above it
_SIGN: Final = np.uint32(1 << 31)
_LAST: Final = np.uint32(0xFFFF_FFFF)
_CACHED: Final = 1 << 15  # values worked on at once, so that what lies between two steps stays in the cache


def keys(value: Floats, column: Ints, proposed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Return whole numbers that order as (score, lower column first): no two of a row are equal, so any k largest are the ones."""
    key = np.empty(len(value), dtype=np.uint64)
    for first in range(0, len(value), _CACHED):
        part = slice(first, first + _CACHED)
        bits = (value[part] + np.float32(0)).astype(np.float32, copy=False).view(np.uint32)  # -0.0 becomes 0.0
        ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
        key[part] = (ordered.astype(np.uint64) << np.uint64(32)) | (_LAST - column[part].astype(np.uint32))
    key[~proposed] = _NEVER
    return key


def unkeyed(key: npt.NDArray[np.uint64]) -> tuple[Ints, Floats]:
    """Return (item, score) of keys; -1 and -inf for `_NEVER`."""
    ordered = (key >> np.uint64(32)).astype(np.uint32)
    score = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered).view(np.float32)
    item = (_LAST - key.astype(np.uint32)).astype(np.int32)
    return np.where(key == _NEVER, np.int32(-1), item), np.where(key == _NEVER, np.float32(-np.inf), score)


def _places(indptr: Longs, rows: Longs, width: int, n_stored: int) -> tuple[Longs, npt.NDArray[np.bool_]]:
    """Return int64 [n_rows, width], where each stored value of some rows lies, and which places are the row's own."""
    at = np.arange(width)
    place = np.minimum(indptr[rows][:, None] + at, n_stored - 1)
    return place, at < np.diff(indptr)[rows, None]


def _like_lengths(indptr: Longs) -> Iterator[tuple[Longs, int]]:
    """Yield (rows, length of the longest), shortest first, without empty ones.

    Rows of like length share a block, so that one heavy user does not widen everybody's; a block stays within
    bounds and below twice its shortest row.
    """
    length = np.diff(indptr)
    order = np.argsort(length, kind="stable")
    sizes = length[order]
    first = int(np.searchsorted(sizes, 0, side="right"))
    while first < len(order):
        shortest = max(int(sizes[first]), 8)
        last = int(np.searchsorted(sizes, 2 * shortest, side="right"))
        last = min(max(last, first + 1), first + max(1, BLOCK // (8 * shortest)))
        yield order[first:last], int(sizes[last - 1])
        first = last


def hide_seen(scores: Floats, histories: Histories) -> None:
    """Set to `-inf`, in place, every item that its user already met (whatever the event's weight)."""
    scores[histories.row_of_event(), histories.item] = -np.inf


def _met(scores: sparse.csr_matrix, histories: Histories) -> npt.NDArray[np.bool_]:
    """Tell of each stored value whether its user already met the item, by a table of bits for some users at a time."""
    n_users, n_items = scores.shape
    found = np.empty(len(scores.data), dtype=bool)
    step = max(1, min(BLOCK // max(n_items, 1), n_users))
    table = np.zeros((step, n_items), dtype=bool)
    for first in range(0, n_users, step):
        rows = histories.rows(first, min(first + step, n_users))
        begin, end = scores.indptr[first], scores.indptr[first + rows.n_users]
        at = rows.row_of_event(), rows.item
        table[at] = True
        row = np.repeat(np.arange(rows.n_users), np.diff(scores.indptr[first : first + rows.n_users + 1]))
        found[begin:end] = table[row, scores.indices[begin:end]]
        table[at] = False
    return found


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
