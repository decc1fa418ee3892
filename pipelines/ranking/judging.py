"""How good the ranked list is on the window that nobody saw, and whether the second stage earns its place.

    training/<as_of>/evaluation/
        per_user.parquet   user_id, ndcg_at_10__served, ndcg_at_10__ranked, ndcg_at_10__blend and
                           ndcg_at_10__<source or baseline> in [0, 1], slice__<name> bool for light, heavy and cold users; a row for everyone
                           with a positive in the window, sorted by user_id
        importance.*       what the ranker's features are worth (`importance`); contributions.svg
        reliability.svg    what the ranker promised against what happened, where its scores are probabilities
        attribution.parquet   what each step and each rule is worth (`ranking.attribution`)
        metrics.json       every metric of the served list and of its rivals, the slices, what is served; `cold` holds every
                           list's quality for users and items of whom little was known, against the baseline of the gate

Lists are full rankings over the catalogue; a user for whom no source proposed anything counts with
zero. The ranker is served only if its mean NDCG@10 beats that of the best single source, chosen on
this very window (which favours the source), with the lower bound of the paired difference above
zero. Otherwise the blend is served, however it did, and the record says so: the gate judges what is
served on these same lists, so nothing may be picked for having done best on them. Cheap rankers
(`ranking.baselines`) stand in the same table; where the ranker does not clearly beat one, the reasons say so.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipelines import columns as c
from pipelines import config, cycle, publish
from pipelines.config import Home, Settings
from pipelines.datasets import newness, universe
from pipelines.datasets.interactions import Ints, histories, positions
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.errors import StateError
from pipelines.evaluation import cold, metrics, paired, slices, spread
from pipelines.evaluation.metrics import Doubles, Judged
from pipelines.evaluation.slices import Mask
from pipelines.ranking import attribution, calibration, importance, proposals, reliability_plot, training, training_set, two_stage
from pipelines.ranking.attribution import Audience, Stage
from pipelines.ranking.context import Context, catalogue
from pipelines.ranking.fairness_report import write as write_fairness
from pipelines.ranking.features import assemble
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.protocol import Probable, Ranker
from pipelines.ranking.rerank import chain
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.ranking.two_stage import BLEND, RANKED, TwoStage
from pipelines.retrieval import blend, fitting

K: Final = 10
SERVED: Final = "served"
RELIABILITY_FILE: Final = "reliability.svg"
CUTOFFS: Final = (10, 50)


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the evaluation of a run is kept."""
    return universe.run_folder(home, as_of) / "evaluation"


def served(home: Home, as_of: datetime) -> str:
    """Return what the evaluation of a run decided to serve: `ranked` or `blend`.

    Raises:
        StateError: the run was not evaluated.
    """
    publish.manifest(folder(home, as_of), verify=True)
    return str(json.loads((folder(home, as_of) / "metrics.json").read_text(encoding="utf-8"))["serves"])


def check(home: Home, as_of: datetime, model: TwoStage) -> None:
    """Check that the evaluation of a run judged lists as a model shows them.

    Raises:
        StateError: the settings of what is shown were changed since.
    """
    facts, now = publish.manifest(folder(home, as_of)).facts, _shown(model)
    if changed := [name for name in now if facts.get(name, now[name]) != now[name]]:
        raise StateError(
            "evaluation",
            found=f"lists that were judged under another {' and '.join(changed)}",
            allowed=f"{ {name: now[name] for name in changed} }",
            hint="evaluate again, or take the change back",
        )


