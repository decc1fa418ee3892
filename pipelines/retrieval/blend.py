"""The sources' lists become one list of candidates a user, each knowing who proposed it, how high and how strongly.

    training/<as_of>/candidates/<fold>.parquet, one file a fold (`rank_1` ... `judge`), sorted by (user, blend_rank):
        user            int32, position in training/<as_of>/universe/users.parquet
        item            int32, position in training/<as_of>/universe/items.parquet
        blend_score     float32, weighted reciprocal-rank fusion, > 0
        blend_rank      int32, 1 is the best
        score__<source> float32, NaN where the source did not propose the item; not comparable across sources
        rank__<source>  float32, 1 is the best, NaN where the source did not propose the item

`universe.load(home, as_of)` gives the ids (`user_ids[user]`, `item_ids[item]`), the folds, and the
labels of each fold (`.labels(fold)`: its users are those that may have candidates). A user whom no
source knows has no row. The manifest's facts hold the recipe, with which the bundle blends every
request. Learnt weights have seen the labels of the ranker's windows, one number a source; the judged
window they have not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Ints, positions
from pipelines.datasets.split import JUDGE
from pipelines.datasets.universe import Universe
from pipelines.errors import StateError
from pipelines.evaluation import metrics
from pipelines.model_settings import RetrievalSettings
from pipelines.retrieval import attribution, blend_weights, cold_users, fitting, merging
from pipelines.retrieval.blend_weights import Learnt
from pipelines.retrieval.merging import RRF_CONSTANT, Blend, Recipe
from pipelines.retrieval.protocol import Candidates


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the candidates of a run are kept."""
    return universe.run_folder(home, as_of) / "candidates"


def blend(home: Home, as_of: datetime) -> None:
    """Merge what every source of the settings proposed, fold by fold; publish the candidates, and what each source is worth.

    Raises:
        StateError: a source was not fitted, or on another universe.
    """
    settings = config.load(home)
    with cycle.stage(home, as_of, "blend") as record:
        world = universe.load(home, as_of)
        learnt = _learnt(home, as_of, world, settings.retrieval, settings.training.seed)
        made = recipe_of(settings.retrieval, learnt)
        facts: dict[str, Any] = {
            "sources": list(settings.retrieval.sources),
            "universe": world.digest,
            "k_per_source": settings.retrieval.k_per_source,
            "k_blend": settings.retrieval.k_blend,
            "recipe": made.to_json(),
            "learnt": learnt.to_json() if learnt else None,
            "rows": {},
        }
        with publish.folder(folder(home, as_of), facts) as out:
            for fold in world.folds:
                truth = world.labels(fold.name)
                lists = _lists(home, as_of, world, fold.name, settings.retrieval)
                users = positions(truth.user_ids, world.user_ids).astype(np.int32)
                item, facts["rows"][fold.name] = _write(out / f"{fold.name}.parquet", lists, users, settings.retrieval.k_blend, made)
                if fold.name == JUDGE:
                    judged = metrics.judge(item, truth.indptr, truth.item, truth.gain)
                    ceiling = metrics.mean(metrics.recall(judged, settings.retrieval.k_blend))
                    record.update(fitting.quality(item, truth), ceiling=ceiling, recipe=made.to_json(), learnt=facts["learnt"])
    attribution.attribute(home, as_of, made)


def recipe_of(settings: RetrievalSettings, learnt: Learnt | None) -> Recipe:
    """Return how lists are merged: the settings' weights and quotas, or the learnt weights."""
    return Recipe(
        learnt.weights if learnt else dict(settings.weights),
        {name: quota.least for name, quota in settings.quotas.items() if quota.least},
        {name: quota.most for name, quota in settings.quotas.items() if quota.most is not None},
        learnt.constant if learnt else RRF_CONSTANT,
    )


