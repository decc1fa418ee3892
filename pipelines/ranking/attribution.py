"""What each step of a list is worth on the judged window: sources, blend, ranker, then every rule of re-ranking.

    training/<as_of>/evaluation/attribution.parquet, a row a (step, slice, metric):
        step, kind      string; kind is source, blend, ranker or rule
        against         string, the step it is compared with on the same users: the one before it; the blend with the best single
                        source; null for sources
        slice           string, `all`; light, heavy and cold users; head, torso and tail items (labels on them alone); the largest
                        countries and age bands; the device of a user's last event
        metric          string: ndcg_at_10, recall_at_50, ceiling (recall of the whole list), coverage_at_10, diversity_at_10,
                        novelty_at_10, gini_at_10, category_miscalibration_at_10 and popularity_miscalibration_at_10 (KL in nats, less is
                        better), a rule's own measure (`rerank.measures`); slices have the first two
        value           float64
        users           int64, of the slice who could be measured
        difference, lower, upper   float64, value minus that of `against`, with its 95% interval

Intervals of everybody's NDCG and recall are those of `evaluation.paired`; all others draw users again (`evaluation.resampled`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import lake, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Histories, Ids, Ints, positions, strings
from pipelines.datasets.labels import Labels
from pipelines.errors import StateError
from pipelines.evaluation import metrics, paired, resampled, slices, spread
from pipelines.evaluation.metrics import Doubles
from pipelines.evaluation.resampled import Drawn, Figure
from pipelines.evaluation.slices import Mask
from pipelines.ranking.rerank import measures
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.measures import Measure
from pipelines.rerank_policies import RerankSettings
from pipelines.window import stamped

FILE: Final = "attribution.parquet"
ALL: Final = "all"
SEGMENTS: Final = 4  # the largest countries, and age bands, that have a slice
MIN_USERS: Final = 20  # in a slice
HEADLINE: Final = ("ndcg_at_10", "recall_at_50")

Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """The lists of one step: int32 [n_users, m], best first, -1 pads; `against` names an earlier one."""

    step: str
    kind: str
    item: Ints
    against: str | None = None


@dataclass(frozen=True)
class Audience:
    """Whom lists are judged for, and what is known of them and of the items.

    Attributes:
        truth, users, goods: of the judged window; row r of each is the same user.
        users_of_item: int64 [n_items], users who had met each item; n_users of so many.
        groups: name -> bool [n_users].
        parts: name -> bool [n_items].
    """

    truth: Labels
    users: Histories
    goods: Goods
    users_of_item: npt.NDArray[np.integer]
    n_users: int
    rules: RerankSettings = field(default_factory=RerankSettings)
    groups: Mapping[str, Mask] = field(default_factory=dict)
    parts: Mapping[str, Mask] = field(default_factory=dict)
    seed: int = 0
    confidence: float = 0.95


def segments(home: Home, users: Histories, user_ids: Ids, before: datetime) -> dict[str, Mask]:
    """Return the users by country, age band and device: the largest of each; nobody is in a slice of what is unknown of them.

    The device is that of a user's last event before a moment that names one.
    """
    names: dict[str, Ids] = {}
    if users.users is not None:
        for column in (c.COUNTRY, c.AGE_BAND):
            names[column] = strings(pa.chunked_array([users.users[column].combine_chunks().cast(pa.string()).fill_null("")]))
    with lake.connect(home, before=before) as db:
        last = db.sql(
            "SELECT user_id, arg_max(device, (event_at, event_id)) AS device FROM events WHERE device IS NOT NULL GROUP BY ALL ORDER BY ALL"
        ).to_arrow_table()
    place = positions(user_ids, strings(last[c.USER_ID]))
    words = strings(last[c.DEVICE])
    names[c.DEVICE] = np.where(place >= 0, words[place], "") if len(words) else np.full(len(user_ids), "")
    found = {}
    for column, of in names.items():
        known, count = np.unique(of[of != ""], return_counts=True)
        for name in known[np.argsort(-count, kind="stable")][:SEGMENTS]:
            found[f"{column}:{name}"] = of == name
    return found


def rows(stages: Sequence[Stage], audience: Audience, k: int = 10) -> list[Row]:
    """Return the table's rows, in the order of the stages; what is held at once is one stage's numbers, and everybody's headline."""
    drawn: dict[str, dict[str, Drawn]] = {}
    headlines: dict[str, dict[str, Doubles]] = {}
    found: list[Row] = []
    for stage in stages:
        measured = _measured(stage, audience, _own(stage, stages), k)
        mine = drawn[stage.step] = resampled.drawn(
            {json.dumps(name): figure for name, (figure, _) in measured.items()}, audience.truth.n_users, audience.seed
        )
        headlines[stage.step] = {name: values for name in HEADLINE if (values := measured[ALL, name][1]) is not None}
        theirs = drawn.get(stage.against or "", {})
        for (group, metric), (_, values) in measured.items():
            name = json.dumps((group, metric))
            row: Row = {"step": stage.step, "kind": stage.kind, "against": stage.against, "slice": group, "metric": metric}
            row |= {
                "value": mine[name].interval()["value"],
                "users": audience.truth.n_users if values is None else int((~np.isnan(values)).sum()),
            }
            row |= dict.fromkeys(("difference", "lower", "upper"))
            if group == ALL and metric in HEADLINE and stage.against is not None and values is not None:
                difference = paired.interval(values - headlines[stage.against][metric], audience.confidence, audience.seed)
                row |= {"difference": _known(difference.mean), "lower": _known(difference.lower), "upper": _known(difference.upper)}
            elif name in theirs:
                apart = mine[name].minus(theirs[name], audience.confidence)
                row |= {"difference": apart["value"], "lower": apart["lower"], "upper": apart["upper"]}
            found.append(row)
    return found


