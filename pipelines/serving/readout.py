"""An experiment read from the lake: who was shown which arm, what they did, and what `evaluation.experiments` says of it.

Metrics, a unit each (a larger one is better):
    ctr           impressions with an outcome over impressions
    click_rate    share of units with any outcome
    conversion    share of units that bought
    revenue       money spent, shop currency
    actions       events
Those of `ctr` and `click_rate` are outcomes of impressions (`lake.outcomes`). The other ones count whatever a user did from
the first exposure to the end, on any page: an arm that only moves purchases from one surface to another earns nothing. Where the unit is a
request, they count its outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import duckdb
import numpy as np

from pipelines import columns as c
from pipelines import config
from pipelines.config import Home, Settings
from pipelines.errors import NotEnoughData, StateError
from pipelines.evaluation import experiments, interleaving
from pipelines.evaluation.experiments import Metric, Plan, Readout
from pipelines.evaluation.interleaving import TEAM, Preference
from pipelines.lake import outcomes
from pipelines.serving.assignment import Experiment, Experiments, arm_in
from pipelines.window import DAY, Window, utc

Exposed = Literal["answered", "seen"]
METRICS: Final = ("ctr", "click_rate", "conversion", "revenue", "actions")
# What is known of a user from before the experiment, for each metric.
BEFORE: Final = {
    "ctr": "events_before",
    "click_rate": "events_before",
    "conversion": "bought_before",
    "revenue": "paid_before",
    "actions": "events_before",
}


@dataclass(frozen=True)
class Reading:
    """An experiment's readout, of which units and impressions, and its interleaved arms.

    Attributes:
        impressions: of the experiment in the window, by arm; arms that are not declared (any more) among them.
        empty: share of each arm's answers that showed nothing.
        crossed: units that met more than one arm.
        preferences: interleaved arm -> which of its two sides users prefer.
    """

    window: Window
    readout: Readout
    impressions: dict[str, int]
    crossed: int
    preferences: dict[str, Preference]
    empty: dict[str, float]

    def record(self) -> dict[str, Any]:
        """Return everything for machines."""
        return {
            "from": self.window.start.isoformat(),
            "to": self.window.end.isoformat(),
            "impressions": self.impressions,
            "empty": self.empty,
            "crossed": self.crossed,
            **experiments.told(self.readout),
            "interleaving": {
                arm: {
                    "users": found.score.n, "score": found.score.mean, "lower": found.always_lower, "upper": found.always_upper,
                    "wins": list(found.wins), "winner": found.winner, "reasons": list(found.reasons),
                }
                for arm, found in self.preferences.items()
            },
        }  # fmt: skip


def named(declared: Experiments, name: str) -> Experiment:
    """Return an experiment by its name.

    Raises:
        StateError: it is not declared.
    """
    if name not in declared.declared:
        known = ", ".join(declared.declared) or "none is declared"
        raise StateError("experiment", found=repr(name), allowed=known, hint="experiments.toml of the state folder declares them")
    return declared.declared[name]


def window_of(experiment: Experiment, start: datetime | None, end: datetime | None) -> Window:
    """Return the window to read: what was asked for, else what was declared.

    Raises:
        StateError: neither says it.
    """
    first, last = start or experiment.start, end or experiment.end
    if first is None or last is None:
        missing = "--from" if first is None else "--to"
        raise StateError(
            "experiment", found=f"no {missing}, and none declared", allowed=f"{missing} DAY, or start and end in experiments.toml"
        )
    return Window(utc(first), utc(last))


def read(
    home: Home, name: str, experiment: Experiment, window: Window, settings: Settings | None = None, *, exposed: Exposed = "answered"
) -> Reading:
    """Return what an experiment says in a window.

    Args:
        exposed: what counts as an exposure: every answer, or the places that came into view, as clients say.

    Raises:
        StateError: a metric of the experiment is not known.
        NotEnoughData: nothing of the experiment was shown in the window.
    """
    settings = settings or config.load(home)
    unknown = [one for one in (experiment.primary, *experiment.guardrails) if one not in METRICS]
    if unknown:
        raise StateError(f"experiment {name}", found=f"metric {', '.join(unknown)}", allowed=", ".join(METRICS))
    with outcomes.connect(home, window, settings.impressions.attribution_hours) as engine:
        _shown(engine, name, experiment, exposed)
        of_arm = f"""SELECT arm, count(*) FILTER ({c.RANK} > 0),
            count(DISTINCT {c.REQUEST_ID}) FILTER ({c.RANK} = 0) / count(DISTINCT {c.REQUEST_ID}) FROM seen GROUP BY arm ORDER BY arm"""
        told = engine.execute(of_arm).fetchall()
        counts, empty = {arm: places for arm, places, _ in told}, {arm: share for arm, _, share in told}
        newest = utc(engine.execute(f"SELECT max({c.SHOWN_AT}) FROM logged").fetchall()[0][0] or window.start)
        crossed = int(
            engine.execute("SELECT count(*) FROM (SELECT unit FROM seen GROUP BY unit HAVING count(DISTINCT arm) > 1)").fetchall()[0][0]
        )
        units = _units(engine, experiment, window, settings.experiment.cuped_days)
        preferences = {
            arm: _preference(engine, arm, one.interleave, settings, experiment) for arm, one in experiment.arms.items() if one.interleave
        }
    if not counts:
        raise NotEnoughData(
            f"experiment {name}", found=f"no impression of it from {window.start:%Y-%m-%d} to {window.end:%Y-%m-%d}",
            allowed="impressions whose variant names it", hint="`reloop impressions` lands what the service has logged",
        )  # fmt: skip
    arms = list(experiment.arms)
    rows = [units["arm"] == arm for arm in arms]
    adjust = settings.experiment.cuped_days > 0 and experiment.unit == "user"
    metrics = {metric: _metric(units, rows, metric, adjust=adjust) for metric in METRICS}
    plan = Plan(
        tuple(arms),
        tuple(experiment.arms[arm].weight for arm in arms),
        experiment.primary,
        experiment.guardrails,
        experiment.planned_units,
        ended=experiment.end is not None and window.end >= experiment.end and newest >= experiment.end - DAY,
    )
    return Reading(window, experiments.read(plan, metrics, settings.experiment, crossed=crossed), counts, crossed, preferences, empty)


def _shown(engine: duckdb.DuckDBPyConnection, name: str, experiment: Experiment, exposed: Exposed) -> None:
    """Define the table `seen`: the experiment's impressions with their arm and unit; of an answer without any, a row of rank 0."""
    unit = {"user": c.USER_ID, "request": c.REQUEST_ID}[experiment.unit]
    variants = [row[0] for row in engine.execute(f"SELECT DISTINCT {c.VARIANT} FROM logged WHERE {c.VARIANT} IS NOT NULL").fetchall()]
    engine.execute(f"CREATE TEMP TABLE arms ({c.VARIANT} VARCHAR, arm VARCHAR)")
    of = [(variant, arm) for variant in variants if (arm := arm_in(variant, name)) is not None]
    if of:
        engine.executemany("INSERT INTO arms VALUES (?, ?)", of)
    empty = f"SELECT * EXCLUDE ({c.FEATURE_VALUES}), false AS clicked, 0::DOUBLE AS revenue, false AS purchased FROM empty_answers"
    engine.execute(
        f"CREATE TEMP TABLE seen AS SELECT {unit} AS unit, arms.arm, exposed.* FROM ("
        + (
            f"SELECT * FROM outcomes WHERE {c.SEEN_AT} IS NOT NULL"
            if exposed == "seen"
            else f"SELECT * FROM outcomes UNION ALL BY NAME {empty}"
        )
        + f") AS exposed JOIN arms USING ({c.VARIANT})"
    )


