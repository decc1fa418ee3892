"""Any table, read through its mapping into sorted canonical Parquet. The named sources are mappings too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

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
from pipelines.sources.mapping import EventsMap, FileSpec, ItemsMap, Mapping, Number, UsersMap, When

ROW_GROUPS: Final = 4_000  # about as many in a large file: a day is sliced out of a year without decoding the year
MISFIT: Final = 0.5  # above this share of unreadable rows the mapping is wrong, not the data
SCALARS: Final = (c.SESSION_ID, c.DEVICE, c.REQUEST_ID)


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

    def write(self, name: str, query: str, order: str) -> None:
        """Write a query as `<name>.parquet` in the staged schema, sorted."""
        rows = sum(pq.read_metadata(file).num_rows for file in self.file(self.mapping.events.file)[1].files)
        group = min(max(rows // ROW_GROUPS, 8_192), 122_880) // 2048 * 2048  # DuckDB's vectors hold 2,048 rows
        picked = ", ".join(f"CAST({field.name} AS {_sql_type(field.type)}) AS {field.name}" for field in tables.staged(name))
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


def _bounded(sql: str, spec: When) -> str:
    """Return a moment, NULL outside its earliest and latest."""
    return f"CASE WHEN {sql} >= {literal(spec.earliest)}::TIMESTAMPTZ AND {sql} < {literal(spec.latest)}::TIMESTAMPTZ THEN {sql} END"


# ---- events


def write_events(reading: Reading) -> None:
    """Write events.parquet, sorted by received_at with unreadable times first.

    Reasons stand in this order, so that the first of a row is its primary one: unreadable row or
    text, the mapping's `skip` rules as listed, no match in a joined file, unreadable event_at,
    received_at, unknown event_type, unreadable value, quantity.
    """
    events = reading.mapping.events
    view, table = reading.file(events.file)
    scope = reading.scope("events", events.file)
    rows, unmatched = _with_joins(reading, events, scope, view)
    if events.event_at.sequence is not None:
        rows = scope.sequence(rows, events.event_at, c.EVENT_AT)
    received = events.received_at or events.event_at
    at, received_at = scope.moment(events.event_at, c.EVENT_AT), scope.moment(received, c.RECEIVED_AT if events.received_at else c.EVENT_AT)
    kind, kinds = scope.value(events.event_type, c.EVENT_TYPE), ", ".join(map(literal, c.EVENT_TYPES))
    layer = [
        f"{at} AS at_any",
        f"{received_at} AS received_any",
        f"{kind} AS type_any",
        f"{_digest(table) if events.event_id is None else scope.value(events.event_id, c.EVENT_ID)} AS {c.EVENT_ID}",
        f"{scope.value(events.user_id, c.USER_ID)} AS {c.USER_ID}",
        f"{scope.value(events.item_id, c.ITEM_ID)} AS {c.ITEM_ID}",
        *(f"{_number(scope, getattr(events, key), key)} AS {key}" for key in (c.VALUE, c.QUANTITY)),
        *(f"{scope.value(spec, key) if (spec := getattr(events, key)) is not None else 'NULL'} AS {key}" for key in SCALARS),
    ]
    reasons = [
        ("bad IS NOT NULL", "bad"),
        *((scope.skipped(rule), literal(rule.reason)) for rule in events.skip),
        *((condition, literal(f"no match in {name}")) for name, condition in unmatched),
        ("event_at IS NULL", "'unreadable event_at'"),
        *(
            [(f"{_filled(scope, events.received_at, c.RECEIVED_AT)} AND received_own IS NULL", "'unreadable received_at'")]
            if events.received_at
            else []
        ),
        ("event_type IS NULL AND type_said", "'unknown event_type'"),
        *(
            (scope.unreadable_number(spec, key), literal(f"unreadable {key}"))
            for key in (c.VALUE, c.QUANTITY)
            if (spec := getattr(events, key)) is not None
        ),
    ]
    said = events.event_type.model_copy(update={"values": {}, "default": None})
    cases = ", ".join(f"CASE WHEN {condition} THEN {reason} END" for condition, reason in reasons)
    original = ", ".join(f"{literal(name)}, r{n}" for n, name in enumerate(table.columns))
    query = f"SELECT *, {', '.join(layer)}, {scope.value(said, '')} IS NOT NULL AS type_said FROM ({rows})"
    query = (
        f"SELECT *, {_bounded('at_any', events.event_at)} AS {c.EVENT_AT}, {_bounded('received_any', received)} AS received_own,"
        f" CASE WHEN type_any IN ({kinds}) THEN type_any END AS {c.EVENT_TYPE} FROM ({query})"
    )
    query = (
        f"SELECT *, coalesce(received_own, {c.EVENT_AT}) AS {c.RECEIVED_AT},"
        # A row that could not be told apart has no time to be missing: one reason says it all.
        f" CASE WHEN bad IS NOT NULL THEN [bad] ELSE list_filter([{cases}], lambda x: x IS NOT NULL) END AS {c.REASONS} FROM ({query})"
    )
    reading.event_rows = f"SELECT *, CASE WHEN len({c.REASONS}) > 0 THEN coalesce(bad_text, CAST(json_object({original}) AS VARCHAR)) END AS {c.RAW} FROM ({query})"
    reading.event_scope = scope
    reading.write("events", reading.event_rows, f"{c.RECEIVED_AT} NULLS FIRST, {c.SOURCE_ROW}, {c.ITEM_ID}")
    _check_fit(reading, events, table)


def _with_joins(reading: Reading, events: EventsMap, scope: Scope, view: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the event rows with the columns of joined files, and per join when a row found no match."""
    picked, joins, unmatched = ["e.*"], [], []
    for number, join in enumerate(events.join):
        other_view, other = reading.file(join.file)
        theirs = {name: Column(name, f"v{n}", other.spec) for n, name in enumerate(other.columns)}
        right = Scope(f"files.{join.file}", theirs)
        keys = [(scope.column(ours, "join.on").sql, right.column(key, "join.on").sql) for ours, key in join.on.items()]
        _check_unique(reading, join.file, other_view, [key for _, key in keys], list(join.on.values()))
        alias = f"j{number}"
        joins.append(f" LEFT JOIN {other_view} {alias} ON {either((f'e.{ours} = {alias}.{key}' for ours, key in keys), 'AND')}")
        picked += [f"{alias}.v{n} AS {alias}v{n}" for n in range(len(other.columns))]
        picked.append(f"{alias}.source_row IS NULL AS {alias}lost")
        unmatched.append((join.file, f"{alias}lost"))
        for name, column in theirs.items():
            joined = Column(name, f"{alias}{column.sql}", other.spec)
            scope.columns.setdefault(name, joined)
            scope.columns.setdefault(f"{join.file}.{name}", joined)
    return f"SELECT {', '.join(picked)} FROM {view} e{''.join(joins)}", unmatched


