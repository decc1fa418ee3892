"""What a release's item-to-item sources say of the items in hand: a list without any store, any feature and any user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from pipelines.datasets.interactions import Histories, positions
from pipelines.ranking.two_stage import TwoStage
from pipelines.serving.request import Ask
from pipelines.window import micros

SOURCES: Final = ("sequence_rules", "item_knn", "session_knn")  # by what a question costs; the first that has an answer gives it
STEP_US: Final = 60_000_000  # items of a basket have no times; they count as one a minute
MOST_SEEDS: Final = 50


def proposed(model: TwoStage, ask: Ask, seeds: Sequence[str], k: int) -> list[tuple[str, float, str]]:
    """Return (item id, score, source), best first; nothing where no source knows any of the items.

    Args:
        seeds: item ids, newest first; what the release does not know is passed over.
    """
    place = positions(np.array(list(seeds[:MOST_SEEDS])), model.item_ids)
    known = place[place >= 0][::-1]
    if not len(known):
        return []
    now = micros(ask.as_of)
    users = Histories(
        indptr=np.array([0, len(known)]),
        item=known.astype(np.int32),
        at=now - STEP_US * np.arange(len(known), 0, -1),
        weight=np.ones(len(known), np.float32),
        n_items=len(model.item_ids),
        as_of=now,
    )
    for name in SOURCES:
        if (source := model.retrievers.get(name)) is not None:
            found = source.retrieve(users, k, exclude_seen=model.exclude_seen)
            kept = (found.item[0] >= 0) & np.isfinite(found.score[0])
            if kept.any():
                return [
                    (str(model.item_ids[item]), float(score), name)
                    for item, score in zip(found.item[0][kept], found.score[0][kept], strict=True)
                ]
    return []
