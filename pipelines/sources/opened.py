"""A source while it is read: its files as DuckDB views, and what is common to all of its tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import tables
from pipelines.config import SourceSettings
from pipelines.errors import MappingError
from pipelines.sources import raw, rows
from pipelines.sources.expressions import Column, Scope, either, literal
from pipelines.sources.files import Place
from pipelines.sources.mapping import FileSpec, Mapping, Number, When

ROW_GROUPS: Final = 4_000  # about as many in a large file: a day is sliced out of a year without decoding the year


def connect(workspace: Path, inputs: list[Path], limits: SourceSettings) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB that reaches `workspace` and `inputs` and no other file, loads nothing and cannot be reconfigured."""
    spill = workspace / "spill"
    spill.mkdir()
    connection = duckdb.connect(
        config={
            "memory_limit": limits.memory_limit,
            "threads": limits.threads,
            "temp_directory": str(spill),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET allowed_directories = $folders", {"folders": [str(workspace)]})
    connection.execute("SET allowed_paths = $files", {"files": [str(file) for file in inputs]})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


@dataclass
class Reading:
    """One reading of one source: its files as views, and the query that gives its event rows.

    Attributes:
        event_rows: a query with every canonical column of events, source_row, reasons, raw, and the
            scope's columns; set by `write_events`.
    """

    connection: duckdb.DuckDBPyConnection
    place: Place
    mapping: Mapping
    workspace: Path
    folder: Path
    limits: SourceSettings
    views: dict[str, tuple[str, raw.RawTable]] = field(default_factory=dict)
    event_rows: str = ""
    event_scope: Scope = field(default_factory=lambda: Scope("events"))

    def file(self, name: str | None) -> tuple[str, raw.RawTable]:
        """Return the view of a file of the mapping and what it was read from; None is the only file there is."""
        specs = self.mapping.files
        if name is None and len(specs) == 1:
            name = next(iter(specs))
        key = name or ""
        if key not in self.views:
            spec = specs[name] if name is not None else FileSpec()
            entries = [entry for pattern in spec.path for entry in self.place.find(pattern)] if spec.path else self.place.tables()
            unique = list(dict.fromkeys(entries))
            number = len(self.views)
            table = raw.load(name or self.place.only or self.place.root.name, spec, unique, self.workspace / f"f{number}", self.limits)
            self.connection.execute(f"CREATE VIEW f{number} AS {_view(table)}")
            self.views[key] = (f"f{number}", table)
        return self.views[key]

    def scope(self, part: str, file: str | None) -> Scope:
        """Return the columns of one file, for one part of the mapping."""
        table = self.file(file)[1]
        return Scope(part, {name: Column(name, f"v{n}", table.spec) for n, name in enumerate(table.columns)})

    def write(self, name: str, query: str, order: str, learnt: str = c.VALID_FROM) -> None:
        """Write a query as `<name>.parquet` in the staged schema, sorted; `learnt` is when a version of items or users was received."""
        rows = sum(pq.read_metadata(file).num_rows for file in self.file(self.mapping.events.file)[1].files)
        group = min(max(rows // ROW_GROUPS, 8_192), 122_880) // 2048 * 2048  # DuckDB's vectors hold 2,048 rows
        told = {} if name == "events" else {c.RECEIVED_AT: learnt}
        picked = ", ".join(
            f"CAST({told.get(field.name, field.name)} AS {_sql_type(field.type)}) AS {field.name}" for field in tables.staged(name)
        )
        self.connection.execute(
            f"COPY (SELECT {picked} FROM ({query}) ORDER BY {order}) TO {literal(str(self.folder / f'{name}.parquet'))}"
            f" (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {group})"
        )

    def first_seen(self, entity: str) -> str:
        """Return a query (id, first_at) over the events that nothing is wrong with."""
        events = literal(str(self.folder / "events.parquet"))
        return f"SELECT {entity} AS id, min({c.RECEIVED_AT}) AS first_at FROM read_parquet({events}) WHERE len({c.REASONS}) = 0 GROUP BY 1"


def _view(table: raw.RawTable) -> str:
    """Return the query of a raw table: source_row, bad, text, and per column its text r<n> and its cleaned value v<n>."""
    nulls = ", ".join(literal(word) for word in {*table.spec.nulls, ""})
    selects, before = [], 0
    for file in table.files:
        if table.counted:
            texts = [f"c{n}" for n in range(len(table.columns))]
            own = f"{rows.ROW} AS source_row, {rows.BAD} AS bad, {rows.TEXT} AS bad_text"
        else:
            schema = table.schema or pa.schema([])
            texts = [_as_text(field) for field in schema]
            own = f"file_row_number + {before} AS source_row, NULL::VARCHAR AS bad, NULL::VARCHAR AS bad_text"
            before += pq.read_metadata(file).num_rows
        values = ", ".join(f"{text} AS r{n}" for n, text in enumerate(texts))
        selects.append(f"SELECT {own}, {values} FROM read_parquet({literal(str(file))}, file_row_number = true)")
    cleaned = ", ".join(f"CASE WHEN trim(r{n}) NOT IN ({nulls}) THEN trim(r{n}) END AS v{n}" for n in range(len(table.columns)))
    query = f"SELECT *, {cleaned} FROM ({' UNION ALL '.join(selects)})"
    if (split := table.spec.explode) is not None:
        if split.column not in table.columns:
            raise MappingError(f"files.{table.label}.explode", found=f"column {split.column!r} is missing; the file has {table.columns}")
        cell = f"v{table.columns.index(split.column)}"
        # A row whose cell is empty stays one row: unnest of NULL would drop it.
        query = (
            f"SELECT * REPLACE (trim(unnest(coalesce(string_split({cell}, {literal(split.separator)}), [NULL]))) AS {cell}) FROM ({query})"
        )
    return query


def _as_text(field: pa.Field) -> str:
    """Return a Parquet column as text; whole floats lose their `.0`, since ids are often floats only for their nulls."""
    name = '"' + field.name.replace('"', '""') + '"'
    if pa.types.is_floating(field.type):
        return f"CASE WHEN isnan({name}) THEN NULL WHEN {name} = trunc({name}) AND abs({name}) < 9e15 THEN {name}::BIGINT::VARCHAR ELSE {name}::VARCHAR END"
    return f"{name}::VARCHAR"


def _sql_type(kind: pa.DataType) -> str:
    """Return the DuckDB type that Parquet stores as the Arrow type."""
    names = {
        pa.string(): "VARCHAR", pa.float64(): "DOUBLE", pa.int64(): "BIGINT", pa.bool_(): "BOOLEAN", tables.TIMESTAMP: "TIMESTAMPTZ",
        pa.list_(pa.string()): "VARCHAR[]", pa.map_(pa.string(), pa.string()): "MAP(VARCHAR, VARCHAR)",
    }  # fmt: skip
    return names[kind]


def bounded(sql: str, spec: When) -> str:
    """Return a moment, NULL outside its earliest and latest."""
    return f"CASE WHEN {sql} >= {literal(spec.earliest)}::TIMESTAMPTZ AND {sql} < {literal(spec.latest)}::TIMESTAMPTZ THEN {sql} END"


def number(scope: Scope, spec: Number | None, key: str) -> str:
    """Return a number as the mapping says, NULL where it says nothing."""
    return "NULL" if spec is None else scope.number(spec, key)


def filled(scope: Scope, spec: When | None, key: str) -> str:
    """Return the condition that every column of a moment is filled."""
    names = () if spec is None else (spec.columns or ((spec.column,) if spec.column else ()))
    return either((f"{scope.column(name, key).sql} IS NOT NULL" for name in names), "AND")
