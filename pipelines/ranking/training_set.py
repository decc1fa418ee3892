"""The ranker's training rows: candidates of the rolling windows, what the users then did, and what was known before.

    training/<as_of>/training_set/<fold>.parquet, one file a fold `rank_1` ... `rank_N`; rows in the order
    of (user, blend_rank):
        user, item       int32, positions in training/<as_of>/universe/
        gain             float32, graded relevance, 0 where the user ignored the candidate
        position         int32, the best place at which the user was shown the item in the window; 0 where it was not
        propensity       float32, with what probability it came to stand there; NaN where it was not shown, or that was not logged
        weight           float32, > 0, how many rows the row stands for (`RankingRows`)
        outcome__<name>  float32: view, add_to_cart, purchase 0 or 1; value, money
        <feature>        float32, null-free; NaN where a value is missing
    training/<as_of>/training_set/features.json   the table of the features (`feature_table`)
    training/<as_of>/training_set/memory/         what features of the judged fold and of requests read (`memory`)

A window's candidates come from retrievers that saw only what was received before its cutoff, and
its features are those known at the cutoff: rows are made as they will be met in serving. Kept are
the users with at least one positive among their candidates (the others have no pair to put in
order), all of their positives, and `negatives_per_user` of the candidates they ignored: first those
they were shown, where the lake has impressions, then a seeded uniform sample. What was shown and is
not among the candidates is left out: no request would have to rank it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import config, cycle, publish
from pipelines.config import Home, Settings
from pipelines.datasets import universe
from pipelines.datasets.interactions import Bools, Floats, Interactions, Ints, histories, positions
from pipelines.datasets.split import JUDGE, Fold
from pipelines.datasets.universe import Universe
from pipelines.errors import StateError
from pipelines.ranking import deeds, memory, proposals, room
from pipelines.ranking.context import Catalogue, catalogue, gather
from pipelines.ranking.deeds import TOLD, Pairs
from pipelines.ranking.feature_table import Columns, specs
from pipelines.ranking.features import assemble
from pipelines.ranking.memory import Memory
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.protocol import RankingRows, schema_hash
from pipelines.ranking.sampling import draws, keep, stands_for
from pipelines.ranking.target_encoding import Encoding, Tally
from pipelines.retrieval import blend, fitting
from pipelines.retrieval.vectors import Vectors

OUTCOME: Final = "outcome__"
KEYS: Final = ("user", "item", "gain", "position", "propensity", "weight", *(OUTCOME + name for name in TOLD))
MEMORY: Final = "memory"
FEATURES_FILE: Final = "features.json"
LISTS_AT_ONCE: Final = 8192  # one question to the feature store for each so many users


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the training rows of a run are kept."""
    return universe.run_folder(home, as_of) / "training_set"


def build(home: Home, as_of: datetime) -> None:
    """Publish the training rows of every ranker fold; the same lake and settings give the same bytes.

    Memory follows `LISTS_AT_ONCE` lists, the events of the run, and the catalogue.

    Raises:
        StateError: the candidates were not blended, or on another universe.
    """
    settings = config.load(home)
    with cycle.stage(home, as_of, "training_set") as record:
        world = universe.load(home, as_of)
        blended = publish.manifest(blend.folder(home, as_of)).facts["universe"]
        if blended != world.digest:
            raise StateError("candidates", found=f"of universe {blended[:12]}", allowed=world.digest[:12], hint="fit and blend again")
        groups = settings.ranking.features
        facts: dict[str, Any] = {"universe": world.digest, "folds": {}, "groups": list(groups)}
        with publish.folder(folder(home, as_of), facts) as out:
            encoding, known = Encoding(), world.interactions(world.folds[0].cutoff, settings.training)
            last = world.interactions(world.fold(JUDGE).cutoff, settings.training)
            for fold, following in pairwise(world.folds):
                later = last if following.name == JUDGE else world.interactions(following.cutoff, settings.training)
                goods = catalogue(home, world.item_ids, fold.cutoff)
                tally = Tally({"item": world.item_ids, "category": goods.categories, "brand": goods.brands})
                making = _Fold(home, as_of, settings, world, fold, known, goods, memory.of(known, encoding))
                facts["folds"][fold.name] = _write(out / f"{fold.name}.parquet", making.tables(last, later, tally))
                encoding, known = tally.encoding(settings.ranking.encoding_smoothing), later
            memory.of(last, encoding).save(out / MEMORY)
            names = tuple(name for name in pq.read_schema(out / "rank_1.parquet").names if name not in KEYS)
            described = specs(Columns.declared(home, settings.retrieval.sources, making.vectors()), groups)
            if tuple(spec.name for spec in described) != names:
                raise StateError("features", found=f"{len(names)} columns", allowed=f"the {len(described)} that feature_table describes")
            publish.write_json(out / FEATURES_FILE, [asdict(spec) for spec in described])
            facts |= {"features": list(names), "schema_hash": schema_hash(names)}
        counts = facts["folds"].values()
        record |= {
            "training_rows": sum(fold["rows"] for fold in counts),
            "positives": sum(fold["positives"] for fold in counts),
            "groups": sum(fold["groups"] for fold in counts),
            "shown_negatives": sum(fold["shown_negatives"] for fold in counts),
            "sampled_negatives": sum(fold["rows"] - fold["positives"] - fold["shown_negatives"] for fold in counts),
            "features": len(names),
            "folds": facts["folds"],
        }


