"""A shop of 24 users and 12 items over 40 days, with late events, and a feature calculator that works it out row by row."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime, timedelta
from itertools import product
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
                "device": ("mobile", "Desktop", "tablet", "app", None)[n % 7 % 5],
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
        {
            "item_id": f"i{n}",
            "category": f"c{n % 4}" if n else None,
            "brand": f"b{n % 3}" if n % 5 else None,
            "price": 5.0 + n,
            "available": True,
            "valid_from": START,
        }
        for n in range(12)
    ]
    changed = [{**item, "category": "c9", "price": item["price"] * 2, "valid_from": day(15)} for item in first[::3]]
    # Learnt on day 24: i1 cost less from day 18 on; and again, corrected, what i2 had cost from the start.
    corrected = [
        {**first[1], "price": 4.5, "brand": "b2", "valid_from": day(18), "received_at": day(24) + timedelta(hours=5)},
        {**first[2], "price": 6.5, "category": "c3", "received_at": day(24) + timedelta(hours=6)},
        # Overtaken before it was heard of: the version of day 15 stands.
        {**first[3], "price": 1.0, "category": "c0", "valid_from": day(12), "received_at": day(25)},
    ]
    return [{"received_at": item["valid_from"], **item} for item in first + changed + corrected]


def users() -> list[dict[str, Any]]:
    """Return the users who signed up: every second one, and one who never did a thing; the first six are corrected on day 22."""
    first = [
        {"user_id": f"u{n}", "signed_up_at": START - timedelta(days=n), "country": "DE", "valid_from": day(n % 7)}
        for n in [*range(0, 24, 2), 99]
    ]
    moved = [{**user, "country": "FR", "age_band": "30-39", "received_at": day(22) + timedelta(minutes=1)} for user in first[:6]]
    return [{"received_at": user["valid_from"], **user} for user in first + moved]


def planted_versions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return versions that must not show up to the end: back-dated ones learnt after it, and announced ones that begin after it."""
    told = {"price": 999.0, "category": "leak", "brand": "leak", "country": "LEAK", "age_band": "leak"}
    leak = [{**row, **{name: value for name, value in told.items() if name in row}} for row in rows]
    backdated = [
        {**row, "valid_from": row["valid_from"] + timedelta(hours=1), "received_at": END + timedelta(hours=n)} for n, row in enumerate(leak)
    ]
    corrected = [{**row, "received_at": END + timedelta(days=n)} for n, row in enumerate(leak)]
    announced = [{**row, "valid_from": END + timedelta(days=n), "received_at": START} for n, row in enumerate(leak)]
    return backdated + corrected + announced


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
    """Return the version of an entity that was valid and known just before `as_of`; {} if there was none."""
    before = [v for v in versions if v[key] == entity and v["valid_from"] < as_of and v["received_at"] < as_of]
    return max(before, key=lambda version: (version["valid_from"], version["received_at"]), default={})


def _midnight(event: Event) -> datetime:
    """Return the first midnight at which an event was known."""
    known = max(event["event_at"], event["received_at"])
    return known.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _of_item(event: Event, facet: str) -> str | None:
    """Return the category, or brand, that the event's item was known to have when the event became known."""
    return _valid(ITEMS, "item_id", event["item_id"], _midnight(event)).get(facet)


def _sum(rows: list[Event], kind: str | None = None) -> int:
    return sum(1 for e in rows if kind is None or e["event_type"] == kind)


def _mean_price(rows: list[Event]) -> float | None:
    bought = [e for e in rows if e["value"] is not None]
    return sum(e["value"] for e in bought) / sum(e["quantity"] for e in bought) if bought else None


def _conversion(rows: list[Event], shop: list[Event], kind: str = "purchase") -> float:
    rate = _sum(shop, kind) / _sum(shop, "view")
    return (_sum(rows, kind) + 20 * rate) / (_sum(rows, "view") + 20)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _windows(about: list[Event], as_of: datetime, names: dict[str, str | None], *windows: int) -> dict[str, int]:
    return {f"{name}_{w}d": _sum(_known(about, as_of, w), kind) for name, kind in names.items() for w in windows}


def _since(rows: list[Event], as_of: datetime, kind: str | None = None) -> float | None:
    return _days(as_of, max((e["event_at"] for e in rows if kind is None or e["event_type"] == kind), default=None))


