"""Several lists a user become one: weighted reciprocal ranks, places that are guaranteed or limited, every item once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Ints, Longs
from pipelines.datasets.labels import Labels
from pipelines.errors import StateError
from pipelines.retrieval import topk
from pipelines.retrieval.protocol import Candidates

RRF_CONSTANT: Final = 60  # Cormack, Clarke, Buettcher (SIGIR 2009); damps the difference between the first ranks
LEAST: Final = 1e-6  # of the largest weight: what a source without any weight proposes still stands in its order, last
ROW_BITS: Final = 11
USERS_AT_ONCE: Final = 1 << ROW_BITS
PLACE_BITS: Final = 20  # a user's distinct items, at most

Doubles: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """How lists are merged: all that a fresh request needs to be blended as the training rows were.

    Attributes:
        weights: per source, >= 0; a source that is not named has 1.
        least: per source the number of its best items that always have a place.
        most: per source the most places for items that it alone proposes.
        constant: of the reciprocal rank.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    constant: float = RRF_CONSTANT

    def votes(self, name: str, width: int) -> Doubles:
        """Return float64 [width], what a source adds to the score of the item at each of its ranks: weight / (constant + rank)."""
        weight = self.weights.get(name, 1.0)
        floor = LEAST * max([weight, *self.weights.values()])
        votes: Doubles = max(weight, floor) / (self.constant + np.arange(1, width + 1, dtype=np.float64))
        return votes

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return {"weights": dict(self.weights), "least": dict(self.least), "most": dict(self.most), "constant": self.constant}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Return what `to_json` said."""
        return cls(saved["weights"], saved["least"], saved["most"], saved["constant"])


@dataclass(frozen=True)
class Blend:
    """Merged candidates, best first.

    Attributes:
        item: int32 [n_users, k]; -1 pads.
        score: float32 [n_users, k], sum over sources of weight / (constant + rank), > 0; -inf where `item` is -1.
        source_score, source_rank: per source float32 [n_users, k]; NaN where it did not propose the
            item. Ranks begin at 1.
    """

    item: Ints
    score: Floats
    source_score: dict[str, Floats]
    source_rank: dict[str, Floats]


@dataclass(frozen=True)
class Union:
    """Everything that some sources proposed to at most `USERS_AT_ONCE` users: a pair is a user and an item, a proposal names its source.

    Pairs are sorted by (row, item), proposals by (pair, source).

    Attributes:
        names: the sources; their order is that of `source`.
        n_rows, width: users, and the length of the longest list.
        row, item: int64 [n_pairs].
        first: int64 [n_pairs], the first proposal of each pair.
        source, column: int64 [n_proposals], who proposed it and at which rank, from 0.
        proposers: uint64 [n_pairs], bit s is set where source s proposed the pair.
    """

    names: tuple[str, ...]
    n_rows: int
    width: int
    row: Longs
    item: Longs
    first: Longs
    source: Longs
    column: Longs
    proposers: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, lists: Mapping[str, Candidates]) -> Self:
        """Return what the lists propose.

        Raises:
            StateError: rows, items, sources and ranks are too many for one 63-bit key.
        """
        n_rows = len(next(iter(lists.values())).item)
        width = max((found.item.shape[1] for found in lists.values()), default=0)
        n_items = 1 + max((int(found.item.max(initial=-1)) for found in lists.values()), default=-1)
        rank_bits, source_bits, item_bits = (int(n).bit_length() for n in (width, len(lists), n_items))
        if ROW_BITS + item_bits + source_bits + rank_bits > 63 or n_rows > USERS_AT_ONCE or len(lists) * width >= 1 << PLACE_BITS:
            raise StateError(
                "candidates to merge",
                found=f"{n_rows} users x {len(lists)} lists of {width} out of {n_items} items",
                allowed=f"{USERS_AT_ONCE} users, {1 << PLACE_BITS} places a user and keys of 63 bits",
                hint="lower retrieval.k_per_source",
            )
        # One sort of packed numbers does what a sort, a search a source and a grouping would: 4 times as fast.
        packed = []
        for number, found in enumerate(lists.values()):
            row, column = np.nonzero(found.item >= 0)
            pair = (row << item_bits) | found.item[row, column]
            packed.append((((pair << source_bits) | number) << rank_bits) | column)
        key = np.concatenate(packed)
        key.sort()
        pair = key >> (source_bits + rank_bits)
        fresh = np.ones(len(pair), dtype=bool)
        np.not_equal(pair[1:], pair[:-1], out=fresh[1:])
        first = np.flatnonzero(fresh)
        pair = pair[first]
        source = (key >> rank_bits) & ((1 << source_bits) - 1)
        bits = np.uint64(1) << source.astype(np.uint64)
        return cls(
            tuple(lists),
            n_rows,
            width,
            pair >> item_bits,
            pair & ((1 << item_bits) - 1),
            first,
            source,
            key & ((1 << rank_bits) - 1),
            np.bitwise_or.reduceat(bits, first) if len(first) else bits,
        )

    def of_pairs(self, pairs: Longs) -> Self:
        """Return what was proposed of some pairs, ascending."""
        taken, length = self.proposals(pairs)
        return replace(
            self,
            row=self.row[pairs],
            item=self.item[pairs],
            first=np.cumsum(length) - length,
            source=self.source[taken],
            column=self.column[taken],
            proposers=self.proposers[pairs],
        )

    def proposals(self, pairs: Longs) -> tuple[Longs, Longs]:
        """Return the proposals of some pairs, those of a pair together, and how many each has."""
        length = np.diff(self.first, append=len(self.source))[pairs]
        return _spans(self.first[pairs], length)[0], length

    def of_sources(self, names: Collection[str]) -> Self:
        """Return what some of the sources propose, as if the others had never been asked; numbers of sources stay."""
        kept = np.isin(np.arange(len(self.names)), [self.names.index(name) for name in names])
        bits = np.uint64(sum(1 << number for number in np.flatnonzero(kept).tolist()))
        proposers = self.proposers & bits
        pair = np.repeat(np.arange(len(self.row)), np.diff(self.first, append=len(self.source)))[kept[self.source]]
        pairs = np.flatnonzero(proposers)
        return replace(
            self,
            row=self.row[pairs],
            item=self.item[pairs],
            first=np.searchsorted(pair, pairs),
            source=self.source[kept[self.source]],
            column=self.column[kept[self.source]],
            proposers=proposers[pairs],
        )

    def items(self, recipe: Recipe, k: int) -> Ints:
        """Return int32 [n_rows, k], what has a place, best first; -1 pads."""
        pairs, place, _ = self.chosen(recipe, k)
        item = np.full((self.n_rows, k), -1, dtype=np.int32)
        item[self.row[pairs], place] = self.item[pairs]
        return item

    def scores(self, recipe: Recipe) -> Floats:
        """Return float32 [n_pairs], the weighted reciprocal ranks of each pair, summed in the order of the sources."""
        votes = np.concatenate([recipe.votes(name, self.width) for name in self.names])
        cast = votes[self.source * self.width + self.column]
        return (np.add.reduceat(cast, self.first) if len(self.first) else cast).astype(np.float32)

    def chosen(self, recipe: Recipe, k: int) -> tuple[Longs, Longs, Floats]:
        """Return the pairs that have a place, by (row, place); their places, from 0; and the scores of all pairs.

        What is guaranteed comes in first, then what scores highest; what came in is ordered by
        score, and equal scores by item.
        """
        score = self.scores(recipe)
        pairs = np.arange(len(self.row))
        if recipe.most:
            pairs = pairs[~self._surplus(recipe)]
        if recipe.least:
            pairs = np.sort(self._ordered(pairs, score, k, behind=~self._guaranteed(recipe))[0])
        return *self._ordered(pairs, score, k), score

    def _ordered(self, pairs: Longs, score: Floats, k: int, behind: npt.NDArray[np.bool_] | None = None) -> tuple[Longs, Longs]:
        """Return the first k of each row of some pairs (ascending), by (row, behind, -score, item), and the place of each."""
        whole = len(pairs) == len(self.row)
        row, value = (self.row, score) if whole else (self.row[pairs], score[pairs])
        begin = np.searchsorted(row, np.arange(self.n_rows))
        length = np.diff(begin, append=len(row))
        within = np.arange(len(row)) - np.repeat(begin, length)
        # Positive floats are ordered as their bits are.
        fall = ~value.view(np.uint32)
        key = (row.astype(np.uint64) << np.uint64(53)) | (fall.astype(np.uint64) << np.uint64(PLACE_BITS)) | within.astype(np.uint64)
        if behind is not None:
            key = key | (behind[pairs].astype(np.uint64) << np.uint64(52))
        key.sort()
        at, place = _spans(begin, np.minimum(length, k))
        first = np.repeat(begin, np.minimum(length, k)) + (key[at] & np.uint64((1 << PLACE_BITS) - 1)).astype(np.int64)
        return first if whole else pairs[first], place

    def _guaranteed(self, recipe: Recipe) -> npt.NDArray[np.bool_]:
        """Return bool [n_pairs], whether a source that proposes the pair has it among as many of its best as are guaranteed."""
        least = np.array([recipe.least.get(name, 0) for name in self.names])
        inside = self.column < least[self.source]
        return np.logical_or.reduceat(inside, self.first) if len(self.first) else inside

    def _surplus(self, recipe: Recipe) -> npt.NDArray[np.bool_]:
        """Return bool [n_pairs], whether a source alone proposes the pair, and has as many such pairs before it as it may."""
        surplus = np.zeros(len(self.row), dtype=bool)
        for number, name in enumerate(self.names):
            if name in recipe.most:
                alone = np.flatnonzero(self.proposers == np.uint64(1 << number))
                order = np.argsort(self.row[alone] * self.width + self.column[self.first[alone]])
                begin = np.searchsorted(self.row[alone], np.arange(self.n_rows))
                surplus[alone[order[np.arange(len(alone)) - begin[self.row[alone]] >= recipe.most[name]]]] = True
        return surplus


def _spans(begin: Longs, length: Longs) -> tuple[Longs, Longs]:
    """Return the numbers of each span, one span after the other, and the place of each within its span."""
    place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return np.repeat(begin, length) + place, place


def blocks(lists: Mapping[str, Candidates]) -> Iterator[tuple[slice, dict[str, Candidates]]]:
    """Yield the lists of at most `USERS_AT_ONCE` users at a time, as views, and which rows they are; at least one block."""
    n_users = len(next(iter(lists.values())).item)
    for at in range(0, max(n_users, 1), USERS_AT_ONCE):
        rows = slice(at, min(at + USERS_AT_ONCE, n_users))
        yield rows, {name: Candidates(found.item[rows], found.score[rows]) for name, found in lists.items()}


def gains(union: Union, truth: Labels) -> Doubles:
    """Return float64 [n_pairs], the gain of each pair, 0 where the user ignored it; rows count rows of the labels."""
    width = max(len(truth.item_ids), 1)
    positive = truth.row_of_label() * width + truth.item
    if not len(positive):
        return np.zeros(len(union.row))
    asked = union.row * width + union.item
    at = np.minimum(np.searchsorted(positive, asked), len(positive) - 1)
    return np.where(positive[at] == asked, truth.gain[at], 0.0).astype(np.float64)


def merge(lists: Mapping[str, Candidates], k: int, recipe: Recipe | None = None) -> Blend:
    """Merge the sources' lists by weighted reciprocal ranks; equal sums are ordered by item index.

    Fusion by rank needs no calibration between scores that have nothing in common; what a source's
    score and rank are worth beyond that is for the ranker to learn from their columns.

    Args:
        lists: at least one source; all with the same number of rows. A list names an item once.
        recipe: weights and quotas; equal weights and no quota when None.
    """
    parts = [_merge(some, k, recipe or Recipe()) for _, some in blocks(lists)]
    if len(parts) == 1:
        return parts[0]
    return Blend(
        np.concatenate([part.item for part in parts]),
        np.concatenate([part.score for part in parts]),
        {name: np.concatenate([part.source_score[name] for part in parts]) for name in lists},
        {name: np.concatenate([part.source_rank[name] for part in parts]) for name in lists},
    )


def _merge(lists: Mapping[str, Candidates], k: int, recipe: Recipe) -> Blend:
    union = Union.of(lists)
    pairs, place, score = union.chosen(recipe, k)
    found = topk.nothing(union.n_rows, k)
    found.item[union.row[pairs], place] = union.item[pairs]
    found.score[union.row[pairs], place] = score[pairs]

    taken, length = union.proposals(pairs)
    source, column, cell = union.source[taken], union.column[taken], np.repeat(union.row[pairs] * k + place, length)
    ranks, scores = np.full((2, len(lists), union.n_rows * k), np.nan, dtype=np.float32)
    ranks[source, cell] = column + 1
    given: Sequence[Candidates] = list(lists.values())
    for number in range(len(given)):
        mine = source == number
        scores[number, cell[mine]] = given[number].score[cell[mine] // max(k, 1), column[mine]]
    shape = (union.n_rows, k)
    return Blend(
        found.item,
        found.score,
        {name: scores[number].reshape(shape) for number, name in enumerate(lists)},
        {name: ranks[number].reshape(shape) for number, name in enumerate(lists)},
    )
