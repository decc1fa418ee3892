"""What became of what was shown: each event goes to one impression at most, the one that it names or the last that its user saw.

An event is an outcome of the impression whose request it names and whose item it is of; else of the newest impression of its item to
its user (last touch). Either only within the attribution window after the item was shown. So one event counts once, and what
experiments, off-policy estimates and training read agrees.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import duckdb

from pipelines import columns as c
from pipelines import tables
from pipelines.config import Home
from pipelines.errors import ReloopError
from pipelines.lake import impressions, reading
from pipelines.lake.engine import quoted
from pipelines.window import Window, utc

CLOCK_SLACK_MINUTES: Final = 5  # a device's clock may be that much behind ours: an event that names its request may seem to precede it


def connect(home: Home, window: Window, attribution_hours: float) -> duckdb.DuckDBPyConnection:
    """Return DuckDB with what was shown in a window and what became of it.

    Views and tables:
        impressions, empty_answers, seen_places: of the window (`lake.impressions`).
        events: all that the lake holds.
        credited: one row an event that is an outcome: event_id, request_id, item_id, how ("named" or "last touch").
        outcomes: one row an impression: its columns but `feature_values`; clicked (any outcome), added, purchased, bool; revenue,
            double, shop currency; first_event_at, null where nothing became of it; seen_at, null where nobody said that it came into view.

    Raises:
        ReloopError: the attribution window is not above 0.
    """
    if not attribution_hours > 0:
        raise ReloopError("attribution window", found=f"{attribution_hours} hours", allowed="more than 0")
    engine = reading.connect(home)
    impressions.view(engine, home, window)
    reach = timedelta(hours=attribution_hours)
    start, end = (
        f"TIMESTAMPTZ {quoted(utc(moment).isoformat())}"
        for moment in (window.start - timedelta(minutes=CLOCK_SLACK_MINUTES), window.end + reach)
    )
    within = f"did.{c.EVENT_AT} < shown.{c.SHOWN_AT} + INTERVAL {int(reach.total_seconds() * 1e6)} MICROSECONDS"
    engine.execute(
        f"""CREATE TEMP TABLE credited AS
        WITH shown AS (  -- one a user, item and moment: a tie would leave the choice to chance
            SELECT {c.USER_ID}, {c.ITEM_ID}, {c.SHOWN_AT}, min({c.REQUEST_ID}) AS {c.REQUEST_ID} FROM impressions GROUP BY ALL
        ), did AS (
            SELECT {c.EVENT_ID}, {c.USER_ID}, {c.ITEM_ID}, {c.REQUEST_ID}, {c.EVENT_AT} FROM events
            WHERE {c.EVENT_AT} >= {start} AND {c.EVENT_AT} < {end}
        ), named AS (
            SELECT DISTINCT did.{c.EVENT_ID}, shown.{c.REQUEST_ID}, shown.{c.ITEM_ID}
            FROM did JOIN impressions AS shown ON shown.{c.REQUEST_ID} = did.{c.REQUEST_ID} AND shown.{c.ITEM_ID} = did.{c.ITEM_ID}
            WHERE did.{c.EVENT_AT} >= shown.{c.SHOWN_AT} - INTERVAL {CLOCK_SLACK_MINUTES} MINUTES AND {within}
        ), touched AS (
            SELECT did.{c.EVENT_ID}, shown.{c.REQUEST_ID}, shown.{c.ITEM_ID}
            FROM (SELECT * FROM did ANTI JOIN named USING ({c.EVENT_ID})) AS did ASOF JOIN shown
            ON shown.{c.USER_ID} = did.{c.USER_ID} AND shown.{c.ITEM_ID} = did.{c.ITEM_ID} AND did.{c.EVENT_AT} >= shown.{c.SHOWN_AT}
            WHERE {within}
        )
        SELECT *, 'named' AS how FROM named UNION ALL SELECT *, 'last touch' AS how FROM touched"""
    )
    kept = ", ".join(f"impressions.{name}" for name in tables.IMPRESSIONS.names if name != c.FEATURE_VALUES)
    paid = f"coalesce(sum(CAST(events.{c.VALUE} AS DECIMAL(38, 6))) FILTER (events.{c.EVENT_TYPE} = '{c.PURCHASE}'), 0)::DOUBLE"
    engine.execute(
        f"""CREATE TEMP VIEW outcomes AS
        WITH earned AS (
            SELECT credited.{c.REQUEST_ID}, credited.{c.ITEM_ID}, bool_or(events.{c.EVENT_TYPE} = '{c.ADD_TO_CART}') AS added,
                bool_or(events.{c.EVENT_TYPE} = '{c.PURCHASE}') AS purchased, {paid} AS revenue, min(events.{c.EVENT_AT}) AS first_event_at
            FROM credited JOIN events USING ({c.EVENT_ID}) GROUP BY ALL
        )
        SELECT {kept}, first_event_at IS NOT NULL AS clicked, coalesce(added, false) AS added,
            coalesce(purchased, false) AS purchased, coalesce(revenue, 0) AS revenue, first_event_at, {c.SEEN_AT}
        FROM impressions LEFT JOIN earned USING ({c.REQUEST_ID}, {c.ITEM_ID}) LEFT JOIN seen_places USING ({c.REQUEST_ID}, {c.ITEM_ID})"""
    )
    return engine