@dataclass(frozen=True)
class _Fold:
    """One fold, and what was known at its cutoff."""

    home: Home
    as_of: datetime
    settings: Settings
    world: Universe
    fold: Fold
    known: Interactions
    goods: Catalogue
    memory: Memory

    def vectors(self) -> dict[str, Vectors]:
        """Return the vectors of every source that has some; their queries are in the order of the fold's labels."""
        found = {source: fitting.placed(self.home, self.as_of, source, self.fold.name) for source in self.settings.retrieval.sources}
        return {source: placed for source, placed in found.items() if placed}

    def tables(self, last: Interactions, later: Interactions, tally: Tally) -> Iterator[pa.Table]:
        """Yield the kept rows, a block of users at a time; at least one table, maybe empty.

        Args:
            last: what was known before the judged window, of which the outcomes are.
            later: what was known at the cutoff that follows.
            tally: counts every candidate and what it was worth as far as `later` knows.
        """
        world, goods = self.world, self.goods
        truth = world.labels(self.fold.name)
        users = positions(truth.user_ids, world.user_ids).astype(np.int32)
        seen = deeds.shown(self.home, self.fold.window, world.user_ids, world.item_ids)
        did, did_by_then = deeds.done(last, self.fold.window), deeds.done(later, self.fold.window)
        past, vectors = histories(self.known, truth.user_ids), self.vectors()
        for table in blend.batches(self.home, self.as_of, self.fold.name, LISTS_AT_ONCE):
            proposed = proposals.of_table(table, users)
            worth = did_by_then.of("gain", users[proposed.row], proposed.item)
            tally.add({"item": proposed.item, "category": goods.category[proposed.item], "brand": goods.brand[proposed.item]}, worth)
            gain = proposed.gains(truth)
            useful = np.bincount(proposed.row, weights=gain, minlength=truth.n_users) > 0
            proposed, gain = proposed[useful[proposed.row]], gain[useful[proposed.row]]
            context = gather(
                self.home,
                proposed,
                past,
                user_ids=truth.user_ids,
                item_ids=world.item_ids,
                as_of=self.fold.cutoff,
                groups=self.settings.ranking.features,
                memory=self.memory,
                vectors=vectors,
                goods=goods,
            )
            done = 0
            for block in proposed.blocks() if len(proposed) else [proposed]:
                matrix, names = assemble(context, block)
                kept, columns = self._labelled(block, gain[done : done + len(block)], users, seen, did)
                done += len(block)
                matrix = matrix[kept]
                yield pa.table(columns | {name: matrix[:, at] for at, name in enumerate(names)})

    def _labelled(self, block: Proposals, gain: Floats, users: Ints, seen: Pairs, did: Pairs) -> tuple[Bools, dict[str, Any]]:
        """Return which rows of a block to keep, and their columns beside the features."""
        ranking, starts, user = self.settings.ranking, block.starts(), users[block.row]
        position = seen.of("position", user, block.item)
        draw = draws(user.astype(np.int64), block.item.astype(np.int64), ranking.seed)
        by_lot = (gain == 0) & ((position == 0) | (ranking.negatives == "sampled"))
        draw[~by_lot] = 0  # what was shown comes before any draw
        kept = keep(starts, gain, draw, ranking.negatives_per_user)
        weight = np.where(by_lot, stands_for(starts, by_lot, kept), _looks(position, gain, ranking.place_bias))[kept]
        user, item = user[kept], block.item[kept]
        return kept, {
            "user": user,
            "item": item,
            "gain": gain[kept],
            "position": position[kept].astype(np.int32),
            "propensity": seen.of("propensity", user, item, np.nan),
            "weight": weight.astype(np.float32),
            **{OUTCOME + name: did.of(name, user, item) for name in TOLD},
        }


