"""Separated text: CSV in all its dialects, read fast where it is clean and with care where it is not.

DuckDB's own reader gives up on files that mix line ends, and its lenient mode drops surplus fields
without a word; a source may lose nothing. Arrow reads a clean file; at its first objection the file
is begun again with Python's csv module, which tells the good rows from the bad one by one.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.csv as pacsv

from pipelines.config import SourceSettings
from pipelines.errors import MappingError, SourceError
from pipelines.sources import guard
from pipelines.sources.files import Entry
from pipelines.sources.mapping import FileSpec
from pipelines.sources.rows import CHUNK, Chunk, Row, numbered

UNIT: Final = "\x1f"  # stands for a separator of several characters, which the csv module does not know
MARKS: Final = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
BLOCK: Final = 1 << 22


def quick(entry: Entry, spec: FileSpec, columns: list[str], limits: SourceSettings, first: int) -> Iterator[pa.Table]:
    """Yield the raw tables of a file that is plain enough for Arrow.

    Raises:
        pa.ArrowInvalid: it is not: other encoding or separator, another order of columns, a row that does not fit.
    """
    separator = _separator(entry, spec, limits)
    with entry.open(limits) as stream:
        head = cast("io.BufferedReader", stream).peek(BLOCK)
        skipped = spec.skip_lines + spec.header
        simple = len(separator) == 1 and spec.escape is None and (spec.encoding or "utf-8").lower() in {"utf-8", "utf8"}
        mark = any(head.startswith(mark) for mark in MARKS)
        # Arrow skips lines, not rows: a header that runs over several, or blank lines before it, are not for it.
        first_lines = head.splitlines()[: spec.skip_lines + 1]
        plain = len(first_lines) > spec.skip_lines and all(map(bytes.strip, first_lines)) and first_lines[-1].count(b'"') % 2 == 0
        if not simple or mark or not plain or (spec.header and not spec.columns and _header(entry, spec, limits) != columns):
            raise pa.ArrowInvalid("not for Arrow")
        reader = pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(column_names=columns, skip_rows=skipped, block_size=BLOCK),
            parse_options=pacsv.ParseOptions(
                delimiter=separator,
                quote_char=False if spec.quote == "none" else spec.quote,
                double_quote=True,
                newlines_in_values=spec.quote != "none",
            ),
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False),
        )
        for batch in reader:
            nothing = pa.nulls(batch.num_rows, pa.string())
            yield numbered(batch.columns, nothing, nothing, first)
            first += batch.num_rows


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
    guard.columns(entry.name, len(row), limits)
    names: list[str] = []
    for position, found in enumerate(row):
        name = wanted = found.strip().encode("utf-8", "backslashreplace").decode() or f"column_{position + 1}"
        count = 1
        while name in names:
            count += 1
            name = f"{wanted}_{count}"
        names.append(name)
    return names


def chunks(entry: Entry, spec: FileSpec, names: list[str], limits: SourceSettings) -> Iterator[Chunk]:
    """Yield the rows of a file with their fields in the order of `names`."""
    separator = _separator(entry, spec, limits)
    own = list(spec.columns) or _header(entry, spec, limits)
    places = None if own == names else [own.index(name) if name in own else len(own) for name in names]
    width, empty = len(own), [""] * len(own)
    with entry.open(limits) as stream, _decoded(entry, stream, spec) as text:
        rows = _reader(entry, spec, _lines(text, spec, separator), separator, limits)
        if spec.header:
            next(rows, None)
        while found := list(islice(rows, CHUNK)):
            bad: dict[int, tuple[str, str]] = {}
            if set(map(len, found)) != {width}:
                for position, row in enumerate(found):
                    if len(row) < width or any(row[width:]):
                        bad[position] = ("unreadable row", json.dumps(row, ensure_ascii=False))
                        found[position] = empty
                    else:
                        found[position] = row[:width]  # a separator at the end of a line begins no field
            if places is not None:
                found = [[[*row, ""][place] for place in places] for row in found]
            yield Chunk(found, bad)