def _units(engine: duckdb.DuckDBPyConnection, experiment: Experiment, window: Window, cuped_days: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return a row a unit that met one arm alone, sorted by unit."""
    first = window.start - timedelta(days=cuped_days)
    outcome = "a.purchased, a.revenue, a.clicked AS actions" if experiment.unit == "request" else "d.purchased, d.revenue, d.actions"
    bought, paid = (
        f"{c.EVENT_TYPE} = '{c.PURCHASE}'",
        f"coalesce(sum(CAST({c.VALUE} AS DECIMAL(38, 6))) FILTER ({c.EVENT_TYPE} = '{c.PURCHASE}'), 0)::DOUBLE",
    )
    found: dict[str, np.ndarray[Any, Any]] = engine.execute(
        f"""WITH a AS (
            SELECT unit, any_value(arm) AS arm, count(*) FILTER ({c.RANK} > 0) AS shown, sum(clicked::INT) AS clicked, max(purchased::INT) AS purchased,
                sum(CAST(revenue AS DECIMAL(38, 6)))::DOUBLE AS revenue, min({c.SHOWN_AT}) AS first_at
            FROM seen GROUP BY unit HAVING count(DISTINCT arm) = 1
        ), d AS (
            SELECT a.unit, max(({bought})::INT) AS purchased, {paid} AS revenue, count(*) AS actions
            FROM a JOIN events ON {c.USER_ID} = a.unit AND {c.EVENT_AT} >= a.first_at AND {c.EVENT_AT} < $end GROUP BY a.unit
        ), b AS (
            SELECT a.unit, max(({bought})::INT) AS purchased, {paid} AS revenue, count(*) AS actions
            FROM a JOIN events ON {c.USER_ID} = a.unit AND {c.EVENT_AT} >= $first AND {c.EVENT_AT} < $start GROUP BY a.unit
        )
        SELECT unit, arm, shown::DOUBLE AS shown, clicked::DOUBLE AS clicked, (clicked > 0)::DOUBLE AS click_rate,
            coalesce(purchased, 0)::DOUBLE AS conversion, coalesce(revenue, 0) AS revenue, coalesce(actions, 0)::DOUBLE AS actions,
            coalesce(bought_before, 0)::DOUBLE AS bought_before, coalesce(paid_before, 0) AS paid_before,
            coalesce(events_before, 0)::DOUBLE AS events_before
        FROM (
            SELECT a.unit, a.arm, a.shown, a.clicked, {outcome}, b.purchased AS bought_before, b.revenue AS paid_before,
                b.actions AS events_before
            FROM a LEFT JOIN d USING (unit) LEFT JOIN b USING (unit)
        ) ORDER BY unit""",
        {"end": window.end, "start": window.start, "first": first},
    ).fetchnumpy()
    return found


def _metric(units: Mapping[str, np.ndarray[Any, Any]], rows: list[Any], name: str, *, adjust: bool) -> Metric:
    """Return a metric's sums, an array an arm."""
    top = units["clicked" if name == "ctr" else name]
    bottom = units["shown"] if name == "ctr" else np.ones(len(top))
    before = [units[BEFORE[name]][row] for row in rows] if adjust else None
    return Metric([top[row] for row in rows], [bottom[row] for row in rows], before)


def _preference(
    engine: duckdb.DuckDBPyConnection, arm: str, sides: tuple[str, str] | None, settings: Settings, experiment: Experiment
) -> Preference:
    """Return which side of an interleaved arm users prefer, by clicks on what each side picked."""
    a, b = (f"coalesce(sum((clicked AND list_contains({c.SOURCES}, '{TEAM}{side}'))::INT), 0)::DOUBLE" for side in sides or ("", ""))
    found = engine.execute(
        f"SELECT {c.USER_ID}, {a} AS a, {b} AS b FROM seen WHERE arm = $arm GROUP BY ALL ORDER BY ALL", {"arm": arm}
    ).fetchnumpy()
    policy = settings.experiment
    return interleaving.preference(
        np.asarray(found["a"], dtype=np.float64), np.asarray(found["b"], dtype=np.float64),
        confidence=policy.confidence, planned=experiment.planned_units, min_users=policy.min_units,
    )  # fmt: skip
