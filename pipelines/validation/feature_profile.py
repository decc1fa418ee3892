"""Measurements of one published day of a feature mart, whatever its features are called."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines.lake.engine import parquet, quoted
from pipelines.window import utc

KEYS: Final = {"user_daily": (c.USER_ID,), "item_daily": (c.ITEM_ID,), "user_category_daily": (c.USER_ID, c.CATEGORY)}
UNIT_WORDS: Final = frozenset({"rate", "share", "conversion"})
COUNT_WORDS: Final = frozenset(
    {"views", "clicks", "carts", "purchases", "ratings", "events", "sessions", "count", "days", "items", "users"}
)


def measure(engine: duckdb.DuckDBPyConnection, mart: str, file: Path, as_of: datetime) -> list[dict[str, Any]]:
    """Return the measurements of `features/<mart>/as_of=D.parquet`; one line saying so if the file is missing."""
    day = f"{utc(as_of):%Y-%m-%d}"
    if not file.is_file():
        return [{"subject": mart, "day": day, "rows": 0, "count": 0, "row_count": 0.0}]
    schema = pq.read_schema(file)
    engine.execute(f"CREATE OR REPLACE TEMP VIEW mart AS {parquet([file])}")
    rows = _one(engine, "count(*)")
    found = [{"subject": mart, "day": day, "rows": rows, "count": rows, "row_count": float(rows)}]

    def add(check: str, subject: str, bad: int, value: float | None = None) -> None:
        found.append({"subject": subject, "day": day, "rows": rows, "count": bad, check: float(bad) if value is None else value})

    keys = KEYS[mart]
    wanted = [*keys, c.AS_OF, c.AVAILABLE_AT]
    for name in wanted:
        add("null_keys", name, _one(engine, f"count(*) FILTER ({name} IS NULL)") if name in schema.names else rows)
    if any(name not in schema.names for name in wanted):
        return found
    add("repeated_keys", ", ".join(keys), rows - _one(engine, f"count(DISTINCT ({', '.join((*keys, c.AS_OF))}))"))
    moment = f"TIMESTAMPTZ {quoted(utc(as_of).isoformat())}"
    add("wrong_as_of", c.AS_OF, _one(engine, f"count(*) FILTER ({c.AS_OF}::TIMESTAMPTZ <> {moment})"))
    add("early_rows", c.AVAILABLE_AT, _one(engine, f"count(*) FILTER ({c.AVAILABLE_AT}::TIMESTAMPTZ < {c.AS_OF}::TIMESTAMPTZ)"))
    for field in schema:
        if field.name not in wanted:
            nulls = _one(engine, f'count(*) FILTER ("{field.name}" IS NULL)')
            add("null_share", field.name, nulls, nulls / rows if rows else 0.0)
            for check, condition in _numeric_checks(field):
                add(check, field.name, _one(engine, f'count(*) FILTER ("{field.name}" {condition})'))
    return found


def _numeric_checks(field: pa.Field) -> Iterator[tuple[str, str]]:
    """Yield what a feature of this name and type must not be, as (check, condition on the column)."""
    kind, words = field.type, set(field.name.split("_"))
    if pa.types.is_floating(kind):
        yield "not_finite", "IN ('nan'::DOUBLE, 'inf'::DOUBLE, '-inf'::DOUBLE)"
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return
    if words & UNIT_WORDS:
        yield "outside_unit", "NOT BETWEEN 0 AND 1"
    elif words & COUNT_WORDS or pa.types.is_integer(kind):
        yield "negative", "< 0"


def _one(engine: duckdb.DuckDBPyConnection, expression: str) -> int:
    return int(engine.execute(f"SELECT {expression} FROM mart").fetchall()[0][0])
