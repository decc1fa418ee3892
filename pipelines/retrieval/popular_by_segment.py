"""What people of the same country, or of another segment, like: the first answer for a user of whom only the profile is known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines.datasets.interactions import Histories, Ids, Interactions, Longs, positions, strings
from pipelines.errors import ReloopError
from pipelines.retrieval import popular, topk
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class PopularBySegment:
    """Score of item j in segment s: (n_sj + prior * p_j) / (n_s + prior), with n the summed weights in the segment and p_j j's share of all.

    So a small segment leans on everybody, a large one on itself (Dirichlet prior; Zhai and Lafferty, TOIS 2004). A
    user of no known segment gets everybody's. State: segments, sorted names; order int32 and score float32
    [1 + n_segments, n_kept], best first, -1 and 0 where there are fewer; row 0 is everybody.

    Attributes:
        segment: the column of the users table that names it: "country" or "age_band".
        prior: weight of everybody's shares, in units of summed event weight.
        window_days: events older than this before the fit's as_of do not count; None counts all.
        half_life_days: after this long an event counts half; None never fades.
        n_kept: items kept a segment; a user who met more of them gets fewer.
        max_segments: the largest by weight are kept.
    """

    segment: str = c.COUNTRY
    prior: float = 1000.0
    window_days: float | None = None
    half_life_days: float | None = None
    n_kept: int = 2000
    max_segments: int = 1000
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy.

        Raises:
            ReloopError: users have no such column.
        """
        n_items = len(interactions.item_ids)
        names = self._names(interactions.users, len(interactions.user_ids))
        segments = np.unique(names[names != ""])
        weight = popular.faded(interactions, self.window_days, self.half_life_days)
        of_event = positions(names, segments)[interactions.user]
        total = np.bincount(of_event[of_event >= 0], weight[of_event >= 0], len(segments))
        segments = np.sort(segments[np.argsort(-total, kind="stable")[: self.max_segments]])
        of_event = positions(names, segments)[interactions.user]
        everybody = np.bincount(interactions.item, weight, n_items)
        share = everybody / max(everybody.sum(), np.finfo(float).tiny)
        lists = [topk.best(_scored(share), self.n_kept)]
        for segment in range(len(segments)):
            inside = of_event == segment
            count = np.bincount(interactions.item[inside], weight[inside], n_items)
            lists.append(topk.best(_scored((count + self.prior * share) / (count.sum() + self.prior)), self.n_kept))
        kept = topk.stack(lists, self.n_kept)
        state = {
            "n_items": np.array([n_items]),
            "segments": segments,
            "order": kept.item,
            "score": np.where(kept.item < 0, np.float32(0), kept.score),
        }
        return replace(self, state=state)

    def _names(self, users: pa.Table | None, n_users: int) -> Ids:
        """Return the segment of each user, "" where it has none."""
        if users is None:
            return np.full(n_users, "", dtype="U1")
        if self.segment not in users.column_names:
            raise ReloopError("popular_by_segment", found=f"segment {self.segment!r}", allowed=f"one of {users.column_names}")
        return strings(pa.chunked_array([users[self.segment].combine_chunks().cast(pa.string()).fill_null("")]))

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return each user's segment's items, less what the user has seen if so asked."""
        state = topk.checked("popular_by_segment", self.state, histories)
        row: Longs = 1 + positions(self._names(histories.users, histories.n_users), state["segments"].astype(np.str_))
        longest = int(histories.lengths().max(initial=0)) if exclude_seen else 0
        width = min(k + longest, self.n_kept)
        order, score = state["order"][:, :width].astype(np.int32), state["score"][:, :width].astype(np.float32)
        listed = np.where(order < 0, -1, np.arange(len(order))[:, None] * histories.n_items + order).ravel()
        by_key = np.argsort(listed, kind="stable")
        parts = []
        for first, last, rows in topk.blocks(histories, width):
            mine = row[first:last]
            block = np.where(score[mine] > 0, score[mine], np.float32(-np.inf))
            if exclude_seen:
                asker = rows.row_of_event()
                key = mine[asker] * histories.n_items + rows.item
                place = by_key[np.minimum(np.searchsorted(listed, key, sorter=by_key), max(len(listed) - 1, 0))]
                met = listed[place] == key
                block[asker[met], place[met] % width] = -np.inf
            ranked = topk.best(block, k)  # `order` is by (score, item), so ties stay in item order
            item = np.take_along_axis(order[mine], np.maximum(ranked.item, 0), axis=1)
            parts.append(Candidates(np.where(ranked.item < 0, -1, item).astype(np.int32), ranked.score))
        return topk.stack(parts, k)


def _scored(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return float32 [1, n_items], with -inf for what nobody liked."""
    return np.where(share > 0, share, -np.inf).astype(np.float32)[None]
