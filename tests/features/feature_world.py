"""A shop of 24 users and 12 items over 40 days, with late events, and a feature calculator that works it out row by row."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import tables
from pipelines.window import utc

START = utc("2025-01-06")
DAYS = 40
END = START + timedelta(days=DAYS)

Event = dict[str, Any]


def day(n: int) -> datetime:
    """Return the midnight `n` days after the world began."""
    return START + timedelta(days=n)


def events(seed: int = 3, count: int = 900) -> list[Event]:
    """Return events of which one in eight becomes known days later; some fall exactly on midnight."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        at = START + timedelta(seconds=int(rng.integers(0, DAYS * 86_400)))
        if n % 50 == 0:
            at = at.replace(hour=0, minute=0, second=0)
        late = timedelta(seconds=int(rng.integers(0, 6 * 86_400)) if n % 8 == 0 else 1)
        received = at + late
        if n % 40 == 0:  # received on the very midnight: too late for the row of that day
            received = (received + timedelta(days=1)).replace(hour=0, minute=0, second=0)
        kind = str(rng.choice(["view", "click", "add_to_cart", "purchase"], p=[0.6, 0.1, 0.1, 0.2]))
        item = int(rng.integers(0, 12) * rng.random())
        bought = kind == "purchase"
        user = int(rng.integers(0, 24) * rng.random())
        made.append(
            {
                "event_id": f"e{n}",
                "user_id": f"u{user}",
                "item_id": f"i{item}",
                "event_type": kind,
                "value": round(float(rng.lognormal(2, 1)), 2) if bought else None,
                "quantity": float(rng.integers(1, 4)) if bought else None,
                "event_at": at,
                "received_at": received,
                "session_id": f"s{user}-{at:%j}-{int(rng.integers(0, 2))}" if n % 5 else None,
            }
        )
    return made


def planted() -> list[Event]:
    """Return what must not show in any row up to the end: the future, late arrivals, and corrections of what is known."""
    future = [{**event, "event_id": f"future-{n}", "event_at": END + timedelta(hours=n)} for n, event in enumerate(events()[:30])]
    late = [{**event, "event_id": f"late-{n}", "received_at": END + timedelta(hours=n)} for n, event in enumerate(events()[30:90])]
    corrected = [
        {**event, "value": 9_999.0, "event_type": "purchase", "item_id": "i11", "received_at": END + timedelta(hours=n)}
        for n, event in enumerate(events()[90:200])
    ]
    return future + late + corrected


def items() -> list[dict[str, Any]]:
    """Return 12 items in four categories (i0 in none); every third one changes price and category on day 15."""
    first = [
        {"item_id": f"i{n}", "category": f"c{n % 4}" if n else None, "price": 5.0 + n, "available": True, "valid_from": START}
        for n in range(12)
    ]
    changed = [{**item, "category": "c9", "price": item["price"] * 2, "valid_from": day(15)} for item in first[::3]]
    return first + changed


def users() -> list[dict[str, Any]]:
    """Return the users who signed up: every second one, and one who never did a thing."""
    return [
        {"user_id": f"u{n}", "signed_up_at": START - timedelta(days=n), "country": "DE", "valid_from": day(n % 7)}
        for n in [*range(0, 24, 2), 99]
    ]


