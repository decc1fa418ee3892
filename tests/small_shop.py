"""A small shop on paper, and its batches as the reading stage would leave them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import publish, tables
from pipelines.config import Home
from pipelines.window import Window, micros, utc

START = utc("2025-01-06")  # a Monday


def shop(days: int, *, first: datetime = START, rows_a_day: int = 200, seed: int = 0) -> pa.Table:
    """Return `rows_a_day` events a day: of five, three views, an add_to_cart and a purchase of item i for 10 + i."""
    n = days * rows_a_day
    user, item = (np.random.default_rng((seed, what)).integers(0, many, n) for what, many in enumerate((50, 30)))
    at = micros(first) + np.arange(n, dtype=np.int64) * (86_400_000_000 // rows_a_day)
    kind = np.resize(["view", "view", "add_to_cart", "view", "purchase"], n)
    bought = kind == "purchase"
    columns = {
        "event_id": [f"{first:%Y%m%d}-{row}" for row in range(n)],
        "user_id": [f"u{u}" for u in user],
        "item_id": [f"i{i}" for i in item],
        "event_type": kind.tolist(),
        "value": [10.0 + i if b else None for i, b in zip(item.tolist(), bought, strict=True)],
        "quantity": [1.0 if b else None for b in bought],
        "event_at": pa.array(at, pa.int64()).cast(tables.TIMESTAMP),
        "received_at": pa.array(at + 1_000_000, pa.int64()).cast(tables.TIMESTAMP),
        "session_id": [f"s{row // 5}" for row in range(n)],
        "device": ["phone"] * n,
        "request_id": [None] * n,
    }
    return pa.table({name: pa.array(columns[name], tables.EVENTS.field(name).type) for name in tables.EVENTS.names})


def catalogue(price: float = 1.0, first: datetime = START) -> pa.Table:
    """Return one version of each of the 30 items, item i for (10 + i) * price."""
    columns: dict[str, list[Any]] = {name: [None] * 30 for name in tables.ITEMS.names}
    columns |= {
        "item_id": [f"i{i}" for i in range(30)],
        "price": [(10.0 + i) * price for i in range(30)],
        "category": [f"c{i % 3}" for i in range(30)],
        "attributes": [[("size", "1"), ("colour", "red")]] * 30,
        "valid_from": [first] * 30,
        "received_at": [first] * 30,
    }
    return pa.table({name: pa.array(columns[name], tables.ITEMS.field(name).type) for name in tables.ITEMS.names})


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Return the table with one column replaced, its type kept."""
    position = table.schema.get_field_index(name)
    return table.set_column(position, name, pa.array(values, table.schema.field(name).type))


def staged(name: str, table: pa.Table) -> pa.Table:
    """Return a table in the staged schema: what is missing is null, the source row is the position."""
    schema = tables.staged(name)
    columns = {column: table.column(column) for column in table.column_names}
    columns.setdefault("source_row", pa.array(range(len(table)), pa.int64()))
    return pa.table({field.name: columns.get(field.name, pa.nulls(len(table), field.type)) for field in schema}).cast(schema)


def stage(
    home: Home, batch_id: str, days: int, *, first: datetime = START, facts: dict[str, Any] | None = None, **given: pa.Table
) -> Window:
    """Publish a staged batch and return its window."""
    window = Window(first, first + timedelta(days=days))
    about = {"source": "shop", "window": [window.start.isoformat(), window.end.isoformat()], **(facts or {})}
    with publish.folder(home.landing / batch_id, about) as folder:
        for name in ("events", "items", "users"):
            table = given.get(name, tables.CANONICAL[name].empty_table())
            publish.write_parquet(folder / f"{name}.parquet", staged(name, table))
    return window
