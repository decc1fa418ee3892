"""The Parquet files behind a Feast source: which there are, what their footers prove, which a time range needs.

A footer holds the least and the greatest value of every column of every row group. From that alone
follows which files a time range can touch, whether every row was known when it happened (created
at or before its event), and which files follow one another in time, as those of daily marts do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import StateError

PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
LARGEST: Final = 2**63 - 1


@dataclass(frozen=True)
class Span:
    """What the footer of a file says about a timestamp column: every value lies in [low, high], in `unit` since 1970.

    A file that does not say (no statistics, nulls, text) has no span.
    """

    low: int
    high: int
    unit: str

    def within(self, unit: str) -> tuple[int, int]:
        """Return the span in another unit, never narrower than it is."""
        up, down = PER_SECOND[unit], PER_SECOND[self.unit]
        return self.low * up // down, -(-self.high * up // down)


@dataclass(frozen=True)
class File:
    """One Parquet file and what its footer says."""

    path: str
    rows: int
    schema: pa.Schema
    spans: dict[str, Span]


def identity(path: Path) -> tuple[str, int, int, int]:
    """Return what changes whenever a file is replaced: a footer is read again then, and only then."""
    state = path.stat()
    return str(path), state.st_ino, state.st_size, state.st_mtime_ns


@lru_cache(maxsize=1 << 14)
def _file(path: str, inode: int, size: int, changed: int) -> File:  # noqa: ARG001 - the rest of the key is the file's identity
    footer = pq.read_metadata(path)
    schema = footer.schema.to_arrow_schema()
    spans = {}
    for at in range(footer.num_columns):
        column = footer.schema.column(at)
        if "." in column.path or not pa.types.is_timestamp(schema.field(column.path).type):
            continue
        spans[column.path] = _span([footer.row_group(group).column(at) for group in range(footer.num_row_groups)], schema, column)
    return File(path, footer.num_rows, schema, {name: span for name, span in spans.items() if span})


def _span(chunks: list[Any], schema: pa.Schema, column: Any) -> Span | None:
    """Return what the row groups say together; a group that says nothing, or has nulls, says that anything may be there."""
    known = [chunk.statistics for chunk in chunks if chunk.num_values]
    if not known or column.physical_type != "INT64":
        return None
    if any(one is None or not one.has_min_max or not one.has_null_count or one.null_count for one in known):
        return None
    return Span(min(one.min_raw for one in known), max(one.max_raw for one in known), schema.field(column.path).type.unit)


@dataclass(frozen=True)
class Source:
    """The files of one Feast source, by name, and the columns in which they tell time.

    Attributes:
        name: what errors call it.
        files: every file, by path; never empty.
        event: the column of the moment for which a row holds.
        created: the column of the moment from which a row was known; None if the source does not say.
        hive: some columns lie in the names of its folders.
    """

    name: str
    files: tuple[File, ...]
    event: str
    created: str | None
    hive: bool = False

    @classmethod
    def open(cls, source: Any, repo_path: Path | str | None, *, event: str | None = None, created: str | None = None) -> Source:
        """Return what lies behind a Feast `FileSource` now.

        Raises:
            StateError: the source is no local Parquet file, folder or pattern, holds no file, or lacks a time column.
        """
        from feast.data_format import ParquetFormat
        from feast.infra.offline_stores.file_source import FileSource

        name = f"source {source.name or getattr(source, 'path', '')}"
        if not isinstance(source, FileSource) or not isinstance(source.file_format or ParquetFormat(), ParquetFormat):
            raise StateError(name, found=type(source).__name__ + " of another format", allowed="a FileSource of Parquet files")
        paths, hive = find(place(source.path, repo_path))
        files = tuple(_file(*identity(path)) for path in paths)
        if not files:
            raise StateError(name, found=f"no Parquet file at {source.path}", allowed="at least one", hint="run `reloop features`")
        opened = cls(name, files, event or source.timestamp_field, created or source.created_timestamp_column or None, hive)
        opened.require([opened.event, *([opened.created] if opened.created else [])])
        return opened

    def require(self, columns: Iterable[str]) -> None:
        """Raise StateError if no file has one of these columns."""
        have = {name for file in self.files for name in file.schema.names}
        if not self.hive and (missing := [column for column in columns if column not in have]):
            raise StateError(
                self.name,
                found=f"no column {', '.join(map(repr, missing))}",
                allowed=f"the columns of {Path(self.files[-1].path).name}: {sorted(have)}",
                hint="field_mapping maps a column of the file to the name a view gives it",
            )

    @cached_property
    def unit(self) -> str:
        """The unit in which its moments are compared: nanoseconds if it has any, else microseconds."""
        types = [file.schema.field(name).type for file in self.files for name in self._times if name in file.schema.names]
        return "ns" if any(pa.types.is_timestamp(kind) and kind.unit == "ns" for kind in types) else "us"

    @property
    def _times(self) -> list[str]:
        return [self.event, *([self.created] if self.created else [])]

    def type_of(self, column: str) -> pa.DataType | None:
        """Return the arrow type of a column in the newest file that has it; None where only folder names do."""
        return next((file.schema.field(column).type for file in reversed(self.files) if column in file.schema.names), None)

    def between(self, low: int, high: int) -> Source | None:
        """Return the source reduced to the files that may hold events in [low, high], in `unit`; None if there is none."""
        unit = self.unit
        kept = []
        for file in self.files:
            span = file.spans.get(self.event)
            first, last = span.within(unit) if span else (-LARGEST, LARGEST)
            if file.rows and first <= high and low <= last:
                kept.append(file)
        return Source(self.name, tuple(kept), self.event, self.created, self.hive) if kept else None

    def slices(self) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Return the slice of time of each file, and the least and greatest event of each slice, ascending.

        Slices do not overlap: files that do are one. So the newest row at t is of the newest slice
        that begins by then, if that has any by then. None if a footer does not say.
        """
        spans = [file.spans.get(self.event) for file in self.files]
        bounds = [span.within(self.unit) for span in spans if span]
        if len(bounds) < len(spans):
            return None
        of_file, slices = [0] * len(bounds), list[tuple[int, int]]()
        for at in sorted(range(len(bounds)), key=bounds.__getitem__):
            low, high = bounds[at]
            if slices and low <= slices[-1][1]:
                slices[-1] = (slices[-1][0], max(high, slices[-1][1]))
            else:
                slices.append((low, high))
            of_file[at] = len(slices) - 1
        return of_file, slices

    @property
    def one_moment(self) -> bool:
        """Whether the footers prove that all rows are of one moment."""
        sliced = self.slices()
        return sliced is not None and len({moment for ends in sliced[1] for moment in ends}) == 1

    @property
    def known_at_once(self) -> bool:
        """Whether the footers prove that every row was known by the moment it is of."""
        if self.created is None:
            return True
        for file in self.files:
            event, created = file.spans.get(self.event), file.spans.get(self.created)
            if event is None or created is None or created.within("ns")[1] > event.within("ns")[0]:
                return False
        return True

    def sql(self) -> str:
        """Return the FROM item that reads the files."""
        listed = ", ".join("'" + "".join(f"[{c}]" if c in "*?[" else c for c in file.path).replace("'", "''") + "'" for file in self.files)
        same = all(file.schema.equals(self.files[0].schema) for file in self.files)
        return f"read_parquet([{listed}], hive_partitioning = {str(self.hive).lower()}, union_by_name = {str(not same).lower()})"

    def moment(self, column: str, table: str = "v") -> str:
        """Return a time column as an integer in `unit`; a time without zone is UTC."""
        kind, name = self.type_of(column), f"{table}.{quoted(column)}"
        if kind is not None and not pa.types.is_timestamp(kind):
            name = f"CAST({name} AS {'TIMESTAMP' if pa.types.is_date(kind) else 'TIMESTAMPTZ'})"
        # epoch_us rounds nanoseconds up into the future: nanoseconds are compared as such
        return f"epoch_{self.unit}({name})"


