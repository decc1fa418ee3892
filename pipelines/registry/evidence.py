"""What the gate is shown: champion, challenger and the trivial incumbents on the same users, labels and catalogue, both models scored now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import config, publish
from pipelines.config import Home, Settings
from pipelines.datasets import universe
from pipelines.datasets.interactions import Ids, Interactions, positions, strings
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.datasets.universe import Universe
from pipelines.errors import StateError
from pipelines.evaluation import metrics
from pipelines.ranking import fairness_report, judging, two_stage
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle, releases
from pipelines.registry.gate import Evidence, Scores
from pipelines.window import DAY, utc

K: Final = 10
TAIL_SHARE: Final = 0.5  # of the events before the judged window: what the most popular items gather is the head
LIGHT_QUANTILE: Final = 1 / 3  # of the judged users, those with the shortest histories


@dataclass(frozen=True)
class Scored:
    """One model on the judged window.

    Attributes:
        ndcg: float64 [n_users].
        tail: float64 [n_users], NDCG when only tail items count; NaN for a user who chose none.
        coverage: share of the catalogue in anyone's list.
    """

    ndcg: Scores
    tail: Scores
    coverage: float


@dataclass(frozen=True)
class Bench:
    """What both models are measured on: the same users, labels, catalogue and slices.

    Attributes:
        truth: labels of the judged window.
        tail_truth: the same with tail items only; a row a user, possibly empty.
        light: bool [n_users].
    """

    world: Universe
    truth: Labels
    tail_truth: Labels
    light: np.ndarray[Any, np.dtype[np.bool_]]
    cutoff: datetime

    def score(self, home: Home, model: TwoStage) -> Scored:
        """Rank for every judged user from what was known at the cutoff, and measure."""
        lists = two_stage.rank_users(home, model, self.truth.user_ids, self.cutoff, K)
        item = np.where(lists.item_ids == "", -1, positions(lists.item_ids.ravel(), self.world.item_ids).reshape(lists.item_ids.shape))
        if (lists.item_ids[item < 0] != "").any():
            raise StateError("lists of a bundle", found="items that the catalogue does not have", allowed="items it knows")
        shown = np.unique(item[item >= 0])
        return Scored(_ndcg(item, self.truth), _ndcg(item, self.tail_truth), len(shown) / max(len(self.world.item_ids), 1))


def _ndcg(item: np.ndarray[Any, Any], truth: Labels) -> Scores:
    return metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, truth.gain), K)


def bench(home: Home, as_of: datetime, settings: Settings) -> Bench:
    """Return the judged window of a training run, with its slices."""
    world = universe.load(home, as_of)
    cutoff = world.fold(JUDGE).cutoff
    truth = world.labels(JUDGE)
    known = world.interactions(cutoff, settings.training)
    head = _head(known)
    kept = ~head[truth.item]
    indptr = np.concatenate([[0], np.cumsum(kept)])[truth.indptr].astype(np.int64)
    tail = Labels(truth.user_ids, truth.item_ids, indptr, truth.item[kept], truth.gain[kept])
    per_user = np.bincount(known.user, minlength=len(known.user_ids))
    length = per_user[positions(truth.user_ids, known.user_ids)]
    light = length <= np.quantile(length, LIGHT_QUANTILE) if len(length) else np.zeros(0, bool)
    return Bench(world, truth, tail, light, cutoff)


def _head(known: Interactions) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return bool [n_items], the most popular items that together gather `1 - TAIL_SHARE` of the events."""
    counts = np.bincount(known.item, minlength=len(known.item_ids))
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    head = np.zeros(len(counts), dtype=bool)
    head[order] = before < (1 - TAIL_SHARE) * counts.sum()
    return head


def incumbents(home: Home, as_of: datetime, names: list[str], users: Ids) -> dict[str, Scores]:
    """Return NDCG@10 of trivial recommenders for the judged users, in their order; those not measured are left out.

    Raises:
        StateError: the run was not evaluated, or for other users.
    """
    folder = judging.folder(home, as_of)
    publish.manifest(folder, verify=True)
    table = pq.read_table(folder / "per_user.parquet")
    if not np.array_equal(strings(table[c.USER_ID]), users):
        raise StateError(
            str(folder), found="other users than the judged ones", allowed="the same evaluation", hint="run the evaluation again"
        )
    there = [name for name in names if f"ndcg_at_{K}__{name}" in table.column_names]
    return {name: np.asarray(table[f"ndcg_at_{K}__{name}"].to_numpy(), dtype=np.float64) for name in there}


def weigh(home: Home, as_of: datetime, baseline: releases.Pointer, challenger: TwoStage) -> Evidence:
    """Return the evidence of one decision: both models scored now, the champion never by a stored figure."""
    settings = config.load(home)
    judged = bench(home, as_of, settings)
    new = judged.score(home, challenger)
    broken = fairness_report.broken(home, as_of, settings.fairness)
    wanted = [*settings.gate.incumbents, settings.gate.baseline]
    trivial = incumbents(home, as_of, wanted, judged.truth.user_ids)
    if baseline.digest is None or baseline.as_of is None:
        return Evidence(challenger=new.ndcg, incumbents=trivial, broken=broken, seed=settings.training.seed)
    old = judged.score(home, bundle.load(home, baseline.digest))
    has_tail = ~np.isnan(old.tail)
    return Evidence(
        challenger=new.ndcg,
        champion=old.ndcg,
        incumbents=trivial,
        slices={"light_users": (old.ndcg[judged.light], new.ndcg[judged.light]), "tail_items": (old.tail[has_tail], new.tail[has_tail])},
        coverage=(old.coverage, new.coverage),
        champion_age_days=(utc(as_of) - utc(baseline.as_of)) / DAY,
        broken=broken,
        earlier_decisions=tested(home, baseline.version),
        seed=settings.training.seed,
    )


def tested(home: Home, version: int | None) -> int:
    """Return how often a champion has been tested in its present reign: what alpha spending counts."""
    count = 0
    for entry in releases.history(home):
        if entry["kind"] in {releases.PROMOTED, releases.ROLLED_BACK}:
            count = 0
        elif entry["kind"] == releases.KEPT and entry["champion_before"] == version and entry["figures"].get("confidence") is not None:
            count += 1
    return count
