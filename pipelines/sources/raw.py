"""Tables as text: whatever a file is, its rows become columns of strings beside their row number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import SourceSettings
from pipelines.errors import SourceError
from pipelines.sources import delimited, guard, json_lines, rows
from pipelines.sources.files import Entry
from pipelines.sources.mapping import FileSpec


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
    names = json_lines.names(entries, limits) if kind == "json" else delimited.header_names(label, spec, entries, limits)
    guard.columns(label, len(names), limits)
    files, first = [], 0
    for position, entry in enumerate(entries):
        file = stem.with_suffix(f".{position}.parquet")
        first += _convert(entry, file, spec, names, first=first, limits=limits)
        files.append(file)
        if first > limits.max_rows:
            raise SourceError(label, found=f"more than {limits.max_rows:,} rows", allowed=f"{limits.max_rows:,}")
    return RawTable(label, spec, files, names)


def _convert(entry: Entry, file: Path, spec: FileSpec, names: list[str], *, first: int, limits: SourceSettings) -> int:
    """Write the raw table of one file, whose first row has the number `first`, and return its rows."""
    if entry.kind != "json":
        try:
            return _write(file, len(names), delimited.quick(entry, spec, names, limits, first))
        except pa.ArrowInvalid:
            pass  # begun again with care, over what was written
    chunks = json_lines.chunks(entry, names, limits) if entry.kind == "json" else delimited.chunks(entry, spec, names, limits)
    return _write(file, len(names), _numbered(chunks, first))


def _numbered(chunks: Iterator[rows.Chunk], first: int) -> Iterator[pa.Table]:
    for chunk in chunks:
        yield rows.as_table(chunk, first)
        first += len(chunk.rows)


def _write(file: Path, width: int, tables: Iterator[pa.Table]) -> int:
    with pq.ParquetWriter(file, rows.schema(width), compression="lz4", use_dictionary=False, write_statistics=False) as writer:
        count = 0
        for table in tables:
            writer.write_table(table)
            count += table.num_rows
    return count


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
        found = guard.parquet(file, limits, entry.name)
        schema = found if schema is None else schema
        if found.names != schema.names:
            raise SourceError(entry.name, found=f"columns {found.names}", allowed=f"those of the first file, {schema.names}")
        files.append(file)
    assert schema is not None  # noqa: S101  a table has at least one entry
    if len({name.lower() for name in schema.names}) < len(schema.names):
        raise SourceError(label, found=f"columns that differ only in case: {schema.names}", allowed="names that differ")
    return RawTable(label, spec, files, list(schema.names), counted=False, schema=schema)
