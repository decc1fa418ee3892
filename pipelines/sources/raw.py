"""Tables as text: whatever a file is, its rows become columns of strings beside their row number.

DuckDB's own CSV reader gives up on files that mix line ends, and its lenient mode drops surplus
fields without a word; a source may lose nothing. Rows are therefore told apart by Python's csv
module, and a row that does not fit its header is kept whole, with the reason.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import SourceSettings
from pipelines.errors import MappingError, SourceError
from pipelines.sources import guard
from pipelines.sources.files import Entry
from pipelines.sources.mapping import FileSpec

ROW: Final = "_row"
BAD: Final = "_bad"  # why a row could not be told apart; then _text holds it
TEXT: Final = "_text"
CHUNK: Final = 1 << 15
UNIT: Final = "\x1f"  # stands for a separator of several characters, which the csv module does not know
MARKS: Final = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

Row = list[str]


@dataclass(frozen=True)
class RawTable:
    """The rows of one table of a source.

    Attributes:
        label: what an error calls it.
        files: Parquet files in order, each with the columns `c0`, `c1`, ... and, if `counted`, _row, _bad, _text.
        columns: the table's own names, in order; the n-th is `c<n>` (of Parquet inputs: `names[n]`).
        counted: False for Parquet inputs, which are read where they lie.
    """

    label: str
    spec: FileSpec
    files: list[Path]
    columns: list[str]
    counted: bool = True
    schema: pa.Schema | None = None


def load(label: str, spec: FileSpec, entries: list[Entry], stem: Path, limits: SourceSettings) -> RawTable:
    """Bring a table's files into Parquet beside `stem`, a chunk of rows in memory at a time.

    Raises:
        SourceError: a file is refused, damaged, empty, or of another kind than the rest.
        MappingError: the spec does not fit the file (encoding, columns, a quote that never closes).
    """
    kinds = {entry.kind or "text" for entry in entries}
    if len(kinds) > 1:
        raise SourceError(label, found=f"files of several kinds: {sorted(kinds)}", allowed="files of one kind for one table")
    kind = kinds.pop()
    if kind == "parquet":
        return _parquet(label, spec, entries, stem, limits)
    target = stem.with_suffix(".parquet")
    names = _json_names(entries, limits) if kind == "json" else header_names(label, spec, entries, limits)
    guard.columns(label, len(names), limits)
    schema = pa.schema([(ROW, pa.int64()), (BAD, pa.string()), (TEXT, pa.string()), *((f"c{n}", pa.string()) for n in range(len(names)))])
    with pq.ParquetWriter(target, schema, compression="lz4") as writer:
        first = 0
        for entry in entries:
            rows = _json_rows(entry, names, limits) if kind == "json" else _text_rows(entry, spec, names, limits)
            while chunk := list(islice(rows, CHUNK)):
                writer.write_table(_table(chunk, first, schema))
                first += len(chunk)
                if first > limits.max_rows:
                    raise SourceError(label, found=f"more than {limits.max_rows:,} rows", allowed=f"{limits.max_rows:,}")
    return RawTable(label, spec, [target], names)


def _table(chunk: list[tuple[str | None, str | None, Row]], first: int, schema: pa.Schema) -> pa.Table:
    """Return a chunk of rows as a table; rows that are no Unicode go to _text with their bytes escaped."""
    width = len(schema) - 3
    try:
        return _columns([row for _, _, row in chunk], [bad for bad, _, _ in chunk], [text for _, text, _ in chunk], first, schema)
    except UnicodeEncodeError:
        mended: list[tuple[str | None, str | None, Row]] = []
        for bad, text, row in chunk:
            raw = text if bad else json.dumps(row, ensure_ascii=False)
            try:
                "".join([*row, text or ""]).encode()
                mended.append((bad, text, row))
            except UnicodeEncodeError:
                mended.append(("unreadable text", (raw or "").encode("utf-8", "backslashreplace").decode(), [""] * width))
        return _columns([row for _, _, row in mended], [bad for bad, _, _ in mended], [text for _, text, _ in mended], first, schema)


def _columns(rows: list[Row], bad: list[str | None], text: list[str | None], first: int, schema: pa.Schema) -> pa.Table:
    values = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    numbers = pa.array(range(first, first + len(rows)), pa.int64())
    return pa.Table.from_arrays([numbers, pa.array(bad, pa.string()), pa.array(text, pa.string()), *values], schema=schema)


# ---- separated text


def _decoded(entry: Entry, stream: BinaryIO, spec: FileSpec) -> io.TextIOWrapper:
    """Return the characters of a file; bytes that are none come out as surrogates, to be found later."""
    head = cast("io.BufferedReader", stream).peek(4)[:4]
    encoding = spec.encoding or next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
    try:
        return io.TextIOWrapper(
            stream, encoding="utf-8-sig" if encoding.lower() in {"utf-8", "utf8"} else encoding, errors="surrogateescape", newline=""
        )
    except LookupError as error:
        raise MappingError(
            f"{entry.name}: encoding", found=repr(encoding), allowed="a text encoding such as utf-8, latin-1, cp1252"
        ) from error


def _lines(text: Iterable[str], spec: FileSpec, separator: str) -> Iterator[str]:
    """Yield the lines behind those to skip, a separator of several characters made one."""
    lines = islice(text, spec.skip_lines, None)
    return (line.replace(separator, UNIT) for line in lines) if len(separator) > 1 else lines


def _reader(entry: Entry, spec: FileSpec, lines: Iterator[str], separator: str, limits: SourceSettings) -> Iterator[Row]:
    """Yield the rows that are not blank."""
    csv.field_size_limit(limits.max_value_bytes)
    plain = spec.quote == "none" or len(separator) > 1
    reader = csv.reader(
        lines,
        delimiter=UNIT if len(separator) > 1 else separator,
        quotechar=None if plain else spec.quote,
        escapechar=spec.escape,
        doublequote=spec.escape is None,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
    )
    rows = 0
    try:
        for row in reader:
            rows += 1
            if row:
                yield row
    except csv.Error as error:
        raise MappingError(
            f"{entry.name}: row {rows}",
            found=f"{error} (line {reader.line_num})",
            allowed=f"values of at most {limits.max_value_bytes:,} characters",
            hint="a quote that is never closed? then say `quote: none`",
        ) from error
    except UnicodeError as error:
        raise MappingError(
            f"{entry.name}: row {rows}", found=str(error), allowed="text in the encoding named", hint="set `encoding`"
        ) from error


def _separator(entry: Entry, spec: FileSpec, limits: SourceSettings) -> str:
    """Return the separator: the one named, the one the file's ending implies, else the commonest in the first line."""
    if spec.separator is not None:
        return spec.separator
    if entry.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")):
        return "\t"
    with entry.open(limits) as stream, _decoded(entry, stream, spec) as text:
        for line in islice(text, spec.skip_lines, None):
            if line.strip():
                bare = "".join(line.split('"')[::2])
                return max(",;\t|", key=bare.count)
    return ","


