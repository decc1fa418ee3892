"""What every ranker is, what it learns from, and what a finished ranking looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Ids, Ints
from pipelines.errors import StateError


def schema_hash(names: tuple[str, ...]) -> str:
    """Return the identity of an ordered list of features: sha256 over the names, one a line, all float32."""
    return hashlib.sha256("".join(f"{name}:float32\n" for name in names).encode()).hexdigest()


def source_columns(names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return where the score and the rank of each source stand among some features.

    A source is whatever has both a `_score` and a `_rank`, but for the blend of the sources.
    """
    at = {name: place for place, name in enumerate(names)}
    ranked = [name.removesuffix("_rank") for name in names if name.endswith("_rank") and name != "blend_rank"]
    return [(at[f"{source}_score"], at[f"{source}_rank"]) for source in ranked if f"{source}_score" in at]


def check_width(features: Floats, names: tuple[str, ...]) -> None:
    """Check that a matrix [n, n_features] has a column for each feature of a ranker.

    Raises:
        StateError: it has another number of columns.
    """
    if features.shape[1] != len(names):
        raise StateError("feature matrix", found=f"{features.shape[1]} columns", allowed=f"the ranker's {len(names)} features")


@dataclass(frozen=True)
class RankingRows:
    """Candidate rows to learn an order from, grouped by user.

    Attributes:
        features: float32 [n, n_features], NaN where a value is missing.
        names: the features, in the order of the columns.
        gain: float32 [n], graded relevance, 0 where the user ignored the candidate.
        group: int32 [n_groups], rows of each list; they tile the rows in order and sum to n.
        window: int32 [n_groups], which training window a list is from; 0 is the oldest.
        position: int32 [n], the place at which the user was shown the item, 1 is the top, 0 where it was not shown; None where
            nobody was shown anything.
        weight: float32 [n], positive and finite: how many rows a row stands for, the inverse of the probability that it is here
            with this label. Of a positive, one over the probability that its place was looked at; of an ignored
            candidate that was drawn by lot, one over the share that was drawn. None where every row stands for itself.
        outcomes: float32 [n] each, what exactly the user did, by name: `view`, `add_to_cart`, `purchase` are 0 or 1, `value` is
            money in shop currency (0 without a purchase). Empty where only the gain is known.
    """

    features: Floats
    names: tuple[str, ...]
    gain: Floats
    group: Ints
    window: Ints
    position: Ints | None = None
    weight: Floats | None = None
    outcomes: Mapping[str, Floats] = field(default_factory=dict)

    def of_windows(self, chosen: npt.NDArray[np.bool_]) -> RankingRows:
        """Return the lists for which `chosen` [n_groups] holds, in their order; lists that follow each other are not copied."""
        picked = np.flatnonzero(np.repeat(chosen, self.group))
        first, last = (int(picked[0]), int(picked[-1]) + 1) if len(picked) else (0, 0)
        rows = slice(first, last) if last - first == len(picked) else picked
        return RankingRows(
            self.features[rows],
            self.names,
            self.gain[rows],
            self.group[chosen],
            self.window[chosen],
            None if self.position is None else self.position[rows],
            None if self.weight is None else self.weight[rows],
            {name: column[rows] for name, column in self.outcomes.items()},
        )

    def newest(self) -> npt.NDArray[np.bool_]:
        """Return bool [n_groups], the lists of the newest window; none where there is one window only: nothing is held out then."""
        newest = self.window == self.window.max(initial=0)
        return np.zeros(len(newest), np.bool_) if newest.all() else newest


class Ranker(Protocol):
    """A model that puts a user's candidates in order.

    A ranker is a frozen dataclass: its knobs are its fields, what it learnt is `state`, which is
    None until fitted. Scores of different users are not comparable. `rankers` names and keeps them.
    """

    def fit(self, rows: RankingRows) -> Self:
        """Return a fitted copy; deterministic for the same rows and knobs.

        Raises:
            StateError: there is nothing to learn from.
        """
        ...

    def score(self, features: Floats, group: Ints | None = None) -> npt.NDArray[np.float64]:
        """Return float64 [n], higher is better, for features [n, n_features] in the order of `features`.

        A score depends on its own list alone, whatever other lists are asked beside it.

        Args:
            group: int [n_groups], rows of each list, for rankers that compare a list's candidates; None: all rows are one list.

        Raises:
            StateError: the ranker was not fitted, or the matrix has another width.
        """
        ...

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features it reads, in the order of the matrix."""
        ...

    @property
    def importance(self) -> dict[str, float]:
        """Return the share of each feature in what it learnt, largest first, adding up to 1; empty where there is none to tell."""
        ...

    @property
    def size(self) -> dict[str, int]:
        """Return how much it learnt: `trees`, or `weights`."""
        ...

    def dump(self) -> dict[str, bytes]:
        """Return what it learnt as files by name, in formats that cannot execute (LightGBM text, npz, JSON); the same state, the same bytes.

        Raises:
            StateError: the ranker was not fitted.
        """
        ...

    def restore(self, files: Mapping[str, bytes], names: tuple[str, ...]) -> Self:
        """Return a copy that learnt what `dump` wrote; the caller has compared the bytes with their digests.

        Args:
            names: the features it was fitted with.

        Raises:
            StateError: the files hold something else.
        """
        ...


@runtime_checkable
class Probable(Protocol):
    """A ranker whose scores can be read as probabilities."""

    def told(self) -> str | None:
        """Return what the probability is of, a column of `RankingRows.outcomes`; "" is any gain at all; None where it tells none."""
        ...

    def probability(self, features: Floats) -> npt.NDArray[np.float64]:
        """Return float64 [n] in [0, 1], the probability that a candidate is taken.

        Raises:
            StateError: not fitted, another number of features, or nothing was held out to calibrate on.
        """
        ...


@dataclass(frozen=True)
class Lists:
    """Finished rankings, best first.

    Attributes:
        user_ids: str [n].
        item_ids: str [n, k]; "" pads a list that has fewer.
        score: float32 [n, k], of the place: not increasing along a row; -inf where padded. A rule that moved an item left the score.
        sources: uint64 [n, k], bit s is set where `source_names[s]` proposed the item.
        source_names: the retrievers; and `exploration`, where places were drawn for.
        propensity: float64 [n, k], with what probability the item came to stand there (`exploration`), NaN where padded; None
            where nothing is drawn.
        rules: uint32 [n, k], bit r is set where `rule_names[r]` put the item before others; see `rerank.chain`.
        rule_names: the rules that were on, in their order; and `exploration`, where places were drawn for.
    """

    user_ids: Ids
    item_ids: npt.NDArray[np.str_]
    score: Floats
    sources: npt.NDArray[np.uint64]
    source_names: tuple[str, ...]
    propensity: npt.NDArray[np.float64] | None = None
    rules: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros((0, 0), np.uint32))
    rule_names: tuple[str, ...] = ()

    def rules_of(self, row: int, position: int) -> tuple[str, ...]:
        """Return the names of the rules that put one listed item before others."""
        mask = int(self.rules[row, position]) if self.rule_names else 0
        return tuple(name for bit, name in enumerate(self.rule_names) if mask >> bit & 1)

    def sources_of(self, row: int, position: int) -> tuple[str, ...]:
        """Return the names of the retrievers that proposed one listed item."""
        mask = int(self.sources[row, position])
        return tuple(name for bit, name in enumerate(self.source_names) if mask >> bit & 1)
