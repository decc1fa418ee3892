"""The lists that are about items or about the shop, not about a user's taste: each from what is known of its items.

    similar             what the item may be replaced by
    bought_together     what goes with it
    basket              what goes with several items, none of them
    because_you_viewed  a few lists, one for each item the user looked at last, one after the other; each item says which
    like                similar, but different as asked (`critique`)
    trending            what rises, in the country or age band of who asks

An item nobody knows has no such list: then it is what is popular, and `degraded` says why. Filters, availability and `exclude` hold
for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np

from pipelines import columns as c
from pipelines.datasets.interactions import Bools, Longs
from pipelines.features.catalogue_snapshot import POPULAR as POPULAR_LIST
from pipelines.features.catalogue_snapshot import TRENDING, CatalogueSnapshot
from pipelines.serving import critique, moment, reasons
from pipelines.serving.alike import BOUGHT, DESCRIBED, Alike, Fused, fused
from pipelines.serving.binding import Binding
from pipelines.serving.deadline import Watch
from pipelines.serving.knowledge import described
from pipelines.serving.request import EMPTY, FULL, POPULAR, SEGMENT, Answer, Ask, Filters, Shown, Why
from pipelines.serving.standing import meeting

if TYPE_CHECKING:
    from pipelines.serving.engine import Engine, Found

ANCHORS: Final = 5  # lists that `because_you_viewed` has at most
SHORTEST: Final = 3  # items of one of them, where there are so many
BASKET: Final = 50  # items of a basket that are asked about, the first


def answer(engine: Engine, ask: Ask) -> Answer:
    """Return the answer of a surface that is no user's own list."""
    watch = Watch(engine.settings.serving.deadline)
    alike = engine.alike(engine.knowledge.known)
    with watch.stage("items"):
        if ask.surface == "trending":
            items, rung = _trending(engine, ask, alike.binding)
        elif ask.surface == "because_you_viewed":
            items, rung = _viewed(engine, ask, alike, watch), FULL
        else:
            items, rung = _about(ask, alike, watch), FULL
        if not items:
            items, rung = _popular(engine, ask, alike.binding)
        if not items and ask.changes:
            watch.degraded.append(f"like: nothing that may be shown is {' and '.join(critique.WORDS[change] for change in ask.changes)}")
    return Answer(ask, items, rung if items else EMPTY, engine.release, tuple(watch.degraded), stage_ms=watch.ms)


def _unlike(ask: Ask, shop: CatalogueSnapshot, places: Longs) -> Bools:
    """Return bool [n], which do not differ as asked; none where it is not asked, or nobody knows from what."""
    anchor = next((place for item in ask.item_ids if (place := shop.place(item)) >= 0), -1) if ask.changes else -1
    return ~critique.changed(shop, anchor, ask.changes, places) if anchor >= 0 else np.zeros(len(places), bool)


def permitted(filters: Filters, binding: Binding, places: Longs, left_out: Iterable[int] = ()) -> Bools:
    """Return bool [n], which items of a snapshot may be shown; what is not known meets no filter that asks for it."""
    shop = binding.requests.catalogue
    good = meeting(shop, filters, places)
    out = [*left_out, *(shop.place(item) for item in filters.exclude)]
    return np.asarray(good & ~np.isin(places, out) if out else good, bool)


def _about(ask: Ask, alike: Alike, watch: Watch) -> tuple[Shown, ...]:
    """Return what goes with one item or several; nothing, and a line, where none of them is known."""
    shop = alike.shop
    anchors = list(dict.fromkeys(place for item in ask.item_ids[:BASKET] if (place := shop.place(item)) >= 0))
    if not anchors:
        watch.degraded.append(f"{ask.surface}: the catalogue knows none of {list(ask.item_ids)[:3]}"[:300])
        return ()
    ways = alike.similar if ask.surface in {"similar", "like"} else alike.beside
    found = fused((place, ways(place)) for place in anchors)
    good = permitted(ask.filters, alike.binding, found.place, anchors)
    if ask.surface == "like":
        good &= critique.changed(shop, anchors[0], ask.changes, found.place)
        if good.sum() < ask.k:
            found, good = _widened(found, good, ask, alike, anchors[0])
    return _shown(found, good, ask, alike)


def _widened(found: Fused, good: Bools, ask: Ask, alike: Alike, anchor: int) -> tuple[Fused, Bools]:
    """Return a list that goes on with whatever in the catalogue differs as asked, by how alike it is."""
    others = alike.differing(anchor, ask.changes, lambda some: permitted(ask.filters, alike.binding, some))
    others = others[~np.isin(others, found.place)]
    others = alike.described(anchor, others)
    n, least = len(others), float(found.score[-1]) if len(found.score) else 1.0
    wider = Fused(
        np.concatenate([found.place, others]),
        np.concatenate([found.score, least / (1.0 + np.arange(1, n + 1))]),
        [*found.sources, *[(DESCRIBED,)] * n],
        np.concatenate([found.anchor, np.full(n, anchor, np.int64)]),
    )
    return wider, np.concatenate([good, np.ones(n, bool)])


