"""What every model would have shown in every later week: NDCG@10[user][model trained at, week judged].

A week is the judged window of a training run: its labels are everyone who did something in it, its
lists are made at its start from what had been received by then. Each cell is published alone, under
the digests of what it was made of, so a replay that was killed goes on where it stopped, and one of
another lake or another bundle never reads a stale cell.

    reports/replay/cells/<digest of the week's universe>/<digest of the bundle>.parquet
        user_id, sorted; ndcg_at_10 in [0, 1]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Ids, positions, strings
from pipelines.datasets.split import JUDGE, Fold
from pipelines.datasets.universe import Universe
from pipelines.errors import StateError
from pipelines.evaluation import metrics
from pipelines.ranking import two_stage
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle
from pipelines.replay.live import Tell, silent

K = 10

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Week:
    """One judged window.

    Attributes:
        start, end: half-open; what serves at `start` is what its users meet.
        users: sorted, unique; who did something in it.
    """

    start: datetime
    end: datetime
    users: Ids


@dataclass(frozen=True)
class Matrix:
    """The table that policies walk.

    Attributes:
        trained: as_of of every model, oldest first.
        weeks: oldest first, told apart by their ends.
        cells: (trained, end of the week) -> float64 [users of the week]; a model has a cell for every week that ends at or after its
            `trained` and begins no later than the maximum age allows. The one that ends at `trained` is what the gate judges it on.
    """

    trained: tuple[datetime, ...]
    weeks: tuple[Week, ...]
    cells: Mapping[tuple[datetime, datetime], Scores]

    def mean(self, trained: datetime, end: datetime) -> float:
        """Return the mean of a cell; NaN where it was not measured."""
        cell = self.cells.get((trained, end))
        return float(cell.mean()) if cell is not None and len(cell) else float("nan")

    def after(self, moment: datetime) -> Week | None:
        """Return the week that a model released at a moment meets first: one that begins then, or None."""
        return next((week for week in self.weeks if week.start == moment), None)


def measure(home: Home, bundles: Mapping[datetime, str], *, max_age: timedelta | None = None, tell: Tell = silent) -> Matrix:
    """Return the matrix of some bundles, measuring only the cells that are not there yet.

    Args:
        bundles: as_of -> digest.
        max_age: from a model's `trained` to the start of a week; None: any.

    Raises:
        StateError: a training run or a bundle is missing or damaged.
    """
    trained = tuple(sorted(bundles))
    weeks, cells = [], {}
    models = _Models(home)
    for end in trained:
        world = universe.load(home, end)
        fold = world.fold(JUDGE)
        users = world.labels(JUDGE).user_ids
        weeks.append(Week(fold.window.start, end, users))
        for moment in trained:
            if moment > end or (moment < end and moment > fold.window.start) or (max_age and fold.window.start - moment > max_age):
                continue
            file = folder(home) / world.digest / f"{bundles[moment]}.parquet"
            if not file.is_file():
                tell(f"the model of {moment:%Y-%m-%d}", end)
                publish.write_parquet(file, _cell(home, world, fold, models[bundles[moment]]))
            cells[moment, end] = _read(file, users)
    return Matrix(trained, tuple(weeks), cells)


def folder(home: Home) -> Path:
    """Return where the cells lie."""
    return home.reports / "replay" / "cells"


class _Models:
    """Bundles, each checked and loaded once."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.loaded: dict[str, TwoStage] = {}

    def __getitem__(self, digest: str) -> TwoStage:
        if digest not in self.loaded:
            self.loaded[digest] = bundle.load(self.home, digest)
        return self.loaded[digest]


def _cell(home: Home, world: Universe, fold: Fold, model: TwoStage) -> pa.Table:
    """Return a model's NDCG@10 for everyone of a judged window, from what was known at its start."""
    truth = world.labels(JUDGE)
    lists = two_stage.rank_users(home, model, truth.user_ids, fold.cutoff, K)
    item = np.where(lists.item_ids == "", -1, positions(lists.item_ids.ravel(), world.item_ids).reshape(lists.item_ids.shape))
    ndcg = metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, truth.gain), K)
    return pa.table({c.USER_ID: pa.array(truth.user_ids, pa.string()), "ndcg_at_10": np.asarray(ndcg, dtype=np.float64)})


def _read(file: Path, users: Ids) -> Scores:
    table = pq.read_table(file, partitioning=None)
    if not np.array_equal(strings(table[c.USER_ID]), users):
        raise StateError(str(file), found="other users than the week's", allowed="the cell as it was measured", hint="delete it")
    return np.asarray(table["ndcg_at_10"].to_numpy(), dtype=np.float64)


def missing(matrix: Matrix) -> Iterator[tuple[datetime, datetime]]:
    """Yield the (trained, end) that were not measured although the model was there."""
    for trained in matrix.trained:
        for week in matrix.weeks:
            if week.start >= trained and (trained, week.end) not in matrix.cells:
                yield trained, week.end
