"""The answer to users of whom little is known: a ladder of rungs, and which of them gave each item.

    session      what goes with the few items of the history, in others' baskets and sessions
    preferences  what a newcomer chose when asked: categories, brands, items
    profile      what people with the same country, age band and attributes like
    popular      what everybody likes: the profile's rung for a profile of which nothing is known

Every rung that knows the user takes part, by weighted reciprocal ranks; the lower ones weigh little beside the upper, and
fill what those leave empty, so that nobody gets an empty list while anything was ever liked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from pipelines import columns as c
from pipelines.datasets.interactions import Bytes, Floats, Histories, Ids, Interactions, Ints, Longs, positions
from pipelines.errors import ReloopError
from pipelines.retrieval import merging, popular, topk
from pipelines.retrieval.content import Content
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.merging import Recipe
from pipelines.retrieval.popular_by_profile import PopularByProfile, told
from pipelines.retrieval.protocol import Candidates, Retriever
from pipelines.retrieval.session_knn import SessionKnn

SESSION, PREFERENCES, PROFILE, POPULAR = range(4)
NAME: Final = "cold_users"  # in the line-up
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
        score: float32 [n_users, k], weighted sum of 1 / (60 + rank), > 0; -inf pads.
        rung: int8 [n_users, k], position in `RUNGS` of the uppermost rung that proposed the item; -1 pads.
    """

    item: Ints
    score: Floats
    rung: Bytes

    def rungs(self) -> list[str | None]:
        """Return the uppermost rung that answered each user; None where the list is empty."""
        upper = np.where(self.rung < 0, len(RUNGS), self.rung).min(axis=1, initial=len(RUNGS))
        return [RUNGS[rung] if rung < len(RUNGS) else None for rung in upper]


@dataclass(frozen=True)
class ColdUsers:
    """The ladder as a source; users with more than `max_events` liked events are left to the others (`alone`).

    Score of an item: the sum of weight / (60 + rank) over the lists that propose it (`merging`). Lists of item-kNN and
    session-kNN weigh 1, those of chosen groups 1, of what is described like chosen items `content_weight`, of
    popularity by profile `common_weight`.
    State: that of its parts, each name after its part; group float32 as the arrays of a sparse matrix
    [n_groups, n_items], each item's share within its category and its brand; groups, their sorted names.

    Attributes:
        max_events: liked events up to which a user is answered.
        common_weight: of popularity by profile, beside what is known of the user alone.
        content_weight: of what is described like the chosen items.
        prior, dilution, half_life_days: of popularity by profile.
        n_neighbours: of items, in baskets and by content.
    """

    max_events: int = 0
    common_weight: float = 0.3
    content_weight: float = 0.2
    prior: float = 1000.0
    dilution: float = 0.5
    half_life_days: float | None = 30.0
    n_neighbours: int = 100
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def _parts(self) -> dict[str, Retriever]:
        return {
            "baskets": ItemKnn(n_neighbours=self.n_neighbours),
            "sessions": SessionKnn(),
            "content": Content(n_neighbours=self.n_neighbours),
            "profile": PopularByProfile(prior=self.prior, dilution=self.dilution, half_life_days=self.half_life_days),
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
        known = (liked > self.max_events)[:, None]
        return Candidates(np.where(known, np.int32(-1), found.item), np.where(known, np.float32(-np.inf), found.score))

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
        lists = {name: parts[name].retrieve(histories, k, exclude_seen=exclude_seen) for name in ("baskets", "sessions", "profile")}
        rung_of = {"baskets": SESSION, "sessions": SESSION, "profile": PROFILE}
        if preferences is not None:
            chosen = self._preferred(state, parts, histories, preferences, k, exclude_seen=exclude_seen)
            lists, rung_of = lists | chosen, rung_of | dict.fromkeys(chosen, PREFERENCES)
        weights = {"profile": self.common_weight, "like_chosen": self.content_weight}
        merged = merging.merge(lists, k, Recipe(weights=weights))
        rung = np.full(merged.item.shape, -1, dtype=np.int8)
        for name in sorted(lists, key=lambda name: -rung_of[name]):  # the uppermost last
            rung[~np.isnan(merged.source_rank[name])] = rung_of[name]
        nameless = ~told(histories.users, histories.n_users, state["profile.values"])[:, None]
        return Answer(merged.item, merged.score, np.where((rung == PROFILE) & nameless, np.int8(POPULAR), rung))

    def _preferred(
        self,
        state: dict[str, npt.NDArray[np.generic]],
        parts: dict[str, Retriever],
        histories: Histories,
        preferences: Sequence[Preferences],
        k: int,
        *,
        exclude_seen: bool,
    ) -> dict[str, Candidates]:
        """Return what was chosen answered four ways; a chosen item is not proposed back.

        The most popular items of the chosen categories and brands, each group with an equal say; what stands
        with the chosen items in others' baskets and sessions; and what is described like them.
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
        met, wanted = histories if exclude_seen else None, _as_history(preferences, histories)
        seen = histories.row_of_event() * histories.n_items + histories.item
        found = {"chosen_groups": topk.best_sparse((chosen @ shares).tocsr(), k, seen=met)}
        for name, part in (("with_chosen", "baskets"), ("after_chosen", "sessions"), ("like_chosen", "content")):
            item = parts[part].retrieve(wanted, k, exclude_seen=True).item
            if exclude_seen:
                item = np.where(np.isin(np.arange(len(item))[:, None] * histories.n_items + item, seen), np.int32(-1), item)
            row, column, place = leading(item, histories.n_items, k)
            found[name] = topk.nothing(len(item), k)
            found[name].item[row, place] = item[row, column]
            found[name].score[row, place] = 1 / (1 + place)
        return found


def alone(lists: Mapping[str, Candidates]) -> dict[str, Candidates]:
    """Return the lists of a line-up with the ladder's users left to it: where `cold_users` proposes, nobody else does.

    The ladder has weighed what little is known, and says which rung answered; lists for everybody would only blur it.
    """
    if NAME not in lists:
        return dict(lists)
    cold = (lists[NAME].item >= 0).any(axis=1, keepdims=True)
    emptied = {
        name: Candidates(np.where(cold, np.int32(-1), found.item), np.where(cold, np.float32(-np.inf), found.score))
        for name, found in lists.items()
        if name != NAME
    }
    return {name: emptied.get(name, found) for name, found in lists.items()}


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
