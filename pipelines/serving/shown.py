"""From candidates with scores to what is shown: filters, rules, reasons, and what the catalogue says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipelines.datasets.interactions import Bools, Floats, Ints
from pipelines.ranking import newcomers
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.protocol import Lists
from pipelines.serving import reasons
from pipelines.serving.binding import Binding, places
from pipelines.serving.deadline import Watch
from pipelines.serving.knowledge import described
from pipelines.serving.request import Filters, Shown
from pipelines.window import micros

if TYPE_CHECKING:
    from pipelines.serving.engine import Engine, Found


class Features(Mapping[str, tuple[float, ...]]):
    """What the ranker read of the shown items, by feature; taken from the matrix when it is asked for, which few requests are.

    Args:
        rows: float32 [n shown, n_features]; kept, so a copy of the whole.

    Attributes:
        rows: as given.
        n: places of the list; those behind `rows` were put there by no ranker, and have NaN.
    """

    def __init__(self, names: tuple[str, ...], rows: Floats) -> None:
        self._names, self.rows, self.n = names, rows, len(rows)

    def __getitem__(self, name: str) -> tuple[float, ...]:
        try:
            at = self._names.index(name)
        except ValueError:
            raise KeyError(name) from None
        told = self.rows[:, at].tolist()
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


def listed(engine: Engine, found: Found, watch: Watch) -> tuple[tuple[Shown, ...], Mapping[str, tuple[float, ...]]]:
    """Return the k best that may be shown, and what the ranker read of them."""
    ask, binding, model = found.ask, found.binding, engine.model
    candidates, score, rows = found.candidates, found.score, np.arange(len(found.candidates))
    good = permitted(ask.filters, candidates.item, binding)
    if ask.filters.exclude:
        good &= ~np.isin(candidates.item, places(model.item_ids, list(ask.filters.exclude)))
    if not good.all():
        candidates, score, rows = candidates[good], score[good], rows[good]
    lists = model.listed(np.array([ask.user_id or ""]), candidates, score, ask.k, users=found.users, goods=binding.goods)
    if ask.surface == "home" and engine.settings.exploration.method != "off":
        lists = _explored(engine, found, lists, watch)
    items = shown_of(engine, found, lists)
    features: Mapping[str, tuple[float, ...]] = {}
    if found.matrix is not None and model.ranker is not None and items:
        at = places(model.item_ids, [item.item_id for item in items])
        order = np.argsort(candidates.item, kind="stable")
        place = order[np.minimum(np.searchsorted(candidates.item, at, sorter=order), max(len(order) - 1, 0))]
        read = found.matrix[rows[place]]
        read[candidates.item[place] != at] = np.nan  # drawn: no ranker ever read it
        features = Features(model.ranker.features, read)
    return items, features


def _explored(engine: Engine, found: Found, lists: Lists, watch: Watch) -> Lists:
    """Return a list with new items where a draw puts them, as `two_stage.rank_users` draws: named by the request, so that it can be made again.

    What may not be shown to who asks is not drawn either. Where drawing fails, nobody knows how likely the list was.
    """
    ask, binding, model, policy = found.ask, found.binding, engine.model, engine.settings.exploration
    try:
        fresh = binding.new_items(policy, micros(ask.as_of)) & permitted(
            ask.filters, np.arange(len(model.item_ids), dtype=np.int32), binding
        )
        out = places(model.item_ids, list(ask.filters.exclude))
        fresh[out[out >= 0]] = False
        return newcomers.explored(
            lists,
            item_ids=model.item_ids,
            users=found.users,
            fresh=fresh,
            retrievers=model.retrievers,
            policy=policy,
            request_ids=[ask.request_id],
            exclude_seen=model.exclude_seen,
            rerank=model.rerank,
            goods=binding.goods,
        )
    except Exception as error:  # noqa: BLE001 - the list is as good without
        watch.failed("exploration", error)
        return replace(lists, propensity=np.full(lists.item_ids.shape, np.nan))


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
