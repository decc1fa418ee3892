"""What every ranker is, what it learns from, and what a finished ranking looks like."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Ids, Ints


def schema_hash(names: tuple[str, ...]) -> str:
    """Return the identity of an ordered list of features: sha256 over the names, one a line, all float32."""
    return hashlib.sha256("".join(f"{name}:float32\n" for name in names).encode()).hexdigest()


@dataclass(frozen=True)
class RankingRows:
    """Candidate rows to learn an order from, grouped by user.

    Attributes:
        features: float32 [n, n_features], NaN where a value is missing.
        names: the features, in the order of the columns.
        gain: float32 [n], graded relevance, 0 where the user ignored the candidate.
        group: int32 [n_groups], rows of each list; they tile the rows in order and sum to n.
        window: int32 [n_groups], which training window a list is from; 0 is the oldest.
    """

    features: Floats
    names: tuple[str, ...]
    gain: Floats
    group: Ints
    window: Ints

    def of_windows(self, chosen: npt.NDArray[np.bool_]) -> RankingRows:
        """Return the lists for which `chosen` [n_groups] holds, in their order."""
        rows = np.repeat(chosen, self.group)
        return RankingRows(self.features[rows], self.names, self.gain[rows], self.group[chosen], self.window[chosen])


class Ranker(Protocol):
    """A model that puts a user's candidates in order.

    A ranker is a frozen dataclass: its knobs are its fields, what it learnt is `state`, which is
    None until fitted. Scores of different users are not comparable.
    """

    def fit(self, rows: RankingRows) -> Self:
        """Return a fitted copy; deterministic for the same rows and knobs."""
        ...

    def score(self, features: Floats) -> npt.NDArray[np.float64]:
        """Return float64 [n], higher is better, for features [n, n_features] in the order it was fitted with.

        Raises:
            StateError: the ranker was not fitted, or the matrix has another width.
        """
        ...


@dataclass(frozen=True)
class Lists:
    """Finished rankings, best first.

    Attributes:
        user_ids: str [n].
        item_ids: str [n, k]; "" pads a list that has fewer.
        score: float32 [n, k], not increasing along a row; -inf where padded.
        sources: uint32 [n, k], bit s is set where `source_names[s]` proposed the item.
        source_names: the retrievers; and `exploration`, where places were drawn for.
        propensity: float64 [n, k], with what probability the item came to stand there (`exploration`), NaN where padded; None
            where nothing is drawn.
    """

    user_ids: Ids
    item_ids: npt.NDArray[np.str_]
    score: Floats
    sources: npt.NDArray[np.uint32]
    source_names: tuple[str, ...]
    propensity: npt.NDArray[np.float64] | None = None

    def sources_of(self, row: int, position: int) -> tuple[str, ...]:
        """Return the names of the retrievers that proposed one listed item."""
        mask = int(self.sources[row, position])
        return tuple(name for bit, name in enumerate(self.source_names) if mask >> bit & 1)