Measured = dict[tuple[str, str], tuple[Figure, Doubles | None]]


def _own(stage: Stage, stages: Sequence[Stage]) -> list[Measure]:
    """Return the own measures of a stage's rule, and of the rule that is compared with it."""
    asked = [stage.step, *(other.step for other in stages if other.against == stage.step)]
    return [measures.MEASURES[name] for name in asked if name in measures.MEASURES]


def _measured(stage: Stage, audience: Audience, own: list[Measure], k: int) -> Measured:
    """Return by (slice, metric) how one step's lists are measured: as a figure of users drawn, and as a number a user where it is one."""
    truth, goods, users = audience.truth, audience.goods, audience.users
    judged = metrics.judge(stage.item, truth.indptr, truth.item, truth.gain)
    first = stage.item[:, :k]
    headline = {"ndcg_at_10": metrics.ndcg(judged, k), "recall_at_50": metrics.recall(judged, 50)}
    each = {
        **headline,
        "ceiling": metrics.recall(judged, stage.item.shape[1]),
        "diversity_at_10": spread.intra_list_diversity(stage.item, goods.category, k),
        "novelty_at_10": spread.novelty(stage.item, audience.users_of_item, audience.n_users, k),
        "category_miscalibration_at_10": measures.categories_missed(first, goods, users, audience.rules),
        "popularity_miscalibration_at_10": measures.popularity_missed(first, goods, users, audience.rules),
        **{measure.name: measure.of(first, goods, users, audience.rules) for measure in own},
    }
    found: Measured = {(ALL, name): (resampled.mean(values), values) for name, values in each.items()}
    exposed = resampled.shown(stage.item, len(goods), k)
    found |= {(ALL, "coverage_at_10"): (resampled.coverage(exposed), None), (ALL, "gini_at_10"): (resampled.gini(exposed), None)}
    for group, rows_of in audience.groups.items():
        if rows_of.sum() >= MIN_USERS:
            for name, values in headline.items():
                within = np.where(rows_of, values, np.nan)
                found[group, name] = resampled.mean(within), within
    for part, wanted in audience.parts.items():
        some = metrics.judge(stage.item, truth.indptr, truth.item, slices.labels_on(wanted, truth.item, truth.gain))
        for name, values in (("ndcg_at_10", metrics.ndcg(some, k)), ("recall_at_50", metrics.recall(some, 50))):
            if (~np.isnan(values)).sum() >= MIN_USERS:
                found[part, name] = resampled.mean(values), values
    return found


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def table(found: Sequence[Row]) -> pa.Table:
    """Return the rows as they are published."""
    kinds = {"value": pa.float64(), "difference": pa.float64(), "lower": pa.float64(), "upper": pa.float64(), "users": pa.int64()}
    names = ("step", "kind", "against", "slice", "metric", "value", "users", "difference", "lower", "upper")
    return pa.Table.from_pylist(list(found), pa.schema([(name, kinds.get(name, pa.string())) for name in names]))


