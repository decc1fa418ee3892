"""Why an item stood where it stood in an answer of before: the question asked again, of the same release, at the same moment.

Nothing of the way is kept with an answer but the question and the release. Asked again at its moment, the release reads the same
history (events after the moment are left out) and the features that hold now: if a new day was loaded since, they may have moved,
and `reproduced` says whether the list came out as it was shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic_core import to_json

from pipelines import columns as c
from pipelines.errors import StateError
from pipelines.ranking import explain
from pipelines.ranking.context import BY_VECTORS, Context
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.two_stage import RANKED
from pipelines.serving import moment
from pipelines.serving.binding import places
from pipelines.serving.deadline import Watch
from pipelines.serving.engine import PERSONAL, Engine
from pipelines.serving.request import Ask, Filters
from pipelines.serving_policies import DeadlinePolicy
from pipelines.streaming.session import SessionEvent

PATIENT: Final = DeadlinePolicy(retrieve_by_ms=1e9, rank_by_ms=1e9)


def written(ask: Ask) -> bytes:
    """Return a question as JSON."""
    return to_json(ask)


def read(said: Mapping[str, Any]) -> Ask:
    """Return the question that `written` wrote."""
    kept: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said["filters"].items()}
    filters = Filters(**kept)
    lists = {name: tuple(said[name]) for name in ("item_ids", "changes")}
    events = tuple(SessionEvent(*event) for event in said["events"])
    return Ask(**{**said, **lists, "filters": filters, "events": events, "as_of": datetime.fromisoformat(said["as_of"])})


def explained(engine: Engine, ask: Ask, *, item_id: str | None = None, shown: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what `ranking.explain` tells of a list, from what serving reads; and `reproduced`, whether it is the list that was shown.

    Args:
        item_id: what is asked about; the first of the list when None.
        shown: the items as they were shown; None where that is not known.

    Raises:
        StateError: the surface has no ranked list to explain, the release does not know the item, or the store does not answer.
    """
    if ask.surface not in PERSONAL:
        allowed = f"one of {list(PERSONAL)}: the others are told by their sources and reasons"
        raise StateError(f"explanation of request {ask.request_id}", found=f"surface {ask.surface}", allowed=allowed)
    watch, model, known = Watch(PATIENT), engine.model, engine.knowledge.known
    found = engine.found(ask, watch)
    held = engine.held(ask, known, watch)
    if held is None and model.serves == RANKED:
        raise StateError(f"explanation of request {ask.request_id}", found="; ".join(watch.degraded), allowed="the features of who asked")

    def context(candidates: Proposals) -> Context:
        wanted = engine.placed if BY_VECTORS & set(model.groups) else {}
        vectors = {name: source.asked(model.retrievers[name], found.users)[1] for name, source in wanted.items()}
        store = engine.knowledge.store()
        return moment.context(
            candidates, found.users, found.binding, held or store.nobody(), store, groups=model.groups, memory=model.memory, vectors=vectors
        )

    rows = found.binding.row
    titles = found.binding.requests.catalogue.items[c.TITLE].take(pa.array(rows, mask=rows < 0))
    question = explain.Question(
        engine.knowledge.home, model, ask.user_id or "", ask.as_of, found.users, found.binding.goods, titles, context_of=context
    )
    item = None
    if item_id is not None:
        item = int(places(model.item_ids, [item_id])[0])
        if item < 0:
            raise StateError(f"item {item_id!r}", found="unknown to the release", allowed=f"one of its {len(model.item_ids)} items")
    told = explain.told(question.answered(found.lists), item, ask.k)
    again = [line["item"] for line in told["list"]]
    certain = ask.surface != "home" or engine.settings.exploration.method == "off"  # a draw comes after what is told here
    plain = not ask.filters or not np.any([ask.filters.narrow(), bool(ask.filters.exclude)])
    return {
        **told,
        "request_id": ask.request_id,
        "release": {"version": engine.release.version, "digest": engine.release.digest},
        "reproduced": None if shown is None or not plain or not certain else again == list(shown),
    }