def _looks(position: Floats, gain: Floats, bias: float) -> Floats:
    """Return float32 [n], one over the probability that the place of a positive was looked at; 1 for what was not shown or is none.

    A place p is looked at with probability p ** -bias (Joachims, Swaminathan, Schnabel, "Unbiased learning-to-rank with biased
    feedback", WSDM 2017, section 6).
    """
    return np.where((gain > 0) & (position > 0), np.maximum(position, 1) ** bias, 1).astype(np.float32)


def _write(path: Path, tables: Iterator[pa.Table]) -> dict[str, int]:
    """Write tables of one schema as one Parquet file, a row group each; return what was counted."""
    counts: Counter[str] = Counter(rows=0, positives=0, groups=0, shown=0, shown_negatives=0)
    options = {key: value for key, value in publish.PARQUET.items() if key != "row_group_size"}
    writer = None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema, **options)
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
            positive, shown = table["gain"].to_numpy() > 0, table["position"].to_numpy() > 0
            counts["rows"] += table.num_rows
            counts["positives"] += int(positive.sum())
            counts["groups"] += len(np.unique(table["user"].to_numpy()))
            counts["shown"] += int(shown.sum())
            counts["shown_negatives"] += int((shown & ~positive).sum())
    finally:
        if writer:
            writer.close()
    return dict(counts)


def groups(home: Home, as_of: datetime) -> tuple[str, ...]:
    """Return the groups of features that the training rows of a run have."""
    return tuple(publish.manifest(folder(home, as_of)).facts["groups"])


def group_of(home: Home, as_of: datetime) -> dict[str, str]:
    """Return the group of each feature of a run, by name, in the order of the matrix."""
    described = json.loads((folder(home, as_of) / FEATURES_FILE).read_text(encoding="utf-8"))
    return {spec["name"]: spec["group"] for spec in described}


def learnt(home: Home, as_of: datetime) -> Memory:
    """Return what features of the judged fold and of requests read beside the moment.

    Raises:
        StateError: the training rows were not built, or a file was changed.
    """
    publish.manifest(folder(home, as_of), verify=True)
    return Memory.load(folder(home, as_of) / MEMORY)


def load(home: Home, as_of: datetime) -> RankingRows:
    """Read the training rows of a run, oldest fold first, every byte checked against the manifest.

    Features of more than `in_memory_gb` are mapped from a file of no name under the state folder, which goes with them.

    Raises:
        StateError: they were not built, or a file was changed, or there is no room for them.
    """
    path, limit = folder(home, as_of), config.load(home).ranking.in_memory_gb
    facts = publish.manifest(path, verify=True).facts
    folds, names = sorted(facts["folds"], key=lambda name: int(name.removeprefix("rank_"))), tuple(facts["features"])
    n = sum(facts["folds"][fold]["rows"] for fold in folds)
    features = room.matrix(n, len(names), limit, home.root / "tmp")
    columns = {
        name: np.empty(n, np.int32 if name == "position" else np.float32) for name in KEYS if name not in ("user", "item", "propensity")
    }
    groups, windows, done = [], [], 0
    for number, fold in enumerate(folds):
        file = pq.ParquetFile(path / f"{fold}.parquet")
        for block in range(file.num_row_groups):
            table = file.read_row_group(block, columns=["user", *columns, *names])
            rows = slice(done, done + table.num_rows)
            for at, name in enumerate(names):
                features[rows, at] = table[name].to_numpy()
            for name, column in columns.items():
                column[rows] = table[name].to_numpy()
            _, sizes = np.unique(table["user"].to_numpy(), return_counts=True)
            groups.append(sizes)
            windows.append(np.full(len(sizes), number))
            done += table.num_rows
    empty = [np.zeros(0, np.int32)]
    return RankingRows(
        features,
        names,
        columns["gain"],
        np.concatenate(groups or empty).astype(np.int32),
        np.concatenate(windows or empty).astype(np.int32),
        position=columns["position"] if any(facts["folds"][fold]["shown"] for fold in folds) else None,
        weight=columns["weight"],
        outcomes={name: columns[OUTCOME + name] for name in TOLD},
    )
