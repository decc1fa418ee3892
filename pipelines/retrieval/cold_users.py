"""The answer to users of whom little is known: a ladder of rungs, and which of them gave each item.

    session      what followed, in others' sessions, the few items of the history (rules, on the fly)
    preferences  what a newcomer chose when asked: categories, brands, items
    profile      what people with the same country, age band and attributes like
    popular      what everybody likes

The first rung that knows the user begins the list; what it leaves empty the next one fills, so that
nobody gets an empty list while anything was ever liked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from pipelines import columns as c
from pipelines.datasets.interactions import Bytes, Histories, Ids, Interactions, Ints, Longs, positions
from pipelines.errors import ReloopError
from pipelines.retrieval import merging, popular, topk
from pipelines.retrieval.content import Content
from pipelines.retrieval.popular_by_profile import PopularByProfile, told
from pipelines.retrieval.protocol import Candidates, Retriever
from pipelines.retrieval.sequence_rules import SequenceRules

SESSION, PREFERENCES, PROFILE, POPULAR = range(4)
RUNGS: Final = ("session", "preferences", "profile", "popular")  # by the numbers above


@dataclass(frozen=True)
class Preferences:
    """What a newcomer chose when asked; anything may be left empty.

    Attributes:
        categories, brands: as the catalogue spells them; those it does not hold say nothing.
        items: dense item indices.
    """

    categories: tuple[str, ...] = ()
    brands: tuple[str, ...] = ()
    items: tuple[int, ...] = ()

    @classmethod
    def chosen(cls, item_ids: Ids, *, categories: Sequence[str] = (), brands: Sequence[str] = (), items: Sequence[str] = ()) -> Preferences:
        """Return preferences with items given by id; ids that the catalogue lacks are left out.

        Args:
            item_ids: sorted and unique; the catalogue that the ladder indexes.
        """
        place = positions(np.array(items, dtype=np.str_), item_ids) if items else np.empty(0, dtype=np.int64)
        return cls(tuple(categories), tuple(brands), tuple(int(at) for at in place if at >= 0))


@dataclass(frozen=True)
class Answer:
    """A list for each user that says who gave it.

    Attributes:
        item: int32 [n_users, k], best first; -1 pads.
        rung: int8 [n_users, k], position in `RUNGS` of the rung that gave the item; -1 pads.
    """

    item: Ints
    rung: Bytes

    def rungs(self) -> list[str | None]:
        """Return the rung that each user's list begins with; None where the list is empty."""
        return [RUNGS[rung] if rung >= 0 else None for rung in (self.rung[:, 0] if self.rung.shape[1] else [])]


