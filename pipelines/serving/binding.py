"""A release's items found in a snapshot: all that can be looked up before the first request, once for each release and snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines.datasets import newness
from pipelines.datasets.interactions import Bools, Floats, Histories, Ids, Interactions, Ints, Longs
from pipelines.features import store
from pipelines.features.catalogue_snapshot import ITEMS, CatalogueSnapshot
from pipelines.features.item_snapshot import ItemSnapshot
from pipelines.features.request_snapshot import RequestSnapshot
from pipelines.model_settings import ExplorationPolicy
from pipelines.ranking.context import Catalogue
from pipelines.ranking.rerank import chain
from pipelines.ranking.rerank import goods as shops
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.two_stage import TwoStage
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.protocol import Retriever, Vectored
from pipelines.retrieval.vectors import Vectors
from pipelines.window import micros

FEW: Final = 1 << 12
UNKNOWN: Final = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class Placed:
    """Vectors of a source that does not change with the request.

    Attributes:
        model: asked for the vectors of who asks.
        item, known: as in `vectors.Vectors`.
    """

    model: Vectored
    item: Floats
    known: Bools

    def asked(self, source: Retriever, users: Histories) -> tuple[Retriever, Vectors]:
        """Return the source as one request asks it, and the users' vectors beside those of the items: worked out once for both."""
        query = self.model.query_vectors(users)
        mine = copy(self.model)
        object.__setattr__(mine, "query_vectors", lambda _: query)  # of this copy alone; its arrays are the model's
        return replace(source, model=mine) if isinstance(source, Indexed) else mine, Vectors(*query, self.item, self.known)


def placed(model: TwoStage) -> dict[str, Placed]:
    """Return the sources of a model that have vectors, with those of its items, taken once."""
    inner = {name: source.model if isinstance(source, Indexed) else source for name, source in model.retrievers.items()}
    return {name: Placed(source, *source.item_vectors()) for name, source in inner.items() if isinstance(source, Vectored)}


@dataclass(frozen=True)
class Binding:
    """Where a release's items stand.

    Attributes:
        place: int32 [items of the snapshot], the release's item; -1 where it has none.
        row: int32 [n_items], the snapshot's item; -1 where it has none.
        features: intp [n_items], rows of the item snapshot; its length where it has none.
        columns: of the item snapshot, in the order of `names`.
        names: the features of items, as the ranker knows them.
        code_of: of category and brand, word -> code of `catalogue`.
        goods: what the rules know; None where none is on.
        encoded: what items were worth; None where the ranker does not read it.
        moments: of the item snapshot's views that expire: (columns of `names`, int64 event times [+1], ttl); see `item_features`.
        born: int64 [n_items], microseconds when each item was first met or made, whichever was earlier; `UNKNOWN` where neither is known.
        met: int64 [n_items], events so far.
    """

    requests: RequestSnapshot
    items: ItemSnapshot
    place: Ints
    row: Ints
    features: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]
    names: tuple[str, ...]
    catalogue: Catalogue
    code_of: Mapping[str, Mapping[str, int]]
    available: Bools
    goods: Goods | None
    encoded: Floats | None
    moments: tuple[tuple[npt.NDArray[np.intp], Longs, int], ...]
    born: Longs
    met: Longs

    def new_items(self, policy: ExplorationPolicy, as_of: int) -> Bools:
        """Return bool [n_items], what `newcomers.new_items` returns of the lake, at a moment."""
        days = np.where(self.born == UNKNOWN, np.nan, (as_of - np.where(self.born == UNKNOWN, 0, self.born)) / newness.DAY_US)
        return np.asarray(~(days > policy.max_age_days) & (self.met <= policy.max_events) & self.available)

    def item_features(self, item: Ints, as_of: int) -> Floats:
        """Return float32 [n, n_names], the stored features of some items; NaN where unknown, or past their ttl at a moment."""
        at = self.features[item]
        found = self.items.numbers[at[:, None], self.columns].astype(np.float32)
        for columns, moments, ttl in self.moments:
            old = moments[at] < as_of - ttl
            if old.any():
                found[np.ix_(old, columns)] = np.nan
        return found


