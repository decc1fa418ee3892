"""Items described alike: TF-IDF over title, category, brand and attributes, so that a new item has neighbours at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from pipelines import columns as c
from pipelines.datasets.interactions import Floats, Histories, Interactions, Ints, Longs
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates

WORD: Final = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Content:
    """Weight from item i to item j: the cosine of their TF-IDF vectors (Salton, Buckley, 1988), i's `n_neighbours` largest.

    Terms are the words of the title and the category, and whole values of category, brand and each attribute, marked by
    their field. A term counts (1 + ln occurrences) * (ln((1 + items) / (1 + items with it)) + 1). An item without
    a description has no neighbour; one without events is proposed like any other.
    State: the weights as the arrays of a sparse matrix.

    Attributes:
        n_neighbours: weights kept per item.
        max_items_per_term: a term of more items is no description, and would cost its square.
        half_life_days: in the history that asks, an event this old counts half.
    """

    n_neighbours: int = 100
    max_items_per_term: int = 5000
    half_life_days: float = 14.0
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy; without a catalogue it has nothing to propose."""
        n_items = len(interactions.item_ids)
        vectors = tfidf(interactions.items, n_items, self.max_items_per_term)

        def cosine(shared: Floats, _: Longs, __: Ints) -> Floats:
            return shared

        return replace(self, state=neighbours.state(neighbours.similar(vectors, vectors.T.tocsr(), self.n_neighbours, cosine)))

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items described most like the user's history, its late events first."""
        state = topk.checked("content", self.state, histories)
        strength = (histories.weight * 0.5 ** (topk.age_days(histories) / self.half_life_days)).astype(np.float32)
        return neighbours.retrieve(state, histories, strength, k, exclude_seen=exclude_seen)


def tfidf(catalogue: pa.Table | None, n_items: int, max_items_per_term: int) -> sparse.csr_matrix:
    """Return float32 [n_items, n_terms], rows of length 1; a row without a term is empty.

    Args:
        catalogue: what is known of each item, with the columns of `profiles.ITEMS`.
    """
    vocabulary: dict[str, int] = {}
    indices: list[int] = []
    indptr = [0]
    for terms in _described(catalogue, n_items):
        indices += [vocabulary.setdefault(term, len(vocabulary)) for term in terms]
        indptr.append(len(indices))
    shape = (n_items, max(len(vocabulary), 1))
    counts = sparse.csr_matrix((np.ones(len(indices), dtype=np.float32), indices, indptr), shape=shape)
    counts.sum_duplicates()
    n_with = np.bincount(counts.indices, minlength=shape[1])
    rarity = np.log((1 + n_items) / (1 + n_with)) + 1
    rarity[n_with > max_items_per_term] = 0
    counts.data = ((1 + np.log(counts.data)) * rarity[counts.indices]).astype(np.float32)
    counts.eliminate_zeros()
    row = np.repeat(np.arange(n_items), np.diff(counts.indptr))
    counts.data /= np.sqrt(np.bincount(row, counts.data**2, n_items)).astype(np.float32)[row]
    return counts


def _described(catalogue: pa.Table | None, n_items: int) -> Iterator[list[str]]:
    """Yield the terms of each item, with repetition."""
    if catalogue is None:
        yield from ([] for _ in range(n_items))
        return
    columns = (catalogue[name].to_pylist() for name in (c.TITLE, c.CATEGORY, c.BRAND, c.ATTRIBUTES))
    for title, category, brand, attributes in zip(*columns, strict=True):
        terms = [word.casefold() for text in (title, category) if text for word in WORD.findall(text)]
        terms += [f"{name}={value}".casefold() for name, value in ((c.CATEGORY, category), (c.BRAND, brand)) if value]
        terms += [f"{name}={value}".casefold() for name, value in attributes or () if value]
        yield terms
