"""What every model would have shown in every later week: NDCG@10[user][model trained at, week judged].

A week is the judged window of a training run: its labels are everyone who did something in it, its
lists are made at its start from what had been received by then. Users, slices and incumbents are those
that the gate is shown (`registry.evidence`). Each cell is published alone, under the digests of what it
was made of, so a replay that was killed goes on where it stopped, and one of another lake or another
bundle never reads a stale cell.

    reports/replay/cells/<digest of the week's universe>/<digest of the bundle>.parquet
        user_id, sorted; ndcg_at_10 in [0, 1]; tail_ndcg_at_10, NaN for who chose no tail item
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import config, publish
from pipelines.config import Home
from pipelines.datasets.interactions import Ids, strings
from pipelines.datasets.split import JUDGE
from pipelines.errors import StateError
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle, evidence
from pipelines.replay.live import Tell, silent

NDCG: Final = "ndcg_at_10"
TAIL: Final = "tail_ndcg_at_10"

Scores = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Week:
    """One judged window.

    Attributes:
        start, end: half-open; what serves at `start` is what its users meet.
        users: sorted, unique; who did something in it.
        slices: name -> bool [users].
        incumbents: trivial recommender -> float64 [users], NDCG@10.
    """

    start: datetime
    end: datetime
    users: Ids
    slices: Mapping[str, Mask] = field(default_factory=dict)
    incumbents: Mapping[str, Scores] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A model in a week: float64 [users of the week] each; `tail` is NaN for who chose no tail item."""

    ndcg: Scores
    tail: Scores


@dataclass(frozen=True)
class Matrix:
    """The table that policies walk.

    Attributes:
        trained: as_of of every model, oldest first.
        weeks: oldest first, told apart by their ends.
        cells: (trained, end of the week) -> what was measured. A model has a cell for the week that ends at `trained`, which the gate
            judges it on, and for every week that begins at or after `trained`, as far as the maximum age allows.
    """

    trained: tuple[datetime, ...]
    weeks: tuple[Week, ...]
    cells: Mapping[tuple[datetime, datetime], Cell]

    def mean(self, trained: datetime, end: datetime) -> float:
        """Return the mean NDCG@10 of a cell; NaN where it was not measured."""
        cell = self.cells.get((trained, end))
        return float(cell.ndcg.mean()) if cell is not None and len(cell.ndcg) else float("nan")

    def after(self, moment: datetime) -> Week | None:
        """Return the week that a model released at a moment meets: one that begins then, or None."""
        return next((week for week in self.weeks if week.start == moment), None)

    def ending(self, moment: datetime) -> Week:
        """Return the week that a model trained at a moment is judged on.

        Raises:
            StateError: nothing was trained then.
        """
        for week in self.weeks:
            if week.end == moment:
                return week
        raise StateError("replay", found=f"no week that ends at {moment:%Y-%m-%d}", allowed="the judged window of a training")


def measure(
    home: Home, bundles: Mapping[datetime, str], *, max_age: timedelta | None = None, always: Collection[datetime] = (), tell: Tell = silent
) -> Matrix:
    """Return the matrix of some bundles, measuring only the cells that are not there yet.

    Args:
        bundles: as_of -> digest.
        max_age: from a model's `trained` to the start of a week; None: any.
        always: models that are measured at any age: those that a policy may keep for long.

    Raises:
        StateError: a training run or a bundle is missing or damaged.
    """
    settings = config.load(home)
    names = [*settings.gate.incumbents, settings.gate.baseline]
    trained = tuple(sorted(bundles))
    weeks, cells = [], {}
    models: dict[str, TwoStage] = {}
    for end in trained:
        judged = evidence.bench(home, end, settings)
        window, users = judged.world.fold(JUDGE).window, judged.truth.user_ids
        slices = {"light_users": judged.light, "cold_users": judged.cold}
        weeks.append(Week(window.start, end, users, slices, evidence.incumbents(home, end, names, users)))
        for moment in trained:
            if moment != end and not _meets(moment, window.start, None if moment in always else max_age):
                continue
            file = folder(home) / judged.world.digest / f"{bundles[moment]}.parquet"
            if not file.is_file():
                tell(f"the model of {moment:%Y-%m-%d}", end)
                model = models.setdefault(bundles[moment], models.get(bundles[moment]) or bundle.load(home, bundles[moment]))
                found = judged.score(model)
                columns = {c.USER_ID: pa.array(users, pa.string()), NDCG: found.ndcg, TAIL: found.tail}
                publish.write_parquet(file, pa.table(columns))
            cells[moment, end] = _read(file, users)
    return Matrix(trained, tuple(weeks), cells)


def folder(home: Home) -> Path:
    """Return where the cells lie."""
    return home.reports / "replay" / "cells"


def _meets(trained: datetime, start: datetime, max_age: timedelta | None) -> bool:
    return trained <= start and (max_age is None or start - trained <= max_age)


def _read(file: Path, users: Ids) -> Cell:
    table = pq.read_table(file, partitioning=None)
    if not np.array_equal(strings(table[c.USER_ID]), users):
        raise StateError(str(file), found="other users than the week's", allowed="the cell as it was measured", hint="delete it")
    return Cell(*(np.asarray(table[name].to_numpy(), dtype=np.float64) for name in (NDCG, TAIL)))