def header_names(label: str, spec: FileSpec, entries: list[Entry], limits: SourceSettings) -> list[str]:
    """Return the column names of a table: those of its files' headers together, in order of appearance."""
    if spec.columns:
        return list(spec.columns)
    names: dict[str, None] = {}
    for entry in entries:
        names |= dict.fromkeys(_header(entry, spec, limits))
    if not names:
        raise SourceError(label, found="no rows", allowed="a file with a header")
    return list(names)


def _header(entry: Entry, spec: FileSpec, limits: SourceSettings) -> list[str]:
    """Return the header of one file: trimmed; a blank name becomes column_<position>, a repeated one gets a number."""
    separator = _separator(entry, spec, limits)
    with entry.open(limits) as stream, _decoded(entry, stream, spec) as text:
        row = next(_reader(entry, spec, _lines(text, spec, separator), separator, limits), [])
    names: list[str] = []
    for position, found in enumerate(row):
        name = found.strip().encode("utf-8", "backslashreplace").decode() or f"column_{position + 1}"
        count = sum(other == name or (other.startswith(f"{name}_") and other[len(name) + 1 :].isdigit()) for other in names)
        names.append(f"{name}_{count + 1}" if name in names else name)
    return names


def _text_rows(entry: Entry, spec: FileSpec, names: list[str], limits: SourceSettings) -> Iterator[tuple[str | None, str | None, Row]]:
    """Yield (why it is bad, the bad row as text, its fields in the order of `names`)."""
    separator = _separator(entry, spec, limits)
    own = list(spec.columns) or _header(entry, spec, limits)
    places = None if own == names else [own.index(name) if name in own else None for name in names]
    width, empty = len(own), [""] * len(names)
    with entry.open(limits) as stream, _decoded(entry, stream, spec) as text:
        rows = _reader(entry, spec, _lines(text, spec, separator), separator, limits)
        if spec.header:
            next(rows, None)
        for row in rows:
            if len(row) != width:
                if len(row) < width or any(row[width:]):
                    yield "unreadable row", json.dumps(row, ensure_ascii=False), empty
                    continue
                row = row[:width]  # noqa: PLW2901  a separator at the end of the line is no field
            yield None, None, row if places is None else ["" if place is None else row[place] for place in places]