def _shown(model: TwoStage) -> dict[str, Any]:
    """Return what of the settings, beside those of earlier stages, decides on a list."""
    return {"rerank": model.rerank.model_dump(mode="json"), "exclude_seen": model.exclude_seen}


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
        goods = catalogue(home, world.item_ids, fold.cutoff)
        context = None
        if model.ranker:
            context = model.context(home, proposed, users, truth.user_ids, fold.cutoff)

        lists = {name: fitting.candidates(home, as_of, name, JUDGE, world.digest).item for name in settings.retrieval.sources}
        orders = _orders(model, training.baselines(home, as_of), proposed, context, truth.n_users)
        lists |= {name: order.item for name, order in orders.items()}
        decision = decide({name: _ndcg(item, truth) for name, item in lists.items()}, settings.retrieval.sources, settings)
        promised = _reliability(model.ranker, proposed, context, truth)
        shop = model.goods(past)
        rules = list(chain.steps(orders[decision["serves"]], shop, users, model.rerank))
        lists[SERVED] = rules[-1].after.item if rules else lists[decision["serves"]]

        past_users = np.bincount(
            np.unique(past.item.astype(np.int64) * len(past.user_ids) + past.user) // len(past.user_ids), minlength=len(past.item_ids)
        )
        per_user = {name: metrics.table(_judged(item, truth), CUTOFFS) for name, item in lists.items()}
        for name, item in lists.items():
            per_user[name] |= {
                f"novelty_at_{K}": spread.novelty(item, past_users, len(past.user_ids), K),
                f"diversity_at_{K}": spread.intra_list_diversity(item, goods.category, K),
            }
        groups = slices.users(users.lengths())
        report = {
            **decision,
            **_own(per_user[SERVED]["ndcg_at_10"], settings),
            **({"judged_by": world.judged_by} if world.judged_by else {}),
            "calibration": promised,
            "slices": _sliced(
                lists[SERVED], per_user[SERVED]["ndcg_at_10"], truth, users=groups, items=slices.items(past_users), settings=settings
            ),
            "metrics": {name: {metric: metrics.mean(values) for metric, values in table.items()} for name, table in per_user.items()},
        }
        report["cold"] = cold.quality(
            lists,
            settings.gate.baseline,
            indptr=truth.indptr,
            label_item=truth.item,
            label_gain=truth.gain,
            users={name: groups[name] for name in ("cold_users", "light_users")},
            cold_items=slices.cold_items(np.bincount(past.item, minlength=len(past.item_ids)), newness.known_days(past)),
            confidence=settings.gate.confidence,
            seed=settings.training.seed,
        )
        for name, item in lists.items():
            report["metrics"][name] |= {
                f"coverage_at_{K}": known(spread.coverage(item, len(world.item_ids), K)),
                f"gini_at_{K}": known(spread.gini(item, len(world.item_ids), K)),
            }
        record |= {**report, "metrics": report["metrics"][SERVED]}
        audience = Audience(
            truth,
            users,
            shop,
            past_users,
            len(past.user_ids),
            model.rerank,
            groups | attribution.segments(home, users, truth.user_ids, fold.cutoff),
            slices.items(past_users),
            settings.training.seed,
        )
        with cycle.stage(home, as_of, "ranking_attribution") as told:
            worth = attribution.rows(_stages(lists, decision, settings.retrieval.sources, rules), audience, K)
            told["steps"] = attribution.nested(worth)
        write_fairness(home, as_of, lists[SERVED], audience, settings.fairness)
        with publish.folder(folder(home, as_of), {"universe": world.digest, "serves": report["serves"], **_shown(model)}) as out:
            columns: dict[str, Any] = {c.USER_ID: pa.array(truth.user_ids, pa.string())}
            columns |= {f"ndcg_at_10__{name}": table["ndcg_at_10"] for name, table in sorted(per_user.items())}
            publish.write_parquet(out / "per_user.parquet", pa.table(columns | {f"slice__{name}": rows for name, rows in groups.items()}))
            publish.write_json(out / "metrics.json", report)
            publish.write_parquet(out / attribution.FILE, attribution.table(worth))
            if model.ranker and context:
                named = training_set.group_of(home, as_of)
                importance.write(out, model.ranker, context, proposed, truth, groups=named, seed=settings.training.seed)
            if promised:
                publish.write_text(
                    out / RELIABILITY_FILE, reliability_plot.svg(promised, f"{settings.ranking.ranker}, {fold.cutoff:%Y-%m-%d}")
                )


def _stages(lists: dict[str, Ints], decision: dict[str, Any], sources: tuple[str, ...], rules: list[chain.Step]) -> list[Stage]:
    """Return the steps of what is served, each with the one it is compared with."""
    stages = [Stage(name, "source", lists[name]) for name in sources]
    stages.append(Stage(BLEND, "blend", lists[BLEND], decision["best_single"]))
    if RANKED in lists:
        stages.append(Stage(RANKED, "ranker", lists[RANKED], BLEND))
    before = decision["serves"]
    for step in rules:
        stages.append(Stage(step.rule, "rule", step.after.item, before))
        before = step.rule
    return stages


def _judged(item: Ints, truth: Labels) -> Judged:
    return metrics.judge(item, truth.indptr, truth.item, truth.gain)


