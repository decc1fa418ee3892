"""Which few sources make the best blend for their seconds: greedy forward selection on the validation window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.decision_policies import GatePolicy
from pipelines.evaluation import metrics, paired
from pipelines.model_settings import RetrievalSettings
from pipelines.retrieval import merging
from pipelines.retrieval.leaderboard.board import Board
from pipelines.retrieval.leaderboard.trial import Run

K_BLEND: Final = 150  # as RetrievalSettings.k_blend
TASK_SECONDS: Final = 1.0  # what a source costs before it does anything: a task of the Dag, its files, its record

Quality = Callable[[metrics.Judged], npt.NDArray[np.float64]]
QUALITIES: Final[dict[str, Quality]] = {
    "ndcg_at_10": lambda judged: metrics.ndcg(judged, 10),
    "recall_at_150": lambda judged: metrics.recall(judged, K_BLEND),
}
SETTINGS: Final = "the settings'"
# Line-ups that are held against each other: that of the settings, and what it might be.
CORE: Final = ("popular", "popular_7d", "item_knn", "sequence_rules", "als", "repeat")
LINE_UPS: Final[dict[str, tuple[str, ...]]] = {
    SETTINGS: RetrievalSettings().sources,
    "ease for user_knn": (*CORE, "ease"),
    "neither": CORE,
    "graph_filter for user_knn": (*CORE, "graph_filter"),
    "trending for user_knn": (*CORE, "trending"),
    "the gate's": (GatePolicy().baseline, *GatePolicy().incumbents),
}


@dataclass(frozen=True)
class Blended:
    """What some sources are worth together.

    Attributes:
        quality: mean of each of `QUALITIES`.
        per_user: float64 [n_users] of each.
        seconds: processor's of fitting, of answering, summed, and `TASK_SECONDS` for each source.
    """

    sources: tuple[str, ...]
    quality: dict[str, float | None]
    per_user: dict[str, npt.NDArray[np.float64]]
    seconds: float


def blended(runs: dict[str, Run], truth: Labels, sources: Iterable[str]) -> Blended:
    """Return what the blend of some sources is worth on a fold."""
    names = tuple(sources)
    merged = merging.merge({name: runs[name].found for name in names}, K_BLEND)
    judged = metrics.judge(merged.item, truth.indptr, truth.item, truth.gain)
    per_user = {name: quality(judged) for name, quality in QUALITIES.items()}
    seconds = sum(runs[name].costs.fit_cpu_seconds + runs[name].costs.retrieve_seconds + TASK_SECONDS for name in names)
    return Blended(names, {name: metrics.mean(values) for name, values in per_user.items()}, per_user, seconds)


def forward(board: Board, by: str, tell: Callable[[str], None] = lambda _: None) -> list[tuple[Blended, Blended]]:
    """Return growing line-ups, each as it is worth on the validation and on the test window.

    Each step adds the source whose gain on the validation window is largest by second, among those
    whose gain has a lower 95% bound (one-sided, paired over users) above zero; it ends where none has.

    Args:
        by: one of `QUALITIES`.
    """
    runs, truth = board.lists[board.validation[0].name], board.truth[board.validation[0].name]
    usable = [name for name in runs if name in board.lists[JUDGE]]
    chosen: Blended | None = None
    steps: list[tuple[Blended, Blended]] = []
    while len(steps) < len(usable):
        tell("+".join(chosen.sources) if chosen else "the first source")
        rates: dict[str, tuple[float, Blended]] = {}
        for name in usable:
            if chosen is not None and name in chosen.sources:
                continue
            with_it = blended(runs, truth, (*(chosen.sources if chosen else ()), name))
            gain = with_it.per_user[by] - (chosen.per_user[by] if chosen else 0.0)
            if paired.lower_bound(gain, 0.95, seed=0) > 0:
                rates[name] = (float(np.nanmean(gain)) / (with_it.seconds - (chosen.seconds if chosen else 0.0)), with_it)
        if not rates:
            break
        chosen = max(rates.items(), key=lambda rate: (rate[1][0], rate[0]))[1][1]
        steps.append((chosen, blended(board.lists[JUDGE], board.truth[JUDGE], chosen.sources)))
    return steps


def compared(board: Board, sources: Sequence[str]) -> Blended | None:
    """Return what a line-up is worth on the test window, of its sources those that could be measured; None without any."""
    names = [name for name in sources if name in board.lists[JUDGE]]
    return blended(board.lists[JUDGE], board.truth[JUDGE], names) if names else None
