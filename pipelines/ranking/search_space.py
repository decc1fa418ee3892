"""Which knobs of a tree ranker are searched, within which bounds, and one trial of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import numpy as np
import numpy.typing as npt

from pipelines import knobs
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.row_quality import per_list
from pipelines.ranking.trees import Boosted

Doubles = npt.NDArray[np.float64]
MOST_ROUNDS: Final = 600  # a slow learner needs more rounds than the default; early stopping takes what it needs
PATIENCE: Final = 0.75  # of learning rate added up, without a better score: 15 rounds of 0.05


@dataclass(frozen=True)
class Bounds:
    """Where a knob is searched; `log` where a factor matters, not a difference."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


# A ranker that lacks a knob is searched without it.
SPACE: Final[dict[str, Bounds]] = {
    "learning_rate": Bounds(0.01, 0.3, log=True),
    "num_leaves": Bounds(4, 63, log=True, whole=True),
    "min_data_in_leaf": Bounds(10, 500, log=True, whole=True),
    "feature_share": Bounds(0.3, 1.0),
    "row_share": Bounds(0.5, 1.0),
    "regularization": Bounds(1e-3, 100.0, log=True),
    "truncation": Bounds(10, 60, whole=True),
}


def of(ranker: Boosted) -> dict[str, Bounds]:
    """Return what is searched of a ranker."""
    known = knobs.of(type(ranker))
    return {name: bounds for name, bounds in SPACE.items() if name in known}


@dataclass(frozen=True)
class Split:
    """Training rows in three parts: what a trial learns from, what it is chosen on, what the chosen one is verified on.

    The newest window's lists go to the last two by a seeded lot: whatever was chosen as the best of many on the one has
    seen nothing of the other.

    Attributes:
        rows: all of them, of two windows or more; the newest window is the last.
        chosen_on: bool [n_groups], lists of the newest window.
        verified_on: bool [n_groups], its other lists.
    """

    rows: RankingRows
    chosen_on: npt.NDArray[np.bool_]
    verified_on: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: RankingRows, seed: int) -> Split:
        """Return the parts of some rows."""
        newest = rows.newest()
        heads = np.random.default_rng(seed).random(len(newest)) < 0.5
        return cls(rows, newest & heads, newest & ~heads)


@dataclass(frozen=True)
class Judgement:
    """What a trial came to: NDCG of each list, and how many rounds were best."""

    chosen_on: Doubles
    verified_on: Doubles
    rounds: int


def judged(ranker: Boosted, split: Split) -> Judgement:
    """Return how good some knobs are: trees grown on the older windows, their number stopped on the lists it is chosen on."""
    rows = split.rows
    aim = ranker.aim(rows)
    parameters = ranker.parameters(aim, rows.names)
    older = rows.of_windows(~(split.chosen_on | split.verified_on))
    held = rows.of_windows(split.chosen_on)
    known = aim.dataset(older, slice(0, len(older.gain)), parameters)
    where = np.flatnonzero(np.repeat(split.chosen_on, rows.group))
    stopped = lightgbm.train(
        parameters,
        known,
        num_boost_round=ranker.n_rounds,
        valid_sets=[aim.dataset(held, where, parameters, reference=known)],
        callbacks=[lightgbm.early_stopping(ranker.patience, verbose=False)],
    )
    rounds = int(stopped.best_iteration) or ranker.n_rounds

    def ndcg(part: RankingRows) -> Doubles:
        return per_list(stopped.predict(part.features, num_iteration=rounds, raw_score=True, num_threads=ranker.num_threads), part)

    return Judgement(ndcg(held), ndcg(rows.of_windows(split.verified_on)), rounds)


def completed(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs that were drawn with those that follow from them: a slow learner takes more rounds, and more patience."""
    return {**drawn, "n_rounds": MOST_ROUNDS, "patience": math.ceil(PATIENCE / drawn["learning_rate"])}
