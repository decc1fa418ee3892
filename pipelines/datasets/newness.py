"""How long each item has been known: from its first event, or from the day the catalogue says it was made."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines.datasets.interactions import Interactions

DAY_US = 86_400_000_000


def known_days(interactions: Interactions) -> npt.NDArray[np.float64]:
    """Return float64 [n_items], days from the earlier of the two to `as_of`; NaN for an item of which neither is known."""
    first = np.full(len(interactions.item_ids), np.iinfo(np.int64).max, dtype=np.int64)
    np.minimum.at(first, interactions.item, interactions.at)
    if interactions.items is not None:
        created = interactions.items[c.CREATED_AT].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        first = np.minimum(first, created.fill_null(np.iinfo(np.int64).max).to_numpy())
    unknown = first == np.iinfo(np.int64).max
    return np.where(unknown, np.nan, (interactions.as_of - np.where(unknown, 0, first)) / DAY_US)
