"""What becomes of what was shown: one outcome once, to the impression it names, else to the last touch, within the window."""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import lake, tables
from pipelines.config import Home
from pipelines.errors import ReloopError
from pipelines.lake import outcomes
from pipelines.window import Window, utc

NOON = utc("2025-03-03T12:00")
DAY = Window(utc("2025-03-03"), utc("2025-03-04"))


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def show(home: Home, *rows: tuple[str, str, str, float]) -> None:
    """Write impressions (request, user, item, minutes after noon) into the lake."""
    found = [
        {"request_id": request, "user_id": user, "item_id": item, "rank": rank, "shown_at": at(minutes), "propensity": 1.0}
        for rank, (request, user, item, minutes) in enumerate(rows, 1)
    ]
    file = home.lake / "impressions" / "shown_date=2025-03-03" / "impressions.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(found, tables.IMPRESSIONS), file)


def do(home: Home, *rows: tuple[str, str, str, float, str | None], value: float | None = None) -> None:
    """Land events (type, user, item, minutes after noon, request)."""
    found = [
        {"event_id": f"e{number}", "user_id": user, "item_id": item, "event_type": kind, "event_at": at(minutes), "received_at": at(minutes),
         "request_id": request, "value": value if kind == "purchase" else None, "quantity": 1}
        for number, (kind, user, item, minutes, request) in enumerate(rows)
    ]  # fmt: skip
    lake.land_tables(home, events=pa.Table.from_pylist(found, tables.EVENTS))


def credited(home: Home, hours: float = 24.0) -> list[tuple[str, str, str]]:
    with outcomes.connect(home, DAY, hours) as engine:
        return engine.execute("SELECT event_id, request_id, how FROM credited ORDER BY event_id").fetchall()


def test_an_event_goes_to_the_request_that_it_names(home: Home):
    show(home, ("r1", "u", "x", 0), ("r2", "u", "x", 10))
    do(home, ("view", "u", "x", 20, "r1"), ("view", "u", "x", 21, None), ("view", "u", "x", 22, "unknown"))
    assert credited(home) == [("e0", "r1", "named"), ("e1", "r2", "last touch"), ("e2", "r2", "last touch")]


def test_a_request_that_did_not_show_the_item_earns_nothing_by_its_name(home: Home):
    show(home, ("r1", "u", "x", 0), ("r2", "u", "y", 10))
    do(home, ("view", "u", "x", 20, "r2"))
    assert credited(home) == [("e0", "r1", "last touch")]


def test_only_what_happens_within_the_window_after_counts(home: Home):
    show(home, ("r1", "u", "x", 0))
    do(home, ("view", "u", "x", -1, None), ("view", "u", "x", 59.9, "r1"), ("view", "u", "x", 60, "r1"), ("view", "u", "x", 60, None))
    assert credited(home, hours=1) == [("e1", "r1", "named")]


def test_a_device_whose_clock_is_behind_may_name_its_request(home: Home):
    show(home, ("r1", "u", "x", 0))
    do(home, ("view", "u", "x", -4, "r1"), ("view", "u", "x", -6, "r1"), ("view", "u", "x", -4, None))
    assert credited(home) == [("e0", "r1", "named")]


def test_other_users_and_items_earn_nothing(home: Home):
    show(home, ("r1", "u", "x", 0))
    do(home, ("view", "v", "x", 1, None), ("view", "u", "y", 1, None))
    assert credited(home) == []


def test_two_lists_of_one_moment_share_no_event(home: Home):
    show(home, ("r2", "u", "x", 0), ("r1", "u", "x", 0))
    do(home, ("view", "u", "x", 1, None))
    assert credited(home) == [("e0", "r1", "last touch")]


def test_each_impression_says_what_became_of_it(home: Home):
    show(home, ("r1", "u", "x", 0), ("r1", "u", "y", 0), ("r1", "u", "z", 0))
    do(home, ("view", "u", "x", 1, "r1"), ("add_to_cart", "u", "x", 2, "r1"), ("purchase", "u", "x", 3, None), ("purchase", "u", "x", 4, None),
       ("view", "u", "z", 9, None), value=12.5)  # fmt: skip
    with outcomes.connect(home, DAY, 24) as engine:
        found = engine.execute(
            "SELECT item_id, rank, clicked, added, purchased, revenue, first_event_at FROM outcomes ORDER BY rank"
        ).fetchall()
    assert found == [
        ("x", 1, True, True, True, 25.0, at(1)),
        ("y", 2, False, False, False, 0.0, None),
        ("z", 3, True, False, False, 0.0, at(9)),
    ]


def test_a_lake_without_impressions_has_no_outcomes(home: Home):
    do(home, ("view", "u", "x", 1, "r1"))
    assert credited(home) == []
    with pytest.raises(ReloopError, match="attribution window"):
        outcomes.connect(home, DAY, float("nan"))
