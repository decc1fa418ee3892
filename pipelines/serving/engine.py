"""One loaded bundle, bound to what is known of users and items: from a question to an ordered list."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from pipelines import columns as c
from pipelines import config
from pipelines.config import Home
from pipelines.datasets.interactions import Interactions, histories, load
from pipelines.ranking.protocol import Lists
from pipelines.registry.choosing import Serving
from pipelines.serving.request import FULL, Answer, Ask, Release, Shown, Why


@dataclass(frozen=True)
class Engine:
    """Answers from one bundle.

    Attributes:
        known: the interactions up to the moment at which the engine was made.
    """

    home: Home
    serving: Serving
    known: Interactions

    @property
    def release(self) -> Release:
        """The bundle that answers."""
        return Release(self.serving.version, self.serving.digest, self.serving.parts)

    def answer(self, ask: Ask) -> Answer:
        """Return the list for a request on the rung `full`."""
        begun = time.perf_counter()
        users = histories(self.known, np.array([ask.user_id or ""]))
        lists = self.serving.model.recommend(self.home, np.array([ask.user_id or ""]), users, ask.as_of, ask.k)
        return Answer(ask, _shown(lists, self.known), FULL, self.release, stage_ms={"recommend": (time.perf_counter() - begun) * 1e3})


def bound(home: Home, serving: Serving, ask_time: object) -> Engine:
    """Return an engine that knows what had happened by a moment."""
    return Engine(home, serving, load(home, ask_time, config.load(home).training, item_ids=serving.model.item_ids))  # type: ignore[arg-type]


def _shown(lists: Lists, known: Interactions) -> tuple[Shown, ...]:
    place = {item: at for at, item in enumerate(known.item_ids.tolist())}
    found = []
    for rank, (item, score, sources) in enumerate(zip(lists.item_ids[0], lists.score[0], lists.sources[0], strict=True), 1):
        if not item:
            break
        names = tuple(name for at, name in enumerate(lists.source_names) if int(sources) >> at & 1)
        about = known.items.slice(place[str(item)], 1).to_pylist()[0] if known.items is not None else {}
        about = {name: about[name] for name in (c.TITLE, c.CATEGORY, c.BRAND, c.PRICE, c.AVAILABLE) if about.get(name) is not None}
        found.append(Shown(str(item), rank, float(score), Why("for_you", "Picked for you"), names, about=about))
    return tuple(found)