def quoted(name: str) -> str:
    """Return a column name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def place(path: str, repo_path: Path | str | None) -> Path:
    """Return where a source's path points: relative ones begin at the repository of declarations."""
    if "://" in path:
        if not path.startswith("file://"):
            raise StateError(f"source {path}", found="a remote address", allowed="a local path", hint="mount or copy it first")
        path = path.removeprefix("file://")
    return Path(repo_path or ".") / path


def find(path: Path) -> tuple[list[Path], bool]:
    """Return the Parquet files of a path by name: a file, a pattern, or a folder with all that is in it.

    Whatever begins with a dot or an underscore is being written, and no data. The second value says
    whether folders named `column=value` are between.
    """
    if path.is_dir():
        files = [file for file in path.rglob("*.parquet") if not any(part[0] in "._" for part in file.relative_to(path).parts)]
        return sorted(files), any("=" in part for file in files for part in file.relative_to(path).parts[:-1])
    if path.is_file():
        return [path], False
    parts = path.parts
    fixed = next((at for at, part in enumerate(parts) if any(wild in part for wild in "*?[")), len(parts) - 1)
    found = Path(*parts[:fixed]).glob(str(Path(*parts[fixed:])))
    return sorted(file for file in found if file.is_file() and file.name[0] not in "._"), False
