"""The trials of every source become a board: quality with intervals, costs, and paired differences, best first."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines import config
from pipelines.config import Home, TrainingSettings
from pipelines.datasets import universe
from pipelines.datasets.interactions import Ids, positions
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE, Fold
from pipelines.datasets.universe import Universe
from pipelines.evaluation import metrics, paired, slices, spread
from pipelines.evaluation.paired import Interval
from pipelines.retrieval import lineup
from pipelines.retrieval.leaderboard import trial
from pipelines.retrieval.leaderboard.grids import GRIDS
from pipelines.retrieval.leaderboard.trial import Costs, Run, Trial
from pipelines.retrieval.neural.training import Training
from pipelines.retrieval.protocol import Candidates

K: Final = 50  # candidates a user
BASELINE: Final = "popular"
SHORTEST_FIT: Final = 0.01  # seconds; below it a clock measures itself, and NDCG per second means nothing


@dataclass(frozen=True)
class Plan:
    """What is tried, and how long each may take.

    Attributes:
        sources: names of the line-up.
        seconds: of training that a neural source may take; 0 leaves it to its epochs.
        tune: choose knobs of the cheap sources from `GRIDS` on the validation window.
        validate: also make the lists of the validation window, that a blend may be chosen on.
        timeout: seconds after which a trial is killed; None waits.
    """

    sources: tuple[str, ...]
    seconds: float = 0.0
    tune: bool = False
    validate: bool = False
    timeout: float | None = None


@dataclass(frozen=True)
class Line:
    """One source on the test window.

    Attributes:
        knobs: what differs from the source's defaults.
        ndcg: mean NDCG@10 over the window's users, with its 95% interval over them.
        per_user: float64 [n_users], NDCG@10 of each; what differences are paired on.
        coverage_at_10: share of the catalogue that stands in anyone's first ten.
        slices: NDCG@10 of cold, light and heavy users, and how many there are.
        below_best, above_popular: mean paired difference to the best line, and to `popular`; None where there is none.
        tried: knobs and their NDCG@10 on the validation window, where it was asked.
    """

    source: str
    status: trial.Status
    reason: str = ""
    knobs: dict[str, Any] = field(default_factory=dict)
    ndcg: Interval | None = None
    per_user: npt.NDArray[np.float64] | None = None
    recall_at_50: float | None = None
    coverage_at_10: float | None = None
    costs: Costs | None = None
    ms_per_user: float | None = None
    slices: dict[str, tuple[float | None, int]] = field(default_factory=dict)
    below_best: Interval | None = None
    above_popular: Interval | None = None
    tried: tuple[tuple[dict[str, Any], float | None], ...] = ()

    @property
    def ndcg_per_second(self) -> float | None:
        """Return NDCG@10 by processor second of training, a fit counting for at least a hundredth of one."""
        return None if self.ndcg is None or self.costs is None else self.ndcg.mean / max(self.costs.fit_cpu_seconds, SHORTEST_FIT)


@dataclass(frozen=True)
class Board:
    """A data set's lines, the best first, those that could not be measured last.

    Attributes:
        validation, test: fold, users with a positive, and their positives.
        lists: per fold and source what it proposed, for whoever blends them.
    """

    lines: tuple[Line, ...]
    validation: tuple[Fold, int, int]
    test: tuple[Fold, int, int]
    n_items: int
    n_events: int
    lists: dict[str, dict[str, Run]]
    truth: dict[str, Labels]


@dataclass(frozen=True)
class Asked:
    """The users of the test window, their truth, and how many events are known of each."""

    truth: Labels
    n_items: int
    n_known: npt.NDArray[np.integer]


@dataclass(frozen=True)
class Try:
    """What is asked of trials: everything but source, fold and knobs."""

    home: Home
    as_of: datetime
    plan: Plan
    scratch: Path

    def of(self, source: str, fold: str, knobs: list[dict[str, Any]]) -> Trial:
        """Return one source's trial on a fold."""
        folder = self.scratch / source / fold
        return trial.attempt(self.home, self.as_of, fold, source, knobs, k=K, scratch=folder, timeout=self.plan.timeout)

    def choosing(self, source: str, fold: str, usual: dict[str, Any]) -> Trial | None:
        """Return the trial of a cheap source on the validation fold, with its grid; None where none is asked for."""
        cheap = not isinstance(lineup.SOURCES[source], Training)
        grid = [{**usual, **knobs} for knobs in GRIDS.get(source, [{}])] if self.plan.tune else [usual]
        return self.of(source, fold, grid) if cheap and (self.plan.validate or len(grid) > 1) else None


