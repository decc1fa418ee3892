"""One source over every fold: fitted on what was known before the cutoff, asked for the fold's users.

training/<as_of>/retrieval/<source>/
    <fold>.npz               item int32, score float32 [n_users, k]; rows in the order of the fold's labels
    knobs.json, state.npz    the source as fitted for the judged fold: what a bundle releases
    index.*                  the index over its item vectors, where it has some (`ann.keeping`)
    <fold>.vectors.npz       of a ranker's fold: the vectors of its users and of the items, where the source has some (`vectors`)
training/<as_of>/checkpoints/<source>/<fold>.npz    how far a training has come that was killed; gone once it is published
"""

from __future__ import annotations

import shutil
import time
from datetime import datetime
from pathlib import Path

import numpy as np

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Interactions, Ints, histories
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.errors import StateError
from pipelines.evaluation import metrics
from pipelines.retrieval import footprint, lineup, vectors
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.ann.plans import Plan
from pipelines.retrieval.protocol import Cached, Candidates, Demanding, Resumable, Retriever, Vectored
from pipelines.retrieval.vectors import Vectors


def folder(home: Home, as_of: datetime, source: str) -> Path:
    """Return where one source of a run is kept."""
    return universe.run_folder(home, as_of) / "retrieval" / source


def fit(home: Home, as_of: datetime, source: str) -> None:
    """Fit one source on every fold and publish its candidates and the judged fold's state.

    Raises:
        NotEnoughData: history is too short for a ranker window and a judged one.
        StateError: the source or one of its knobs is unknown.
        ReloopError: what the source is fitted with is not installed; nothing was read yet.
    """
    settings = config.load(home)
    retriever = lineup.make(source, settings.retrieval.parameters.get(source))
    kept = checkpoints(home, as_of, source)
    with cycle.stage(home, as_of, "retrieval", source) as record:
        if isinstance(retriever, Demanding):
            retriever.require()
        world = universe.ensure(home, as_of)
        facts = {"source": source, "universe": world.digest, "settings": settings.retrieval.model_dump(mode="json")}
        record |= {"fit_seconds": 0.0, "retrieve_seconds": 0.0}
        held = footprint.begin()
        with publish.folder(folder(home, as_of, source), facts) as out:
            layout: Plan | None = None
            for fold in world.folds:
                truth = world.labels(fold.name)
                known = world.interactions(fold.cutoff, settings.training)
                began = time.perf_counter()
                fitted = _fitted(retriever, known, kept / f"{fold.name}.npz", home.cache / source)
                if isinstance(fitted, Vectored) and settings.retrieval.index.kind != "none":
                    fitted = Indexed(fitted, settings.retrieval.index).over(known, layout)
                    layout = fitted.index.plan if fitted.index else None  # the next fold is like this one
                asked = time.perf_counter()
                users = histories(known, truth.user_ids)
                found = fitted.retrieve(users, settings.retrieval.k_per_source, exclude_seen=settings.training.exclude_seen)
                record["fit_seconds"] += asked - began
                record["retrieve_seconds"] += time.perf_counter() - asked
                _write(out / f"{fold.name}.npz", found)
                if fold.name != JUDGE and (known_to := vectors.of(fitted, users)):
                    vectors.save(out / f"{fold.name}.vectors.npz", known_to)
                if fold.name == JUDGE:
                    lineup.save(out, source, fitted)
                    if isinstance(fitted, Indexed):
                        record["index"] = fitted.figures()
                    record.update(quality(found.item, truth), users=truth.n_users)
        record["peak_mb"] = footprint.above(held)
        shutil.rmtree(kept, ignore_errors=True)


def checkpoints(home: Home, as_of: datetime, source: str) -> Path:
    """Return where a source that takes long keeps its progress, a file a fold, until it is published."""
    return universe.run_folder(home, as_of) / "checkpoints" / source


def _fitted(retriever: Retriever, known: Interactions, checkpoint: Path, cache: Path) -> Retriever:
    if isinstance(retriever, Cached):
        return retriever.fit_cached(known, cache)
    return retriever.resume(known, checkpoint) if isinstance(retriever, Resumable) else retriever.fit(known)


def quality(item: Ints, truth: Labels) -> dict[str, float | None]:
    """Return the mean NDCG@10 and recall@50 of some lists over the full catalogue; None without users."""
    judged = metrics.judge(item, truth.indptr, truth.item, truth.gain)
    return {
        "ndcg_at_10": metrics.mean(metrics.ndcg(judged, 10)),
        "recall_at_50": metrics.mean(metrics.recall(judged, 50)),
    }


def candidates(home: Home, as_of: datetime, source: str, fold: str, universe_digest: str) -> Candidates:
    """Read what one source proposed for a fold.

    Raises:
        StateError: the source was not fitted, or was fitted on another universe (other indices).
    """
    path = folder(home, as_of, source)
    made_on = publish.manifest(path).facts["universe"]
    if made_on != universe_digest:
        raise StateError(
            str(path),
            found=f"candidates of universe {made_on[:12]}",
            allowed=universe_digest[:12],
            hint="fit every source again: the lake has changed",
        )
    with np.load(path / f"{fold}.npz", allow_pickle=False) as arrays:
        return Candidates(arrays["item"], arrays["score"])


def placed(home: Home, as_of: datetime, source: str, fold: str) -> Vectors | None:
    """Read the vectors that a source had for a ranker's fold; None for a source that scores in another way.

    Raises:
        StateError: the source was not fitted.
    """
    file = f"{fold}.vectors.npz"
    found = publish.manifest(folder(home, as_of, source)).files
    return vectors.load(folder(home, as_of, source) / file) if file in found else None


def _write(path: Path, found: Candidates) -> None:
    with publish.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, item=found.item, score=found.score)
