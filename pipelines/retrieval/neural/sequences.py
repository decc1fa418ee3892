"""Events as padded sequences of items: to learn from, to be judged on, and to ask with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Histories, Interactions, Ints, Longs
from pipelines.errors import StateError
from pipelines.retrieval.neural.training import Batch, Training

ROWS: Final = 128  # item tables grow by so many rows, so that catalogues of like size share a compiled step
JUDGED_AT_ONCE: Final = 256  # validation users


def table_rows(n_items: int) -> int:
    """Return the rows of an item table: the items, and at least two more, of which the last two are PAD and MASK."""
    return -(-(n_items + 2) // ROWS) * ROWS


@dataclass(frozen=True)
class Sequences:
    """Users' steps, oldest first: row r is item[indptr[r]:indptr[r + 1]].

    Attributes:
        indptr: int64 [n_users + 1].
        item: int32 [n_steps].
        at: int64 [n_steps], microseconds.
        n_items: size of the catalogue.
    """

    indptr: Longs
    item: Ints
    at: Longs
    n_items: int

    @property
    def pad(self) -> int:
        """Return the row of the item table that stands for no item."""
        return table_rows(self.n_items) - 1

    def lengths(self) -> Longs:
        """Return int64 [n_users]."""
        return np.diff(self.indptr)

    def where(self, kept: npt.NDArray[np.bool_]) -> Sequences:
        """Return the steps that are kept; rows may become empty."""
        indptr = np.concatenate([[0], np.cumsum(kept)])[self.indptr].astype(np.int64)
        return Sequences(indptr, self.item[kept], self.at[kept], self.n_items)

    def rows(self, chosen: Longs) -> Sequences:
        """Return some rows, in the order asked."""
        length = self.lengths()[chosen]
        indptr = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        take = np.arange(indptr[-1]) - np.repeat(indptr[:-1], length) + np.repeat(self.indptr[chosen], length)
        return Sequences(indptr, self.item[take], self.at[take], self.n_items)

    def newest(self, length: int) -> Ints:
        """Return int32 [n_users, length], the newest steps, right-aligned behind PAD."""
        at = self.indptr[1:, None] - np.arange(length, 0, -1)
        inside = at >= self.indptr[:-1, None]
        if not len(self.item):
            return np.full(at.shape, self.pad, dtype=np.int32)
        return np.where(inside, self.item[np.maximum(at, 0)], self.pad).astype(np.int32)

    def windows(self, length: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return (items, next items), int32 [n_windows, length], that hold every step with a predecessor once.

        Each long row is cut into windows at a random offset, so that no step always lacks its past; a
        position without a next item holds PAD in both.
        """
        place, inside = self._cut(np.maximum(self.lengths() - 1, 0), length, rng)
        return self._at(place, inside), self._at(place + inside, inside)

    def wholes(self, length: int, rng: np.random.Generator) -> Ints:
        """Return int32 [n_windows, length], windows cut likewise that hold every step of rows with two steps or more once."""
        return self._at(*self._cut(np.where(self.lengths() > 1, self.lengths(), 0), length, rng))

    def _cut(self, n: Longs, length: int, rng: np.random.Generator) -> tuple[Longs, npt.NDArray[np.bool_]]:
        """Return the places of the first n[r] steps of each row r as windows, and which of them are there."""
        offset = np.where(n > length, rng.integers(0, length, len(n)), 0)
        n_windows = np.where(n > 0, -(-(n + offset) // length), 0)
        row = np.repeat(np.arange(len(n)), n_windows)
        number = np.arange(len(row)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
        at = (n + offset)[row, None] - number[:, None] * length - np.arange(length, 0, -1)
        inside = (at >= 0) & (at < n[row, None])
        return np.where(inside, self.indptr[row, None] + at, 0), inside

    def _at(self, place: Longs, inside: npt.NDArray[np.bool_]) -> Ints:
        if not place.size:
            return np.empty(place.shape, dtype=np.int32)
        return np.where(inside, self.item[place], self.pad).astype(np.int32)


def of(item: Ints, indptr: Longs, at: Longs, usable: npt.NDArray[np.bool_], n_items: int) -> Sequences:
    """Return the steps among some events: those that are usable, a run of events on one item counting once."""
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    steps = Sequences(indptr, item, at, n_items).where(usable)
    row = row[usable]
    first = np.ones(len(row), dtype=bool)
    first[1:] = (row[1:] != row[:-1]) | (steps.item[1:] != steps.item[:-1])
    return steps.where(first)


def learnt_from(interactions: Interactions) -> Sequences:
    """Return the steps of all users: events with a weight above zero."""
    indptr = np.searchsorted(interactions.user, np.arange(len(interactions.user_ids) + 1)).astype(np.int64)
    return of(interactions.item, indptr, interactions.at, interactions.weight > 0, len(interactions.item_ids))


def asked_with(histories: Histories, known: npt.NDArray[np.bool_]) -> Sequences:
    """Return the steps of some histories: events with a weight above zero, on items the source knows."""
    return of(histories.item, histories.indptr, histories.at, (histories.weight > 0) & known[histories.item], histories.n_items)


@dataclass(frozen=True)
class Split:
    """What early stopping learns from and is judged on.

    Attributes:
        fit: the steps to learn from while validating.
        user: int64 [n_validation], the rows that are judged.
        history: the validation users' steps before what is withheld.
        target: int32 [n_validation], the first withheld step of each.
    """

    fit: Sequences
    user: Longs
    history: Sequences
    target: Ints


def split(steps: Sequences, knobs: Training) -> Split | None:
    """Withhold the newest events, or the last one of some users; None where nobody can be judged.

    Raises:
        StateError: `knobs.validation` is neither `time` nor `last`.
    """
    if knobs.validation not in {"time", "last"}:
        raise StateError("validation", found=repr(knobs.validation), allowed="'time' or 'last'", hint="see the source's knobs")
    rng = np.random.default_rng([knobs.seed, 1])
    lengths = steps.lengths()
    if knobs.n_validation <= 0 or not len(steps.item):
        return None
    if knobs.validation == "last":
        eligible = np.flatnonzero(lengths >= 3)
        chosen = np.sort(rng.permutation(eligible)[: knobs.n_validation])
        kept = np.ones(len(steps.item), dtype=bool)
        kept[steps.indptr[chosen + 1] - 1] = False
    else:
        # "higher": with ties at the cut the older side is the larger, and something is left to learn from.
        cut = np.quantile(steps.at, 1 - knobs.validation_share, method="higher")
        kept = steps.at < cut
        before = np.diff(np.concatenate([[0], np.cumsum(kept)])[steps.indptr])
        eligible = np.flatnonzero((before >= 2) & (before < lengths))
        chosen = np.sort(rng.permutation(eligible)[: knobs.n_validation])
    if not len(chosen):
        return None
    fit = steps.where(kept)
    before = fit.lengths()[chosen]
    return Split(fit, chosen, fit.rows(chosen), steps.item[steps.indptr[chosen] + before])


def ndcg_at_10(scores: Floats, history: Sequences, target: Ints) -> Longs:
    """Return float64 [n], 1 / log2(1 + rank) of each target among the items not in the history, 0 below rank 10.

    Args:
        scores: float32 [n, n_items], may be overwritten; -inf for what is never proposed.
    """
    own = scores[np.arange(len(target)), target].copy()
    scores[np.repeat(np.arange(len(target)), history.lengths()), history.item] = -np.inf
    rank = 1 + (scores > own[:, None]).sum(axis=1)
    return np.where((rank <= 10) & np.isfinite(own), 1 / np.log2(1 + rank), 0.0)


def validated(scored: Callable[[Split], Floats], judged: Split) -> float:
    """Return the mean NDCG@10 of the validation users' next step.

    Args:
        scored: float32 [n, n_items] for some of the users, -inf for what is never proposed.
    """
    parts = []
    for chosen in np.array_split(np.arange(len(judged.target)), -(-len(judged.target) // JUDGED_AT_ONCE)):
        some = Split(judged.fit, judged.user[chosen], judged.history.rows(chosen), judged.target[chosen])
        parts.append(ndcg_at_10(scored(some), some.history, some.target))
    return float(np.concatenate(parts).mean())


def shuffled(arrays: Batch, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield batches of exactly `size` rows in random order; the last one is filled up from the first rows drawn."""
    n = len(next(iter(arrays.values())))
    order = rng.permutation(n)
    for first in range(0, n, size):
        rows = np.resize(order, -(-n // size) * size)[first : first + size]
        yield {name: array[rows] for name, array in arrays.items()}
