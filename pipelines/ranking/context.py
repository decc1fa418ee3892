"""What is known at one moment of the users whose lists are ranked, and of the items in them.

Three origins: the feature store, by a point-in-time join at the moment; the catalogue, in the
version valid before it; the histories, which reach up to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from pipelines import columns as c
from pipelines import lake
from pipelines.config import Home
from pipelines.datasets.interactions import Floats, Histories, Ids, Ints, Longs, positions, strings
from pipelines.features import store
from pipelines.ranking.proposals import Proposals
from pipelines.tables import TIMESTAMP
from pipelines.window import micros


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
    """

    histories: Histories
    catalogue: Catalogue
    user: Stored
    item: Stored
    pair: Stored
    brand: Stored


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


def gather(home: Home, proposals: Proposals, histories: Histories, *, user_ids: Ids, item_ids: Ids, as_of: datetime) -> Context:
    """Return what is known at a moment of the users and items that some candidates name.

    The feature store is asked once for every user, item, (user, category) and (user, brand) that
    occurs, not for every candidate: candidates are two orders of magnitude more.

    Args:
        proposals: `row` counts `user_ids` and the rows of `histories`; `item` counts `item_ids`.
    """
    goods = catalogue(home, item_ids, as_of)
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
    return Context(
        histories,
        goods,
        user=of({c.USER_ID}, row, every),
        item=of({c.ITEM_ID}, item, every),
        pair=within(c.CATEGORY, goods.category, goods.categories),
        brand=within(c.BRAND, goods.brand, goods.brands),
    )
