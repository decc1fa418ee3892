"""How alike a candidate's description is to what the user met: cosines of TF-IDF vectors.

The vectors are those of the source `content` (`retrieval.content.tfidf`): title, category, brand and attributes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Ints, Longs
from pipelines.ranking.contact import decayed, last_sessions

DENSE_BYTES: Final = 1 << 26  # of profiles that are spread over all terms at a time


def profiles(histories: Histories, vectors: sparse.csr_matrix) -> tuple[sparse.csr_matrix, ...]:
    """Return what each user met as vectors of terms, rows of length 1 or 0: all of it with later events first, the last session, the last item.

    Args:
        vectors: float32 [n_items, n_terms], rows of length 1 or 0.
    """
    event = np.arange(len(histories.item))
    newest = np.zeros(len(event), np.float32)
    newest[histories.indptr[1:][histories.lengths() > 0] - 1] = 1
    session = (event >= np.repeat(last_sessions(histories), histories.lengths())).astype(np.float32)
    return tuple(_unit(histories.weighted(strength) @ vectors) for strength in (decayed(histories), session, newest))


def cosine(profile: sparse.csr_matrix, row: Longs, vectors: sparse.csr_matrix, item: Ints) -> Floats:
    """Return float32 [n], the cosine of each user's profile and item; NaN where one of them says nothing.

    Args:
        profile: float32 [n_users, n_terms]; row: int64 [n], not decreasing.
    """
    found = np.full(len(row), np.nan, np.float32)
    told = (np.diff(profile.indptr) > 0)[row] & (np.diff(vectors.indptr) > 0)[item]
    at_once = max(1, DENSE_BYTES // (4 * vectors.shape[1]))
    for first in range(0, profile.shape[0], at_once):
        begin, end = np.searchsorted(row, [first, first + at_once])
        some = np.flatnonzero(told[begin:end]) + begin
        if len(some):
            dense = profile[first : first + at_once].toarray()
            length = np.diff(vectors.indptr)[item[some]]
            start = np.append(0, np.cumsum(length)[:-1])
            entry = np.arange(length.sum()) + np.repeat(vectors.indptr[item[some]] - start, length)
            shared = dense[np.repeat(row[some] - first, length), vectors.indices[entry]] * vectors.data[entry]
            found[some] = np.add.reduceat(shared, start)
    return found


def _unit(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    """Return the matrix with rows of length 1, but for those of nothing."""
    found = sparse.csr_matrix(matrix, dtype=np.float32)
    found.sort_indices()
    row = np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))
    size = np.sqrt(np.bincount(row, found.data.astype(np.float64) ** 2, found.shape[0]))
    found.data = (found.data / np.where(size > 0, size, 1)[row]).astype(np.float32)
    found.eliminate_zeros()
    return found
