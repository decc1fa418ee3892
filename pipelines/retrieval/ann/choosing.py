"""Which layout an index gets: the cheapest that finds what an exact search finds, tried on queries of the model itself."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import faiss
import numpy as np

from pipelines.datasets.interactions import Bools, Floats
from pipelines.errors import StateError
from pipelines.model_settings import IndexSettings
from pipelines.retrieval.ann import hygiene, plans
from pipelines.retrieval.ann.index import MEASURED_AT, Index, laid_out
from pipelines.retrieval.ann.plans import Plan
from pipelines.retrieval.protocol import Candidates

WORTH: Final = 0.5  # of the work of comparing with everything; a search that costs more is no gain, and taken only where its kind is named
STEPS: Final = 4  # efforts that a choice may rise by, where queries that took no part in it find too little


@dataclass(frozen=True)
class Trial:
    """One layout at one effort.

    Attributes:
        recall_at_100: over the queries that choose.
        work: distances a query, in distances between vectors that lie side by side.
        latency_ms: of a query among many, on one thread.
    """

    plan: Plan
    effort: int
    recall_at_100: float
    work: float
    latency_ms: float

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values, but for the latency, which is another in every run."""
        return {**asdict(self.plan), "effort": self.effort, "recall_at_100": round(self.recall_at_100, 4), "work": round(self.work, 1)}


@dataclass(frozen=True)
class Choice:
    """An index, and why it is this one.

    Attributes:
        recall_at_100: of the index, over queries that took no part in choosing; 1 where it is exact.
        n_queries: over how many.
        trials: everything that was tried.
    """

    index: Index
    recall_at_100: float
    n_queries: int
    trials: tuple[Trial, ...]

    @property
    def latency_ms(self) -> float:
        """Return the latency of what was chosen; NaN where nothing was tried."""
        same = [trial.latency_ms for trial in self.trials if (trial.plan, trial.effort) == (self.index.plan, self.index.effort)]
        return same[0] if same else float("nan")


def recall(found: Candidates, exact: Candidates) -> float:
    """Return the mean share of the exact list that was found; an item that scores as the last of the exact list is as good as it."""
    there = exact.item >= 0
    last = np.where(there, exact.score, np.float32(hygiene.HUGE)).min(axis=1, keepdims=True)
    good = (found.item >= 0) & (found.score >= last - 1e-5 * np.abs(last))
    share = np.minimum(np.count_nonzero(good, axis=1), np.count_nonzero(there, axis=1)) / np.maximum(np.count_nonzero(there, axis=1), 1)
    asked = there.any(axis=1)
    return float(share[asked].mean()) if asked.any() else 1.0


def choose(name: str, vector: Floats, live: Bools, queries: Floats, settings: IndexSettings, *, first: Plan | None = None) -> Choice:
    """Build what the settings ask for and return the cheapest that reaches the target recall.

    Every second query chooses, the others measure what was chosen.

    Args:
        vector: float32 [n_items, d], finite where `live`.
        live: bool [n_items], what may be proposed.
        queries: float32 [n, d], of real users; none, and items are asked for their like.
        first: a layout that did before on like data: it is taken, and nothing else built, if it does again.

    Raises:
        StateError: nothing reaches the least recall.
    """
    candidates = plans.grid(int(np.count_nonzero(live)), settings)
    if candidates[0].kind == "flat":
        return Choice(laid_out(candidates[0], vector, live, 0.0, None), 1.0, 0, ())
    queries = _usable(queries, vector, live, settings)
    if first in candidates:
        try:
            return _chosen(name, [first], vector, live, queries=queries, settings=settings)
        except StateError:
            candidates.remove(first)
    return _chosen(name, candidates, vector, live, queries=queries, settings=settings)


def _usable(queries: Floats, vector: Floats, live: Bools, settings: IndexSettings) -> Floats:
    queries = queries[np.abs(queries).max(axis=1, initial=0) <= hygiene.HUGE]  # NaN compares as False
    if len(queries) < 2:
        queries = np.concatenate([queries, vector[live]])
    rng = np.random.default_rng(settings.seed)
    return queries[np.sort(rng.permutation(len(queries))[: settings.n_queries])]


