"""What users did with items in a window, and what they were shown there: one row a pair of user and item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines import config
from pipelines.config import Home
from pipelines.datasets.interactions import Floats, Ids, Interactions, Ints, Longs
from pipelines.lake import impressions
from pipelines.window import Window, micros

OUTCOMES: Final = {"view": (c.VIEW, c.CLICK), "add_to_cart": (c.ADD_TO_CART,), "purchase": (c.PURCHASE,)}
TOLD: Final = (*OUTCOMES, "value")  # the outcomes of a training row


@dataclass(frozen=True)
class Pairs:
    """Values for some pairs of user and item.

    Attributes:
        key: int64 [n], ascending: dense user x number of items + dense item.
        n_items: of the catalogue.
        values: float32 [n] each, by name.
    """

    key: Longs
    n_items: int
    values: dict[str, Floats]

    def of(self, name: str, user: npt.NDArray[np.integer], item: Ints, missing: float = 0.0) -> Floats:
        """Return float32 [m], a value of each pair asked for; `missing` where the pair is not there."""
        found = np.full(len(user), missing, np.float32)
        if len(self.key):
            asked = user.astype(np.int64) * self.n_items + item
            at = np.minimum(np.searchsorted(self.key, asked), len(self.key) - 1)
            met = self.key[at] == asked
            found[met] = self.values[name][at[met]]
        return found


def done(known: Interactions, window: Window) -> Pairs:
    """Return what was done in a window, as far as the interactions know: `gain`, the strongest; `OUTCOMES`, 0 or 1; `value`, money paid."""
    within = (known.at >= micros(window.start)) & (known.at < micros(window.end))
    kind = known.event_type[within]
    pair = known.user[within].astype(np.int64) * len(known.item_ids) + known.item[within]
    key, place = np.unique(pair, return_inverse=True)
    values = {name: np.zeros(len(key), np.float32) for name in ("gain", *TOLD)}
    np.maximum.at(values["gain"], place, known.weight[within])
    for name, types in OUTCOMES.items():
        values[name][place[np.isin(kind, [c.EVENT_TYPES.index(one) for one in types])]] = 1
    paid = np.where(kind == c.EVENT_TYPES.index(c.PURCHASE), np.nan_to_num(known.value[within].astype(np.float64)), 0)
    values["value"] = np.bincount(place, weights=paid, minlength=len(key)).astype(np.float32)
    return Pairs(key, len(known.item_ids), values)


def shown(home: Home, window: Window, user_ids: Ids, item_ids: Ids) -> Pairs:
    """Return what was shown in a window: `position`, the best place, 1 is the top; `propensity` there, NaN where it was not logged.

    Where the settings say so (`impressions.train_on_seen`), only places that came into view.

    Args:
        user_ids, item_ids: sorted; others are left out.
    """
    seen = " SEMI JOIN seen_places USING (request_id, item_id)" if config.load(home).impressions.train_on_seen else ""
    with impressions.connect(home, window) as db:
        for name, ids in (("users", user_ids), ("items", item_ids)):
            db.register(name, pa.table({"id": pa.array(ids, pa.string()), "at": pa.array(np.arange(len(ids)), pa.int64())}))
        found = db.sql(
            f"""SELECT users.at * $n_items + items.at AS key, min(rank)::FLOAT AS position,
                arg_min(coalesce(propensity, 'nan'), (rank, shown_at, request_id))::FLOAT AS propensity
            FROM (FROM impressions{seen}) JOIN users ON users.id = user_id JOIN items ON items.id = item_id GROUP BY key ORDER BY key""",
            params={"n_items": len(item_ids)},
        ).to_arrow_table()
    return Pairs(found["key"].to_numpy(), len(item_ids), {name: found[name].to_numpy() for name in ("position", "propensity")})