def bind(model: TwoStage, requests: RequestSnapshot, items: ItemSnapshot) -> Binding:
    """Return where a model's items stand in the snapshots of a moment."""
    own = pa.array(model.item_ids, pa.string())
    shop = requests.catalogue
    place = _found(shop.item_ids, own)
    row = _found(own, shop.item_ids)
    features = _found(own, items.rows[c.ITEM_ID]).astype(np.intp)
    features[features < 0] = len(items.numbers) - 1
    numeric = [spec for spec in store.schema() if not pa.types.is_string(spec.dtype) and set(spec.keys) == {c.ITEM_ID}]
    columns = np.array([items.names.index(spec.name) for spec in numeric], np.intp)
    moments = []
    for view, _, ttl, _oldest in items.views:
        if ttl:
            times = items.moments(view)
            mine = np.array([at for at, spec in enumerate(numeric) if spec.view == view], np.intp)
            moments.append((mine, np.append(times, np.iinfo(np.int64).max), ttl))
    seen = row >= 0
    codes = {}
    for name in (c.CATEGORY, c.BRAND):
        code = np.full(len(row), -1, np.int32)
        code[seen] = shop.words[name][0][row[seen]]
        codes[name] = code
    price = np.full(len(row), np.nan, np.float32)
    price[seen] = shop.price[row[seen]].astype(np.float32)
    available = np.ones(len(row), bool)
    available[seen] = shop.available[row[seen]]
    words = {name: np.array(shop.words[name][1], dtype=np.str_) if shop.words[name][1] else np.empty(0, "U1") for name in codes}
    return Binding(
        requests=requests,
        items=items,
        place=place,
        row=row,
        features=features,
        columns=columns,
        names=tuple(spec.name for spec in numeric),
        catalogue=Catalogue(codes[c.CATEGORY], codes[c.BRAND], price, words[c.CATEGORY], words[c.BRAND]),
        code_of={name: {word: code for code, word in enumerate(shop.words[name][1])} for name in codes},
        available=available,
        goods=_goods(model, requests, row) if chain.active(model.rerank) else None,
        encoded=model.memory.encoding.of("item", model.item_ids) if model.memory is not None and "encoding" in model.groups else None,
        moments=tuple(moments),
        born=_born(shop, row),
        met=np.where(seen, shop.items["n_events"].to_numpy()[np.maximum(row, 0)], 0).astype(np.int64)
        if len(shop.item_ids)
        else np.zeros(len(row), np.int64),
    )


def _born(shop: CatalogueSnapshot, row: Ints) -> Longs:
    """Return int64 [n_items], when each was first known."""
    taken = shop.items.take(pa.array(row, mask=row < 0))
    made = taken[c.CREATED_AT].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    first, created = (pa.compute.fill_null(column, UNKNOWN).to_numpy() for column in (taken["first_us"], made))
    return np.asarray(np.minimum(first, created), np.int64)


def _found(wanted: pa.Array | pa.ChunkedArray, among: pa.Array | pa.ChunkedArray) -> Ints:
    """Return int32, where each id stands among others; -1 where it does not."""
    at: Any = pa.compute.fill_null(pa.compute.index_in(wanted, value_set=among), -1)
    return np.asarray(at.to_numpy(), np.int32)


def _goods(model: TwoStage, requests: RequestSnapshot, row: Ints) -> Goods:
    """Return what the rules know of a model's items, at the moment of the snapshot: from each item's first event and their number."""
    catalogue = requests.catalogue
    taken = catalogue.items.take(pa.array(row, mask=row < 0)).combine_chunks()
    first, count = (taken[name].to_numpy(zero_copy_only=False) for name in ("first_us", "n_events"))
    met = np.flatnonzero(np.isfinite(first.astype(np.float64)) & (row >= 0)).astype(np.int32)
    n = len(met)
    known = Interactions(
        user_ids=np.array([""]),
        item_ids=model.item_ids,
        user=np.zeros(n, np.int32),
        item=met,
        at=first[met].astype(np.int64),
        weight=np.ones(n, np.float32),
        event_type=np.zeros(n, np.int8),
        value=np.full(n, np.nan, np.float32),
        as_of=micros(requests.as_of),
        items=taken.select(list(ITEMS)),
    )
    goods = shops.compared(known, model.rerank, model.retrievers)
    attention = np.where(row >= 0, np.nan_to_num(count.astype(np.float64)), 0).astype(np.int64)
    return replace(goods, attention=attention)


def places(ids: Ids, wanted: list[str]) -> Ints:
    """Return int32, where some ids stand in sorted ones, -1 where they do not; the sorted ones are never copied."""
    width = ids.dtype.itemsize // 4
    # numpy would bring both to the longer width, and copy the whole catalogue for it.
    short = np.array([one if len(one) <= width else "" for one in wanted], dtype=ids.dtype)
    at = np.minimum(np.searchsorted(ids, short), max(len(ids) - 1, 0))
    if not len(ids):
        return np.full(len(wanted), -1, np.int32)
    fits = np.fromiter((0 < len(one) <= width for one in wanted), bool, len(wanted))
    return np.where((ids[at] == short) & fits, at, -1).astype(np.int32)


__all__ = ["Binding", "CatalogueSnapshot", "Placed", "bind", "placed", "places"]
