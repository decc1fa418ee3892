"""Why an item is shown, in words: what the user did that speaks for it, else what the sources that proposed it stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipelines import columns as c
from pipelines.datasets.interactions import Floats, Ints
from pipelines.retrieval import neighbours
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.sequence_rules import SequenceRules
from pipelines.retrieval.together import Together
from pipelines.serving.request import Why

if TYPE_CHECKING:
    from pipelines.serving.engine import Engine, Found

ANCHORS: Final = 10  # newest different items of a history that may be named
DID: Final = {c.VIEW: "viewed", c.CLICK: "viewed", c.ADD_TO_CART: "put into your cart", c.PURCHASE: "bought", c.RATING: "rated"}
KINDS: Final = {c.VIEW: "viewed", c.CLICK: "viewed", c.ADD_TO_CART: "added", c.PURCHASE: "bought", c.RATING: "rated"}
PLAIN: Final = (
    ("preferences", Why("chosen", "Because of what you chose")),
    ("repeat", Why("again", "You may want it again")),
    ("exploration", Why("new", "New here")),
    ("cold_items", Why("new", "New here")),
    ("trending", Why("trending", "Trending now")),
    ("user_knn", Why("people_like_you", "Liked by people with a taste like yours")),
    ("als", Why("for_you", "Picked for you")),
    ("popular_7d", Why("popular", "Popular this week")),
    ("popular", Why("popular", "Popular now")),
)
FOR_YOU: Final = Why("for_you", "Picked for you")


def of(engine: Engine, found: Found, items: Ints, sources: list[tuple[str, ...]]) -> list[Why]:
    """Return a reason for each of some items of the release."""
    users = found.users
    anchors, kinds = newest(users.item, users.event_type)
    strength = np.zeros((len(anchors), len(items)), np.float32)
    if len(anchors) and len(items):
        strength = related(engine, anchors, items)
        strength[anchors[:, None] == items[None]] = 0
    best = strength.argmax(axis=0) if len(anchors) else np.zeros(len(items), np.int64)
    told, of_anchor = [], dict[int, Why]()
    for at, names in enumerate(sources):
        if names and len(anchors) and strength[best[at], at] > 0 and names != ("repeat",):
            which = int(best[at])
            if which not in of_anchor:
                of_anchor[which] = because(engine, found, int(anchors[which]), c.EVENT_TYPES[int(kinds[which])])
            told.append(of_anchor[which])
        else:
            told.append(next((why for name, why in PLAIN if name in names), FOR_YOU))
    return told


def newest(item: Ints, event_type: np.ndarray | None) -> tuple[Ints, Ints]:
    """Return the newest different items of a history, newest first, and what was done with each last."""
    late, kind = item[::-1], np.zeros(len(item), np.int8) if event_type is None else event_type[::-1]
    first = np.sort(np.unique(late, return_index=True)[1])[:ANCHORS]
    return late[first].astype(np.int32), kind[first].astype(np.int32)


def related(engine: Engine, anchors: Ints, items: Ints) -> Floats:
    """Return float32 [n_anchors, n_items], how strongly one item speaks for another by the release's own rules; 0 is nothing.

    Of each kind of rules relative to its strongest, so that kinds compare.
    """
    found = np.zeros((len(anchors), len(items)), np.float32)
    for source in engine.model.retrievers.values():
        if isinstance(source, ItemKnn | SequenceRules | Together) and source.state is not None:
            part = _weights(source.state, anchors, items)
            if (most := part.max(initial=0)) > 0:
                found = np.maximum(found, part / most)
    return found


def _weights(learnt: neighbours.State, anchors: Ints, items: Ints) -> Floats:
    """Return float32 [n_anchors, n_items], the weights between some items; columns of a row ascend."""
    data, columns, indptr = (learnt[name] for name in ("data", "indices", "indptr"))
    found = np.zeros((len(anchors), len(items)), np.float32)
    for at, anchor in enumerate(anchors.tolist()):
        first, last = int(indptr[anchor]), int(indptr[anchor + 1])
        if first < last:
            place = first + np.minimum(np.searchsorted(columns[first:last], items), last - first - 1)
            found[at] = np.where(columns[place] == items, data[place], 0)
    return found


def because(engine: Engine, found: Found, anchor: int, event_type: str) -> Why:
    """Return the reason that names an item of the history."""
    catalogue, row = found.binding.requests.catalogue, int(found.binding.row[anchor])
    title = catalogue.told(row).get(c.TITLE) if row >= 0 else None
    item_id = str(engine.model.item_ids[anchor])
    return Why(f"because_you_{KINDS[event_type]}", f"Because you {DID[event_type]} {title or item_id}", item_id)
