"""The ranker's training rows: candidates of the rolling windows, what the users then did, and what was known before.

    training/<as_of>/training_set/<fold>.parquet, one file a fold `rank_1` ... `rank_N`; rows in the order
    of (user, blend_rank):
        user, item   int32, positions in training/<as_of>/universe/
        gain         float32, graded relevance, 0 where the user ignored the candidate
        <feature>    float32, null-free; NaN where a value is missing

A window's candidates come from retrievers that saw only what was received before its cutoff, and
its features are those known at the cutoff: rows are made as they will be met in serving. Kept are
the users with at least one positive among their candidates (the others have no pair to put in
order), all of their positives, and a seeded uniform sample of the candidates they ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import config, cycle, publish
from pipelines.config import Home, Settings
from pipelines.datasets import universe
from pipelines.datasets.interactions import histories, positions
from pipelines.datasets.split import JUDGE, Fold
from pipelines.datasets.universe import Universe
from pipelines.errors import StateError
from pipelines.ranking import proposals
from pipelines.ranking.context import gather
from pipelines.ranking.features import assemble
from pipelines.ranking.protocol import RankingRows, schema_hash
from pipelines.ranking.sampling import draws, keep
from pipelines.retrieval import blend

KEYS: Final = ("user", "item", "gain")


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the training rows of a run are kept."""
    return universe.run_folder(home, as_of) / "training_set"


def build(home: Home, as_of: datetime) -> None:
    """Publish the training rows of every ranker fold; the same lake and settings give the same bytes.

    Raises:
        StateError: the candidates were not blended, or on another universe.
    """
    settings = config.load(home)
    with cycle.stage(home, as_of, "training_set") as record:
        world = universe.load(home, as_of)
        blended = publish.manifest(blend.folder(home, as_of)).facts["universe"]
        if blended != world.digest:
            raise StateError("candidates", found=f"of universe {blended[:12]}", allowed=world.digest[:12], hint="fit and blend again")
        facts: dict[str, Any] = {"universe": world.digest, "folds": {}, "features": [], "schema_hash": ""}
        with publish.folder(folder(home, as_of), facts) as out:
            for fold in world.folds:
                if fold.name != JUDGE:
                    facts["folds"][fold.name] = _write(out / f"{fold.name}.parquet", _rows(home, as_of, settings, world, fold))
            schema = pq.read_schema(next(out.glob("*.parquet")))
            names = tuple(name for name in schema.names if name not in KEYS)
            facts |= {"features": list(names), "schema_hash": schema_hash(names)}
        counts = facts["folds"].values()
        record |= {
            "training_rows": sum(fold["rows"] for fold in counts),
            "positives": sum(fold["positives"] for fold in counts),
            "groups": sum(fold["groups"] for fold in counts),
            "features": len(names),
            "folds": facts["folds"],
        }


def _rows(home: Home, as_of: datetime, settings: Settings, world: Universe, fold: Fold) -> Iterator[pa.Table]:
    """Yield the kept rows of one fold, a block of users at a time; at least one table, maybe empty."""
    truth = world.labels(fold.name)
    users = positions(truth.user_ids, world.user_ids).astype(np.int32)
    proposed = proposals.of_table(blend.candidates(home, as_of, fold.name), users)
    gain = proposed.gains(truth)
    useful = np.bincount(proposed.row, weights=gain, minlength=truth.n_users) > 0
    proposed, gain = proposed[useful[proposed.row]], gain[useful[proposed.row]]
    known = world.interactions(fold.cutoff, settings.training)
    context = gather(home, proposed, histories(known, truth.user_ids), user_ids=truth.user_ids, item_ids=world.item_ids, as_of=fold.cutoff)
    done = 0
    for block in proposed.blocks() if len(proposed) else [proposed]:
        matrix, names = assemble(context, block)
        graded = gain[done : done + len(block)]
        done += len(block)
        draw = draws(users[block.row].astype(np.int64), block.item.astype(np.int64), settings.ranking.seed)
        kept = keep(block.starts(), graded, draw, settings.ranking.negatives_per_user)
        columns = {"user": users[block.row[kept]], "item": block.item[kept], "gain": graded[kept]}
        yield pa.table(columns | {name: matrix[kept, at] for at, name in enumerate(names)})


def _write(path: Path, tables: Iterator[pa.Table]) -> dict[str, int]:
    """Write tables of one schema as one Parquet file, a row group each; return what was counted."""
    counts, writer = {"rows": 0, "positives": 0, "groups": 0}, None
    options = {key: value for key, value in publish.PARQUET.items() if key != "row_group_size"}
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema, **options)
            writer.write_table(table)
            counts["rows"] += table.num_rows
            counts["positives"] += int((table["gain"].to_numpy() > 0).sum())
            counts["groups"] += len(np.unique(table["user"].to_numpy()))
    finally:
        if writer:
            writer.close()
    return counts


def load(home: Home, as_of: datetime) -> RankingRows:
    """Read the training rows of a run, oldest fold first, every byte checked against the manifest.

    Raises:
        StateError: they were not built, or a file was changed.
    """
    path = folder(home, as_of)
    facts = publish.manifest(path, verify=True).facts
    folds, names = sorted(facts["folds"], key=lambda name: int(name.removeprefix("rank_"))), tuple(facts["features"])
    n = sum(facts["folds"][fold]["rows"] for fold in folds)
    features, gain = np.empty((n, len(names)), np.float32), np.empty(n, np.float32)
    groups, windows, done = [], [], 0
    for number, fold in enumerate(folds):
        file = pq.ParquetFile(path / f"{fold}.parquet")
        for block in range(file.num_row_groups):
            table = file.read_row_group(block)
            rows = slice(done, done + table.num_rows)
            for at, name in enumerate(names):
                features[rows, at] = table[name].to_numpy()
            gain[rows] = table["gain"].to_numpy()
            _, sizes = np.unique(table["user"].to_numpy(), return_counts=True)
            groups.append(sizes)
            windows.append(np.full(len(sizes), number))
            done += table.num_rows
    empty = [np.zeros(0, np.int32)]
    return RankingRows(
        features, names, gain, np.concatenate(groups or empty).astype(np.int32), np.concatenate(windows or empty).astype(np.int32)
    )