# ---- JSON lines


def _flat(value: dict[str, Any], under: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of an object as (dotted name, value); what lies deeper than three levels stays JSON."""
    for key, inner in value.items():
        if isinstance(inner, dict) and depth < 3:
            yield from _flat(inner, f"{under}{key}.", depth + 1)
        else:
            yield f"{under}{key}", inner


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return dict(_flat(found)) if isinstance(found, dict) else None


def _json_lines(entry: Entry, limits: SourceSettings) -> Iterator[str]:
    with entry.open(limits) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape") as text:
        while line := text.readline(limits.max_value_bytes + 1):
            if len(line) > limits.max_value_bytes:
                raise SourceError(entry.name, found=f"a line longer than {limits.max_value_bytes:,}", allowed="one JSON object a line")
            if line.strip():
                yield line


def _json_names(entries: list[Entry], limits: SourceSettings) -> list[str]:
    """Return the keys of the first objects of every file, in order of appearance."""
    names: dict[str, None] = {}
    for entry in entries:
        for line in islice(_json_lines(entry, limits), CHUNK):
            names |= dict.fromkeys(_parsed(line) or {})
    if not names:
        raise SourceError(entries[0].name, found="no JSON object", allowed="one JSON object a line")
    return list(names)


def _json_rows(entry: Entry, names: list[str], limits: SourceSettings) -> Iterator[tuple[str | None, str | None, Row]]:
    empty = [""] * len(names)
    for line in _json_lines(entry, limits):
        found = _parsed(line)
        if found is None:
            yield "unreadable row", line.rstrip("\r\n"), empty
        else:
            yield None, None, [_scalar(found.get(name)) for name in names]


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---- Parquet


def _parquet(label: str, spec: FileSpec, entries: list[Entry], stem: Path, limits: SourceSettings) -> RawTable:
    """Return Parquet files as they are, under names without characters that DuckDB would read as a pattern."""
    files, schema = [], None
    for position, entry in enumerate(entries):
        file = stem.with_suffix(f".{position}.parquet")
        if entry.plain:
            file.symlink_to(entry.path)
        else:
            with entry.open(limits) as stream, file.open("wb") as copy:
                while block := stream.read(1 << 20):
                    copy.write(block)
        found = guard.parquet(file, limits)
        schema = found if schema is None else schema
        if found.names != schema.names:
            raise SourceError(entry.name, found=f"columns {found.names}", allowed=f"those of the first file, {schema.names}")
        files.append(file)
    assert schema is not None  # noqa: S101  a table has at least one entry
    if len({name.lower() for name in schema.names}) < len(schema.names):
        raise SourceError(label, found=f"columns that differ only in case: {schema.names}", allowed="names that differ")
    return RawTable(label, spec, files, list(schema.names), counted=False, schema=schema)