def _ndcg(item: Ints, truth: Labels) -> Doubles:
    return metrics.ndcg(_judged(item, truth), K)


def _own(ndcg: Doubles, settings: Settings) -> dict[str, float | int | None]:
    """Return the mean of what is served, with its interval."""
    found = paired.interval(ndcg, settings.gate.confidence, settings.training.seed)
    return {"ndcg_at_10": known(found.mean), "lower": known(found.lower), "upper": known(found.upper), "n_users": found.n}


def _sliced(
    item: Ints, ndcg: Doubles, truth: Labels, *, users: dict[str, Mask], items: dict[str, Mask], settings: Settings
) -> dict[str, Any]:
    """Return the mean NDCG@10 of what is served, with its interval, for kinds of users, and for the labels on kinds of items."""
    found = {name: _own(ndcg[rows], settings) for name, rows in users.items()}
    for name, wanted in items.items():
        gain = slices.labels_on(wanted, truth.item, truth.gain)
        found[name] = _own(metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, gain), K), settings)
    return found


def _orders(model: TwoStage, baselines: dict[str, Ranker], proposed: Proposals, context: Context | None, n_users: int) -> dict[str, Ranked]:
    """Return [n_users, k_blend] by name, the whole list of candidates in each order: the blend's, the ranker's, the baselines'."""
    scored = {BLEND: replace(model, serves=BLEND).order(proposed, None)}
    if model.ranker and context:
        rankers = {RANKED: model.ranker, **baselines}
        scored |= dict(zip(rankers, two_stage.scores(list(rankers.values()), proposed, context), strict=True))
    return {name: Ranked.ordered(*proposed.ranked(score, n_users, model.k_blend)[:2]) for name, score in scored.items()}


def _reliability(ranker: Ranker | None, proposed: Proposals, context: Context | None, truth: Labels) -> dict[str, Any] | None:
    """Return how far the ranker's probabilities can be believed on the judged window; None where it tells none that can be checked."""
    teller: object = ranker  # of two unrelated protocols mypy holds that nothing can satisfy both
    if ranker is None or context is None or not isinstance(teller, Probable) or teller.told() != "":
        return None
    parts = [teller.probability(two_stage.chosen(*assemble(context, block), ranker)) for block in proposed.blocks()]
    return calibration.reliability(np.concatenate([np.zeros(0), *parts]), proposed.gains(truth) > 0)


def decide(ndcg: dict[str, Doubles], sources: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    """Return what is served and why; pure.

    Args:
        ndcg: per order float64 [n_users]; `ranked` may be missing.
    """
    means = {name: metrics.mean(values) or 0.0 for name, values in ndcg.items()}
    best = max(sources, key=lambda name: means[name])  # the first of equals
    ranked = ndcg.get(RANKED, ndcg[BLEND])
    difference = paired.interval(ranked - ndcg[best], settings.gate.confidence, settings.training.seed)
    reasons = []
    if RANKED not in ndcg:
        serves, why = BLEND, "there was too little to train a ranker"
    elif not difference.lower > 0:
        serves, why = BLEND, f"the ranked list does not beat {best}: lower bound {difference.lower:+.4f}"
    else:
        serves, why = RANKED, ""
    if why:
        reasons.append(f"{why}; the blend is served")
    beaten = {}
    for name in sorted(ndcg.keys() - {*sources, BLEND, RANKED}) if RANKED in ndcg else ():
        against = paired.interval(ranked - ndcg[name], settings.gate.confidence, settings.training.seed)
        bounds = {"lower": known(against.lower), "upper": known(against.upper)}
        beaten[name] = {"ndcg_at_10": means[name], "difference": known(against.mean), **bounds}
        if not against.lower > 0:
            reasons.append(f"the ranked list does not beat the baseline {name}: lower bound {against.lower:+.4f}")
    return {
        "best_single": best,
        "best_single_ndcg_at_10": means[best],
        "blend_ndcg_at_10": means[BLEND],
        "ranked_ndcg_at_10": means.get(RANKED),
        "difference": known(difference.mean),
        "difference_lower": known(difference.lower),
        "difference_upper": known(difference.upper),
        "baselines": beaten,
        "serves": serves,
        "reasons": reasons,
    }


def known(value: float) -> float | None:
    """Return a number, or None where there is none to tell (JSON has no NaN)."""
    return float(value) if np.isfinite(value) else None