@dataclass(frozen=True)
class ColdUsers:
    """The ladder as a source; users with more than `max_events` liked events are left to the others.

    Score of the item at place n of the ladder's list: 1 / n. State: that of its parts, each name
    after its part; group float32 as the arrays of a sparse matrix [n_groups, n_items], each item's share
    within its category and its brand; groups, their sorted names.

    Attributes:
        max_events: liked events up to which a user is answered.
        prior, half_life_days: of popularity by profile.
        n_neighbours: of items, in rules and by content.
    """

    max_events: int = 5
    prior: float = 1000.0
    half_life_days: float | None = None
    n_neighbours: int = 100
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def _parts(self) -> dict[str, Retriever]:
        return {
            "session": SequenceRules(n_neighbours=self.n_neighbours),
            "content": Content(n_neighbours=self.n_neighbours),
            "profile": PopularByProfile(prior=self.prior, half_life_days=self.half_life_days),
        }

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        n_items = len(interactions.item_ids)
        state: dict[str, npt.NDArray[np.generic]] = {"n_items": np.array([n_items])}
        for name, part in self._parts().items():
            state |= {f"{name}.{key}": array for key, array in (part.fit(interactions).state or {}).items()}
        count = np.bincount(interactions.item, popular.faded(interactions, None, self.half_life_days), n_items)
        groups, member = _groups(interactions.items, n_items)
        share = member.multiply(count).tocsr().astype(np.float32)
        share.eliminate_zeros()
        row = np.repeat(np.arange(len(groups)), np.diff(share.indptr))
        share.data /= np.bincount(row, share.data, len(groups)).astype(np.float32)[row]
        state |= {"groups": groups, "group.indptr": share.indptr, "group.indices": share.indices, "group.data": share.data}
        return replace(self, state=state)

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the ladder's lists for users of whom little is known."""
        found = self.answer(histories, k, exclude_seen=exclude_seen)
        liked = np.bincount(histories.row_of_event(), histories.weight > 0, histories.n_users)
        item = np.where((liked > self.max_events)[:, None], np.int32(-1), found.item)
        score = np.broadcast_to((1 / np.arange(1, k + 1)).astype(np.float32), item.shape)
        return Candidates(item, np.where(item < 0, np.float32(-np.inf), score))

    def answer(self, histories: Histories, k: int, *, exclude_seen: bool, preferences: Sequence[Preferences] | None = None) -> Answer:
        """Return the k best items of the ladder for anybody, and the rung of each.

        Args:
            preferences: one a row of the histories; None where nobody was asked.

        Raises:
            ReloopError: there are not as many preferences as histories.
            StateError: as `Retriever.retrieve`.
        """
        state = topk.checked("cold_users", self.state, histories)
        if preferences is not None and len(preferences) != histories.n_users:
            raise ReloopError("preferences", found=f"{len(preferences)}", allowed=f"one for each of {histories.n_users} histories")
        parts = {name: _fitted(part, name, state) for name, part in self._parts().items()}
        lists = {SESSION: parts["session"].retrieve(histories, k, exclude_seen=exclude_seen).item}
        if preferences is not None:
            lists[PREFERENCES] = self._preferred(state, parts, histories, preferences, k, exclude_seen=exclude_seen)
        lists[PROFILE] = parts["profile"].retrieve(histories, k, exclude_seen=exclude_seen).item
        rung = np.concatenate([np.broadcast_to(np.int8(at), found.shape) for at, found in lists.items()], axis=1)
        rung = np.where(
            (rung == PROFILE) & ~told(histories.users, histories.n_users, state["profile.values"])[:, None], np.int8(POPULAR), rung
        )
        item = np.concatenate(list(lists.values()), axis=1)
        row, column, place = leading(item, histories.n_items, k)
        found = Answer(np.full((histories.n_users, k), -1, dtype=np.int32), np.full((histories.n_users, k), -1, dtype=np.int8))
        found.item[row, place], found.rung[row, place] = item[row, column], rung[row, column]
        return found

    def _preferred(
        self,
        state: dict[str, npt.NDArray[np.generic]],
        parts: dict[str, Retriever],
        histories: Histories,
        preferences: Sequence[Preferences],
        k: int,
        *,
        exclude_seen: bool,
    ) -> Ints:
        """Return int32 [n_users, k], what was chosen answered three ways and fused.

        The most popular items of the chosen categories and brands, each group with an equal say;
        the items described like the chosen ones; what followed the chosen ones in others' sessions. A chosen
        item is not proposed back.
        """
        groups = state["groups"].astype(np.str_)
        named = [[f"{c.CATEGORY}={name}" for name in one.categories] + [f"{c.BRAND}={name}" for name in one.brands] for one in preferences]
        row = np.repeat(np.arange(len(named)), [len(names) for names in named])
        place = positions(np.array([name for names in named for name in names], dtype=np.str_), groups) if len(row) else row
        held = place >= 0
        chosen = sparse.csr_matrix((np.ones(held.sum(), dtype=np.float32), (row[held], place[held])), shape=(len(named), len(groups)))
        shares = sparse.csr_matrix(
            (state["group.data"], state["group.indices"], state["group.indptr"]), shape=(len(groups), histories.n_items)
        )
        wanted = _as_history(preferences, histories)
        lists = [topk.best_sparse((chosen @ shares).tocsr(), k, seen=histories if exclude_seen else None)]
        lists += [parts[name].retrieve(wanted, k, exclude_seen=True) for name in ("content", "session")]
        fused = merging.merge(dict(zip(("groups", "content", "session"), lists, strict=True)), k).item
        if exclude_seen:
            seen = histories.row_of_event() * histories.n_items + histories.item
            fused[np.isin(np.arange(len(fused))[:, None] * histories.n_items + fused, seen)] = -1
        return fused


def leading(item: Ints, n_items: int, k: int) -> tuple[Longs, Longs, Longs]:
    """Return (row, column, place) of the first k different items of each row; -1 is none.

    Args:
        item: int32 [n, width]; `item[row, column]` stands at `place` of its row.
    """
    key = np.where(item < 0, -1, np.arange(len(item))[:, None] * max(n_items, 1) + item).ravel()
    first = np.zeros(key.size, dtype=bool)
    first[np.unique(key, return_index=True)[1]] = True
    keep = (first & (key >= 0)).reshape(item.shape)
    place = np.cumsum(keep, axis=1) - 1
    row, column = np.nonzero(keep & (place < k))
    return row, column, place[row, column]


def _fitted(part: Retriever, name: str, state: dict[str, npt.NDArray[np.generic]]) -> Retriever:
    own = {key.removeprefix(f"{name}."): array for key, array in state.items() if key.startswith(f"{name}.")}
    return replace(part, state=own)  # type: ignore[type-var]


def _as_history(preferences: Sequence[Preferences], asking: Histories) -> Histories:
    """Return the chosen items as histories of one moment, the newest."""
    item = np.array([item for one in preferences for item in one.items], dtype=np.int32)
    if len(item) and not (item.min() >= 0 and item.max() < asking.n_items):
        raise ReloopError("preferences", found=f"items {item.min()} to {item.max()}", allowed=f"0 to {asking.n_items - 1}")
    indptr = np.concatenate([[0], np.cumsum([len(one.items) for one in preferences])]).astype(np.int64)
    at = np.full(len(item), asking.as_of - 1, dtype=np.int64)
    return Histories(indptr, item, at, np.ones(len(item), dtype=np.float32), asking.n_items, asking.as_of)


def _groups(catalogue: pa.Table | None, n_items: int) -> tuple[Ids, sparse.csr_matrix]:
    """Return the sorted names of all categories and brands, and bool [n_groups, n_items], who is in them."""
    item, name = np.empty(0, dtype=np.int64), []
    if catalogue is not None:
        for column in (c.CATEGORY, c.BRAND):
            values = catalogue[column].to_pylist()
            held = [at for at, value in enumerate(values) if value]
            item = np.concatenate([item, np.array(held, dtype=np.int64)])
            name += [f"{column}={values[at]}" for at in held]
    groups, place = np.unique(np.array(name, dtype=np.str_), return_inverse=True) if name else (np.empty(0, dtype="U1"), item)
    return groups, sparse.csr_matrix((np.ones(len(item), dtype=np.float64), (place, item)), shape=(len(groups), n_items))
