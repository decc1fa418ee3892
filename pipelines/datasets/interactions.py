"""Interactions: events as arrays with dense ids, sorted by user and time; and the histories of some users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

Ids: TypeAlias = npt.NDArray[np.str_]
Ints: TypeAlias = npt.NDArray[np.int32]
Longs: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Histories:
    """What some users did before a moment, oldest first; a ragged array, row r is item[indptr[r]:indptr[r + 1]].

    This is all that a retriever may know of a user: the same object is built from the lake in
    training and from the session in serving, so no model needs a parameter per user.

    Attributes:
        indptr: int64 [n_users + 1].
        item: int32 [n_events], dense item indices of the model at hand, in [0, n_items).
        at: int64 [n_events], microseconds UTC, not decreasing within a row.
        weight: float32 [n_events], strength of the event (TrainingSettings.gains).
        n_items: size of the catalogue the indices run over.
        as_of: microseconds UTC; every `at` is before it.
    """

    indptr: Longs
    item: Ints
    at: Longs
    weight: Floats
    n_items: int
    as_of: int

    @property
    def n_users(self) -> int:
        """Return the number of rows, also of those without any event."""
        return len(self.indptr) - 1

    def matrix(self) -> sparse.csr_matrix:
        """Return float32 [n_users, n_items]: summed weights, duplicates merged, indices sorted."""
        matrix = sparse.csr_matrix((self.weight, self.item, self.indptr), shape=(self.n_users, self.n_items), dtype=np.float32)
        matrix.sum_duplicates()
        return matrix


@dataclass(frozen=True)
class Interactions:
    """Every event a model may learn from, in columns of equal length sorted by (user, at).

    Attributes:
        user_ids: sorted, unique; position is the dense user index.
        item_ids: sorted, unique; position is the dense item index. May hold items without events.
        user, item: int32 [n]; at: int64 [n] microseconds UTC; weight: float32 [n] gains.
        event_type: int8 [n], position in `columns.EVENT_TYPES`.
        value: float32 [n], NaN where the event has none.
        as_of: microseconds UTC; every event happened and was received before it.
    """

    user_ids: Ids
    item_ids: Ids
    user: Ints
    item: Ints
    at: Longs
    weight: Floats
    event_type: npt.NDArray[np.int8]
    value: Floats
    as_of: int
