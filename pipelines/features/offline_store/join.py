"""The point-in-time join: what of a view was true and known at the moment of each entity row, as SQL on DuckDB.

For an entity row with keys k and moment t, of the view's rows with keys k

- that happened by then (`event <= t`),
- that were known by then (`created <= t`, where the source says),
- and that are no older than the ttl (`event >= t - ttl`, where the view has one),

the answer is the one of the latest event; of several, the one created last; of those, the greatest
features, so that neither file order nor threads decide. A null key, moment or time is no match.

Two ways lead there, and each row takes the first that is proven for it:

1. **Equality.** Where the footers prove that files follow one another in time (daily snapshots, or a
   day's events a file), a row is looked up by its keys in the slice of time that its moment is in,
   and in the one before where that is not over yet. Whatever is found there is newer than all
   earlier slices hold, so the best of it by the definition is the answer. A row that finds nothing, or
   a tie in both times, goes on; and so do all, if they find so much that a key has many rows a slice.
2. **ASOF.** For all other rows: only the keys that are asked for are read (coded as integers, which
   sort faster), then one ASOF join. If a key has rows known later than they happened, or several
   of one moment, its rows are first reduced to those that were the answer from some moment
   on, in order of that moment: the ASOF join over these is exact for corrections, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.features.offline_store.entities import MISSING, moments
from pipelines.features.offline_store.sources import LARGEST, PER_SECOND, Source, quoted

WORTH: Final = 0.25  # the share of rows that equality must have answered to be tried on the next piece, too
FANOUT: Final = 4  # how many rows each may find by equality, before ASOF is the cheaper way
Moments = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class View:
    """One feature view of a retrieval.

    Attributes:
        source: its files.
        keys: column of the source -> column of the entity rows.
        features: column of the source -> column of the answer, in order.
        ttl: how old a row may be; None for any age.
        answered: the share of the last piece's rows that equality answered.
        schema: of the answer, as all files together have it; None until the first piece is asked for.
    """

    source: Source
    keys: dict[str, str]
    features: dict[str, str]
    ttl: timedelta | None
    answered: float = 1.0
    schema: pa.Schema | None = None

    @property
    def lifetime(self) -> int:
        """The ttl in the source's unit; what no difference of moments exceeds if there is none."""
        return self.ttl // timedelta(microseconds=1) * (PER_SECOND[self.source.unit] // 10**6) if self.ttl else LARGEST


def look_up(engine: duckdb.DuckDBPyConnection, view: View, rows: pa.Table, clock: str) -> pa.Table:
    """Return the features of a view for some entity rows: as many rows in the same order, null where nothing is known."""
    at = moments(rows[clock], view.source.unit)
    open_rows = np.flatnonzero(at != MISSING)
    asked = _asked(view, rows, at)
    found: list[pa.Table] = []
    if view.answered >= WORTH and (source := _needed(view, at[open_rows])):
        tried = len(open_rows)
        met, open_rows = _by_equality(engine, view, source, asked, open_rows)
        view.answered = len(met) / tried
        found.append(met)
    if source := _needed(view, at[open_rows]):  # what equality leaves open is often of a few days only
        found.append(_by_asof(engine, view, source, _rows(asked, open_rows)))
    if view.schema is None:
        nothing = engine.sql(f"SELECT {_features(view, view.source, 'v')} FROM {view.source.sql()} v LIMIT 0").to_arrow_table()
        view.schema = nothing.rename_columns(list(view.features.values())).schema
    return _in_order(found, view.schema, len(rows))


def _needed(view: View, at: Moments) -> Source | None:
    """Return the files that may answer some moments; None if there is none."""
    return view.source.between(max(int(at.min()) - view.lifetime, -LARGEST), int(at.max())) if len(at) else None


def _asked(view: View, rows: pa.Table, at: Moments) -> pa.Table:
    """Return the table `asked`: k0, k1, ... and the moment `t` of row `r`."""
    keys = {f"k{n}": canonical(rows[name]) for n, name in enumerate(view.keys.values())}
    return pa.table({**keys, "t": pa.array(at), "r": pa.array(np.arange(len(rows), dtype=np.int32))})


def _rows(asked: pa.Table, wanted: Moments) -> pa.Table:
    return asked if len(wanted) == len(asked) else asked.take(pa.array(wanted))


