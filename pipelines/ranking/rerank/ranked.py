"""Ranked lists as rules take and give them, and how a rule puts one in another order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Bools, Floats, Ints, Longs
from pipelines.errors import ReloopError


@dataclass(frozen=True)
class Ranked:
    """Ranked lists of some users, best first.

    Attributes:
        item: int32 [n, m], each item once a row; -1 pads at the end.
        score: float32 [n, m], of the place, not of the item: a rule that puts an item at another's place gives it that place's
            score. Not increasing along a row; NaN nowhere; -inf where padded.
        origin: int32 [n, m], at which place the item stood when the ranker was done, from 0; -1 where padded.
    """

    item: Ints
    score: Floats
    origin: Ints

    @classmethod
    def of(cls, item: npt.NDArray[np.integer], score: npt.NDArray[np.floating]) -> Ranked:
        """Return lists in the order of their scores, equals by item; NaN counts as the lowest, a negative item as none.

        Args:
            item, score: [n, m], in any order.

        Raises:
            ReloopError: the shapes differ, or a list names an item twice.
        """
        item, score = np.asarray(item), np.asarray(score, np.float32)
        if item.shape != score.shape or item.ndim != 2:
            raise ReloopError("ranked lists", found=f"items {item.shape}, scores {score.shape}", allowed="two dimensions, alike")
        in_order = np.sort(item, axis=1)
        if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any():
            raise ReloopError("ranked lists", found="an item twice in one list", allowed="each item at most once a list")
        listed = item >= 0
        score = np.where(listed & ~np.isnan(score), score, -np.inf).astype(np.float32)
        order = np.lexsort((item, -score, ~listed), axis=1)
        best: Ints = np.take_along_axis(np.where(listed, item, -1).astype(np.int32), order, axis=1)
        place = np.arange(item.shape[1], dtype=np.int32)
        return cls(best, np.take_along_axis(score, order, axis=1), np.where(best >= 0, place, -1).astype(np.int32))

    @classmethod
    def ordered(cls, item: Ints, score: Floats) -> Ranked:
        """Return lists that are in order already, as `Proposals.ranked` gives them; a score that is no number counts as the lowest."""
        place = np.arange(item.shape[1], dtype=np.int32)
        score = np.where((item >= 0) & ~np.isnan(score), score, -np.inf).astype(np.float32)
        return cls(item, score, np.where(item >= 0, place, -1).astype(np.int32))

    @property
    def listed(self) -> Bools:
        """Return bool [n, m], where an item stands."""
        return self.item >= 0

    def lengths(self) -> Longs:
        """Return int64 [n], the items of each list."""
        return np.asarray(self.listed.sum(axis=1), np.int64)

    def first(self, k: int) -> Ranked:
        """Return the first k places."""
        return Ranked(self.item[:, :k], self.score[:, :k], self.origin[:, :k])

    def kept(self, wanted: Bools) -> Ranked:
        """Return the lists without the items for which `wanted` [n, m] does not hold; the others close up, each with its score."""
        wanted = wanted & self.listed
        order = np.argsort(~wanted, axis=1, kind="stable")
        stays = np.take_along_axis(wanted, order, axis=1)
        return Ranked(
            np.where(stays, np.take_along_axis(self.item, order, axis=1), -1).astype(np.int32),
            np.where(stays, np.take_along_axis(self.score, order, axis=1), -np.inf).astype(np.float32),
            np.where(stays, np.take_along_axis(self.origin, order, axis=1), -1).astype(np.int32),
        )

    def led_by(self, chosen: npt.NDArray[np.integer]) -> Ranked:
        """Return the lists with chosen items first, in the order given, then all others in the order they had.

        Args:
            chosen: [n, d], columns of the lists, each once a row; -1 chooses none.
        """
        n, m = self.item.shape
        key = np.broadcast_to(np.arange(m, 2 * m), (n, m)).copy()
        row, place = np.nonzero(chosen >= 0)
        key[row, chosen[row, place]] = place
        order = np.argsort(key, axis=1, kind="stable")
        return Ranked(np.take_along_axis(self.item, order, axis=1), self.score, np.take_along_axis(self.origin, order, axis=1))

    def relevance(self) -> Floats:
        """Return float32 [n, m], the scores from 0 (the list's lowest) to 1 (its highest), so that lists compare; 0 where padded.

        Infinite scores count as the highest or lowest finite one; a list whose scores are all equal has 1 throughout.
        """
        usual = np.isfinite(self.score) & self.listed
        high = np.where(usual, self.score, -np.inf).max(axis=1, initial=-np.inf, keepdims=True).astype(np.float64)
        low = np.where(usual, self.score, np.inf).min(axis=1, initial=np.inf, keepdims=True).astype(np.float64)
        none = ~np.isfinite(high)
        high, low = np.where(none, 1.0, high), np.where(none, 0.0, low)
        span = high - low
        value = (np.clip(self.score.astype(np.float64), low, high) - low) / np.where(span > 0, span, 1.0)
        return np.where(self.listed, np.where(span > 0, value, 1.0), 0.0).astype(np.float32)


def codes(lists: Ranked, code: Ints) -> Ints:
    """Return int32 [n, m], the code of each listed item; unknown ones and pads have a negative one of their own, so equal nothing.

    Args:
        code: int32 [n_items], -1 where unknown.
    """
    of = code[lists.item]
    own = -2 - np.arange(lists.item.shape[1], dtype=np.int32)
    return np.where(lists.listed & (of >= 0), of, own).astype(np.int32)