def make(home: Home, as_of: datetime, plan: Plan, scratch: Path, tell: Callable[[str], None] = lambda _: None) -> Board:
    """Return the board of a state folder as of a moment.

    Args:
        scratch: a folder for the trials' files; emptied first.
        tell: is told the source whose turn it is, and "" when all are through.

    Raises:
        NotEnoughData: history is too short for a validation and a test window.
        StateError: a source is unknown.
    """
    settings = config.load(home)
    for source in plan.sources:
        lineup.make(source, settings.retrieval.parameters.get(source))
    shutil.rmtree(scratch, ignore_errors=True)
    world = universe.ensure(home, as_of)
    first, last = world.folds[-2], world.folds[-1]
    truth = {fold.name: world.labels(fold.name) for fold in (first, last)}
    n_events, n_known = _histories(world, last, truth[JUDGE].user_ids, settings.training)
    asked, trying = Asked(truth[JUDGE], len(world.item_ids), n_known), Try(home, as_of, plan, scratch)
    lines: list[Line] = []
    lists: dict[str, dict[str, Run]] = {first.name: {}, JUDGE: {}}
    for source in plan.sources:
        tell(source)
        knobs = {**settings.retrieval.parameters.get(source, {}), **trial.within(lineup.SOURCES[source], plan.seconds)}
        choosing = trying.choosing(source, first.name, knobs)
        tried = tuple((run.knobs, _ndcg(run.found, truth[first.name])) for run in choosing.runs) if choosing else ()
        if choosing and tried:
            best = int(np.argmax([quality or 0.0 for _, quality in tried]))  # the first of equals, so the default wins a tie
            knobs, lists[first.name][source] = tried[best][0], choosing.runs[best]
        done = choosing if choosing and choosing.status != "ok" else trying.of(source, JUDGE, [knobs])
        if done.status == "ok":
            lists[JUDGE][source] = done.runs[0]
        lines.append(_line(source, done, asked, tried))
        shutil.rmtree(scratch / source, ignore_errors=True)
    tell("")
    sizes = [(fold, truth[fold.name].n_users, len(truth[fold.name].item)) for fold in (first, last)]
    return Board(ranked(lines), sizes[0], sizes[1], asked.n_items, n_events, lists, truth)


def _histories(world: Universe, fold: Fold, users: Ids, settings: TrainingSettings) -> tuple[int, npt.NDArray[np.integer]]:
    """Return how many events are known before a fold's cutoff, and int64 [n_users] of some users."""
    known = world.interactions(fold.cutoff, settings)
    of_user = np.bincount(known.user, minlength=len(known.user_ids))
    return len(known.user), of_user[positions(users, known.user_ids)]


def ranked(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Return the lines best first, each with its paired differences; equals by name, what was not measured last."""
    measured = sorted((line for line in lines if line.ndcg is not None), key=lambda line: (-_mean(line), line.source))
    others = sorted((line for line in lines if line.ndcg is None), key=lambda line: (line.status != "failed", line.source))
    best = measured[0] if measured else None
    popular = next((line for line in measured if line.source == BASELINE), None)
    compared = [replace(line, below_best=_difference(line, best), above_popular=_difference(line, popular)) for line in measured]
    return (*compared, *others)


def _mean(line: Line) -> float:
    return -np.inf if line.ndcg is None or np.isnan(line.ndcg.mean) else line.ndcg.mean


def _difference(line: Line, other: Line | None) -> Interval | None:
    if other is None or other is line or line.per_user is None or other.per_user is None:
        return None
    return paired.interval(line.per_user - other.per_user)


def _ndcg(found: Candidates, truth: Labels) -> float | None:
    return metrics.mean(metrics.ndcg(metrics.judge(found.item, truth.indptr, truth.item, truth.gain), 10))


def _line(source: str, done: Trial, asked: Asked, tried: tuple[tuple[dict[str, Any], float | None], ...]) -> Line:
    if done.status != "ok":
        return Line(source, done.status, done.reason)
    run, truth = done.runs[0], asked.truth
    judged = metrics.judge(run.found.item, truth.indptr, truth.item, truth.gain)
    per_user = metrics.ndcg(judged, 10)
    return Line(
        source,
        "ok",
        knobs=run.knobs,
        ndcg=paired.interval(per_user),
        per_user=per_user,
        recall_at_50=metrics.mean(metrics.recall(judged, 50)),
        coverage_at_10=spread.coverage(run.found.item, asked.n_items, 10),
        costs=run.costs,
        ms_per_user=1000 * run.costs.retrieve_seconds / max(truth.n_users, 1),
        slices={name: (metrics.mean(per_user[mask]), int(mask.sum())) for name, mask in slices.users(asked.n_known).items()},
        tried=tried,
    )