def table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as a canonical table; what a row lacks is null."""
    schema = tables.CANONICAL[name]
    return pa.table({field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in schema}, schema=schema)


def _days(later: datetime, earlier: datetime | None) -> float | None:
    return None if earlier is None else (later - earlier) / timedelta(days=1)


def _known(rows: list[Event], as_of: datetime, within: int | None = None) -> list[Event]:
    """Return the events that happened and were received before `as_of`, in the `within` days before it."""
    return [
        e
        for e in rows
        if e["event_at"] < as_of and e["received_at"] < as_of and (within is None or e["event_at"] >= as_of - timedelta(days=within))
    ]


def _valid(versions: list[dict[str, Any]], key: str, entity: str, as_of: datetime) -> dict[str, Any]:
    """Return the version of an entity that was valid just before `as_of`; {} if there was none."""
    before = [version for version in versions if version[key] == entity and version["valid_from"] < as_of]
    return max(before, key=lambda version: version["valid_from"], default={})


def _midnight(event: Event) -> datetime:
    """Return the first midnight at which an event was known."""
    known = max(event["event_at"], event["received_at"])
    return known.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _category(event: Event) -> str | None:
    return _valid(items(), "item_id", event["item_id"], _midnight(event)).get("category")


def _sum(rows: list[Event], kind: str | None = None) -> int:
    return sum(1 for e in rows if kind is None or e["event_type"] == kind)


def _mean_price(rows: list[Event]) -> float | None:
    bought = [e for e in rows if e["value"] is not None]
    return sum(e["value"] for e in bought) / sum(e["quantity"] for e in bought) if bought else None


def _conversion(rows: list[Event], shop: list[Event]) -> float:
    rate = _sum(shop, "purchase") / _sum(shop, "view")
    return (_sum(rows, "purchase") + 20 * rate) / (_sum(rows, "view") + 20)


def user_row(log: list[Event], user: str, as_of: datetime) -> dict[str, Any] | None:
    """Return what `user_daily` must hold, from the definition of each feature; None if nobody knew the user."""
    mine = [e for e in log if e["user_id"] == user]
    past, month, week = _known(mine, as_of), _known(mine, as_of, 30), _known(mine, as_of, 7)
    profile = _valid(users(), "user_id", user, as_of)
    if not past and not profile:
        return None
    categories = Counter(category for e in month if (category := _category(e)) is not None)
    began = [moment for moment in (profile.get("signed_up_at"), min((e["event_at"] for e in past), default=None)) if moment]
    return {
        "events_7d": _sum(week),
        "events_30d": _sum(month),
        "views_7d": _sum(week, "view"),
        "views_30d": _sum(month, "view"),
        "add_to_carts_30d": _sum(month, "add_to_cart"),
        "purchases_7d": _sum(week, "purchase"),
        "purchases_30d": _sum(month, "purchase"),
        "purchases_lifetime": _sum(past, "purchase"),
        "spend_30d": sum(e["value"] or 0.0 for e in month),
        "mean_purchase_price_90d": _mean_price(_known(mine, as_of, 90)),
        "sessions_30d": len({(e["session_id"], e["event_at"].date()) for e in month if e["session_id"]}),
        "active_days_30d": len({e["event_at"].date() for e in month}),
        "distinct_categories_30d": len(categories),
        "top_category_share_30d": max(categories.values()) / categories.total() if categories else None,
        "conversion_30d": _conversion(month, _known(log, as_of, 30)),
        "ratings_lifetime": None,
        "rating_mean": None,
        "days_since_last_event": _days(as_of, max((e["event_at"] for e in past), default=None)),
        "days_since_last_purchase": _days(as_of, max((e["event_at"] for e in past if e["event_type"] == "purchase"), default=None)),
        "tenure_days": _days(as_of, min(began)),
    }


def item_row(log: list[Event], item: str, as_of: datetime) -> dict[str, Any] | None:
    """Return what `item_daily` must hold, from the definition of each feature."""
    about = [e for e in log if e["item_id"] == item]
    past, month, week = _known(about, as_of), _known(about, as_of, 30), _known(about, as_of, 7)
    version = _valid(items(), "item_id", item, as_of)
    if not past and not version:
        return None
    before_week = _sum(_known(about, as_of, 14)) - _sum(week)
    sold = Counter(e["item_id"] for e in _known(log, as_of, 7))
    shelf = [v for i in range(12) if (v := _valid(items(), "item_id", f"i{i}", as_of)) and v["category"] == version.get("category")]
    return {
        "category": version.get("category"),
        "price": version.get("price"),
        "is_available": version.get("available"),
        "events_1d": _sum(_known(about, as_of, 1)),
        "events_7d": _sum(week),
        "events_30d": _sum(month),
        "views_7d": _sum(week, "view"),
        "views_30d": _sum(month, "view"),
        "add_to_carts_7d": _sum(_known(about, as_of, 7), "add_to_cart"),
        "purchases_7d": _sum(week, "purchase"),
        "purchases_30d": _sum(month, "purchase"),
        "mean_purchase_price_90d": _mean_price(_known(about, as_of, 90)),
        "price_to_category_median": version["price"] / float(np.median([v["price"] for v in shelf])),
        "conversion_30d": _conversion(month, _known(log, as_of, 30)),
        "trend_ratio_7d": (_sum(week) + 1) / (before_week + 1),
        "popularity_rank_7d": 1 + sum(1 for count in sold.values() if count > sold[item]),
        "ratings_lifetime": None,
        "rating_mean": None,
        "days_since_last_event": _days(as_of, max((e["event_at"] for e in past), default=None)),
        "age_days": _days(as_of, min((e["event_at"] for e in past), default=None)),
    }


def pair_row(log: list[Event], user: str, category: str, as_of: datetime) -> dict[str, Any] | None:
    """Return what `user_category_daily` must hold, from the definition of each feature; None if there is no row."""
    shown = [e for e in _known(log, as_of, 38) if e["user_id"] == user and _category(e) is not None]
    mine = [e for e in shown if _category(e) == category]
    if not mine:
        return None
    month = _known(mine, as_of, 30)
    every = len(_known(shown, as_of, 30))
    return {
        "events_30d": len(month),
        "purchases_30d": _sum(month, "purchase"),
        "share_of_events_30d": len(month) / every if every else None,
        "days_since_last_event": _days(as_of, max(e["event_at"] for e in mine)),
    }
