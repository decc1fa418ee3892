"""Labels: what each user did in a window, as graded gains; the truth that lists are judged by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow.compute as pc

from pipelines.config import Home, TrainingSettings
from pipelines.datasets.interactions import Dense, Floats, Ids, Interactions, Ints, Longs, arrays, read
from pipelines.window import Window


@dataclass(frozen=True)
class Labels:
    """The positives of every user who has one; a ragged array, row r is item[indptr[r]:indptr[r + 1]].

    Attributes:
        user_ids: sorted, unique; row r belongs to user_ids[r]. Every row has at least one positive.
        item_ids: sorted, unique; the catalogue that `item` indexes.
        indptr: int64 [n_users + 1].
        item: int32 [n], ascending within a row, each item once.
        gain: float32 [n], the strongest gain of the window's events between the user and the item; > 0.
    """

    user_ids: Ids
    item_ids: Ids
    indptr: Longs
    item: Ints
    gain: Floats

    @property
    def n_users(self) -> int:
        """Return the number of users with a positive."""
        return len(self.user_ids)

    def row_of_label(self) -> Longs:
        """Return int64 [n], the row that each label belongs to."""
        return np.repeat(np.arange(self.n_users), np.diff(self.indptr))

    def take(self, rows: Longs) -> Labels:
        """Return the labels of some rows, in the order given."""
        length = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        at = np.arange(indptr[-1]) - np.repeat(indptr[:-1], length) + np.repeat(self.indptr[rows], length)
        return Labels(self.user_ids[rows], self.item_ids, indptr, self.item[at], self.gain[at])


def labels(home: Home, window: Window, settings: TrainingSettings, *, before: datetime, enough: int, item_ids: Ids | None = None) -> Labels:
    """Return the labels of a window to judge models by (`judging`): events that happened in it and were received before a moment.

    Gains are those of `interactions.gains`: several events on one item count as their strongest, a
    rating below `positive_rating` is no positive.

    Args:
        before: the as_of of the judgement.
        enough: users who must remain once what lists led to is left out.
        item_ids: the catalogue to index by; without it, every item that has an event in the window.
            Positives on items outside it cannot be expressed: give a catalogue that holds them, or
            recall is overstated.
    """
    return judging(read(home, before, item_ids=item_ids, window=window), before, settings, enough)[0]


def judging(events: Dense, as_of: datetime, settings: TrainingSettings, enough: int) -> tuple[Labels, str]:
    """Return the labels to judge models by, and in a sentence what was left out, "" where nothing was.

    What people did because a list showed it to them speaks for whoever made the list: of two equal models the one that served
    would win. So the events that name a request are left out, unless fewer than `enough` users remain, or
    `training.judge_on` is "all". An event without a request's name counts, also on an item that was shown: leaving those out as
    well would speak against whoever served, whose good items people have taken already (docs/decisions/gate.md).
    """
    everything = of(arrays(events, as_of, settings))
    own = events.events.filter(pc.invert(events.events["prompted"]))
    if len(own) == len(events.events):
        return everything, ""
    alone = of(arrays(Dense(own, events.user_ids, events.item_ids), as_of, settings))
    some = f"{alone.n_users:,} of {everything.n_users:,} users with a label"
    if settings.judge_on == "unprompted" and alone.n_users >= enough:
        return alone, f"judged by what no list led to: {some}"
    why = f"{enough:,} are needed (gate.min_users)" if settings.judge_on == "unprompted" else "training.judge_on is all"
    return everything, f"judged also by what lists led to, which speaks for the champion that made them: {some} did anything else, {why}"


def of(events: Interactions) -> Labels:
    """Return the labels that some events make: per user and item the largest weight above zero."""
    positive = events.weight > 0
    key = events.user[positive].astype(np.int64) * max(len(events.item_ids), 1) + events.item[positive]
    pairs, place = np.unique(key, return_inverse=True)
    gain = np.zeros(len(pairs), dtype=np.float32)
    np.maximum.at(gain, place, events.weight[positive])
    user, item = np.divmod(pairs, max(len(events.item_ids), 1))
    users, first = np.unique(user, return_index=True)
    indptr = np.append(first, len(pairs)).astype(np.int64)
    return Labels(events.user_ids[users], events.item_ids, indptr, item.astype(np.int32), gain)