def _check_unique(reading: Reading, file: str, view: str, keys: list[str], names: list[str]) -> None:
    """Refuse a join that would multiply rows."""
    listed = ", ".join(keys)
    twice = reading.connection.execute(
        f"SELECT {listed}, count(*), min(source_row) FROM {view} WHERE {keys[0]} IS NOT NULL GROUP BY {listed} HAVING count(*) > 1 LIMIT 1"
    ).fetchone()
    if twice:
        raise MappingError(
            f"events.join: {file}",
            found=f"{dict(zip(names, twice, strict=False))} stands in {twice[-2]} rows, first in row {twice[-1]}",
            allowed="a file that holds each key once",
            hint="join the file with one row per key onto the one with many, or name more columns under `on`",
        )


def _digest(table: raw.RawTable) -> str:
    """Return the identity of a whole row as the file has it: exact repeats have one, all else differs."""
    cells = [f"coalesce(r{n}, chr(30))" for n in range(len(table.columns))]
    if table.spec.explode is not None:
        cells.append(f"coalesce(v{table.columns.index(table.spec.explode.column)}, chr(30))")
    return f"md5(concat_ws(chr(31), coalesce(bad_text, ''), {', '.join(cells)}))"


def _number(scope: Scope, spec: Number | None, key: str) -> str:
    return "NULL" if spec is None else scope.number(spec, key)


def _filled(scope: Scope, spec: When | None, key: str) -> str:
    """Return the condition that every column of a moment is filled."""
    names = () if spec is None else (spec.columns or ((spec.column,) if spec.column else ()))
    return either((f"{scope.column(name, key).sql} IS NOT NULL" for name in names), "AND")


