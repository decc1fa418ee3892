"""The inner products by which some sources score, for any pair of user and item: also for items that the source did not propose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipelines import publish
from pipelines.datasets.interactions import Bools, Floats, Histories, Ints, Longs
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.protocol import Retriever, Vectored

PAIRS_AT_ONCE: Final = 1 << 17


@dataclass(frozen=True)
class Vectors:
    """One source's vectors of some users and of the catalogue.

    Attributes:
        query: float32 [n_users, d]; told: bool [n_users], of whom the source knows anything.
        item: float32 [n_items, d]; known: bool [n_items], of which it knows anything.
    """

    query: Floats
    told: Bools
    item: Floats
    known: Bools

    def of_users(self, row: Longs, item: Ints) -> Floats:
        """Return float32 [n], the source's score of each pair of user and item; NaN where it does not know both."""
        return np.where(self.told[row] & self.known[item], _products(self.query, row, self.item, item), np.float32(np.nan))

    def of_items(self, one: Ints, other: Ints) -> Floats:
        """Return float32 [n], the cosine of two items' vectors; NaN where `one` is -1, or the source does not know both."""
        asked, place = np.unique(np.concatenate([one, other]), return_inverse=True)
        size = np.sqrt(_products(self.item, asked, self.item, asked))[place]
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = _products(self.item, one, self.item, other) / (size[: len(one)] * size[len(one) :])
        return np.where((one >= 0) & self.known[one] & self.known[other], cosine, np.float32(np.nan)).astype(np.float32)

    def of_lists(self, indptr: Longs, member: Ints, row: Longs, item: Ints) -> Floats:
        """Return float32 [n], the cosine of an item's vector and the mean of those, each of length 1, of a list of items.

        NaN where the source knows none of the list, or not the item.

        Args:
            indptr: int64 [n_lists + 1]; member: int32 [indptr[-1]], the items of each list.
            row: int64 [n], which list; item: int32 [n].
        """
        kept = self.known[member]
        member, indptr = member[kept], np.concatenate([[0], np.cumsum(kept)])[indptr]
        mean = np.zeros((len(indptr) - 1, self.item.shape[1]), np.float32)
        filled = np.diff(indptr) > 0
        if len(member):
            mean[filled] = np.add.reduceat(_unit(self.item[member]), indptr[:-1][filled], axis=0)
        asked, place = np.unique(item, return_inverse=True)
        cosine = _products(_unit(mean), row, _unit(self.item[asked]), place.astype(np.int32))
        return np.where(filled[row] & self.known[item], cosine, np.float32(np.nan)).astype(np.float32)


def _unit(rows: Floats) -> Floats:
    """Return rows of length 1, but for those of nothing."""
    size = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.asarray(rows / np.where(size > 0, size, 1)[:, None], np.float32)


def _products(left: Floats, row: Longs | Ints, right: Floats, column: Ints) -> Floats:
    """Return float32 [n], left[row] . right[column]; each is summed by itself, so that its bits do not depend on the others."""
    found = np.empty(len(row), dtype=np.float32)
    for first in range(0, len(row), PAIRS_AT_ONCE):
        some = slice(first, first + PAIRS_AT_ONCE)
        np.einsum("ij,ij->i", left[row[some]], right[column[some]], out=found[some])
    return found


def of(retriever: Retriever, histories: Histories) -> Vectors | None:
    """Return a fitted source's vectors of some users and of its catalogue; None for a source that scores in another way."""
    model = retriever.model if isinstance(retriever, Indexed) else retriever
    return Vectors(*model.query_vectors(histories), *model.item_vectors()) if isinstance(model, Vectored) else None


def save(path: Path, found: Vectors) -> None:
    """Write vectors as arrays without pickle."""
    with publish.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, query=found.query, told=found.told, item=found.item, known=found.known)


def load(path: Path) -> Vectors:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Vectors(arrays["query"], arrays["told"], arrays["item"], arrays["known"])
