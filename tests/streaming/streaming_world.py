"""Two weeks of a shop of 30 users and 20 items, with late events, repetitions and a user busier than a session remembers."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pyarrow as pa

from pipelines import tables
from pipelines.window import utc

START = utc("2025-03-01")
DAYS = 14
Event = dict[str, Any]


def day(n: int) -> datetime:
    """Return the midnight `n` days after the world began."""
    return START + timedelta(days=n)


@cache
def events(seed: int = 5, count: int = 1500) -> list[Event]:
    """Return events in order of their receipt: one in ten late, user u0 in a third of them, ties in time, some on midnight."""
    rng = random.Random(seed)
    made = []
    for n in range(count):
        at = START + timedelta(seconds=rng.randrange(DAYS * 86_400))
        if n % 60 == 0:
            at = at.replace(hour=0, minute=0, second=0)
        if n % 7 == 0 and made:
            at = made[-1]["event_at"]
        late = timedelta(seconds=rng.randrange(4 * 86_400)) if n % 10 == 0 else timedelta(milliseconds=rng.randrange(2000))
        if n % 45 == 0:  # the clock of a device may be ahead by minutes
            late = -timedelta(seconds=rng.randrange(240))
        made.append(
            {
                "event_id": f"e{n}",
                "user_id": "u0" if n % 3 == 0 else f"u{rng.randrange(30)}",
                "item_id": f"i{rng.randrange(24)}",  # four of them are in no catalogue
                "event_type": rng.choice(["view", "view", "view", "click", "add_to_cart", "purchase", "rating"]),
                "value": 4.0 if n % 9 == 0 else None,
                "event_at": at,
                "received_at": at + late,
                "device": "mobile" if n % 2 else None,
            }
        )
    return sorted(made, key=lambda event: (event["received_at"], event["event_id"]))


def items() -> pa.Table:
    """Return 20 items on five shelves, one of them unnamed; every third moves to another in the second week, one at a time."""
    first = [{"item_id": f"i{n}", "category": f"c{n % 5}" if n % 5 else None, "valid_from": START - timedelta(days=9)} for n in range(20)]
    moved = [{**row, "category": "c9", "valid_from": day(8) + timedelta(hours=n)} for n, row in enumerate(first[::3])]
    return table("items", first + moved)


def table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as a canonical table; what a row lacks is null, or for a required time the time that it became valid."""
    schema = tables.CANONICAL[name]
    filled = [{**row, "received_at": row.get("received_at", row.get("valid_from"))} for row in rows]
    return pa.table({field.name: pa.array([row.get(field.name) for row in filled], field.type) for field in schema}, schema=schema)
