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
        categories: sorted.
    """

    category: Ints
    brand: Ints
    price: Floats
    categories: Ids


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
        user: keyed by row; item: by dense item; pair: by row x number of categories + category.
    """

    histories: Histories
    catalogue: Catalogue
    user: Stored
    item: Stored
    pair: Stored


def catalogue(home: Home, item_ids: Ids, as_of: datetime) -> Catalogue:
    """Read the newest version of each item that was valid before a moment."""
    with lake.connect(home, before=as_of) as db:
        found = db.sql(
            """SELECT item_id, category, brand, price FROM items
            QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY valid_from DESC) = 1 ORDER BY item_id"""
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
    brand, _ = coded("brand")
    return Catalogue(category, brand, price, categories)


def gather(home: Home, proposals: Proposals, histories: Histories, *, user_ids: Ids, item_ids: Ids, as_of: datetime) -> Context:
    """Return what is known at a moment of the users and items that some candidates name.

    The feature store is asked once for every user, item and (user, category) that occurs, not for
    every candidate: candidates are two orders of magnitude more.

    Args:
        proposals: `row` counts `user_ids` and the rows of `histories`; `item` counts `item_ids`.
    """
    goods = catalogue(home, item_ids, as_of)
    n_categories = max(len(goods.categories), 1)
    category = goods.category[proposals.item]
    # One candidate stands for all of its user and category; items it leaves out get a row of their own.
    pair, stand_in = np.unique(proposals.row * (n_categories + 1) + category + 1, return_index=True)
    items, witness = np.unique(proposals.item, return_index=True)
    left_out = witness[~np.isin(items, proposals.item[stand_in])]
    asked = np.concatenate([stand_in, left_out])
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
    row_category, code = np.divmod(pair, n_categories + 1)
    pairs = np.where(code == 0, -1, row_category * n_categories + code - 1)
    known = np.flatnonzero(pairs >= 0)
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

    every = np.arange(len(asked))
    return Context(
        histories, goods, of({c.USER_ID}, row, every), of({c.ITEM_ID}, item, every), of({c.USER_ID, c.CATEGORY}, pairs[known], known)
    )