def nested(found: Sequence[Row]) -> dict[str, Any]:
    """Return {step: {kind, against, metrics: {metric: figures}, slices: {slice: {metric: figures}}}} for records and run.json."""
    steps: dict[str, Any] = {}
    for row in found:
        step = steps.setdefault(row["step"], {"kind": row["kind"], "against": row["against"], "metrics": {}, "slices": {}})
        figures = {name: row[name] for name in ("value", "users", "difference", "lower", "upper")}
        (step["metrics"] if row["slice"] == ALL else step["slices"].setdefault(row["slice"], {}))[row["metric"]] = figures
    return steps


def load(home: Home, as_of: datetime) -> list[Row]:
    """Return the rows of a run.

    Raises:
        StateError: the run was not evaluated, or the table was changed.
    """
    path = universe.run_folder(home, as_of) / "evaluation"
    publish.manifest(path, verify=True)
    found: list[Row] = pq.read_table(path / FILE).to_pylist()
    return found


def newest(home: Home, until: datetime | None = None) -> datetime:
    """Return the newest run that has a table, or the run at a moment.

    Raises:
        StateError: there is none.
    """
    runs = [stamped(path.parent.parent.name) for path in sorted(home.training.glob(f"*/evaluation/{FILE}"))]
    found = [run for run in runs if run is not None and (until is None or run == until)]
    if not found:
        raise StateError(
            "attribution of the ranking",
            found=f"runs with one: {[f'{run:%Y-%m-%d}' for run in runs]}" if runs else "no training run has one",
            allowed="a run that was evaluated",
            hint="run `reloop train` first",
        )
    return found[-1]


LEGEND: Final = (
    "In brackets: 95% of the difference to the step it is compared with, on the same users. Miscalibration: KL in nats from the "
    "history to the list, less is better. Gini: 0 when all items are shown alike. Own: what the rule is for, before and after."
)
SHOWN: Final = {
    "ndcg_at_10": "NDCG@10",
    "recall_at_50": "recall@50",
    "ceiling": "ceiling",
    "coverage_at_10": "coverage",
    "diversity_at_10": "diversity",
    "novelty_at_10": "novelty",
    "category_miscalibration_at_10": "miscal. cat.",
    "popularity_miscalibration_at_10": "miscal. pop.",
    "gini_at_10": "Gini",
}


def cells(found: Sequence[Row], group: str = ALL) -> list[dict[str, str]]:
    """Return a line a step as texts: its figures, and what the rule is for; what was not measured is a dash."""
    by = {(row["step"], row["metric"]): row for row in found if row["slice"] == group}
    lines = []
    for step, kind, against in dict.fromkeys((row["step"], row["kind"], row["against"]) for row in found):
        line = {"step": step, "against": against or ""}
        for metric, heading in SHOWN.items():
            row = by.get((step, metric))
            line[heading] = "-" if row is None or row["value"] is None else f"{row['value']:.4f}"
            if row is not None and metric in HEADLINE and row["lower"] is not None:
                line[heading] += f" [{row['lower']:+.4f}, {row['upper']:+.4f}]"
        line["own"] = ""
        if kind == "rule" and (now := by.get((step, measures.MEASURES[step].name))) is not None and now["value"] is not None:
            was = by[against, now["metric"]]["value"]
            line["own"] = f"{now['metric']} {'-' if was is None else f'{was:.3f}'} -> {now['value']:.3f}"
        lines.append(line)
    return lines


def text(home: Home, as_of: datetime) -> str:
    """Return the table of a run as plain text, for a log."""
    lines = cells(load(home, as_of))
    widths = {name: max(len(name), *(len(line[name]) for line in lines)) for name in lines[0]}
    head = "  ".join(f"{name:<{width}}" for name, width in widths.items()).rstrip()
    return "\n".join([head, *("  ".join(f"{line[name]:<{width}}" for name, width in widths.items()).rstrip() for line in lines), LEGEND])
