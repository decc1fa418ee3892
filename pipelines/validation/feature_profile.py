"""Measurements of the published days of a feature mart, whatever its features are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines.lake.engine import quoted
from pipelines.tables import MARTS

UNIT_WORDS: Final = frozenset({"rate", "share"})
COUNT_WORDS: Final = frozenset(
    {"views", "clicks", "carts", "purchases", "ratings", "events", "sessions", "count", "days", "items", "users"}
)
RATIO_WORDS: Final = frozenset({"conversion"})  # what is bought without a view lifts it above 1

Line = dict[str, Any]


def measure(engine: duckdb.DuckDBPyConnection, mart: str, files: Mapping[date, Path], day: date) -> list[Line]:
    """Return the measurements of `features/<mart>/as_of=D.parquet` on several days, taken in one pass.

    Args:
        files: day -> its file; a missing file is a measurement of its own.
        day: the one in `files` on which the mart must have rows and whose nulls count; of every
            other check the line is that of its worst day.
    """
    found: list[Line] = [
        {"subject": mart, "day": str(missing), "rows": 0, "count": 0, "not_built": 1.0}
        for missing, file in sorted(files.items())
        if not file.is_file()
    ]
    there = {built: file for built, file in sorted(files.items()) if file.is_file()}
    if not there:
        return found
    fields = list(pa.unify_schemas([pq.read_schema(file) for file in there.values()], promote_options="permissive"))
    checks = list(_checks(mart, fields))
    names = {str(file): built for built, file in there.items()}
    measures = ", ".join(["count(*)", *(expression for _, _, expression in checks)])
    listed = ", ".join(quoted(name) for name in names)
    counted = {
        names[name]: counts
        for name, *counts in engine.execute(
            f"SELECT filename, {measures} FROM read_parquet([{listed}], filename = true, union_by_name = true, hive_partitioning = false)"
            " GROUP BY filename"
        ).fetchall()
    }
    nothing = [0] * (len(checks) + 1)
    rows = {built: int(counted.get(built, nothing)[0]) for built in there}
    if day in there:
        found.append({"subject": mart, "day": str(day), "rows": rows[day], "count": rows[day], "row_count": float(rows[day])})
    for n, (check, subject, _) in enumerate(checks, start=1):
        bad = {built: int(counted.get(built, nothing)[n]) for built in there}
        worst = day if check == "null_share" else max(bad, key=lambda built: (bad[built], built))
        if worst in there:
            value = bad[worst] / max(rows[worst], 1) if check == "null_share" else bad[worst]
            found.append({"subject": subject, "day": str(worst), "rows": rows[worst], "count": bad[worst], check: float(value)})
    return found


def _checks(mart: str, fields: Sequence[pa.Field]) -> Iterator[tuple[str, str, str]]:
    """Yield every check of a mart's columns as (check, subject, the aggregate that counts bad rows of a file)."""
    names, keys = {field.name for field in fields}, MARTS[mart]
    wanted = [*keys, c.AS_OF, c.AVAILABLE_AT]
    for name in wanted:
        yield "null_keys", name, f"count(*) FILTER ({name} IS NULL)" if name in names else "count(*)"
    if not names.issuperset(wanted):
        return
    # Eight bytes a row instead of its key: a hundred days are checked at once.
    yield "repeated_keys", ", ".join(keys), f"count(*) - count(DISTINCT hash({', '.join((*keys, c.AS_OF))}))"
    midnight = "strptime(regexp_extract(filename, 'as_of=(.{10})\\.parquet$', 1) || ' +0000', '%Y-%m-%d %z')"
    yield "wrong_as_of", c.AS_OF, f"count(*) FILTER ({c.AS_OF}::TIMESTAMPTZ <> {midnight})"
    yield "early_rows", c.AVAILABLE_AT, f"count(*) FILTER ({c.AVAILABLE_AT}::TIMESTAMPTZ < {c.AS_OF}::TIMESTAMPTZ)"
    for field in fields:
        if field.name not in wanted:
            yield "null_share", field.name, f'count(*) FILTER ("{field.name}" IS NULL)'
            for check, condition in _numeric_checks(field):
                yield check, field.name, f'count(*) FILTER ("{field.name}" {condition})'


def _numeric_checks(field: pa.Field) -> Iterator[tuple[str, str]]:
    """Yield what a feature of this name and type must not be, as (check, condition on the column)."""
    kind, words = field.type, set(field.name.split("_"))
    if pa.types.is_floating(kind):
        yield "not_finite", "IN ('nan'::DOUBLE, 'inf'::DOUBLE, '-inf'::DOUBLE)"
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return
    if words & UNIT_WORDS:
        yield "outside_unit", "NOT BETWEEN 0 AND 1"
    elif words & (COUNT_WORDS | RATIO_WORDS) or pa.types.is_integer(kind):
        yield "negative", "< 0"
