"""What is known at one moment of the users whose lists are ranked, and of the items in them.

Five origins: the feature store, by a point-in-time join at the moment; the catalogue, in the
version valid before it; the histories, which reach up to it; the vectors of the sources that have
some; and what was learnt with the release (`memory`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa

from pipelines import columns as c
from pipelines import lake
from pipelines.config import Home
from pipelines.datasets.interactions import Floats, Histories, Ids, Ints, Longs, positions, strings
from pipelines.errors import StateError
from pipelines.features import store
from pipelines.ranking.memory import Memory
from pipelines.ranking.proposals import Proposals
from pipelines.retrieval.vectors import Vectors
from pipelines.tables import TIMESTAMP
from pipelines.window import micros

BY_VECTORS: Final = frozenset({"embedding", "session"})  # the groups that read the vectors of the sources
BEFORE_GROUPS: Final = ("retrieval", "stored", "contact", "price")  # the features of bundles that do not say which they read


@dataclass(frozen=True)
class Catalogue:
    """What the shop said of the items at a moment, in the order of the model's item ids.

    Attributes:
        category, brand: int32 [n_items], positions in `categories` and `brands`; -1 where unknown.
        price: float32 [n_items], shop currency; NaN where unknown.
        categories, brands: sorted.
    """

    category: Ints
    brand: Ints
    price: Floats
    categories: Ids
    brands: Ids


@dataclass(frozen=True)
class Stored:
    """Rows of the feature store for some keys.

    Attributes:
        key: int64 [n], ascending.
        values: float32 [n, n_features]; NaN where the store has none.
        names: the columns, with the prefix that tells entities apart.
    """

    key: Longs
    values: Floats
    names: tuple[str, ...]

    def rows(self, key: Longs) -> Floats:
        """Return float32 [len(key), n_features]; NaN for a key that is not there."""
        found = np.full((len(key), len(self.names)), np.nan, np.float32)
        if len(self.key):
            at = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
            met = self.key[at] == key
            found[met] = self.values[at[met]]
        return found


@dataclass(frozen=True)
class Context:
    """Everything that features are computed from, but for the candidates themselves.

    Attributes:
        histories: row r is user r.
        user: keyed by row; item: by dense item; pair: by row x number of categories + category; brand: likewise.
        groups: of features that are made.
        encoded: what the items were worth in the window before, keyed by dense item.
        memory: what was learnt before the moment; needed by some groups only.
        vectors: per source that has some; `query` in the rows of `histories`.
    """

    histories: Histories
    catalogue: Catalogue
    user: Stored
    item: Stored
    pair: Stored
    brand: Stored
    groups: tuple[str, ...]
    encoded: Stored
    memory: Memory | None = None
    vectors: Mapping[str, Vectors] = field(default_factory=dict)

    def described(self) -> Memory:
        """Return what was learnt before the moment.

        Raises:
            StateError: a group of features needs it, and there is none.
        """
        if self.memory is None:
            raise StateError(
                "features", found="nothing learnt with the release", allowed="what the groups of features need", hint="train again"
            )
        return self.memory


def catalogue(home: Home, item_ids: Ids, as_of: datetime) -> Catalogue:
    """Read the newest version of each item that was valid before a moment."""
    with lake.connect(home, before=as_of) as db:
        found = db.sql(
            """SELECT item_id, category, brand, price FROM items
            QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY valid_from DESC, received_at DESC) = 1 ORDER BY item_id"""
        ).to_arrow_table()
    place = positions(strings(found["item_id"]), item_ids)
    listed = place >= 0
    price = np.full(len(item_ids), np.nan, np.float32)
    price[place[listed]] = found["price"].to_numpy()[listed]

    def coded(column: str) -> tuple[Ints, Ids]:
        codes, words = np.full(len(item_ids), -1, np.int32), strings(found[column].fill_null(""))
        vocabulary = np.unique(words[words != ""])
        codes[place[listed]] = positions(words, vocabulary)[listed]
        return codes, vocabulary

    category, categories = coded("category")
    brand, brands = coded("brand")
    return Catalogue(category, brand, price, categories, brands)


def gather(
    home: Home,
    proposals: Proposals,
    histories: Histories,
    *,
    user_ids: Ids,
    item_ids: Ids,
    as_of: datetime,
    groups: tuple[str, ...] = BEFORE_GROUPS,
    memory: Memory | None = None,
    vectors: Mapping[str, Vectors] | None = None,
    goods: Catalogue | None = None,
) -> Context:
    """Return what is known at a moment of the users and items that some candidates name.

    The feature store is asked once for every user, item, (user, category) and (user, brand) that
    occurs, not for every candidate: candidates are two orders of magnitude more.

    Args:
        proposals: `row` counts `user_ids` and the rows of `histories`; `item` counts `item_ids`.
        groups: of features, as in `RankingSettings.features`.
        memory: learnt before the moment, over `item_ids`.
        vectors: of the sources that have some, of the rows of `histories`; used where `groups` has one of `BY_VECTORS`.
        goods: the catalogue of the moment, where it was read before.
    """
    goods = goods or catalogue(home, item_ids, as_of)
    # One candidate stands for all of its user and category, or brand; items these leave out get a row of their own.
    stand_ins = [
        np.unique(proposals.row * (len(words) + 1) + code[proposals.item], return_index=True)[1]
        for code, words in ((goods.category, goods.categories), (goods.brand, goods.brands))
    ]
    items, witness = np.unique(proposals.item, return_index=True)
    left_out = witness[~np.isin(items, proposals.item[np.concatenate(stand_ins)])]
    asked = np.unique(np.concatenate([*stand_ins, left_out]))
    row, item = proposals.row[asked], proposals.item[asked].astype(np.int64)
    found = store.historical(
        home,
        pa.table(
            {
                c.USER_ID: pa.array(user_ids[row], pa.string()),
                c.ITEM_ID: pa.array(item_ids[item], pa.string()),
                store.EVENT_TIMESTAMP: pa.array(np.full(len(asked), micros(as_of)), pa.int64()).cast(TIMESTAMP),
            }
        ),
    )
    numeric = [spec for spec in store.schema(home) if not pa.types.is_string(spec.dtype)]

    def of(keys: set[str], key: Longs, rows: Longs) -> Stored:
        """Return the features of views with these keys, from the rows asked for; a key may occur in several."""
        names = tuple(spec.name for spec in numeric if set(spec.keys) == keys)
        distinct, first = np.unique(key, return_index=True)
        values = np.full((len(distinct), len(names)), np.nan, np.float32)
        for at, name in enumerate(names):
            column = found[name].combine_chunks().take(pa.array(rows[first]))
            values[:, at] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return Stored(distinct, values, names)

    def within(key_of_user: str, code: Ints, words: Ids) -> Stored:
        """Return the features of the user with the category, or brand, of each item asked for, where it has one."""
        known = np.flatnonzero(code[item] >= 0)
        return of({c.USER_ID, key_of_user}, row[known] * max(len(words), 1) + code[item][known], known)

    every = np.arange(len(asked))
    worth = memory.encoding.of("item", item_ids[items]) if memory and "encoding" in groups else np.zeros(len(items), np.float32)
    return Context(
        histories,
        goods,
        user=of({c.USER_ID}, row, every),
        item=of({c.ITEM_ID}, item, every),
        pair=within(c.CATEGORY, goods.category, goods.categories),
        brand=within(c.BRAND, goods.brand, goods.brands),
        groups=groups,
        encoded=Stored(items.astype(np.int64), worth[:, None], ("encoded_item",)),
        memory=memory,
        vectors=dict(vectors or {}) if BY_VECTORS & set(groups) else {},
    )