def _check_fit(reading: Reading, events: EventsMap, table: raw.RawTable) -> None:
    """Refuse a mapping that does not fit: where most rows cannot be read, the data is not what is wrong.

    Raises:
        MappingError: names the column, the first such row, and what stands there.
    """
    file = literal(str(reading.folder / "events.parquet"))
    total = reading.connection.execute(f"SELECT count(*) FROM read_parquet({file})").fetchone()
    if not total or not total[0]:
        raise MappingError(table.label, found="no rows", allowed="at least one")
    checks: list[tuple[str, str, Any, str]] = [
        ("unreadable row", "events", None, "check separator, quote and header"),
        ("unreadable text", "events", None, "set the file's `encoding`, for example cp1252"),
        ("unreadable event_at", c.EVENT_AT, events.event_at, "set `format` (and `zone`)"),
        ("unreadable received_at", c.RECEIVED_AT, events.received_at, "set `format` (and `zone`)"),
        ("unknown event_type", c.EVENT_TYPE, events.event_type, f"name them under `values`; ours are {list(c.EVENT_TYPES)}"),
        ("unreadable value", c.VALUE, events.value, "set the file's `decimal` and `thousands`"),
        ("unreadable quantity", c.QUANTITY, events.quantity, "set the file's `decimal` and `thousands`"),
    ]
    for reason, key, spec, hint in checks:
        counted = reading.connection.execute(
            f"SELECT count(*), min({c.SOURCE_ROW}), arg_min({c.RAW}, {c.SOURCE_ROW}) FROM read_parquet({file})"
            f" WHERE list_contains({c.REASONS}, {literal(reason)})"
        ).fetchone()
        if counted and counted[0] > total[0] * MISFIT:
            names = [name for name in (getattr(spec, "column", None), *getattr(spec, "columns", ()), *getattr(spec, "product", ())) if name]
            where = f"events.{key}" + (f" (column {', '.join(map(repr, names))})" if names else "")
            raise MappingError(
                where,
                found=f"{reason} in {counted[0]:,} of {total[0]:,} rows, first in row {counted[1]}: {str(counted[2])[:300]}",
                hint=hint,
            )


# ---- items and users


def write_items(reading: Reading) -> None:
    """Write items.parquet, one row per item version, sorted by valid_from."""
    _write_entities(reading, "items", c.ITEM_ID, reading.mapping.items, (c.TITLE, c.CATEGORY, c.BRAND))


def write_users(reading: Reading) -> None:
    """Write users.parquet, one row per user version, sorted by valid_from."""
    _write_entities(reading, "users", c.USER_ID, reading.mapping.users, (c.COUNTRY, c.AGE_BAND))


def _write_entities(reading: Reading, part: str, entity: str, spec: ItemsMap | UsersMap | None, texts: tuple[str, ...]) -> None:
    """Write the versions of one kind of entity, from its own file or from the rows of the events."""
    if spec is None:
        nothing = ", ".join(f"NULL AS {name}" for name in tables.staged(part).names)
        reading.write(part, f"SELECT {nothing} WHERE false", entity)
        return
    derived = spec.file is None or reading.file(spec.file) == reading.file(reading.mapping.events.file)
    scope = Scope(part, reading.event_scope.columns) if derived else reading.scope(part, spec.file)
    fields = _fields(scope, part, spec, texts)
    identity = scope.value(getattr(spec, entity), entity)
    if derived:
        query = _versions_in_events(reading, entity, identity, fields)
    else:
        query = _versions_in_file(reading, scope, entity, identity, fields, spec=spec)
    reading.write(part, query, f"{c.VALID_FROM} NULLS FIRST, {entity}, {c.SOURCE_ROW}")


def _fields(scope: Scope, part: str, spec: ItemsMap | UsersMap, texts: tuple[str, ...]) -> dict[str, str]:
    """Return the SQL of every column but the id and valid_from."""
    fields = {key: scope.value(found, key) if (found := getattr(spec, key)) is not None else "NULL::VARCHAR" for key in texts}
    for key in (c.CREATED_AT, c.SIGNED_UP_AT):
        if key in tables.CANONICAL[part].names:
            when = getattr(spec, key)
            fields[key] = _bounded(scope.moment(when, key), when) if when is not None else "NULL::TIMESTAMPTZ"
    if isinstance(spec, ItemsMap):
        fields[c.PRICE] = f"CAST({_number(scope, spec.price, c.PRICE)} AS DOUBLE)"
        said = f"lower({scope.value(spec.available, c.AVAILABLE)})" if spec.available is not None else "NULL"
        fields[c.AVAILABLE] = (
            f"CASE WHEN {said} IN ('true', 't', 'yes', 'y', '1') THEN true WHEN {said} IN ('false', 'f', 'no', 'n', '0') THEN false END"
        )
    entries = ", ".join(
        f"{{'key': {literal(name)}, 'value': {scope.value(value, f'attributes.{name}')}}}" for name, value in spec.attributes.items()
    )
    known = f"list_filter([{entries}], lambda x: x.value IS NOT NULL)"
    fields[c.ATTRIBUTES] = f"map_from_entries({known})" if entries else "NULL::MAP(VARCHAR, VARCHAR)"
    return fields


