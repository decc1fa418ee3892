"""What each rule of re-ranking would cost and bring on the judged window of a run, tried alone: to be seen before one is switched on."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from pipelines import config
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import histories, positions
from pipelines.datasets.split import JUDGE
from pipelines.evaluation import slices
from pipelines.ranking import attribution, judging, proposals, two_stage
from pipelines.ranking.attribution import Audience, Row, Stage
from pipelines.ranking.rerank import chain, measures
from pipelines.ranking.rerank import goods as shops
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.ranking.two_stage import RANKED
from pipelines.rerank_policies import MmrPolicy, RerankSettings
from pipelines.retrieval import blend


def tried(home: Home, as_of: datetime) -> list[Row]:
    """Return the rows of `attribution.rows` for what is served without any rule, and for every rule alone on top of it.

    A rule that the settings configure has their strength, every other its default one.

    Raises:
        StateError: the run was not evaluated, or a stage of it is missing or was changed.
    """
    settings = config.load(home)
    world, serves = universe.load(home, as_of), judging.served(home, as_of)
    model = two_stage.of_run(home, as_of, serves=serves)
    fold, truth = world.fold(JUDGE), world.labels(JUDGE)
    past = world.interactions(fold.cutoff, settings.training)
    users = histories(past, truth.user_ids)
    proposed = proposals.of_table(blend.candidates(home, as_of, JUDGE), positions(truth.user_ids, world.user_ids))
    context = model.context(home, proposed, users, truth.user_ids, fold.cutoff) if serves == RANKED else None
    lists = Ranked.ordered(*proposed.ranked(model.order(proposed, context), truth.n_users, model.k_blend)[:2])
    compared = settings.rerank.model_copy(update={"mmr": settings.rerank.mmr or MmrPolicy()})  # both are tried, on or off
    goods = shops.compared(past, compared, model.retrievers)
    stages = [Stage(serves, "ranker" if serves == RANKED else "blend", lists.item)]
    for rule in chain.RULES:
        policy = getattr(settings.rerank, rule) or True
        alone = RerankSettings.model_validate(
            {"availability": False, rule: policy, "likeness": settings.rerank.likeness, "depth": settings.rerank.depth}
        )
        step = next(chain.steps(lists, goods, users, alone))
        stages.append(Stage(rule, "rule", step.after.item, serves))
    met = np.unique(past.item.astype(np.int64) * max(len(past.user_ids), 1) + past.user) // max(len(past.user_ids), 1)
    users_of_item = np.bincount(met, minlength=len(past.item_ids))
    audience = Audience(
        truth,
        users,
        goods,
        users_of_item,
        len(past.user_ids),
        settings.rerank,
        slices.users(users.lengths()),
        slices.items(users_of_item),
        settings.training.seed,
    )
    return attribution.rows(stages, audience)


def lines(rows: list[Row]) -> list[dict[str, str]]:
    """Return a line a rule as texts: its cost in NDCG@10, its gain in its own measure, each with the 95% interval, and what else moved."""
    by = {(row["step"], row["metric"]): row for row in rows if row["slice"] == attribution.ALL}

    def moved(row: Row, digits: int = 4) -> str:
        if row["difference"] is None:
            return "-"
        bounds = "" if row["lower"] is None else f" [{row['lower']:+.{digits}f}, {row['upper']:+.{digits}f}]"
        return f"{row['difference']:+.{digits}f}{bounds}"

    found = []
    for step, against in dict.fromkeys((row["step"], row["against"]) for row in rows if row["kind"] == "rule"):
        own = by[step, measures.MEASURES[step].name]
        was = by[against, own["metric"]]["value"]
        found.append(
            {
                "rule": step,
                "NDCG@10": moved(by[step, "ndcg_at_10"]),
                "own measure": f"{own['metric']} ({'more' if measures.MEASURES[step].wanted > 0 else 'less'} is wanted)",
                "before": "-" if was is None else f"{was:.4f}",
                "change": moved(own),
                "recall@50": moved(by[step, "recall_at_50"]),
                "coverage": moved(by[step, "coverage_at_10"]),
                "Gini": moved(by[step, "gini_at_10"]),
            }
        )
    return found
