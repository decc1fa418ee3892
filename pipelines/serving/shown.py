"""From candidates with scores to what is shown: filters, rules, reasons, and what the catalogue says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipelines.datasets.interactions import Bools, Floats, Ints, Longs
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.protocol import Lists
from pipelines.serving import reasons
from pipelines.serving.binding import Binding, places
from pipelines.serving.knowledge import described
from pipelines.serving.request import Filters, Shown

if TYPE_CHECKING:
    from pipelines.serving.engine import Engine, Found


class Features(Mapping[str, tuple[float, ...]]):
    """What the ranker read of the shown items, by feature; taken from the matrix when it is asked for, which few requests are.

    Args:
        rows: float32 [n shown, n_features]; kept, so a copy of the whole.

    Attributes:
        n: places of the list; those behind `rows` were put there by no ranker, and have NaN.
    """

    def __init__(self, names: tuple[str, ...], rows: Floats) -> None:
        self._names, self._rows, self.n = names, rows, len(rows)

    def __getitem__(self, name: str) -> tuple[float, ...]:
        try:
            at = self._names.index(name)
        except ValueError:
            raise KeyError(name) from None
        told = self._rows[:, at].tolist()
        return (*told, *[math.nan] * (self.n - len(told)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def permitted(filters: Filters, items: Ints, binding: Binding) -> Bools:
    """Return bool [n], which items of a release may be shown to who set some filters; what is not known meets no filter that asks for it."""
    good = np.ones(len(items), bool)
    if filters.available_only:
        good &= binding.available[items]
    goods = binding.catalogue
    for wanted, code, name in ((filters.categories, goods.category, "category"), (filters.brands, goods.brand, "brand")):
        if wanted:
            codes = [binding.code_of[name][word] for word in wanted if word in binding.code_of[name]]
            good &= np.isin(code[items], codes)
    if filters.min_price is not None:
        good &= goods.price[items] >= filters.min_price
    if filters.max_price is not None:
        good &= goods.price[items] <= filters.max_price
    return good


def listed(engine: Engine, found: Found) -> tuple[tuple[Shown, ...], Mapping[str, tuple[float, ...]]]:
    """Return the k best that may be shown, and what the ranker read of them."""
    ask, binding, model = found.ask, found.binding, engine.model
    candidates, score, rows = found.candidates, found.score, np.arange(len(found.candidates))
    good = permitted(ask.filters, candidates.item, binding)
    if ask.filters.exclude:
        good &= ~np.isin(candidates.item, places(model.item_ids, list(ask.filters.exclude)))
    if not good.all():
        candidates, score, rows = candidates[good], score[good], rows[good]
    lists = model.listed(np.array([ask.user_id or ""]), candidates, score, ask.k, users=found.users, goods=binding.goods)
    items = shown_of(engine, found, lists)
    features: Mapping[str, tuple[float, ...]] = {}
    if found.matrix is not None and model.ranker is not None and items:
        at = places(model.item_ids, [item.item_id for item in items])
        order = np.argsort(candidates.item, kind="stable")
        row: Longs = rows[order[np.searchsorted(candidates.item, at, sorter=order)]]
        features = Features(model.ranker.features, found.matrix[row])
    return items, features


def shown_of(engine: Engine, found: Found, lists: Lists) -> tuple[Shown, ...]:
    """Return one list with reasons, sources, rules and the catalogue's words."""
    ids = [str(item) for item in lists.item_ids[0] if item]
    binding, catalogue = found.binding, found.binding.requests.catalogue
    place = places(engine.model.item_ids, ids)
    why = reasons.of(engine, found, place, [lists.sources_of(0, at) for at in range(len(ids))])
    propensity = [1.0] * len(ids) if lists.propensity is None else lists.propensity[0].tolist()
    return tuple(
        Shown(
            item,
            at + 1,
            float(lists.score[0, at]),
            why[at],
            lists.sources_of(0, at),
            lists.rules_of(0, at),
            propensity[at],
            described(catalogue, int(binding.row[place[at]])),
        )
        for at, item in enumerate(ids)
    )


__all__ = ["Features", "Proposals", "listed", "permitted", "shown_of"]
