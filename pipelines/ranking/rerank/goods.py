"""What rules know of the items of a shop, one array a fact, in the order of the dense items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import columns as c
from pipelines.datasets import newness
from pipelines.datasets.interactions import Bools, Floats, Ids, Interactions, Ints, Longs, positions, strings
from pipelines.errors import ReloopError, StateError
from pipelines.rerank_policies import BoostPolicy, ExposurePolicy, RerankSettings
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.protocol import Retriever, Vectored

TRUE = ("1", "true", "t", "yes", "y")


@dataclass(frozen=True)
class Goods:
    """The items of a shop at a moment.

    Attributes:
        category, brand, seller: int32 [n_items], positions in a vocabulary; -1 where unknown.
        price: float32 [n_items], shop currency; NaN where unknown.
        available: bool [n_items]; true where nothing is said.
        age_days: float32 [n_items], since the item was first known; NaN where it never was.
        margin: float32 [n_items], share of the price, 0 to 1; NaN where unknown.
        promoted: bool [n_items].
        attention: int64 [n_items], events before the moment; or impressions, where a caller counts them.
        vectors: float32 [n_items, d] of length 1, 0 where an item has none; None where rules compare attributes.
        brands, sellers: what the codes stand for, sorted.
    """

    category: Ints
    brand: Ints
    seller: Ints
    price: Floats
    available: Bools
    age_days: Floats
    margin: Floats
    promoted: Bools
    attention: Longs
    vectors: Floats | None = None
    brands: Ids = field(default_factory=lambda: np.empty(0, dtype=np.str_))
    sellers: Ids = field(default_factory=lambda: np.empty(0, dtype=np.str_))

    def __len__(self) -> int:
        return len(self.category)

    def with_vectors(self, vectors: Floats) -> Goods:
        """Return the same with vectors to compare items by, each brought to length 1; what is no vector becomes 0, like nothing.

        Raises:
            ReloopError: there are more or fewer than items.
        """
        if vectors.ndim != 2 or len(vectors) != len(self):
            raise ReloopError("vectors of items", found=f"shape {vectors.shape}", allowed=f"one for each of {len(self)} items")
        with np.errstate(over="ignore", invalid="ignore"):
            length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        good = np.isfinite(length) & (length > 0)
        unit = np.where(good, np.nan_to_num(vectors) / np.where(good, length, 1.0), 0.0)
        return replace(self, vectors=np.ascontiguousarray(unit, np.float32))


def of(known: Interactions, settings: RerankSettings | None = None) -> Goods:
    """Return what was known of the items of some interactions, at the moment up to which they are known."""
    settings = settings or RerankSettings()
    boosts, exposure = settings.boosts or BoostPolicy(), settings.exposure or ExposurePolicy()
    n = len(known.item_ids)
    items = known.items if known.items is not None else pa.table({})
    price = pc.fill_null(_column(items, c.PRICE, pa.float64(), n), np.nan)
    available = pc.fill_null(_column(items, c.AVAILABLE, pa.bool_(), n), True)  # noqa: FBT003 - Arrow's own signature
    promoted = np.char.lower(strings(_attribute(items, boosts.promotion_attribute, n)))
    category, _ = _codes(_column(items, c.CATEGORY, pa.string(), n))
    brand, brands = _codes(_column(items, c.BRAND, pa.string(), n))
    seller, sellers = _codes(_attribute(items, exposure.seller_attribute, n))
    return Goods(
        category=category,
        brand=brand,
        seller=seller,
        price=price.to_numpy().astype(np.float32),
        available=available.to_numpy().astype(np.bool_),
        age_days=newness.known_days(known).astype(np.float32),
        margin=_shares(strings(_attribute(items, boosts.margin_attribute, n))),
        promoted=np.isin(promoted, TRUE),
        attention=np.bincount(known.item, minlength=n).astype(np.int64),
        brands=brands,
        sellers=sellers,
    )


def _column(items: pa.Table, name: str, kind: pa.DataType, n: int) -> pa.ChunkedArray:
    """Return a column as a type, nulls where the table lacks it."""
    return items[name].cast(kind) if name in items.column_names else pa.chunked_array([pa.nulls(n, kind)])


def _attribute(items: pa.Table, name: str, n: int) -> pa.ChunkedArray:
    """Return one of the shop's own attributes as text, "" where an item has none."""
    if c.ATTRIBUTES not in items.column_names:
        return pa.chunked_array([pa.array([""] * n, pa.string())])
    kept = items[c.ATTRIBUTES].cast(pa.map_(pa.string(), pa.string()))
    return pc.fill_null(pc.map_lookup(kept, pa.scalar(name, pa.string()), "last"), "")


def _codes(column: pa.ChunkedArray) -> tuple[Ints, Ids]:
    """Return int32, the position of each text in their sorted vocabulary, -1 where it is null or empty; and the vocabulary."""
    words = strings(pc.fill_null(column, ""))
    vocabulary = np.unique(words[words != ""])
    return positions(words, vocabulary).astype(np.int32), vocabulary


def _shares(words: Ids) -> Floats:
    """Return float32, the numbers that some texts are, within 0 and 1; NaN where a text is none."""
    numbers = pd.to_numeric(pd.Series(words), errors="coerce").to_numpy(np.float64)
    return np.clip(np.where(np.isfinite(numbers), numbers, np.nan), 0, 1).astype(np.float32)


def compared(known: Interactions, settings: RerankSettings, retrievers: Mapping[str, Retriever]) -> Goods:
    """Return what `of` returns, with the vectors of a retriever where a rule that is on compares items by them.

    Raises:
        StateError: there is no such retriever, or it has no vectors of items.
    """
    goods, inner = of(known, settings), vectored(settings, retrievers)
    if inner is None:
        return goods
    vectors, known_items = inner.item_vectors()
    return goods.with_vectors(np.where(known_items[:, None], vectors, np.float32(0)))


def vectored(settings: RerankSettings, retrievers: Mapping[str, Retriever]) -> Vectored | None:
    """Return the source, fitted or not, by whose vectors a rule that is on compares items; None where none does.

    Raises:
        StateError: as `compared`.
    """
    source = settings.likeness.source
    if settings.likeness.by != "vectors" or (settings.mmr is None and settings.dpp is None):
        return None
    model = retrievers.get(source)
    inner = model.model if isinstance(model, Indexed) else model
    if not isinstance(inner, Vectored):
        raise StateError(
            "rerank.likeness.source",
            found=f"{source!r}, which {'has no vectors of items' if model else 'is no source of the run'}",
            allowed="a source of retrieval.sources that has them, such as als",
        )
    return inner
