"""The event rows of a source, through its mapping into sorted canonical Parquet."""

from __future__ import annotations

from typing import Any, Final

from pipelines import columns as c
from pipelines.errors import MappingError
from pipelines.sources import raw
from pipelines.sources.expressions import Column, Scope, either, literal
from pipelines.sources.mapping import EventsMap
from pipelines.sources.opened import Reading, bounded, filled, number

MISFIT: Final = 0.5  # above this share of unreadable rows the mapping is wrong, not the data
WORDS: Final = 5  # of unknown event types an error names so many
SCALARS: Final = (c.SESSION_ID, c.DEVICE, c.REQUEST_ID)


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
        *(f"{number(scope, getattr(events, key), key)} AS {key}" for key in (c.VALUE, c.QUANTITY)),
        *(f"{scope.value(spec, key) if (spec := getattr(events, key)) is not None else 'NULL'} AS {key}" for key in SCALARS),
    ]
    reasons = [
        ("bad IS NOT NULL", "bad"),
        *((scope.skipped(rule), literal(rule.reason)) for rule in events.skip),
        *((condition, literal(f"no match in {name}")) for name, condition in unmatched),
        ("event_at IS NULL", "'unreadable event_at'"),
        *(
            [(f"{filled(scope, events.received_at, c.RECEIVED_AT)} AND received_own IS NULL", "'unreadable received_at'")]
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
        f"SELECT *, {bounded('at_any', events.event_at)} AS {c.EVENT_AT}, {bounded('received_any', received)} AS received_own,"
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
    for at, join in enumerate(events.join):
        other_view, other = reading.file(join.file)
        theirs = {name: Column(name, f"v{n}", other.spec) for n, name in enumerate(other.columns)}
        right = Scope(f"files.{join.file}", theirs)
        keys = [(scope.column(ours, "join.on").sql, right.column(key, "join.on").sql) for ours, key in join.on.items()]
        _check_unique(reading, join.file, other_view, [key for _, key in keys], list(join.on.values()))
        alias = f"j{at}"
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
            words = _unknown_words(reading, events) if key == c.EVENT_TYPE else ""
            raise MappingError(
                where,
                found=f"{reason} in {counted[0]:,} of {total[0]:,} rows, first in row {counted[1]}: {str(counted[2])[:300]}{words}",
                hint=hint,
            )


def _unknown_words(reading: Reading, events: EventsMap) -> str:
    """Return the commonest words that stand for event types and are none, for the sentence of an error."""
    said = reading.event_scope.value(events.event_type.model_copy(update={"values": {}, "default": None}), "")
    found = reading.connection.execute(
        f"SELECT {said} FROM ({reading.event_rows}) WHERE list_contains({c.REASONS}, 'unknown event_type')"
        f" GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {WORDS}"
    ).fetchall()
    return f"; the commonest words there: {', '.join(repr(str(word)[:40]) for (word,) in found)}"
