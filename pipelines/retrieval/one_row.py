"""One history against sparse weights, as a request brings it: what scipy gives, bit for bit and in its order, without its matrices.

Making and checking a sparse matrix costs more than a request's one row, and scipy's product clears a place for every column. Here the
work is what is stored. The order of the columns is scipy's, too, since it decides how a later product rounds: a user's list is the same
whoever else is asked for.
"""

from __future__ import annotations

import threading
from typing import Any, Final, NamedTuple

import numpy as np

from pipelines.datasets.interactions import Floats, Histories, Ints
from pipelines.retrieval import topk
from pipelines.retrieval.protocol import Candidates

_SCRATCH: Final = threading.local()


class Row(NamedTuple):
    """One sparse row: int32 [n] columns, each once, and float32 [n]."""

    column: Ints
    value: Floats


def of(histories: Histories, strength: Floats) -> Row:
    """Return the only row of `histories.weighted(strength)`."""
    order, item, place = histories.merged
    value = np.zeros(len(item), np.float32)
    np.add.at(value, place, np.asarray(strength, np.float32)[order])  # one after the other, as scipy adds
    if np.count_nonzero(value) == len(value):
        return Row(item, value)
    kept = value != 0
    return Row(item[kept], value[kept])


def times(row: Row, weights: tuple[Any, Any, Any], n_columns: int) -> Row:
    """Return a row @ weights.

    Args:
        weights: data (float32), indices and indptr of sparse rows; n_columns: how wide they are.
    """
    data, indices, indptr = weights
    begin = indptr[row.column].astype(np.int64)
    length = indptr[row.column + 1].astype(np.int64) - begin
    ends = length.cumsum()
    if not len(ends) or not ends[-1]:
        return Row(np.empty(0, np.int32), np.empty(0, np.float32))
    at = np.arange(int(ends[-1]))
    take = at + np.repeat(begin - (ends - length), length)
    column = np.asarray(indices[take], np.int32)
    spot = _spot(n_columns)
    spot[column[::-1]] = at[::-1]  # of one column's several, the first stays
    first = spot[column]
    met = np.flatnonzero(first == at)
    spot[column[met]] = np.arange(len(met) - 1, -1, -1)  # scipy hands out the column that it met last first
    total = np.zeros(len(met), np.float32)
    np.add.at(total, spot[column], np.repeat(row.value, length) * data[take])
    return Row(column[met[::-1]], total)


def strongest(row: Row, k: int) -> Row:
    """Return the k >= 1 values largest in magnitude, in the order of the row; of equal ones the lower columns."""
    if len(row.column) <= k and np.count_nonzero(row.value) == len(row.value):
        return row
    size = np.abs(row.value)
    key = topk.keys(size, row.column, size > 0)
    least = np.partition(key, len(key) - k)[len(key) - k] if len(key) > k else np.uint64(0)
    kept = key >= max(least, np.uint64(1))
    return Row(row.column[kept], row.value[kept])


def best(row: Row, k: int, seen: Histories | None = None) -> Candidates:
    """Return what `topk.best_sparse` does of one row."""
    proposed = row.value > 0
    if seen is not None and len(seen.item):
        spot = _spot(seen.n_items)
        spot[row.column] = 0
        spot[seen.item] = 1
        proposed &= spot[row.column] == 0
    found = topk.nothing(1, k)
    if k > 0 and len(row.column):
        key = topk.keys(row.value, row.column, proposed)
        if len(key) > k:
            key = np.partition(key, len(key) - k)[len(key) - k :]
        key.sort()
        item, score = topk.unkeyed(key[::-1])
        found.item[0, : len(item)], found.score[0, : len(item)] = item, score
    return found


def _spot(n: int) -> Ints:
    """Return int32, at least n places of this thread's own, whatever stands in them."""
    spot: Ints | None = getattr(_SCRATCH, "spot", None)
    if spot is None or len(spot) < n:
        spot = _SCRATCH.spot = np.empty(n, np.int32)
    return spot
