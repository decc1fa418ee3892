"""How good the ranked list is on the window that nobody saw, and whether the second stage earns its place.

    training/<as_of>/evaluation/
        per_user.parquet   user_id, ndcg_at_10__served, ndcg_at_10__ranked, ndcg_at_10__blend and
                           ndcg_at_10__<source> in [0, 1], slice__<name> bool; a row for everyone
                           with a positive in the window, sorted by user_id
        metrics.json       every metric of the served list and of its rivals, the slices, what is served

Lists are full rankings over the catalogue; a user for whom no source proposed anything counts with
zero. The ranker is served only if its mean NDCG@10 beats that of the best single source, chosen on
this very window (which favours the source), with the lower bound of the paired difference above
zero. Otherwise the better of the blend and that source is served, and the record says so.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Ints, histories, positions
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.evaluation import metrics, paired
from pipelines.evaluation.metrics import Doubles
from pipelines.ranking import proposals, two_stage
from pipelines.ranking.context import Context, gather
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.two_stage import BLEND, RANKED, TwoStage
from pipelines.retrieval import blend, fitting

K: Final = 10
CUTOFFS: Final = (10, 50)


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the evaluation of a run is kept."""
    return universe.run_folder(home, as_of) / "evaluation"


def served(home: Home, as_of: datetime) -> str:
    """Return what the evaluation of a run decided to serve: `ranked`, `blend` or the name of a source.

    Raises:
        StateError: the run was not evaluated.
    """
    publish.manifest(folder(home, as_of), verify=True)
    return str(json.loads((folder(home, as_of) / "metrics.json").read_text(encoding="utf-8"))["serves"])


def evaluate(home: Home, as_of: datetime) -> None:
    """Judge every order on the judged window, decide what is served, and publish the tables.

    Raises:
        StateError: a stage of the run is missing or was changed.
    """
    settings = config.load(home)
    with cycle.stage(home, as_of, "ranking") as record:
        world = universe.load(home, as_of)
        model = two_stage.of_run(home, as_of)
        fold, truth = world.fold(JUDGE), world.labels(JUDGE)
        past = world.interactions(fold.cutoff, settings.training)
        users = histories(past, truth.user_ids)
        proposed = proposals.of_table(blend.candidates(home, as_of, JUDGE), positions(truth.user_ids, world.user_ids))
        context = None
        if model.ranker:
            context = gather(home, proposed, users, user_ids=truth.user_ids, item_ids=world.item_ids, as_of=fold.cutoff)

        lists = {name: fitting.candidates(home, as_of, name, JUDGE, world.digest).item for name in settings.retrieval.sources}
        lists |= {name: _list(model, name, proposed, context, truth.n_users) for name in (BLEND, *([RANKED] if model.ranker else []))}
        judged = {name: metrics.judge(item, truth.indptr, truth.item, truth.gain) for name, item in lists.items()}
        ndcg = {name: metrics.ndcg(laid, K) for name, laid in judged.items()}
        decision = decide(ndcg, settings.retrieval.sources, settings.gate.confidence, settings.training.seed)
        serves = decision["serves"]
        groups: dict[str, npt.NDArray[np.bool_]] = {}
        everything = {
            name: {metric: metrics.mean(values) for metric, values in metrics.table(laid, CUTOFFS).items()} for name, laid in judged.items()
        }
        sliced = {
            name: {order: metrics.mean(values[rows]) for order, values in ndcg.items()} | {"n_users": int(rows.sum())}
            for name, rows in groups.items()
        }
        record |= {**decision, "slices": sliced, "metrics": everything[serves]}
        with publish.folder(folder(home, as_of), {"universe": world.digest, "serves": serves}) as out:
            publish.write_parquet(out / "per_user.parquet", _per_user(truth, ndcg, ndcg[serves], groups))
            publish.write_json(out / "metrics.json", {**decision, "slices": sliced, "metrics": everything})


def _list(model: TwoStage, serves: str, proposed: Proposals, context: Context | None, n_users: int) -> Ints:
    """Return int32 [n_users, k_blend], the whole list of candidates in one order."""
    model = replace(model, serves=serves)
    return proposed.ranked(model.order(proposed, context), n_users, model.k_blend)[0]


def decide(ndcg: dict[str, Doubles], sources: tuple[str, ...], confidence: float, seed: int) -> dict[str, Any]:
    """Return what is served and why, with the figures of the record.

    Args:
        ndcg: per order float64 [n_users]; `ranked` may be missing.
    """
    means = {name: metrics.mean(values) or 0.0 for name, values in ndcg.items()}
    best = max(sources, key=lambda name: means[name])  # the first of equals
    fallback = BLEND if means[BLEND] >= means[best] else best
    ranked = ndcg.get(RANKED, ndcg[BLEND])
    difference = paired.interval(ranked - ndcg[best], confidence, seed)
    reasons = []
    if RANKED not in ndcg:
        serves, why = fallback, "there was too little to train a ranker"
    elif not difference.lower > 0:
        serves, why = fallback, f"the ranked list does not beat {best}: lower bound {difference.lower:+.4f}"
    else:
        serves, why = RANKED, ""
    if why:
        reasons.append(f"{why}; {serves} is served")
    own = paired.interval(ndcg[serves], confidence, seed)
    return {
        "ndcg_at_10": known(own.mean),
        "lower": known(own.lower),
        "upper": known(own.upper),
        "n_users": own.n,
        "best_single": best,
        "best_single_ndcg_at_10": means[best],
        "blend_ndcg_at_10": means[BLEND],
        "ranked_ndcg_at_10": means.get(RANKED),
        "difference": known(difference.mean),
        "difference_lower": known(difference.lower),
        "difference_upper": known(difference.upper),
        "serves": serves,
        "reasons": reasons,
    }


def _per_user(truth: Labels, ndcg: dict[str, Doubles], own: Doubles, groups: dict[str, npt.NDArray[np.bool_]]) -> pa.Table:
    columns: dict[str, Any] = {c.USER_ID: pa.array(truth.user_ids, pa.string()), "ndcg_at_10__served": own}
    columns |= {f"ndcg_at_10__{name}": values for name, values in sorted(ndcg.items())}
    return pa.table(columns | {f"slice__{name}": rows for name, rows in groups.items()})


def known(value: float) -> float | None:
    """Return a number, or None where there is none to tell (JSON has no NaN)."""
    return float(value) if np.isfinite(value) else None
