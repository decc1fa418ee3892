"""What answers without a bundle, a store or a lake: what is popular, over all and in each segment, and what the catalogue says.

All of it lies in memory. `Stock` is what the rungs ask for; whoever holds the knowledge of a process offers it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from pipelines import columns as c
from pipelines.datasets.interactions import Bools, Longs
from pipelines.features.catalogue_snapshot import CatalogueSnapshot
from pipelines.serving.request import Ask, Filters

EVERYBODY: Final = ""  # the segment that everyone is in
Popular = Sequence[tuple[str, float]]  # (item id, score), best first


class Stock(Protocol):
    """What a rung without a bundle may ask; in memory, never waiting, for anything at all."""

    def about(self, item_id: str) -> Mapping[str, object]:
        """Return what the catalogue says of an item: title, category, brand, price, available; empty where it is unknown."""
        ...

    def segment(self, ask: Ask) -> str:
        """Return the segment of who asks; `EVERYBODY` where none is known."""
        ...

    def popular(self, segment: str) -> Popular:
        """Return the items of a segment, best first; empty of an unknown one."""
        ...

    def meeting(self, filters: Filters) -> Iterator[str]:
        """Yield every item that meets some filters, whether any list holds it or not, the most met first."""
        ...


@dataclass(frozen=True)
class Standing:
    """A stock of plain tables.

    Attributes:
        lists: items by segment, best first; `EVERYBODY` is one.
        catalogue: what is said of each item.
        segments: of users; who is not there is of their request's country.
    """

    lists: Mapping[str, Popular] = field(default_factory=dict)
    catalogue: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    segments: Mapping[str, str] = field(default_factory=dict)

    def about(self, item_id: str) -> Mapping[str, object]:
        """Return what is said of an item."""
        return self.catalogue.get(item_id, {})

    def segment(self, ask: Ask) -> str:
        """Return the segment of who asks."""
        return self.segments.get(ask.user_id or "", ask.country or EVERYBODY)

    def popular(self, segment: str) -> Popular:
        """Return the items of a segment, best first."""
        return self.lists.get(segment, ())

    def meeting(self, filters: Filters) -> Iterator[str]:
        """Yield every item that meets some filters, in the order of the catalogue."""
        return (item for item, about in self.catalogue.items() if meets(filters, item, about))


def meets(filters: Filters, item_id: str, about: Mapping[str, object]) -> bool:
    """Tell whether an item may be shown to who set some filters; what the catalogue does not know meets no filter that asks for it."""
    if item_id in filters.exclude or (filters.available_only and about.get(c.AVAILABLE) is False):
        return False
    if (filters.categories and about.get(c.CATEGORY) not in filters.categories) or (
        filters.brands and about.get(c.BRAND) not in filters.brands
    ):
        return False
    if filters.min_price is None and filters.max_price is None:
        return True
    price = about.get(c.PRICE)
    if not isinstance(price, int | float):
        return False
    return (filters.min_price is None or price >= filters.min_price) and (filters.max_price is None or price <= filters.max_price)


def meeting(shop: CatalogueSnapshot, filters: Filters, places: Longs) -> Bools:
    """Return bool [n], what `meets` tells of places of a catalogue, but for what is excluded by name."""
    good = shop.available[places] if filters.available_only else np.ones(len(places), bool)
    for wanted, name in ((filters.categories, c.CATEGORY), (filters.brands, c.BRAND)):
        if wanted:
            codes, words = shop.words[name]
            at = [(word, bisect_left(words, word)) for word in wanted]
            good = good & np.isin(codes[places], [code for word, code in at if words[code : code + 1] == (word,)])
    if filters.min_price is not None:
        good = good & (shop.price[places] >= filters.min_price)
    if filters.max_price is not None:
        good = good & (shop.price[places] <= filters.max_price)
    return np.asarray(good, bool)