def check_settings(home: Home, as_of: datetime, settings: RetrievalSettings) -> None:
    """Check that a run was blended from the sources, and to the lengths, that the settings name now.

    Raises:
        StateError: it was not, or was not blended.
    """
    names = ("sources", "k_per_source", "k_blend")
    facts = publish.manifest(folder(home, as_of)).facts
    made, wanted = {name: facts.get(name) for name in names}, {name: settings.model_dump(mode="json")[name] for name in names}
    if made != wanted:
        raise StateError("candidates", found=f"of other settings: {made}", allowed=str(wanted), hint="blend again, and what follows")


def recipe(home: Home, as_of: datetime) -> Recipe:
    """Return how the candidates of a run were merged.

    Raises:
        StateError: the blend was not published.
    """
    return Recipe.from_json(publish.manifest(folder(home, as_of)).facts["recipe"])


def _learnt(home: Home, as_of: datetime, world: Universe, settings: RetrievalSettings, seed: int) -> Learnt | None:
    """Return the weights that the ranker's windows teach, where the settings ask for them; the judged window is not opened."""
    if settings.blend != "learned":
        return None
    names = [fold.name for fold in world.folds if fold.name != JUDGE]
    return blend_weights.learn(((_lists(home, as_of, world, name, settings), world.labels(name)) for name in names), seed)


def _lists(home: Home, as_of: datetime, world: Universe, fold: str, settings: RetrievalSettings) -> dict[str, Candidates]:
    return cold_users.alone({name: fitting.candidates(home, as_of, name, fold, world.digest) for name in settings.sources})


def _write(path: Path, lists: Mapping[str, Candidates], user: Ints, k: int, made: Recipe) -> tuple[Ints, int]:
    """Write the candidates of a fold, a row group a block of users; return int32 [n_users, k] items and the number of rows."""
    options = {name: value for name, value in publish.PARQUET.items() if name != "row_group_size"}
    items, writer, n_rows = [], None, 0
    try:
        for rows, some in merging.blocks(lists):
            merged = merging.merge(some, k, made)
            table = tabulate(merged, user[rows])
            writer = writer or pq.ParquetWriter(path, table.schema, **options)
            writer.write_table(table)
            items.append(merged.item)
            n_rows += table.num_rows
    finally:
        if writer:
            writer.close()
    return np.concatenate(items), n_rows


def tabulate(merged: Blend, user: Ints) -> pa.Table:
    """Return one row per candidate, in the columns the module describes."""
    row, column = np.nonzero(merged.item >= 0)
    columns: dict[str, npt.NDArray[np.generic]] = {
        "user": user[row],
        "item": merged.item[row, column],
        "blend_score": merged.score[row, column],
        "blend_rank": (column + 1).astype(np.int32),
    }
    columns |= {f"score__{name}": values[row, column] for name, values in merged.source_score.items()}
    columns |= {f"rank__{name}": values[row, column] for name, values in merged.source_rank.items()}
    return pa.table(columns)


def batches(home: Home, as_of: datetime, fold: str, n_lists: int) -> Iterator[pa.Table]:
    """Yield the candidates of a fold, whole lists, about `n_lists` of them at a time; at least one table, maybe of no rows.

    Raises:
        StateError: the blend was not published.
    """
    path = folder(home, as_of)
    n_rows = n_lists * int(publish.manifest(path).facts["k_blend"])
    file = pq.ParquetFile(path / f"{fold}.parquet")
    held = file.schema_arrow.empty_table()
    for batch in file.iter_batches(n_rows):
        table = pa.concat_tables([held, pa.table(batch)])
        user = table["user"].to_numpy()
        whole = int(np.searchsorted(user, user[-1]))  # the last list may go on
        held = table.slice(whole)
        if whole:
            yield table.slice(0, whole)
    yield held


def candidates(home: Home, as_of: datetime, fold: str) -> pa.Table:
    """Read the candidates of a fold.

    Raises:
        StateError: the blend was not published.
    """
    path = folder(home, as_of)
    publish.manifest(path)
    return pq.read_table(path / f"{fold}.parquet")
