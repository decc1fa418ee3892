"""Vectors laid out for search: the best k that may be proposed, whatever is hidden from a user or blocked for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Self

import faiss
import numpy as np

from pipelines.datasets.interactions import Bools, Floats, Histories, Ints, Longs
from pipelines.errors import StateError
from pipelines.retrieval import topk
from pipelines.retrieval.ann import hygiene, plans
from pipelines.retrieval.ann.plans import Plan
from pipelines.retrieval.protocol import Candidates

MEASURED_AT: Final = 100  # the k that recall is measured at; a longer list takes as much more effort
MARGIN: Final = 1.25  # candidates fetched for each one asked, since bytes may order them otherwise than floats
FILTERED_FROM: Final = 256  # forbidden vectors; fewer are fetched and dropped, more are filtered by FAISS while it searches
HARDER: Final = 8  # times the effort, for lists that came out short


@dataclass(frozen=True)
class _Rule:
    """What a search may propose.

    Attributes:
        allowed: bool [n_items], `n_allowed` of them true.
        hidden: int64, row * n_items + item of what is hidden from one row and allowed otherwise; sorted, distinct.
        n_hidden: int64 [n_rows], how many those are.
    """

    allowed: Bools
    n_allowed: int
    hidden: Longs
    n_hidden: Longs


@dataclass(frozen=True)
class Index:
    """A searchable set of item vectors.

    Attributes:
        plan: the layout.
        effort: of a search for at most `MEASURED_AT` items; see `Plan.efforts`.
        length: to which vectors are lifted; see `plans`.
        vector: float32 [n_items, d], finite; what an item scores is its inner product with the query.
        live: bool [n_items], what may be proposed.
        structure: the FAISS index; None where the plan is flat.
        item_of: int32 [n], the item of each vector inside the structure; -1 for one that was removed.
    """

    plan: Plan
    effort: float
    length: float
    vector: Floats
    live: Bools
    structure: Any
    item_of: Ints

    @property
    def n_items(self) -> int:
        """Return the size of the catalogue that items count in."""
        return len(self.live)

    def search(
        self, query: Floats, told: Bools, k: int, *, seen: Histories | None = None, blocked: Bools | None = None, refill: bool = True
    ) -> Candidates:
        """Return the items with the largest inner products, fewer than k only where no more may be proposed.

        Args:
            query: float32 [n, d].
            told: bool [n]; the others get a row of -1, as does a query that is not finite.
            seen: row by row, what must not be proposed.
            blocked: bool [n_items], what must not be proposed to anybody.
            refill: whether a list that came out short is searched for again; not where a layout is judged by what it finds at once.

        Raises:
            StateError: queries have another dimension, or `seen` and `blocked` are over another catalogue.
        """
        self._check(query, seen, blocked)
        told = told & (np.abs(query).max(axis=1, initial=0) <= hygiene.HUGE)  # NaN compares as False
        rule = self._rule(seen, blocked, len(query))
        found = topk.nothing(len(query), k)
        rows = np.flatnonzero(told)
        if self.structure is not None:
            wanted = np.minimum(k, rule.n_allowed - rule.n_hidden)
            for effort in (self.effort, HARDER * self.effort) if refill else (self.effort,):
                for some, fetch in self._alike(rows, k, rule):
                    self._fill(found, query, some, fetch=fetch, effort=effort, rule=rule)
                rows = rows[np.count_nonzero(found.item[rows] >= 0, axis=1) < wanted[rows]]
            if not (refill and len(rows)):
                return found
        self._compare(found, query, rows, rule)
        return found

    def _check(self, query: Floats, seen: Histories | None, blocked: Bools | None) -> None:
        if query.ndim != 2 or query.shape[1] != self.vector.shape[1]:
            raise StateError("query vectors", found=f"shape {query.shape}", allowed=f"[n, {self.vector.shape[1]}], as the items' vectors")
        if (blocked is not None and len(blocked) != self.n_items) or (seen is not None and seen.n_items != self.n_items):
            raise StateError(
                "what must not be proposed", found="items of another catalogue", allowed=f"a catalogue of {self.n_items} items"
            )

    def _rule(self, seen: Histories | None, blocked: Bools | None, n_rows: int) -> _Rule:
        allowed, n_allowed = (self.live, self._n_live) if blocked is None else (self.live & ~blocked, -1)
        n_allowed = int(np.count_nonzero(allowed)) if n_allowed < 0 else n_allowed
        hidden = np.empty(0, dtype=np.int64)
        if seen is not None:
            met = allowed[seen.item]
            hidden = np.unique(seen.row_of_event()[met] * self.n_items + seen.item[met])
        return _Rule(allowed, n_allowed, hidden, np.bincount(hidden // max(self.n_items, 1), minlength=n_rows))

    def _alike(self, rows: Longs, k: int, rule: _Rule) -> Iterator[tuple[Longs, int]]:
        """Yield the rows that fetch about as many candidates together, and how many."""
        n_forbidden = len(self.item_of) - rule.n_allowed
        extra = n_forbidden if n_forbidden < FILTERED_FROM else 0
        fetch = self.fetched(k + rule.n_hidden[rows] + extra)
        for size in np.unique(fetch):
            alike = rows[fetch == size]
            wide = size * self.effort * HARDER if self.plan.kind == "scan" else size
            room = max(1, topk.BLOCK // int(wide * self.vector.shape[1]))
            yield from ((alike[first : first + room], int(size)) for first in range(0, len(alike), room))

    def fetched(self, wanted: Any) -> Any:
        """Return how many candidates are asked of the structure for so many items, a number or int64 [n]; a scan, times its effort."""
        return np.minimum(2 ** np.ceil(np.log2(MARGIN * np.maximum(wanted, 1))), len(self.item_of)).astype(np.int64)

    def _fill(self, found: Candidates, query: Floats, rows: Longs, *, fetch: int, effort: float, rule: _Rule) -> None:
        """Set some rows of `found` to the best of what the structure finds."""
        harder = max(1.0, fetch / (2 * MEASURED_AT)) * len(self.item_of) / max(rule.n_allowed, 1)
        parameters = self.plan.parameters(effort * harder, self._filter(rule))
        if self.plan.kind == "scan":
            fetch = int(min(fetch * effort, len(self.item_of)))
        _, label = self.structure.search(plans.widened(plans.asked(query[rows], self.length), self.structure.d), fetch, params=parameters)
        # A label of -1 says that there was no more; as an index it would be the last item.
        item = np.sort(np.where(label < 0, np.int32(-1), self.item_of[label]), axis=1)
        may = (item >= 0) & rule.allowed[item] & ~_among(rows[:, None] * self.n_items + item, rule.hidden)
        score = np.einsum("nd,nfd->nf", query[rows], self.vector[item])
        best = topk.best(np.where(may, score, np.float32(-np.inf)), found.item.shape[1])
        found.score[rows] = best.score
        found.item[rows] = np.where(best.item < 0, -1, np.take_along_axis(item, np.maximum(best.item, 0), axis=1))

    def _filter(self, rule: _Rule) -> Any:
        """Return what FAISS may find: None for everything, where what is forbidden is little enough to be dropped afterwards."""
        if len(self.item_of) - rule.n_allowed < FILTERED_FROM:
            return None
        return self._live_bits if rule.allowed is self.live else self._bits(rule.allowed)

    def _bits(self, allowed: Bools) -> Any:
        return faiss.IDSelectorBitmap(np.packbits((self.item_of >= 0) & allowed[self.item_of], bitorder="little"))

    @cached_property
    def _live_bits(self) -> Any:
        return self._bits(self.live)

    @cached_property
    def _n_live(self) -> int:
        return int(np.count_nonzero(self.live))

    def _compare(self, found: Candidates, query: Floats, rows: Longs, rule: _Rule) -> None:
        """Set some rows of `found` to the exact answer."""
        step = max(1, topk.BLOCK // max(self.n_items, 1))
        owner, hidden = np.divmod(rule.hidden, max(self.n_items, 1))
        for some in (rows[first : first + step] for first in range(0, len(rows), step)):
            score = query[some] @ self.vector.T
            score[:, ~rule.allowed] = -np.inf
            row = np.minimum(np.searchsorted(some, owner), len(some) - 1)
            own = some[row] == owner
            score[row[own], hidden[own]] = -np.inf
            best = topk.best(score, found.item.shape[1])
            found.item[some], found.score[some] = best.item, best.score

    def exact(self, query: Floats, k: int) -> Candidates:
        """Return what a comparison with every vector finds."""
        return replace(self, plan=Plan("flat"), structure=None).search(query, np.ones(len(query), dtype=bool), k)

    def without(self, items: Longs) -> Self:
        """Return an index that proposes some items no more; their vectors stay inside, unseen, until it is built again."""
        self._check_items(items)
        live = self.live.copy()
        live[items] = False
        gone = np.isin(self.item_of, items)
        return replace(self, live=live, item_of=np.where(gone, np.int32(-1), self.item_of))

    def with_items(self, items: Longs, vector: Floats) -> Self:
        """Return an index that also proposes some items, or proposes them by another vector; this one is left as it was.

        Args:
            items: int64 [n], distinct.
            vector: float32 [n, d].

        Raises:
            StateError: an item is outside of the catalogue or twice there, or a vector is NaN, infinite, zero or of another dimension.
        """
        self._check_items(items)
        if vector.shape != (len(items), self.vector.shape[1]):
            raise StateError("vectors of new items", found=f"shape {vector.shape}", allowed=f"[{len(items)}, {self.vector.shape[1]}]")
        vectors = self.vector.copy()
        vectors[items] = vector
        hygiene.inspect(vectors, _mask(items, self.n_items), lambda: np.zeros(self.n_items, np.uint64)).refused_above(0, "new items")
        changed = self.without(items)
        live = changed.live.copy()
        live[items] = True
        if self.structure is None:
            return replace(changed, vector=vectors, live=live)
        structure = faiss.clone_index(self.structure)
        with plans.threads(1):
            structure.add(plans.widened(plans.lifted(vector, self.length), structure.d))
        return replace(changed, vector=vectors, live=live, structure=structure, item_of=np.append(changed.item_of, items.astype(np.int32)))

    def _check_items(self, items: Longs) -> None:
        if len(items) and (items.min() < 0 or items.max() >= self.n_items or len(np.unique(items)) < len(items)):
            raise StateError("items of the index", found=f"{items[:5].tolist()}...", allowed=f"distinct items in [0, {self.n_items})")

    def renumbered(self, place: Longs, n_items: int) -> Self:
        """Return the same index over a catalogue that has grown.

        Args:
            place: int64 [n_items now], distinct: where each item stands there.
        """
        vector, live = np.zeros((n_items, self.vector.shape[1]), np.float32), np.zeros(n_items, dtype=bool)
        vector[place], live[place] = self.vector, self.live
        item_of = np.where(self.item_of < 0, -1, place[self.item_of]).astype(np.int32) if len(place) else self.item_of
        return replace(self, vector=vector, live=live, item_of=item_of)


def laid_out(plan: Plan, vector: Floats, live: Bools, length: float, structure: Any) -> Index:
    """Return an index of the live vectors, in their order inside the structure, at its least effort."""
    held = np.flatnonzero(live).astype(np.int32) if structure is not None else np.empty(0, dtype=np.int32)
    return Index(plan, 0.0 if structure is None else plan.efforts()[0], length, vector, live, structure, held)


def _mask(items: Longs, n_items: int) -> Bools:
    mask = np.zeros(n_items, dtype=bool)
    mask[items] = True
    return mask


def _among(key: Longs, keys: Longs) -> Bools:
    """Return which keys are among some sorted ones."""
    if not len(keys):
        return np.zeros(key.shape, dtype=bool)
    there: Bools = keys[np.minimum(np.searchsorted(keys, key), len(keys) - 1)] == key
    return there
