"""Fields of a mapping as SQL, without a word of the mapping in it that is not a quoted literal.

Columns are reached only through the aliases that `Scope` hands out for names the file really has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from typing import Final

from pipelines.errors import MappingError
from pipelines.sources.mapping import FileSpec, Number, Skip, Value, When

OFFSET: Final = r"\d:\d.*(Z|[+-]\d{2}(:?\d{2})?)$"
SEQUENCE_AT: Final = "seq_at"
DRESS: Final = r"^[\s$€£¥₹]+|[\s$€£¥₹%]+$"


def literal(text: str) -> str:
    """Return a text as an SQL string literal; NUL, which no literal can hold, is refused."""
    if "\0" in text:
        raise MappingError("mapping", found="a NUL character", allowed="text")
    return "'" + text.replace("'", "''") + "'"


def either(terms: Iterable[str], word: str = "OR") -> str:
    """Return conditions joined by a word; false (for OR) where there are none."""
    joined = f" {word} ".join(f"({term})" for term in terms)
    return joined or ("false" if word == "OR" else "true")


@dataclass(frozen=True)
class Column:
    """One column as a query may use it: `sql` is its value with blanks and null words as NULL."""

    name: str
    sql: str
    spec: FileSpec


@dataclass
class Scope:
    """The columns that the rows of one part of a mapping have.

    Attributes:
        part: events, items or users, for errors.
        columns: name -> column; a joined file's are also there as `file.name`.
    """

    part: str
    columns: dict[str, Column] = field(default_factory=dict)

    def column(self, name: str, key: str) -> Column:
        """Return a column.

        Raises:
            MappingError: the file has none of this name; lists those it has.
        """
        if name not in self.columns:
            names = list(self.columns)
            near = get_close_matches(name, names, n=1, cutoff=0.6) or [other for other in names if other.lower() == name.lower()]
            near = near or get_close_matches(key, names, n=1, cutoff=0.6)
            raise MappingError(
                f"{self.part}.{key}",
                found=f"column {name!r} is missing; the file has {names[:60]}",
                hint=f"map it with {key}: {near[0]}" if near else f"map {key} to one of them",
            )
        return self.columns[name]

    def value(self, spec: Value, key: str) -> str:
        """Return the SQL of a text."""
        if spec.constant is not None:
            sql = literal(spec.constant)
        elif spec.column is not None:
            sql = self.column(spec.column, key).sql
        elif spec.first_of:
            sql = f"coalesce({', '.join(self.column(name, key).sql for name in spec.first_of)})"
        elif spec.flags:
            said = ", ".join(f"CASE WHEN {self.column(name, key).sql} IN ('1', 'true') THEN {literal(name)} END" for name in spec.flags)
            sql = f"nullif(concat_ws('|', {said}), '')"
        else:
            sql = f" || {literal(spec.joined_by)} || ".join(self.column(name, key).sql for name in spec.columns)
        if spec.pattern is not None:
            group = min(re.compile(spec.pattern).groups, 1)
            sql = f"nullif(regexp_extract({sql}, {literal(spec.pattern)}, {group}), '')"
        if spec.case != "keep":
            sql = f"{spec.case}({sql})"
        if spec.values:
            cases = " ".join(f"WHEN {literal(theirs)} THEN {literal(ours)}" for theirs, ours in spec.values.items())
            sql = f"CASE {sql} {cases} ELSE {'NULL' if key == 'event_type' else sql} END"
        if spec.bands:
            limits = sorted(spec.bands)
            number = f"try_cast({sql} AS DOUBLE)"
            names = [
                f"under-{limits[0]:g}",
                *(f"{a:g}-{b - 1:g}" for a, b in pairwise(limits)),
                f"{limits[-1]:g}-plus",
            ]
            cases = " ".join(f"WHEN {number} < {limit!r} THEN {literal(name)}" for limit, name in zip(limits, names, strict=False))
            sql = f"CASE {cases} WHEN {number} >= {limits[-1]!r} THEN {literal(names[-1])} END"
        return f"({sql})" if spec.default is None else f"coalesce({sql}, {literal(spec.default)})"

    def _one_number(self, column: Column) -> str:
        """Return a column as a finite DOUBLE, or NULL; currency signs around it do not matter."""
        sql = column.sql
        if column.spec.thousands:
            sql = f"replace({sql}, {literal(column.spec.thousands)}, '')"
        if column.spec.decimal != ".":
            sql = f"replace({sql}, {literal(column.spec.decimal)}, '.')"
        bare = f"regexp_replace({sql}, {literal(DRESS)}, '', 'g')"
        sql = f"coalesce(try_cast({sql} AS DOUBLE), try_cast({bare} AS DOUBLE))"
        return f"CASE WHEN isfinite({sql}) THEN {sql} END"

    def number(self, spec: Number, key: str) -> str:
        """Return the SQL of a number."""
        if spec.constant is not None:
            return f"CAST({spec.constant!r} AS DOUBLE)"
        names = spec.product or (str(spec.column),)
        terms = [f"({self._one_number(self.column(name, key))})" for name in names]
        if spec.factor != 1.0:
            terms.append(repr(spec.factor))
        if spec.currency is not None:
            column = self.column(spec.currency.column, f"{key}.currency").sql
            rates = " ".join(f"WHEN {literal(code)} THEN {rate!r}" for code, rate in spec.currency.rates.items())
            terms.append(f"(CASE {column} {rates} END)")
        sql = " * ".join(terms)
        return f"({sql})" if spec.default is None else f"coalesce({sql}, {spec.default!r})"

    def unreadable_number(self, spec: Number, key: str) -> str:
        """Return the SQL condition that every column of a number is filled, yet no number came out."""
        if spec.constant is not None:
            return "false"
        names = [*(spec.product or (str(spec.column),)), *([spec.currency.column] if spec.currency else [])]
        filled = [f"{self.column(name, key).sql} IS NOT NULL" for name in names]
        return f"{either(filled, 'AND')} AND {self.number(spec.model_copy(update={'default': None}), key)} IS NULL"

    def moment(self, spec: When, key: str) -> str:
        """Return the SQL of a TIMESTAMPTZ, not yet held against earliest and latest; NULL where it cannot be read."""
        sql = SEQUENCE_AT if spec.sequence is not None else self._parsed(spec, key)
        if spec.hour is not None:
            hour = self._one_number(self.column(spec.hour, f"{key}.hour"))
            sql = f"date_trunc('day', {sql}) + to_microseconds(CAST(coalesce({hour}, 0) * 3600000000 AS BIGINT))"
        if spec.tie is not None:
            rank = self._one_number(self.column(spec.tie, f"{key}.tie"))
            sql = f"{sql} + to_microseconds(CAST(coalesce({rank}, 0) AS BIGINT))"
        return f"({sql})"

    def _joined(self, spec: When, key: str) -> str:
        return " || ' ' || ".join(self.column(name, key).sql for name in (spec.columns or (str(spec.column),)))

    def _parsed(self, spec: When, key: str) -> str:
        sql, zone = self._joined(spec, key), literal(spec.zone)
        if spec.format == ("auto",):
            return f"coalesce({_epoch(sql)}, {_iso(sql, zone)})"
        units = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
        if len(spec.format) == 1 and spec.format[0] in units:
            return _since_1970(sql, units[spec.format[0]])
        tries = []
        for text in spec.format:
            found = f"try_strptime({sql}, {literal(text)})"
            # A date alone names a day, not the instant it began somewhere: it keeps its date in UTC.
            timed = any(mark in text for mark in ("%H", "%I", "%c", "%X", "%T"))
            tries.append(found if "%z" in text or "%Z" in text else f"timezone({zone if timed else literal('UTC')}, {found})")
        return f"coalesce({', '.join(tries)})"

    def sequence(self, rows: str, spec: When, key: str) -> str:
        """Return the query `rows` with a column SEQUENCE_AT: moments made of an order, where there is no clock.

        A number n of an owner lies n steps (or the sum of its gaps) after `start`; aligned at the
        end, every owner's last number lies at the latest moment of all.
        """
        owner = f"[{', '.join(self.column(name, f'{key}.per').sql for name in spec.per)}]" if spec.per else "NULL"
        if spec.sequence == "row":
            number = "row_number() OVER (PARTITION BY seq_owner ORDER BY source_row) - 1"
        else:
            number = self._one_number(self.column(str(spec.sequence), f"{key}.sequence"))
        days = f"seq_number * {spec.step.total_seconds() / 86400!r}"
        gap = "0"
        if spec.gap_days is not None:
            gap = f"coalesce({self._one_number(self.column(spec.gap_days, f'{key}.gap_days'))}, 0)"
            # The lines of one order repeat its gap: it counts once, and RANGE gives them all one moment.
            once = "CASE WHEN seq_first THEN seq_gap ELSE 0 END"
            days = f"CASE WHEN seq_number IS NOT NULL THEN sum({once}) OVER (PARTITION BY seq_owner ORDER BY seq_number RANGE UNBOUNDED PRECEDING) END"
        ends = spec.align == "end" or (spec.align is None and bool(spec.per))
        shift = "seq_end - seq_last + seq_days" if ends else "seq_days"
        layers = [
            f"*, {owner} AS seq_owner, {gap} AS seq_gap",
            f"*, {number} AS seq_number",
            "*, row_number() OVER (PARTITION BY seq_owner, seq_number ORDER BY source_row) = 1 AS seq_first" if spec.gap_days else "*",
            f"*, {days} AS seq_days",
            "*, max(seq_days) OVER (PARTITION BY seq_owner) AS seq_last, max(seq_days) OVER () AS seq_end" if ends else "*",
            f"*, {literal(spec.start)}::TIMESTAMPTZ + to_microseconds(CAST(({shift}) * 86400000000 AS BIGINT)) AS {SEQUENCE_AT}",
        ]
        for layer in layers:
            rows = f"SELECT {layer} FROM ({rows})"
        return rows

    def skipped(self, rule: Skip) -> str:
        """Return the SQL condition that a row is of the kind a rule names."""
        column = self.column(rule.column, f"skip ({rule.reason})")
        sql, number = column.sql, self._one_number(column)
        tests = {
            f"{sql} IS NULL": rule.missing,
            f"{sql} IN ({', '.join(map(literal, rule.equals))})": rule.equals,
            f"{sql} NOT IN ({', '.join(map(literal, rule.differs))})": rule.differs,
            f"regexp_matches({sql}, {literal(rule.matches or '')})": rule.matches is not None,
            f"NOT regexp_matches({sql}, {literal(rule.lacks or '')})": rule.lacks is not None,
            f"{number} < {rule.below!r}": rule.below is not None,
            f"{number} > {rule.above!r}": rule.above is not None,
            f"{number} <= {rule.at_most!r}": rule.at_most is not None,
        }
        return next(test for test, said in tests.items() if said)


def _since_1970(sql: str, micros: int) -> str:
    """Return the TIMESTAMPTZ of a number of seconds (or thousandths, millionths) since 1970, exact to the microsecond."""
    number = f"try_cast({sql} AS DECIMAL(38, 9))"
    return f"timezone('UTC', make_timestamp(try_cast(trunc({number} * {micros}) AS BIGINT)))"


def _epoch(sql: str) -> str:
    """Return the moment of a Unix time told by its size: 9-11 digits seconds, 12-14 milli-, 15-17 micro-, 18-19 nanoseconds; 8 are a date."""
    return (
        f"CASE WHEN NOT regexp_full_match({sql}, '\\d{{8,19}}(\\.\\d+)?') THEN NULL"
        f" WHEN regexp_full_match({sql}, '\\d{{8}}') THEN timezone('UTC', try_strptime({sql}, '%Y%m%d'))"
        f" WHEN regexp_matches({sql}, '^\\d{{9,11}}(\\.|$)') THEN {_since_1970(sql, 1_000_000)}"
        f" WHEN regexp_matches({sql}, '^\\d{{12,14}}(\\.|$)') THEN {_since_1970(sql, 1_000)}"
        f" WHEN regexp_matches({sql}, '^\\d{{15,17}}(\\.|$)') THEN {_since_1970(sql, 1)}"
        f" WHEN regexp_matches({sql}, '^\\d{{18,19}}$') THEN timezone('UTC', make_timestamp(try_cast({sql} AS BIGINT) // 1000)) END"
    )


def _iso(sql: str, zone: str) -> str:
    """Return the moment of an ISO 8601 text: its own offset wins, a date alone keeps its date in UTC."""
    return (
        f"CASE WHEN regexp_matches({sql}, {literal(OFFSET)}) THEN try_cast({sql} AS TIMESTAMPTZ)"
        f" WHEN strpos({sql}, ':') = 0 THEN timezone('UTC', try_cast({sql} AS TIMESTAMP))"
        f" ELSE timezone({zone}, try_cast({sql} AS TIMESTAMP)) END"
    )