def user_row(log: list[Event], user: str, as_of: datetime) -> dict[str, Any] | None:
    """Return what `user_daily` must hold, from the definition of each feature; None if nobody knew the user."""
    mine = [e for e in log if e["user_id"] == user]
    past, quarter, month, week = (_known(mine, as_of, within) for within in (None, 90, 30, 7))
    profile = _valid(USERS, "user_id", user, as_of)
    if not past and not profile:
        return None
    categories = Counter(category for e in month if (category := _of_item(e, "category")) is not None)
    brands = Counter(brand for e in month if (brand := _of_item(e, "brand")) is not None)
    often = {brand: count for brand, count in brands.items() if count > 1}
    began = min(moment for moment in (profile.get("signed_up_at"), min((e["event_at"] for e in past), default=None)) if moment)
    prices = [e["value"] / e["quantity"] for e in quarter if e["event_type"] == "purchase"]
    sessions = defaultdict(list)
    for e in month:
        if e["session_id"]:
            sessions[e["session_id"], e["event_at"].date()].append(e["event_at"])
    buying_days = len({e["event_at"].date() for e in quarter if e["event_type"] == "purchase"})
    counts = {"events": None, "views": "view", "add_to_carts": "add_to_cart", "purchases": "purchase"}
    devices = [e["device"].lower() for e in month if e["device"]]
    hours = Counter(e["event_at"].hour // 6 for e in month)
    shop = _known(log, as_of, 30)
    return {
        **_windows(mine, as_of, counts, 1, 7, 30, 90),
        "clicks_30d": _sum(month, "click"),
        "purchases_lifetime": _sum(past, "purchase"),
        "events_per_active_day_30d": _share(len(month), len({e["event_at"].date() for e in month})),
        "spend_30d": sum(e["value"] or 0.0 for e in month),
        "spend_90d": sum(e["value"] or 0.0 for e in quarter),
        "mean_purchase_price_90d": _mean_price(quarter),
        "purchase_price_spread_90d": float(np.std(np.round(prices, 4))) if prices else None,
        "purchase_days_90d": buying_days,
        "purchase_days_per_30_days": buying_days * 30 / min(90, max(30, _days(as_of, began) or 0)),
        "sessions_7d": len({(e["session_id"], e["event_at"].date()) for e in week if e["session_id"]}),
        "sessions_30d": len(sessions),
        "sessions_90d": len({(e["session_id"], e["event_at"].date()) for e in quarter if e["session_id"]}),
        "mean_session_minutes_30d": sum((max(s) - min(s)) / timedelta(minutes=1) for s in sessions.values()) / len(sessions)
        if sessions
        else None,
        "events_per_session_30d": _share(sum(map(len, sessions.values())), len(sessions)),
        "active_days_7d": len({e["event_at"].date() for e in week}),
        "active_days_30d": len({e["event_at"].date() for e in month}),
        "active_days_90d": len({e["event_at"].date() for e in quarter}),
        "night_share_30d": _share(hours[0], len(month)),
        "morning_share_30d": _share(hours[1], len(month)),
        "afternoon_share_30d": _share(hours[2], len(month)),
        "weekend_share_30d": _share(sum(1 for e in month if e["event_at"].weekday() > 4), len(month)),
        "mobile_share_30d": _share(sum(1 for d in devices if d in ("mobile", "app")), len(devices)),
        "tablet_share_30d": _share(devices.count("tablet"), len(devices)),
        "distinct_categories_30d": len(categories),
        "top_category_share_30d": max(categories.values()) / categories.total() if categories else None,
        "category_concentration_30d": sum(n * n for n in categories.values()) / categories.total() ** 2 if categories else None,
        "distinct_brands_30d": len(often),
        "top_brand_share_30d": max(often.values()) / brands.total() if often else None,
        "brand_concentration_30d": sum(n * n for n in often.values()) / sum(often.values()) ** 2 if often else None,
        "conversion_30d": _conversion(month, shop),
        "add_to_carts_per_view_30d": _conversion(month, shop, "add_to_cart"),
        "ratings_lifetime": None,
        "rating_mean": None,
        "days_since_last_event": _since(past, as_of),
        "days_since_last_add_to_cart": _since(past, as_of, "add_to_cart"),
        "days_since_last_purchase": _since(past, as_of, "purchase"),
        "tenure_days": _days(as_of, began),
        "country": profile.get("country"),
        "age_band": profile.get("age_band"),
    }


def item_row(log: list[Event], item: str, as_of: datetime) -> dict[str, Any] | None:
    """Return what `item_daily` must hold, from the definition of each feature."""
    about = [e for e in log if e["item_id"] == item]
    past, quarter, month, week = (_known(about, as_of, within) for within in (None, 90, 30, 7))
    version = _valid(ITEMS, "item_id", item, as_of)
    if not past and not version:
        return None
    before_week = _sum(_known(about, as_of, 14)) - _sum(week)
    lately = {within: Counter(e["item_id"] for e in _known(log, as_of, within)) for within in (7, 30)}
    catalogue = {f"i{i}": v for i in range(12) if (v := _valid(ITEMS, "item_id", f"i{i}", as_of))}
    shelf = {name: v for name, v in catalogue.items() if v["category"] == version.get("category")}
    prices = [v["price"] for v in shelf.values()]
    counts = {"views": "view", "add_to_carts": "add_to_cart", "purchases": "purchase"}
    return {
        "category": version.get("category"),
        "brand": version.get("brand"),
        "price": version.get("price"),
        "is_available": version.get("available"),
        **_windows(about, as_of, {"events": None, **counts}, 1, 7, 30, 90),
        "revenue_30d": sum(e["value"] or 0.0 for e in month),
        "mean_purchase_price_90d": _mean_price(quarter),
        "price_to_category_median": version["price"] / float(np.median(prices)),
        "price_percentile_in_category": sum(p < version["price"] for p in prices) / (len(prices) - 1) if len(prices) > 1 else 0.0,
        "conversion_30d": _conversion(month, _known(log, as_of, 30)),
        "conversion_90d": _conversion(quarter, _known(log, as_of, 90)),
        "add_to_carts_per_view_30d": _conversion(month, _known(log, as_of, 30), "add_to_cart"),
        "trend_ratio_1d": (_sum(_known(about, as_of, 1)) + 1) / (_sum(week) / 7 + 1),
        "trend_ratio_7d": (_sum(week) + 1) / (before_week + 1),
        "popularity_rank_7d": 1 + sum(1 for count in lately[7].values() if count > lately[7][item]),
        "popularity_rank_30d": 1 + sum(1 for count in lately[30].values() if count > lately[30][item]),
        "popularity_rank_in_category_7d": 1 + sum(1 for other in shelf if lately[7][other] > lately[7][item]),
        "ratings_30d": None,
        "ratings_lifetime": None,
        "rating_mean": None,
        "rating_mean_smoothed": None,
        "days_since_last_event": _since(past, as_of),
        "days_since_last_purchase": _since(past, as_of, "purchase"),
        "age_days": _days(as_of, min((e["event_at"] for e in past), default=None)),
    }


def category_row(log: list[Event], user: str, category: str, as_of: datetime) -> dict[str, Any] | None:
    """Return what `user_category_daily` must hold, from the definition of each feature; None if there is no row."""
    return _affinity(log, user, "category", category, as_of, least=1)


def brand_row(log: list[Event], user: str, brand: str, as_of: datetime) -> dict[str, Any] | None:
    """Return what `user_brand_daily` must hold likewise."""
    return _affinity(log, user, "brand", brand, as_of, least=2)


def _affinity(log: list[Event], user: str, facet: str, value: str, as_of: datetime, *, least: int) -> dict[str, Any] | None:
    of_user = [e for e in log if e["user_id"] == user]
    mine = [e for e in _known(of_user, as_of) if _of_item(e, facet) == value]
    # Alive on one of the last nine midnights: as far back as a lookup reaches.
    if all(len(_known(mine, as_of - timedelta(days=n), 30)) < least for n in range(9)):
        return None
    month = _known(mine, as_of, 30)
    every = sum(1 for e in _known(of_user, as_of, 30) if _of_item(e, facet) is not None)
    return {
        "events_30d": len(month),
        "add_to_carts_30d": _sum(month, "add_to_cart"),
        "purchases_30d": _sum(month, "purchase"),
        "share_of_events_30d": _share(len(month), every),
        "days_since_last_event": _since(mine, as_of),
    }


def _met(log: list[Event], kind: str, as_of: datetime, within: int) -> Counter[tuple[str, str]]:
    """Return on how many users' days two items came together; (item, item) counts the days of one."""
    days = defaultdict(set)
    for e in _known(log, as_of, within):
        if e["event_type"] == kind:
            days[e["user_id"], e["event_at"].date()].add(e["item_id"])
    return Counter(pair for basket in days.values() for pair in product(basket, repeat=2))


def together_row(log: list[Event], item: str, other: str, as_of: datetime) -> dict[str, Any] | None:
    """Return what `item_pairs_daily` must hold; with 12 items nobody falls off a list of 20."""
    bought, viewed = _met(log, "purchase", as_of, 90), _met(log, "view", as_of, 30)

    def listed(met: Counter[tuple[str, str]], least: int) -> list[str]:
        others = [o for o in (f"i{n}" for n in range(12)) if o != item and met[item, o] >= least]
        return sorted(others, key=lambda o: (-score(met, o), o))

    def score(met: Counter[tuple[str, str]], o: str) -> float:
        return float(met[item, o] / (np.sqrt(met[item, item] * met[o, o]) + 5))

    if item == other or (bought[item, other] < 2 and viewed[item, other] < 3):
        return None
    together, similar = listed(bought, 2), listed(viewed, 3)
    return {
        "co_purchases_90d": bought[item, other],
        "bought_together_rank": together.index(other) + 1 if other in together else None,
        "bought_together_score": score(bought, other) if bought[item, other] else None,
        "co_views_30d": viewed[item, other],
        "similar_rank": similar.index(other) + 1 if other in similar else None,
        "similar_score": score(viewed, other) if viewed[item, other] else None,
    }


ITEMS, USERS = items(), users()
