"""Items beside an item: what the shop saw viewed and bought with it, what the release holds to be like it, what is described alike.

All places here are the snapshot's, so an item that came after the training has neighbours, too. Lists are merged by weighted
reciprocal ranks, as candidates are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from pipelines import columns as c
from pipelines.datasets.interactions import Bools, Floats, Ints, Longs
from pipelines.features.catalogue_snapshot import CatalogueSnapshot
from pipelines.ranking.two_stage import TwoStage
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.merging import RRF_CONSTANT
from pipelines.retrieval.sequence_rules import SequenceRules
from pipelines.retrieval.together import Together
from pipelines.serving import critique
from pipelines.serving.binding import Binding, Placed
from pipelines.serving.request import Change

VIEWED: Final = "viewed_together"
BOUGHT: Final = "bought_together"
DESCRIBED: Final = "described_alike"
DEEP: Final = 200  # neighbours taken of each list
SHELF: Final = 5000  # items whose descriptions are compared, the most met of a category or of what differs as asked
NARROW: Final = 20 * SHELF
EXACT: Final = 50_000  # vectors up to so many are compared one by one; beyond, their index is asked
WEIGHTS: Final = {VIEWED: 1.0, BOUGHT: 1.0, "item_knn": 1.0, "sequence_rules": 0.7, "together": 1.0, DESCRIBED: 0.4}
OTHER: Final = 0.6  # of sources by their vectors

List = tuple[str, npt.NDArray[np.integer]]  # source, places best first


@dataclass(frozen=True)
class Fused:
    """Merged lists, best first.

    Attributes:
        place: int [n], of the snapshot.
        score: float64 [n], summed weight / (constant + rank).
        sources: who proposed each.
        anchor: int [n], the item that speaks loudest for it.
    """

    place: Longs
    score: npt.NDArray[np.float64]
    sources: list[tuple[str, ...]]
    anchor: Longs


def fused(lists: Iterable[tuple[int, Sequence[List]]]) -> Fused:
    """Return lists of several anchors as one: an item's votes add up, its anchor is whose votes are most; equals by place."""
    total: dict[int, float] = {}
    names: dict[int, list[str]] = {}
    of_anchor: dict[int, tuple[float, int]] = {}
    for anchor, some in lists:
        own: dict[int, float] = {}
        for name, places in some:
            weight = WEIGHTS.get(name, OTHER)
            for rank, place in enumerate(places.tolist(), 1):
                own[place] = own.get(place, 0.0) + weight / (RRF_CONSTANT + rank)
                told = names.setdefault(place, [])
                if name not in told:
                    told.append(name)
        for place, vote in own.items():
            total[place] = total.get(place, 0.0) + vote
            if vote > of_anchor.get(place, (0.0, -1))[0]:
                of_anchor[place] = (vote, anchor)
    order = sorted(total, key=lambda place: (-total[place], place))
    return Fused(
        np.array(order, np.int64),
        np.array([total[place] for place in order], np.float64),
        [tuple(names[place]) for place in order],
        np.array([of_anchor[place][1] for place in order], np.int64),
    )