def canonical(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a key column without dictionaries; a float column of whole numbers (pandas' integers with gaps) as integers."""
    if pa.types.is_dictionary(keys.type):
        keys = keys.cast(keys.type.value_type)
    if pa.types.is_floating(keys.type):
        numbers = keys.to_numpy().astype(np.float64)
        known = ~np.isnan(numbers)  # a number that is none is no key
        if np.all(np.abs(numbers[known]) < 2**53) and np.all(numbers[known] == np.floor(numbers[known])):
            numbers = np.where(known, numbers, 0).astype(np.int64)
        return pa.chunked_array([pa.array(numbers, mask=~known)])
    return keys


def _same_keys(view: View, source: Source, asked: pa.Table, table: str) -> str:
    """Return the condition that rows of the source (v) and of a table have the same keys.

    Text and a number are equal if the number is written so: '007' is not 7.
    """
    conditions = []
    for n, column in enumerate(view.keys):
        left, right = f"v.{quoted(column)}", f"{table}.k{n}"
        have, want = source.type_of(column), asked.schema.field(f"k{n}").type
        if have is not None and _textual(have) != _textual(want):
            left, right = f"CAST({left} AS VARCHAR)", f"CAST({right} AS VARCHAR)"
        conditions.append(f"{left} = {right}")
    return " AND ".join(conditions) or "true"


def _textual(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _features(view: View, source: Source, table: str) -> str:
    """Return the features as columns f0, f1, ...; one that files as old as these do not have yet is null."""
    have = [source.hive or source.type_of(column) is not None for column in view.features]
    return ", ".join(
        f"{f'{table}.{quoted(column)}' if had else 'NULL'} AS f{n}" for n, (column, had) in enumerate(zip(view.features, have, strict=True))
    )


def run(engine: duckdb.DuckDBPyConnection, statement: str) -> pa.Table:
    """Run one statement of the join and return its rows, if it has any: each passes here, so that tests can break them one by one."""
    answer = engine.sql(statement)
    return pa.table({}) if answer is None else answer.to_arrow_table()


def _by_equality(
    engine: duckdb.DuckDBPyConnection, view: View, source: Source, asked: pa.Table, open_rows: Moments
) -> tuple[pa.Table, Moments]:
    """Return the rows that the slices around their moment answer, and which rows these leave open."""
    nothing: tuple[pa.Table, Moments] = pa.table({"r": pa.array([], pa.int32())}), open_rows
    if (sliced := source.slices()) is None:
        return nothing
    of_file, slices = sliced
    at = asked["t"].to_numpy()[open_rows]
    first, last = np.array(slices, np.int64).T
    place = np.searchsorted(first, at, side="right") - 1
    # Where the last event at or before the moment is beyond the ttl, so is everything older: there is no answer.
    within = (place >= 0) & ((at < last[place]) | (at - last[place] <= view.lifetime))
    before = within & (at < last[place]) & (place > 0)
    look = pa.array(np.concatenate([place[within], place[before] - 1]))
    engine.register("asked", _rows(asked, np.concatenate([open_rows[within], open_rows[before]])).append_column("slice", look))
    event = source.moment(source.event)
    known = event if source.known_at_once else source.moment(str(source.created))
    limit = FANOUT * len(open_rows) + (1 << 17)
    met = run(
        engine,
        f"SELECT asked.r, {event} AS event, {known} AS known, {_features(view, source, 'v')} FROM {source.sql()} v JOIN asked"
        f" ON {_same_keys(view, source, asked, 'asked')} AND {_slice(of_file)} = asked.slice AND {event} <= asked.t"
        + ("" if source.known_at_once else f" AND {known} <= asked.t")
        + (f" AND asked.t - {event} <= {view.lifetime}" if view.ttl else "")
        + f" LIMIT {limit}",
    )
    if len(met) == limit:
        return nothing
    best = _best(*(met[name].to_numpy() for name in ("r", "event", "known")))
    met = met.drop_columns(["event", "known"])
    met = met if best is None else met.take(pa.array(best))
    answered = np.zeros(len(asked), bool)
    answered[met["r"].to_numpy()] = True
    return met, open_rows[within & ~answered[open_rows]]


def _slice(of_file: list[int]) -> str:
    """Return the slice of a row of the source (v) by the place of its file in the list."""
    return "v.file_index" if of_file == list(range(len(of_file))) else f"{of_file}[(v.file_index + 1)::BIGINT]"


def _best(row: Moments, event: Moments, known: Moments) -> Moments | None:
    """Return where each row's best match stands: by event, then by known; none for a row that has two. None if all stand alone."""
    if np.bincount(row).max(initial=0) <= 1:
        return None
    order = np.lexsort((known, event, row))
    same_row = row[order[1:]] == row[order[:-1]]
    tie = same_row & (event[order[1:]] == event[order[:-1]]) & (known[order[1:]] == known[order[:-1]])
    best: Moments = order[np.append(~same_row, True) & ~np.insert(tie, 0, False)]
    return best


def _by_asof(engine: duckdb.DuckDBPyConnection, view: View, source: Source, asked: pa.Table) -> pa.Table:
    """Return the rows that have an answer, whatever the source looks like."""
    engine.register("asked", asked)
    low, high = int(asked["t"].to_numpy().min()), int(asked["t"].to_numpy().max())
    names = [f"k{n}" for n in range(len(view.keys))]
    keys = ", ".join(names)
    same_codes = " AND ".join(f"coded.{name} = asked.{name}" for name in names) or "true"
    event, known = source.moment(source.event), source.moment(source.created) if source.created else source.moment(source.event)
    run(
        engine,
        f"CREATE OR REPLACE TEMP TABLE coded AS SELECT *, row_number() OVER ()::INT AS code FROM (SELECT DISTINCT {keys or '1 AS one'} FROM asked)",
    )
    run(
        engine,
        f"CREATE OR REPLACE TEMP TABLE candidate AS SELECT coded.code, {event} AS event, {known} AS known, {_features(view, source, 'v')}"
        f" FROM {source.sql()} v JOIN coded ON {_same_keys(view, source, asked, 'coded')}"
        f" WHERE {event} BETWEEN {max(low - view.lifetime, -LARGEST)} AND {high} AND {known} <= {high}",
    )
    codes = corrected(run(engine, f"SELECT code, event{'' if source.known_at_once else ', known'} FROM candidate"))
    answers = "SELECT *, event AS since FROM candidate"
    if len(codes):
        engine.register("corrected", pa.table({"code": codes}))
        run(engine, _answers(view))
        answers = "FROM answer"
    found = run(
        engine,
        f"SELECT asked.r, {', '.join(f'answer.f{n}' for n in range(len(view.features)))}"
        f" FROM (SELECT coded.code, asked.t, asked.r FROM asked JOIN coded ON {same_codes}) asked"
        f" ASOF JOIN ({answers}) answer ON asked.code = answer.code AND asked.t >= answer.since"
        + (f" WHERE asked.t - answer.event <= {view.lifetime}" if view.ttl else ""),
    )
    for table in ("coded", "candidate", "answer"):
        run(engine, f"DROP TABLE IF EXISTS {table}")
    return found


def corrected(candidates: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return the codes that have a row known later than it happened, or several rows of one moment.

    Sorted integers tell it in a fifth of the time that grouping takes in SQL.
    """
    code, event = (candidates[name].to_numpy() for name in ("code", "event"))
    if not len(code):
        return np.array([], np.int32)
    late = code[candidates["known"].to_numpy() > event] if "known" in candidates.column_names else code[:0]
    first, span = int(event.min()), int(event.max()) - int(event.min()) + 1
    if int(code.max()) < LARGEST // span - 1:
        packed = np.sort(code * np.int64(span) + (event - first))
        tied = packed[1:][packed[1:] == packed[:-1]] // span
    else:
        order = np.lexsort((event, code))
        code, event = code[order], event[order]
        tied = code[1:][(code[1:] == code[:-1]) & (event[1:] == event[:-1])]
    return np.unique(np.concatenate([late, tied.astype(np.int32)]))


def _answers(view: View) -> str:
    """Return the statement that keeps, of the corrected keys, the rows that are the answer from `since` on.

    Rows of a key are ranked as the definition ranks answers. At a moment the rows known by then are
    those with `since` up to it, so a row becomes the answer at its `since` if none known by then
    ranks higher, and stays it until the next one that does.
    """
    values = "".join(f", f{n} NULLS FIRST" for n in range(len(view.features)))
    return f"""CREATE OR REPLACE TEMP TABLE answer AS
        SELECT *, event AS since FROM candidate ANTI JOIN corrected USING (code)
        UNION ALL BY NAME
        SELECT * EXCLUDE (rank) FROM (
            SELECT *, greatest(event, known) AS since, row_number() OVER (PARTITION BY code ORDER BY event, known{values}) AS rank
            FROM candidate SEMI JOIN corrected USING (code)
        )
        QUALIFY rank = max(rank) OVER (PARTITION BY code ORDER BY since RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"""


def _in_order(found: list[pa.Table], schema: pa.Schema, count: int) -> pa.Table:
    """Return the features found, one row for each asked row, in the types that every piece has."""
    if not found:
        return schema.empty_table().take(pa.nulls(count, pa.int64()))
    every = pa.concat_tables(found, promote_options="permissive").combine_chunks()
    place = np.full(count, -1, np.int64)
    place[every["r"].to_numpy()] = np.arange(len(every))
    return every.drop_columns(["r"]).rename_columns(schema.names).cast(schema).take(pa.array(place, mask=place < 0))
