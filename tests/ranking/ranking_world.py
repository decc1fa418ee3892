"""A shop of four shelves where everyone keeps to one shelf and comes back to one item, run up to the blend."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines import lake, publish
from pipelines.config import Home
from pipelines.features import store
from pipelines.retrieval import blend, fitting
from pipelines.tables import EVENTS, ITEMS, TIMESTAMP
from pipelines.window import DAY, micros, utc

AS_OF = utc("2025-02-17")
START = utc("2025-01-06")
USERS, ITEMS_PER_SHELF, SHELVES = 120, 12, 4
SOURCES = ("popular", "popular_7d", "item_knn")  # not `repeat`: coming back is for the ranker to find
CUTOFFS = tuple(AS_OF - 7 * age * DAY for age in (3, 2, 1, 0))
SETTINGS = f"""
[retrieval]
sources = {list(SOURCES)}
k_per_source = 12
k_blend = 24
[ranking]
min_training_lists = 20
min_data_in_leaf = 10
negatives_per_user = 8
n_rounds = 60
"""


def events(rng: np.random.Generator) -> pa.Table:
    """Return six weeks: most days a look at two items of the own shelf, now and then the favourite bought."""
    rows = []
    for day in range((AS_OF - START).days):
        at = micros(START + day * DAY)
        for user in np.flatnonzero(rng.random(USERS) < 0.5):
            shelf = user % SHELVES
            looked = rng.integers(0, ITEMS_PER_SHELF, 2)
            rows += [(user, shelf * ITEMS_PER_SHELF + item, "view", at + int(rng.integers(0, 86_400_000_000))) for item in looked]
            if rng.random() < 0.6:
                favourite = shelf * ITEMS_PER_SHELF + user // SHELVES % ITEMS_PER_SHELF
                rows.append((user, favourite, "purchase", at + int(rng.integers(0, 86_400_000_000))))
    user, item, kind, when = zip(*rows, strict=True)
    times = pa.array(when, pa.int64()).cast(TIMESTAMP)
    return event_table([f"u{u:03d}" for u in user], [f"i{i:02d}" for i in item], list(kind), times)


def event_table(user, item, kind, times, *, received=None, prefix="e"):
    n = len(user)
    columns = {
        "event_id": [f"{prefix}{i:06d}" for i in range(n)],
        "user_id": user,
        "item_id": item,
        "event_type": kind,
        "value": [5.0 if one == "purchase" else None for one in kind],
        "event_at": times,
        "received_at": times if received is None else received,
    }
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in EVENTS]
    return pa.Table.from_arrays([a if isinstance(a, pa.Array) else a.combine_chunks() for a in arrays], schema=EVENTS)


def items() -> pa.Table:
    n = SHELVES * ITEMS_PER_SHELF
    columns = {
        "item_id": [f"i{i:02d}" for i in range(n)],
        "category": [f"shelf {i // ITEMS_PER_SHELF}" for i in range(n)],
        "brand": [f"brand {i % 3}" if i % 7 else None for i in range(n)],
        "price": [float(1 + i % 5) for i in range(n)],
        "available": [True] * n,
        "valid_from": [START - DAY] * n,
    }
    return pa.table({f.name: pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in ITEMS}, schema=ITEMS)


def marts(home: Home) -> None:
    """Publish marts of the cutoffs that hold true counts in one column each; the others stay empty."""
    queries = {
        "user_daily": "SELECT user_id, count(*) FILTER (event_at >= $since)::INT AS events_7d FROM events GROUP BY ALL ORDER BY ALL",
        "item_daily": """SELECT items.item_id, any_value(category) AS category, any_value(brand) AS brand, count(event_id)::INT AS events_7d
            FROM items LEFT JOIN (FROM events WHERE event_at >= $since) USING (item_id) GROUP BY ALL ORDER BY ALL""",
        "user_category_daily": """SELECT user_id, category, count(*) FILTER (event_at >= $since)::INT AS events_30d
            FROM events JOIN items USING (item_id) GROUP BY ALL ORDER BY ALL""",
        "user_brand_daily": """SELECT user_id, brand, count(*) FILTER (event_at >= $since)::INT AS events_30d
            FROM events JOIN items USING (item_id) WHERE brand IS NOT NULL GROUP BY ALL ORDER BY ALL""",
    }
    for mart, query in queries.items():
        declared = {spec.name.split("__")[1]: spec.dtype for spec in store.schema(home) if spec.view == mart}
        for cutoff in CUTOFFS:
            with lake.connect(home, before=cutoff) as db:
                found = db.sql(query, params={"since": cutoff - 7 * DAY}).to_arrow_table()
            for name, kind in declared.items():
                if name not in found.column_names:
                    found = found.append_column(name, pa.nulls(len(found), kind))
            moment = pa.array([micros(cutoff)] * len(found), pa.int64()).cast(TIMESTAMP)
            found = found.append_column("as_of", moment).append_column("available_at", moment)
            publish.write_parquet(home.features / mart / f"as_of={cutoff:%Y-%m-%d}.parquet", found)


def fill(home: Home, more: pa.Table | None = None) -> None:
    """Build everything that ranking stands on: lake, marts, sources, blend."""
    stock(home, more)
    propose(home)


def stock(home: Home, more: pa.Table | None = None) -> None:
    """Build what training begins with: settings, lake, marts, feature store."""
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "reloop.toml").write_text(SETTINGS)
    happened = events(np.random.default_rng(4))
    lake.land_tables(home, events=happened if more is None else pa.concat_tables([happened, more]), items=items())
    marts(home)
    store.apply(home)


def propose(home: Home) -> None:
    for source in SOURCES:
        fitting.fit(home, AS_OF, source)
    blend.blend(home, AS_OF)
