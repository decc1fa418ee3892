"""Every row of a staged batch gets one fate: accepted, quarantined with its reasons, or a duplicate. In SQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final

import duckdb
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import tables
from pipelines.errors import StateError
from pipelines.lake.day_files import write_table
from pipelines.lake.engine import parquet
from pipelines.lake.landing import AMOUNT
from pipelines.validation.row_rules import TableRules

ROW: Final = "file_row_number"


@dataclass(frozen=True)
class Accounts:
    """Where the rows of one table went; read = accepted + quarantined + duplicates, also in value.

    Attributes:
        reasons: primary reason -> quarantined rows; sums to `quarantined`.
        conflicts: duplicates that differ from the row they repeat.
    """

    rows: dict[str, int]
    reasons: dict[str, int]
    value: dict[str, Decimal] = field(default_factory=dict)
    conflicts: int = 0


def define(engine: duckdb.DuckDBPyConnection, table: str, file: Path, rules: TableRules) -> None:
    """Define `staged_<table>`, `dropped_<table>` (duplicates) and the views of the rows that remain.

    `kept_<table>` has the staged columns and `refused` (bool); `refused_<table>` and
    `accepted_<table>` part it. Duplicates are settled first: of rows with one key the first
    acceptable one stays, so a row repeated exactly is a duplicate whatever becomes of it.

    Raises:
        StateError: the file lacks a staged column or has one of another type.
    """
    _check_schema(table, file)
    refused = _refused(rules)
    key, content = ", ".join(rules.key), ", ".join(tables.CANONICAL[table].names)
    staged = parquet([file], f"*, {ROW}").replace("hive_partitioning", "file_row_number = true, hive_partitioning")
    engine.execute(f"CREATE TEMP VIEW staged_{table} AS {staged}")
    # Candidates by hash: eight bytes a row instead of the keys; a collision only costs a comparison.
    engine.execute(
        f"CREATE TEMP TABLE repeated_{table} AS SELECT hash({key}) AS hashed FROM staged_{table}"
        f" WHERE {_has(rules.key)} GROUP BY hashed HAVING count(*) > 1"
    )
    order = ", ".join(f"{name} NULLS LAST" for name in (*rules.first, *(n for n in tables.CANONICAL[table].names if n not in rules.first)))
    engine.execute(
        f"CREATE TEMP TABLE dropped_{table} AS SELECT {ROW}, fingerprint <> first_value(fingerprint) OVER ranked AS conflicts"
        f" FROM (SELECT *, {refused} AS refused, md5(to_json(({content}))::VARCHAR) AS fingerprint FROM staged_{table}"
        f" WHERE {_has(rules.key)} AND hash({key}) IN (SELECT hashed FROM repeated_{table}))"
        f" WINDOW ranked AS (PARTITION BY {key} ORDER BY refused, {order}, {c.SOURCE_ROW} NULLS LAST, {ROW}"
        " ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) QUALIFY row_number() OVER ranked > 1"
    )
    engine.execute(
        f"CREATE TEMP VIEW kept_{table} AS SELECT *, {refused} AS refused FROM staged_{table}"
        f" WHERE {ROW} NOT IN (SELECT {ROW} FROM dropped_{table})"
    )
    engine.execute(f"CREATE TEMP VIEW accepted_{table} AS SELECT {content} FROM kept_{table} WHERE NOT refused")
    engine.execute(
        f"CREATE TEMP VIEW refused_{table} AS SELECT {content}, {c.SOURCE_ROW}, {reasons(rules)} AS {c.REASONS}, {c.RAW}, {ROW}"
        f" FROM kept_{table} WHERE refused"
    )


def write_quarantine(engine: duckdb.DuckDBPyConnection, table: str, file: Path) -> None:
    """Write the refused rows with their reasons, in the order of the source, and define `quarantined_<table>` over them."""
    names = ", ".join(tables.quarantined(table).names)
    rows = engine.sql(f"SELECT {names} FROM refused_{table} ORDER BY {c.SOURCE_ROW}, {ROW}")
    write_table(file, tables.quarantined(table), rows)
    engine.execute(f"CREATE TEMP VIEW quarantined_{table} AS {parquet([file])}")


def write_accepted(engine: duckdb.DuckDBPyConnection, table: str, file: Path) -> int:
    """Write the accepted rows in the order of the source; return how many there are."""
    engine.execute("SET preserve_insertion_order = true")
    try:
        return write_table(file, tables.CANONICAL[table], engine.sql(f"SELECT * FROM accepted_{table}"))
    finally:
        engine.execute("SET preserve_insertion_order = false")


def accounts(engine: duckdb.DuckDBPyConnection, table: str) -> Accounts:
    """Count rows and sum values by fate; needs `quarantined_<table>`."""
    amount = AMOUNT if table == "events" else "0"
    read, total = _row(engine, f"SELECT count(*), {amount} FROM staged_{table}")
    refused, refused_amount = _row(engine, f"SELECT count(*), {amount} FROM quarantined_{table}")
    dropped, conflicts = _row(engine, f"SELECT count(*), count(*) FILTER (conflicts) FROM dropped_{table}")
    dropped_amount = _row(engine, f"SELECT {amount} FROM staged_{table} SEMI JOIN dropped_{table} USING ({ROW})")[0] if dropped else 0
    reasons = engine.execute(f"SELECT {c.REASONS}[1], count(*) FROM quarantined_{table} GROUP BY 1 ORDER BY count(*) DESC, 1").fetchall()
    value = {}
    if table == "events":
        fates = {"read": total, "quarantined": refused_amount, "duplicates": dropped_amount}
        value = {fate: Decimal(amount) for fate, amount in fates.items()}
        value["accepted"] = value["read"] - value["quarantined"] - value["duplicates"]
    rows = {"read": read, "accepted": read - refused - dropped, "quarantined": refused, "duplicates": dropped}
    return Accounts({fate: int(n) for fate, n in rows.items()}, {reason: int(n) for reason, n in reasons}, value, int(conflicts))


def _refused(rules: TableRules) -> str:
    conditions = " OR ".join(f"({rule.condition})" for rule in rules.rules)
    return f"(coalesce(len({c.REASONS}), 0) > 0 OR coalesce({conditions}, false))"


def reasons(rules: TableRules) -> str:
    """Return the SQL of a row's list of what the reader said and then of every rule that fires, each sentence once."""
    said = ", ".join(f"CASE WHEN {rule.condition} THEN '{rule.reason}' END" for rule in rules.rules)
    every = f"list_concat(coalesce({c.REASONS}, []), [{said}])"
    return f"list_filter({every}, lambda reason, position: reason IS NOT NULL AND list_position({every}, reason) = position)"


def _has(key: tuple[str, ...]) -> str:
    return " AND ".join(f"{name} IS NOT NULL" for name in key)


def _row(engine: duckdb.DuckDBPyConnection, query: str) -> tuple[int, ...]:
    return tuple(engine.execute(query).fetchall()[0])


def _check_schema(table: str, file: Path) -> None:
    schema = pq.read_schema(file)
    for wanted in tables.staged(table):
        if wanted.name not in schema.names:
            raise StateError(
                f"{file.name}: column {wanted.name!r}", found="missing", allowed=f"the staged columns {tables.staged(table).names}"
            )
        # Arrow's equality overlooks how Parquet names the items of a list and the entries of a map, as it should.
        if not schema.field(wanted.name).type.equals(wanted.type):
            raise StateError(
                f"{file.name}: column {wanted.name!r}", found=f"the type {schema.field(wanted.name).type}", allowed=str(wanted.type)
            )