def _versions_in_events(reading: Reading, entity: str, identity: str, fields: dict[str, str]) -> str:
    """Return the versions seen on event rows: the first row of each day on which something differs.

    Values carry on over rows that lack them. Rows with a reason say nothing of items: a cancellation
    repeats an old price. valid_from is when the row was received, so no version precedes its proof.
    """
    listed = ", ".join(f"{sql} AS x_{key}" for key, sql in fields.items())
    query = f"SELECT {identity} AS x_id, {c.RECEIVED_AT} AS x_at, {c.SOURCE_ROW}, {listed} FROM ({reading.event_rows}) WHERE len({c.REASONS}) = 0"
    carried = ", ".join(f"last_value(x_{key} IGNORE NULLS) OVER seen AS {key}" for key in fields)
    query = (
        f"SELECT x_id AS {entity}, x_at AS {c.VALID_FROM}, {c.SOURCE_ROW}, {carried} FROM ({query}) WHERE x_id IS NOT NULL"
        f" WINDOW seen AS (PARTITION BY x_id ORDER BY x_at, {c.SOURCE_ROW} ROWS UNBOUNDED PRECEDING)"
    )
    by_day = f"PARTITION BY {entity}, date_trunc('day', {c.VALID_FROM}) ORDER BY {c.VALID_FROM}, {c.SOURCE_ROW}"
    return changes(f"SELECT * FROM ({query}) QUALIFY row_number() OVER ({by_day}) = 1", entity, list(fields))


def changes(query: str, entity: str, fields: list[str]) -> str:
    """Return, of states in time (entity, valid_from, source_row, fields), those that differ from the one before."""
    state = f"[{', '.join(f'CAST({key} AS VARCHAR)' for key in fields)}]"
    before = f"lag({state}) OVER (PARTITION BY {entity} ORDER BY {c.VALID_FROM}, {c.SOURCE_ROW})"
    query = f"SELECT * FROM ({query}) QUALIFY {before} IS DISTINCT FROM {state}"
    return f"SELECT *, []::VARCHAR[] AS {c.REASONS}, NULL::VARCHAR AS {c.RAW} FROM ({query})"


def _versions_in_file(
    reading: Reading, scope: Scope, entity: str, identity: str, fields: dict[str, str], *, spec: ItemsMap | UsersMap
) -> str:
    """Return the rows of an entity file. Without a date of their own they hold from the entity's first event.

    What was never seen holds from the source's first moment, or from its launch or sign-up after
    it: nothing else says since when it exists.
    """
    view, table = reading.file(spec.file)
    listed = ", ".join(f"{sql} AS {key}" for key, sql in fields.items())
    own = _bounded(scope.moment(spec.valid_from, c.VALID_FROM), spec.valid_from) if spec.valid_from is not None else "NULL::TIMESTAMPTZ"
    original = ", ".join(f"{literal(name)}, r{n}" for n, name in enumerate(table.columns))
    unreadable = f"own_at IS NULL AND {_filled(scope, spec.valid_from, c.VALID_FROM)}" if spec.valid_from is not None else "false"
    query = f"SELECT source_row, bad, bad_text, {', '.join(f'r{n}, v{n}' for n in range(len(table.columns)))}, {identity} AS {entity}, {own} AS own_at, {listed} FROM {view}"
    reasons = f"list_filter([bad, CASE WHEN {unreadable} THEN 'unreadable valid_from' END], lambda x: x IS NOT NULL)"
    query = f"SELECT *, {reasons} AS {c.REASONS} FROM ({query})"
    raw_row = f"CASE WHEN len({c.REASONS}) > 0 THEN coalesce(bad_text, CAST(json_object({original}) AS VARCHAR)) END"
    events = literal(str(reading.folder / "events.parquet"))
    began = c.CREATED_AT if c.CREATED_AT in fields else c.SIGNED_UP_AT
    return (
        f"SELECT q.*, {raw_row} AS {c.RAW},"
        f" coalesce(own_at, seen.first_at, greatest({began}, (SELECT min({c.RECEIVED_AT}) FROM read_parquet({events})))) AS {c.VALID_FROM}"
        f" FROM ({query}) q LEFT JOIN ({reading.first_seen(entity)}) seen ON q.{entity} = seen.id"
    )


Writer = Callable[[Reading], None]


@dataclass(frozen=True)
class Origin:
    """How one source is read: its mapping, and where a mapping does not say enough, its own writers."""

    mapping: Mapping
    items: Writer = write_items
    users: Writer = write_users
