"""What a ranker's features are worth: to its trees, to its lists, and to one item of one list.

    importance.json      features: feature, group, gain (share of the total split gain), permuted (NDCG@10 that is lost; null where
                         it was not tried); groups: group, gain, permuted; request: item, score, and what each feature
                         added to the score
    importance.svg       gain and permutation side by side
    contributions.svg    the request

Permutation (Breiman, "Random forests", Machine Learning 45, 2001, section 10) is measured on lists of the judged window that
have a positive among their candidates: a column's values change places within each list, or between lists where each list
has one value; the columns of a group move together. Contributions are Shapley values of the trees (Lundberg et al., "From
local explanations to global understanding with explainable AI for trees", Nature Machine Intelligence 2, 2020), as LightGBM
computes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines import publish
from pipelines.datasets.interactions import Floats, Ids, Longs
from pipelines.datasets.labels import Labels
from pipelines.evaluation import metrics
from pipelines.ranking import importance_plot
from pipelines.ranking.context import Context
from pipelines.ranking.features import assemble
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.protocol import Ranker
from pipelines.ranking.trees import Boosted

FILE: Final = "importance.json"
PLOTS: Final = ("importance.svg", "contributions.svg")
N_LISTS: Final = 200
N_ALONE: Final = 15  # features that are permuted one by one: those of the largest gain
N_TOLD: Final = 12  # contributions that are named
K: Final = 10


def write(out: Path, ranker: Ranker, context: Context, proposed: Proposals, truth: Labels, *, groups: Mapping[str, str], seed: int) -> None:
    """Measure, and write the three files into a folder that the caller publishes.

    Args:
        proposed: `row` counts the rows of the labels.
        groups: group of each feature, by name.
    """
    found = measure(ranker, context, proposed, truth, groups=groups, seed=seed)
    publish.write_json(out / FILE, found)
    publish.write_text(out / PLOTS[0], importance_plot.importance(found, "what the features are worth"))
    if found["request"]:
        publish.write_text(out / PLOTS[1], importance_plot.contributions(found["request"], f"why {found['request']['item']} is first"))


def measure(
    ranker: Ranker, context: Context, proposed: Proposals, truth: Labels, *, groups: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """Return what `importance.json` holds; arguments as for `write`."""
    whose = np.unique(proposed.row[proposed.gains(truth) > 0])
    drawn = np.sort(np.random.default_rng(seed).choice(whose, size=min(N_LISTS, len(whose)), replace=False))
    asked = proposed[np.isin(proposed.row, drawn)]
    matrix, names = assemble(context, asked)
    matrix = matrix[:, [names.index(name) for name in ranker.features]]
    lists, labels = replace(asked, row=np.searchsorted(drawn, asked.row)), truth.take(drawn)

    def ndcg(features: Floats) -> float:
        score = ranker.score(features, np.diff(lists.starts()).astype(np.int32))
        item = lists.ranked(score, len(drawn), K)[0]
        return metrics.mean(metrics.ndcg(metrics.judge(item, labels.indptr, labels.item, labels.gain), K)) or 0.0

    whole = ndcg(matrix)

    def lost(columns: Sequence[int]) -> float:
        return whole - ndcg(permuted(matrix, lists.starts(), columns, seed))

    place = {name: at for at, name in enumerate(ranker.features)}
    gain = ranker.importance
    alone = sorted(gain, key=lambda name: -gain[name])[:N_ALONE]
    features = [
        {"feature": name, "group": groups.get(name, ""), "gain": share, "permuted": lost([place[name]]) if name in alone else None}
        for name, share in sorted(gain.items(), key=lambda pair: -pair[1])
    ]
    members = {group: [name for name in ranker.features if groups.get(name, "") == group] for group in dict.fromkeys(groups.values())}
    by_group = [
        {"group": group, "gain": sum(gain.get(name, 0.0) for name in some), "permuted": lost([place[name] for name in some])}
        for group, some in members.items()
        if some
    ]
    return {
        "ndcg_at_10": whole,
        "lists": len(drawn),
        "features": features,
        "groups": by_group,
        "request": _request(ranker, matrix, lists, truth.item_ids),
    }


def permuted(matrix: Floats, starts: Longs, columns: Sequence[int], seed: int) -> Floats:
    """Return the matrix with some columns' values in other rows: of the same list, or, of columns that have one value a list, of another list.

    Args:
        starts: int64 [n_lists + 1], bounds of the lists.
    """
    rng, found, sizes = np.random.default_rng(seed), matrix.copy(), np.diff(starts)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    within = np.lexsort((rng.random(len(matrix)), owner))
    other = rng.permutation(len(sizes))[owner]
    first = matrix[starts[:-1]]
    same = ((matrix == first[owner]) | (np.isnan(matrix) & np.isnan(first[owner]))).all(axis=0)
    for column in columns:
        found[:, column] = first[other, column] if same[column] else matrix[within, column]
    return found


def contributions(ranker: Ranker, matrix: Floats) -> npt.NDArray[np.float64] | None:
    """Return float64 [n, n_features + 1], what each feature added to a row's score, the last what every row begins with; None without trees.

    A row adds up to its score.
    """
    if not isinstance(ranker, Boosted):
        return None
    return np.asarray(ranker.fitted().booster.predict(matrix, pred_contrib=True, num_threads=ranker.num_threads), dtype=np.float64)


def _request(ranker: Ranker, matrix: Floats, lists: Proposals, item_ids: Ids) -> dict[str, Any] | None:
    """Return what made the first item of the first list the first."""
    if not len(lists):
        return None
    score = ranker.score(matrix, np.diff(lists.starts()).astype(np.int32))
    best = int(np.argmax(np.where(lists.row == 0, score, -np.inf)))
    added = contributions(ranker, matrix[best : best + 1])
    if added is None:
        return None
    order = np.argsort(-np.abs(added[0, :-1]), kind="stable")[:N_TOLD]
    told = [
        {
            "feature": ranker.features[at],
            "value": float(matrix[best, at]) if np.isfinite(matrix[best, at]) else None,
            "added": float(added[0, at]),
        }
        for at in order
    ]
    rest = float(added[0, :-1].sum() - sum(one["added"] for one in told))
    item = str(item_ids[lists.item[best]])
    return {
        "item": item,
        "score": float(score[best]),
        "start": float(added[0, -1]),
        "told": told,
        "rest": rest,
    }
