"""The item and user versions of a source, from files of their own or from the rows of its events."""

from __future__ import annotations

from pipelines import columns as c
from pipelines import tables
from pipelines.sources.expressions import Scope, literal
from pipelines.sources.mapping import ItemsMap, UsersMap
from pipelines.sources.opened import Reading, bounded, filled, number


def write_items(reading: Reading) -> None:
    """Write items.parquet, one row per item version, sorted by received_at."""
    _write_entities(reading, "items", c.ITEM_ID, reading.mapping.items, (c.TITLE, c.CATEGORY, c.BRAND))


def write_users(reading: Reading) -> None:
    """Write users.parquet, one row per user version, sorted by received_at."""
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
    learnt = c.VALID_FROM if derived else f"coalesce(learnt_at, {c.VALID_FROM})"
    reading.write(part, query, f"{learnt} NULLS FIRST, {entity}, {c.SOURCE_ROW}", learnt)


def _fields(scope: Scope, part: str, spec: ItemsMap | UsersMap, texts: tuple[str, ...]) -> dict[str, str]:
    """Return the SQL of every column but the id and valid_from."""
    fields = {key: scope.value(found, key) if (found := getattr(spec, key)) is not None else "NULL::VARCHAR" for key in texts}
    for key in (c.CREATED_AT, c.SIGNED_UP_AT):
        if key in tables.CANONICAL[part].names:
            when = getattr(spec, key)
            fields[key] = bounded(scope.moment(when, key), when) if when is not None else "NULL::TIMESTAMPTZ"
    if isinstance(spec, ItemsMap):
        fields[c.PRICE] = f"CAST({number(scope, spec.price, c.PRICE)} AS DOUBLE)"
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
    it: nothing else says since when it exists. They were received when they began to hold, unless
    the file says.
    """
    view, table = reading.file(spec.file)
    listed = ", ".join(f"{sql} AS {key}" for key, sql in fields.items())
    own = bounded(scope.moment(spec.valid_from, c.VALID_FROM), spec.valid_from) if spec.valid_from is not None else "NULL::TIMESTAMPTZ"
    learnt = (
        bounded(scope.moment(spec.received_at, c.RECEIVED_AT), spec.received_at) if spec.received_at is not None else "NULL::TIMESTAMPTZ"
    )
    unlearnt = f"learnt_at IS NULL AND {filled(scope, spec.received_at, c.RECEIVED_AT)}" if spec.received_at is not None else "false"
    original = ", ".join(f"{literal(name)}, r{n}" for n, name in enumerate(table.columns))
    unreadable = f"own_at IS NULL AND {filled(scope, spec.valid_from, c.VALID_FROM)}" if spec.valid_from is not None else "false"
    query = f"SELECT source_row, bad, bad_text, {', '.join(f'r{n}, v{n}' for n in range(len(table.columns)))}, {identity} AS {entity}, {own} AS own_at, {learnt} AS learnt_at, {listed} FROM {view}"
    reasons = f"list_filter([bad, CASE WHEN {unreadable} THEN 'unreadable valid_from' END, CASE WHEN {unlearnt} THEN 'unreadable received_at' END], lambda x: x IS NOT NULL)"
    query = f"SELECT *, {reasons} AS {c.REASONS} FROM ({query})"
    raw_row = f"CASE WHEN len({c.REASONS}) > 0 THEN coalesce(bad_text, CAST(json_object({original}) AS VARCHAR)) END"
    events = literal(str(reading.folder / "events.parquet"))
    began = c.CREATED_AT if c.CREATED_AT in fields else c.SIGNED_UP_AT
    return (
        f"SELECT q.*, {raw_row} AS {c.RAW},"
        f" coalesce(own_at, seen.first_at, greatest({began}, (SELECT min({c.RECEIVED_AT}) FROM read_parquet({events})))) AS {c.VALID_FROM}"
        f" FROM ({query}) q LEFT JOIN ({reading.first_seen(entity)}) seen ON q.{entity} = seen.id"
    )