def _shown(found: Fused, good: Bools, ask: Ask, alike: Alike) -> tuple[Shown, ...]:
    kept = np.flatnonzero(good)[: ask.k]
    return tuple(
        Shown(
            alike.shop.item_ids[int(found.place[at])].as_py(),
            rank,
            float(found.score[at]),
            _why(ask, alike.shop, int(found.anchor[at]), found.sources[at]),
            found.sources[at],
            about=described(alike.shop, int(found.place[at])),
        )
        for rank, at in enumerate(kept.tolist(), 1)
    )


def _why(ask: Ask, shop: CatalogueSnapshot, anchor: int, sources: tuple[str, ...]) -> Why:
    item_id = shop.item_ids[anchor].as_py()
    title = shop.items[c.TITLE][anchor].as_py() or item_id
    if ask.surface == "like":
        return Why("like", critique.said(title, ask.changes), item_id)
    if ask.surface == "similar":
        return Why("similar_to", f"Like {title}", item_id)
    if ask.surface == "because_you_viewed":
        return Why("because_you_viewed", f"Because you viewed {title}", item_id)
    bought = {BOUGHT, "together"} & set(sources)
    return Why("goes_with", f"Often bought with {title}" if bought else f"Goes with {title}", item_id)


def _viewed(engine: Engine, ask: Ask, alike: Alike, watch: Watch) -> tuple[Shown, ...]:
    """Return the lists of the items looked at last, one after the other; each item once in all of them, none of them an anchor."""
    held = engine.held(ask, engine.knowledge.known, watch)
    users = moment.history(ask, moment.told(ask, held), alike.binding, engine.settings.training, engine.model.item_ids)
    anchors = [int(place) for place in alike.binding.row[reasons.newest(users.item, users.event_type)[0]] if place >= 0]
    anchors = anchors[: min(ANCHORS, max(1, ask.k // SHORTEST))]
    if not anchors:
        watch.degraded.append("because_you_viewed: nothing is known to have been viewed")
    share, shown, used = -(-ask.k // max(len(anchors), 1)), list[Shown](), set(anchors)
    for anchor in anchors:
        found = fused([(anchor, alike.similar(anchor))])
        good = permitted(ask.filters, alike.binding, found.place, used)
        part = _shown(found, good, replace(ask, k=min(share, ask.k - len(shown))), alike)
        used |= set(found.place[np.flatnonzero(good)[: len(part)]].tolist())
        shown += part
    return tuple(replace(item, rank=rank) for rank, item in enumerate(shown, 1))


def filled(engine: Engine, found: Found, items: tuple[Shown, ...], rung: str) -> tuple[tuple[Shown, ...], str]:
    """Return a list that filters left short, going on with what is popular and meets them; where nothing was left, its own rung."""
    binding = found.binding
    used = set(binding.row[found.users.item].tolist()) if engine.model.exclude_seen else set()
    used |= {binding.requests.catalogue.place(item.item_id) for item in items}
    rest, popular = _popular(engine, replace(found.ask, k=found.ask.k - len(items)), binding, used)
    least = items[-1].score if items else np.inf
    likely = math.nan if any(item.propensity != 1 for item in items) else 1.0  # what was drawn above decides what is left for below
    more = (replace(item, rank=len(items) + at, score=min(item.score, least), propensity=likely) for at, item in enumerate(rest, 1))
    return (*items, *more), rung if items else popular


def _trending(engine: Engine, ask: Ask, binding: Binding) -> tuple[tuple[Shown, ...], str]:
    segment = engine.knowledge.segment(ask)
    where = segment.partition("=")[2]
    told = [(segment, Why("trending", f"Trending in {where}"))] if segment else []
    return _standing(ask, binding, TRENDING, [*told, ("", Why("trending", "Trending now"))]), FULL


def _popular(engine: Engine, ask: Ask, binding: Binding, used: Iterable[int] = ()) -> tuple[tuple[Shown, ...], str]:
    """Return what is popular where the surface has nothing to say."""
    segment = engine.knowledge.segment(ask)
    told = [(segment, Why("popular", f"Popular in {segment.partition('=')[2]}"))] if segment else []
    found = _standing(ask, binding, POPULAR_LIST, [*told, ("", Why("popular", "Popular now"))], used)
    return found, SEGMENT if segment else POPULAR


def _standing(
    ask: Ask, binding: Binding, kind: str, segments: Sequence[tuple[str, Why]], left_out: Iterable[int] = ()
) -> tuple[Shown, ...]:
    """Return standing lists one after the other, each item once; then whatever is permitted, the most met first."""
    shop, shown = binding.requests.catalogue, list[Shown]()
    used = {*left_out, *(place for item in ask.item_ids if (place := shop.place(item)) >= 0)}
    lists = [(*shop.lists.get((kind, segment), (np.empty(0, np.int32), np.empty(0, np.float32))), why) for segment, why in segments]
    rest = ((part, np.zeros(len(part), np.float32), Why("popular", "Popular")) for part in shop.parts())
    for places, scores, why in chain(lists, rest):
        if len(shown) >= ask.k:
            break
        may = permitted(ask.filters, binding, places.astype(np.int64), used) & ~_unlike(ask, shop, places)
        good = np.flatnonzero(may)[: ask.k - len(shown)]
        least = shown[-1].score if shown else np.inf
        for at in good.tolist():
            place = int(places[at])
            score = min(float(scores[at]), least)
            shown.append(Shown(shop.item_ids[place].as_py(), len(shown) + 1, score, why, (kind,), about=described(shop, place)))
            used.add(place)
    return tuple(shown)
