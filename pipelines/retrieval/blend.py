"""The sources' lists become one list of candidates a user, each knowing who proposed it, how high and how strongly.

    training/<as_of>/candidates/<fold>.parquet, one file a fold (`rank_1` ... `judge`), sorted by (user, blend_rank):
        user            int32, position in training/<as_of>/universe/users.parquet
        item            int32, position in training/<as_of>/universe/items.parquet
        blend_score     float32, reciprocal-rank fusion, > 0
        blend_rank      int32, 1 is the best
        score__<source> float32, NaN where the source did not propose the item; not comparable across sources
        rank__<source>  float32, 1 is the best, NaN where the source did not propose the item

`universe.load(home, as_of)` gives the ids (`user_ids[user]`, `item_ids[item]`), the folds, and the
labels of each fold (`.labels(fold)`: its users are those that may have candidates). A user whom no
source knows has no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Floats, Ints, positions
from pipelines.datasets.split import JUDGE
from pipelines.evaluation import metrics
from pipelines.retrieval import fitting, topk
from pipelines.retrieval.protocol import Candidates

RRF_CONSTANT: Final = 60  # Cormack, Clarke, Buettcher (SIGIR 2009); damps the difference between the first ranks
USERS_AT_ONCE: Final = 4096


@dataclass(frozen=True)
class Blend:
    """Merged candidates, best first.

    Attributes:
        item: int32 [n_users, k]; -1 pads.
        score: float32 [n_users, k], sum over sources of 1 / (60 + rank); -inf where `item` is -1.
        source_score, source_rank: per source float32 [n_users, k]; NaN where it did not propose the
            item. Ranks begin at 1.
    """

    item: Ints
    score: Floats
    source_score: dict[str, Floats]
    source_rank: dict[str, Floats]


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the candidates of a run are kept."""
    return universe.run_folder(home, as_of) / "candidates"


def merge(lists: dict[str, Candidates], k: int) -> Blend:
    """Merge the sources' lists by reciprocal-rank fusion; equal sums are ordered by item index.

    Fusion by rank needs no calibration between scores that have nothing in common; how much each
    source is worth is for the ranker to learn from the score and rank columns.

    Args:
        lists: at least one source; all with the same number of rows.
    """
    n_users = len(next(iter(lists.values())).item)
    parts = [
        _merge(
            {name: Candidates(found.item[at : at + USERS_AT_ONCE], found.score[at : at + USERS_AT_ONCE]) for name, found in lists.items()},
            k,
        )
        for at in range(0, max(n_users, 1), USERS_AT_ONCE)
    ]
    return Blend(
        np.concatenate([part.item for part in parts]),
        np.concatenate([part.score for part in parts]),
        {name: np.concatenate([part.source_score[name] for part in parts]) for name in lists},
        {name: np.concatenate([part.source_rank[name] for part in parts]) for name in lists},
    )


def _merge(lists: dict[str, Candidates], k: int) -> Blend:
    n_users = len(next(iter(lists.values())).item)
    n_items = 1 + max((int(found.item.max(initial=-1)) for found in lists.values()), default=-1)
    proposals: dict[str, tuple[npt.NDArray[np.int64], Floats, Floats]] = {}
    for name, found in lists.items():
        row, rank = np.nonzero(found.item >= 0)
        proposals[name] = (row * n_items + found.item[row, rank], found.score[row, rank], (rank + 1).astype(np.float32))
    pairs = np.unique(np.concatenate([key for key, _, _ in proposals.values()]))
    places = {name: np.searchsorted(pairs, key) for name, (key, _, _) in proposals.items()}
    fused = np.zeros(len(pairs))
    for name, (_, _, ranks) in proposals.items():
        fused[places[name]] += 1 / (RRF_CONSTANT + ranks)  # a source names an item once, so no index repeats

    score = fused.astype(np.float32)
    user = pairs // max(n_items, 1)
    item = pairs % max(n_items, 1)
    order = np.lexsort((item, -score, user))
    begin = np.searchsorted(user, np.arange(n_users))
    rank_of = np.arange(len(pairs)) - begin[user]  # `order` keeps users together, so places in it count within the user
    kept = order[rank_of < k]
    row, column = user[kept], rank_of[rank_of < k]

    def spread(values: Floats, fill: float) -> Floats:
        table = np.full((n_users, k), fill, dtype=np.float32)
        table[row, column] = values[kept]
        return table

    def of_source(name: str, which: int) -> Floats:
        values = np.full(len(pairs), np.nan, dtype=np.float32)
        values[places[name]] = proposals[name][which]
        return spread(values, np.nan)

    empty = topk.nothing(n_users, k)
    empty.item[row, column] = item[kept]
    return Blend(
        empty.item, spread(score, -np.inf), {name: of_source(name, 1) for name in lists}, {name: of_source(name, 2) for name in lists}
    )


def blend(home: Home, as_of: datetime) -> None:
    """Merge what every source of the settings proposed, fold by fold, and publish the candidates.

    Raises:
        StateError: a source was not fitted, or on another universe.
    """
    settings = config.load(home).retrieval
    with cycle.stage(home, as_of, "blend") as record:
        world = universe.load(home, as_of)
        facts: dict[str, Any] = {"sources": list(settings.sources), "universe": world.digest, "rrf_constant": RRF_CONSTANT, "rows": {}}
        with publish.folder(folder(home, as_of), facts) as out:
            for fold in world.folds:
                truth = world.labels(fold.name)
                lists = {name: fitting.candidates(home, as_of, name, fold.name, world.digest) for name in settings.sources}
                merged = merge(lists, settings.k_blend)
                table = tabulate(merged, positions(truth.user_ids, world.user_ids).astype(np.int32))
                publish.write_parquet(out / f"{fold.name}.parquet", table)
                facts["rows"][fold.name] = table.num_rows
                if fold.name == JUDGE:
                    judged = metrics.judge(merged.item, truth.indptr, truth.item, truth.gain)
                    record.update(fitting.quality(merged.item, truth), ceiling=metrics.mean(metrics.recall(judged, settings.k_blend)))


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


def candidates(home: Home, as_of: datetime, fold: str) -> pa.Table:
    """Read the candidates of a fold.

    Raises:
        StateError: the blend was not published.
    """
    path = folder(home, as_of)
    publish.manifest(path)
    return pq.read_table(path / f"{fold}.parquet")