@dataclass(frozen=True)
class Alike:
    """Answers for items of a snapshot, with what one release knows of them."""

    binding: Binding
    model: TwoStage
    placed: dict[str, Placed]

    @property
    def shop(self) -> CatalogueSnapshot:
        """The catalogue of the snapshot."""
        return self.binding.requests.catalogue

    @cached_property
    def item_of(self) -> Ints:
        """Return int32 [items of the snapshot], the release's item, -1 where it has none."""
        return self.binding.place

    @cached_property
    def _shelves(self) -> dict[str, tuple[Longs, Longs]]:
        """Return, by category and by brand, the places, the most met first, and where each word begins; unknown ones first."""
        found, met = {}, self.shop.items["n_events"].to_numpy()
        for name in (c.CATEGORY, c.BRAND):
            code, words = self.shop.words[name]
            order = np.lexsort((-met, code))
            found[name] = order, np.searchsorted(code[order], np.arange(len(words) + 1))
        return found

    @cached_property
    def _by_price(self) -> tuple[Longs, npt.NDArray[np.float64]]:
        """Return the places by price and those prices, ascending; without those of unknown price."""
        order = np.argsort(self.shop.price, kind="stable")
        price = self.shop.price[order]
        known = int(np.searchsorted(price, np.inf, side="right"))
        return order[:known], price[:known]

    def shelf(self, place: int, key: str = c.CATEGORY) -> Longs:
        """Return the items of an item's category, or brand, the most met first; none where it has none."""
        code = int(self.shop.words[key][0][place])
        if code < 0:
            return np.empty(0, np.int64)
        order, begin = self._shelves[key]
        return order[begin[code] : begin[code + 1]]

    def differing(self, place: int, changes: tuple[Change, ...], allowed: Callable[[Longs], Bools]) -> Longs:
        """Return what differs from an item as asked and is allowed, the `SHELF` most met of it at most.

        The narrowest of what the orders by category, brand and price hold is looked through; where all of it is wide, the catalogue,
        the most met first, until enough is found.
        """
        ways: list[Longs] = []
        for change in changes:
            if change.startswith("same"):
                ways.append(self.shelf(place, c.BRAND if change.endswith("brand") else c.CATEGORY))
            elif change in {"cheaper", "dearer"}:
                order, price = self._by_price
                side: Literal["left", "right"] = "left" if change == "cheaper" else "right"
                cut = int(np.searchsorted(price, self.shop.price[place], side=side))  # behind all of them where it is unknown
                ways.append(order[:cut] if change == "cheaper" else order[cut:])
        narrow = min(ways, key=len, default=self.shop.most_met)
        found, n = [np.empty(0, np.int64)], 0
        for part in [narrow] if len(narrow) <= NARROW and ways else self.shop.parts():
            found.append(part[critique.changed(self.shop, place, changes, part) & allowed(part)])
            if (n := n + len(found[-1])) >= SHELF:
                break
        some = np.concatenate(found)
        if n > SHELF:
            some = some[np.lexsort((some, -self.shop.items["n_events"].to_numpy()[some]))]
        return np.asarray(some[:SHELF], np.int64)

    def similar(self, place: int) -> list[List]:
        """Return lists of what an item may be replaced by, or looked at beside."""
        return [
            (VIEWED, self.shop.beside("viewed", place)[0]),
            *self._by_weights(place, (ItemKnn,)),
            *self._by_vectors(place),
            (DESCRIBED, self.described(place)),
        ]

    def beside(self, place: int) -> list[List]:
        """Return lists of what goes with an item in one basket."""
        found = [(BOUGHT, self.shop.beside("bought", place)[0]), *self._by_weights(place, (Together,))]
        return found if any(len(places) for _, places in found) else self._by_weights(place, (SequenceRules, ItemKnn))

    def _by_weights(self, place: int, kinds: tuple[type, ...]) -> list[List]:
        item = int(self.item_of[place])
        found: list[List] = []
        for name, source in self.model.retrievers.items():
            state = source.state
            if item >= 0 and isinstance(source, kinds) and state is not None:
                row = slice(int(state["indptr"][item]), int(state["indptr"][item + 1]))
                data, indices = state["data"][row].astype(np.float32), state["indices"][row].astype(np.int32)
                order = np.lexsort((indices, -data))[:DEEP]
                order = order[data[order] > 0]
                found.append((name, self._rows(indices[order])))
        return found

    def _by_vectors(self, place: int) -> list[List]:
        item = int(self.item_of[place])
        found: list[List] = []
        for name, placed in self.placed.items():
            if item < 0 or not placed.known[item]:
                continue
            source, one = self.model.retrievers[name], placed.item[item]
            if isinstance(source, Indexed) and source.index is not None and source.index.structure is not None:
                near = source.index.search(one[None], np.ones(1, bool), DEEP).item[0]
                near = near[near >= 0]
            elif len(placed.item) <= EXACT:
                near = np.flatnonzero(placed.known)
            else:
                continue
            score = cosines(placed.item[near], one)
            found.append((name, self._rows(near[np.lexsort((near, -score))[:DEEP]])))
        return found

    def described(self, place: int, among: Longs | None = None) -> Longs:
        """Return items by how alike their descriptions are: of the same category, or among some."""
        others = self.shelf(place)[:SHELF] if among is None else among
        others = others[others != place]
        return np.asarray(others[np.lexsort((others, -self.likeness(place, others)))[:DEEP]], np.int64)

    def likeness(self, place: int, others: Longs) -> Floats:
        """Return float32 [n]: cosine of the descriptions where the release has them, category, brand and price beside."""
        shop, found = self.shop, np.zeros(len(others), np.float32)
        memory, item = self.model.memory, int(self.item_of[place])
        if memory is not None and item >= 0:
            theirs = self.item_of[others]
            known = theirs >= 0
            found[known] = np.asarray((memory.content[theirs[known]] @ memory.content[item].T).todense(), np.float32).ravel()
        for name, worth in ((c.CATEGORY, 0.5), (c.BRAND, 0.25)):
            code = shop.words[name][0]
            found += np.float32(worth) * ((code[others] == code[place]) & (code[place] >= 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            apart = np.abs(np.log(shop.price[others]) - np.log(shop.price[place]))
        return np.asarray(found + 0.25 * np.exp(-np.where(np.isfinite(apart), apart, np.inf)), np.float32)

    def _rows(self, items: npt.NDArray[np.integer]) -> Ints:
        rows = self.binding.row[items]
        return np.asarray(rows[rows >= 0], np.int32)


def cosines(rows: Floats, one: Floats) -> Floats:
    """Return float32 [n], the cosine of each row and a vector; -1 where one has no length or is no number."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        found = (rows @ one) / (np.sqrt(np.einsum("ij,ij->i", rows, rows)) * np.sqrt(one @ one))
    return np.where(np.isfinite(found), found, np.float32(-1)).astype(np.float32)


__all__ = ["Alike", "Fused", "cosines", "fused"]