def _chosen(name: str, candidates: list[Plan], vector: Floats, live: Bools, *, queries: Floats, settings: IndexSettings) -> Choice:
    asked, held_out = queries[::2], queries[1::2] if len(queries) > 1 else queries
    length = plans.length_of(vector, live)
    points = plans.lifted(vector[live], length)
    flat = laid_out(Plan("flat"), vector, live, length, None)
    exact, exact_held_out = (flat.exact(some, MEASURED_AT) for some in (asked, held_out))
    centroids: dict[int, Any] = {}
    tried: list[tuple[Trial, Index]] = []
    for plan in candidates:
        if plan.n_lists and plan.n_lists not in centroids:
            centroids[plan.n_lists] = plans.centroids_of(points, plan.n_lists, settings.seed)
        scan = plan.kind == "scan"  # by inner products: nothing is to be lifted
        structure = plans.built(plan, vector[live] if scan else points, centroids.get(plan.n_lists))
        index = laid_out(plan, vector, live, 0.0 if scan else length, structure)
        tried += _climb(index, asked, exact, settings)
    trials = tuple(trial for trial, _ in tried)
    good = [one for one in tried if one[0].recall_at_100 >= settings.target_recall] or [
        one for one in tried if one[0].recall_at_100 >= settings.min_recall
    ]
    best = max(trials, key=lambda trial: trial.recall_at_100)
    said = f"recall@{MEASURED_AT} {best.recall_at_100:.4f} at best, by {best.plan} at effort {best.effort}"
    for trial, index in sorted(good, key=lambda one: one[0].work if settings.choose_by == "work" else one[0].latency_ms):
        # What few queries chose may be a little too little for others.
        for effort in [effort for effort in index.plan.efforts() if effort >= trial.effort][:STEPS]:
            harder = replace(index, effort=effort)
            reached = recall(harder.search(held_out, np.ones(len(held_out), dtype=bool), MEASURED_AT, refill=False), exact_held_out)
            if reached >= settings.min_recall:
                return Choice(harder, reached, len(held_out), trials)
            said = f"recall@{MEASURED_AT} {reached:.4f} over {len(held_out)} queries held out, by {index.plan} at effort {effort}"
    raise StateError(
        f"index of {name}",
        found=f"{said} ({len(queries)} queries, {len(trials)} trials)",
        allowed=f"at least {settings.min_recall}",
        hint="retrieval.index.kind = 'flat' searches exactly; other kinds or a lower target_recall search worse and faster",
    )


def _climb(index: Index, queries: Floats, exact: Candidates, settings: IndexSettings) -> list[tuple[Trial, Index]]:
    """Return what rising effort brings, up to the first that reaches the target or costs too much."""
    tried: list[tuple[Trial, Index]] = []
    told = np.ones(len(queries), dtype=bool)
    for effort in index.plan.efforts():
        harder = replace(index, effort=effort)
        faiss.cvar.indexIVF_stats.reset()
        faiss.cvar.hnsw_stats.reset()
        with plans.threads(1):
            began = time.perf_counter()
            found = harder.search(queries, told, MEASURED_AT, refill=False)
            seconds = time.perf_counter() - began
        trial = Trial(index.plan, effort, recall(found, exact), _work(harder, len(queries)) / len(queries), 1e3 * seconds / len(queries))
        scan = index.plan.kind == "scan"  # the last resort: any gain will do
        if (tried or scan) and settings.kind == "auto" and trial.work > (1 if scan else WORTH) * len(index.item_of):
            break
        tried.append((trial, harder))
        if trial.recall_at_100 >= settings.target_recall:
            break
    return tried


def _work(index: Index, n_queries: int) -> float:
    """Return the distances of the searches since FAISS's counters were reset, weighed by how they lie in memory."""
    plan = index.plan
    if plan.kind == "scan":
        n = len(index.item_of)
        return float(n_queries * (plans.IN_HALVES * n + plans.FETCHED * min(index.effort * index.fetched(MEASURED_AT), n)))
    if plan.kind == "hnsw":
        return float(plans.AT_RANDOM * faiss.cvar.hnsw_stats.ndis)
    counted = faiss.cvar.indexIVF_stats
    return float(counted.nq * plan.n_lists + (plans.IN_BYTES if plan.in_bytes else 1.0) * counted.ndis)
