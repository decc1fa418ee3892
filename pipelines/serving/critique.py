"""Critiquing: like this, but cheaper, of another brand, of another category (Burke, Hammond, Young, 1997)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines import columns as c
from pipelines.datasets.interactions import Bools
from pipelines.features.catalogue_snapshot import CatalogueSnapshot
from pipelines.serving.request import Change

WORDS: Final[dict[Change, str]] = {
    "cheaper": "cheaper",
    "dearer": "finer",
    "other_brand": "of another brand",
    "same_brand": "of the same brand",
    "other_category": "in another category",
    "same_category": "in the same category",
}


def changed(shop: CatalogueSnapshot, place: int, changes: tuple[Change, ...], among: npt.NDArray[np.integer]) -> Bools:
    """Return bool [n], which of some places differ from an item as asked, in every way that is asked.

    What is unknown, of the item or of another, differs in no way, and is the same in none.
    """
    good = among != place
    price, mine = shop.price[among], shop.price[place]
    for change in changes:
        if change == "cheaper":
            good &= price < mine
        elif change == "dearer":
            good &= price > mine
        else:
            codes = shop.words[c.BRAND if change.endswith("brand") else c.CATEGORY][0]
            code, own = codes[among], codes[place]
            good &= (code >= 0) & (own >= 0) & ((code == own) == change.startswith("same"))
    return np.asarray(good, bool)


def differs(one: Mapping[str, object], other: Mapping[str, object], changes: tuple[Change, ...]) -> bool:
    """Tell the same of two items by what the catalogue says of them, for the rungs that have no snapshot."""
    for change in changes:
        if change in {"cheaper", "dearer"}:
            price, another = one.get(c.PRICE), other.get(c.PRICE)
            if not isinstance(price, int | float) or not isinstance(another, int | float):
                return False
            if not (another < price if change == "cheaper" else another > price):
                return False
        else:
            name = c.BRAND if change.endswith("brand") else c.CATEGORY
            word, another = one.get(name), other.get(name)
            if word is None or another is None or (word == another) != change.startswith("same"):
                return False
    return True


def said(title: str, changes: tuple[Change, ...]) -> str:
    """Return the reason in words."""
    return f"Like {title}, but {' and '.join(WORDS[change] for change in changes)}" if changes else f"Like {title}"
