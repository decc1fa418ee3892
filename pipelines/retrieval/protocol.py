"""What every retriever is, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions, Ints


@dataclass(frozen=True)
class Candidates:
    """The best items of one source for each user, best first.

    Attributes:
        item: int32 [n_users, k] dense item indices; -1 pads a row that has fewer.
        score: float32 [n_users, k], not increasing along a row; -inf where `item` is -1. Scores of
            different sources are not comparable. Equal scores are ordered by item index.
    """

    item: Ints
    score: Floats


class Retriever(Protocol):
    """A model that proposes items from the whole catalogue.

    A retriever is a frozen dataclass: its knobs are its fields, its learnt arrays are `state`,
    which is None until fitted. It has no parameter per user: what it knows of a user is the
    history it is handed, so it serves users it never saw.
    """

    @property
    def state(self) -> dict[str, npt.NDArray[np.generic]] | None:
        """The learnt arrays (sparse matrices as their three arrays); saved as npz, never pickled."""
        ...

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy; deterministic for the same interactions and knobs."""
        ...

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return up to `k` items a user. A user for whom the source knows nothing gets a row of -1.

        Raises:
            StateError: the model was not fitted, or the histories index another catalogue.
        """
        ...


@runtime_checkable
class Resumable(Retriever, Protocol):
    """A retriever whose training takes long enough to be killed, and goes on from where it stood."""

    def resume(self, interactions: Interactions, checkpoint: Path | None) -> Self:
        """Return what `fit` returns, keeping progress in a file and going on from what it holds of this very training."""
        ...


@runtime_checkable
class Cached(Retriever, Protocol):
    """A retriever that makes of each item, by itself, what another fit may use again."""

    def fit_cached(self, interactions: Interactions, cache: Path | None) -> Self:
        """Return what `fit` returns, keeping in a folder what the next fit need not make anew."""
        ...


@runtime_checkable
class Demanding(Retriever, Protocol):
    """A retriever whose fitting takes more than the default install, or a knob that has no default."""

    def require(self) -> None:
        """Check at once, before anything is read, what can be checked without fitting.

        Raises:
            ReloopError: an extra is not installed, which the hint names, or a knob is not set.
        """
        ...


@runtime_checkable
class Vectored(Retriever, Protocol):
    """A retriever whose score is the inner product of a user's and an item's vector, so that an index may answer for it (`ann`)."""

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return float32 [n_items, d], and bool [n_items], which of them may be proposed.

        Raises:
            StateError: the model was not fitted.
        """
        ...

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return float32 [n_users, d], and bool [n_users], of whom anything is known; the others get a row of -1.

        Raises:
            StateError: the model was not fitted, or the histories index another catalogue.
        """
        ...
