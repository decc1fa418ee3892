"""Critiquing: like this, but cheaper, of another brand, of another category (Burke, Hammond, Young, 1997)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

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


def changed(shop: CatalogueSnapshot, place: int, changes: tuple[Change, ...]) -> Bools:
    """Return bool [n_items], what differs from an item as asked, in every way that is asked.

    What is unknown, of the item or of another, differs in no way, and is the same in none.
    """
    good = np.ones(len(shop.item_ids), bool)
    good[place] = False
    price = shop.price
    for change in changes:
        if change == "cheaper":
            good &= price < price[place]
        elif change == "dearer":
            good &= price > price[place]
        else:
            code = shop.words[c.BRAND if change.endswith("brand") else c.CATEGORY][0]
            known = (code >= 0) & (code[place] >= 0)
            good &= known & ((code == code[place]) == change.startswith("same"))
    return good


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
