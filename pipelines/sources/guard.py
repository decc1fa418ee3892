"""What an input may be and cost, decided before it is decoded: schemes, paths, file kinds, sizes, shapes."""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import SourceSettings
from pipelines.errors import SourceError

SCHEME: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:(?!\\)")
WIDTHS: Final = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


class Readable(Protocol):
    """Anything with `read`, as gzip, zip members and plain files have it."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        ...


def local(path: Path | str) -> Path:
    """Return the path unless it is an address.

    Raises:
        SourceError: the text has a scheme (`http:`, `file:`, `s3:`) or a NUL byte. Inputs are local files.
    """
    text = str(path)
    # A Path collapses `http://x` to `http:/x`, hence one slash or none.
    if SCHEME.match(text) or "\0" in text:
        raise SourceError("path", found=repr(text), allowed="a local file or folder, without a scheme", hint="download it first")
    return Path(text)


def rooted(path: Path | str, limits: SourceSettings) -> Path:
    """Return the resolved path of an input, which must exist and lie under one of `limits.roots` if any are set.

    Raises:
        SourceError: no such file or folder, outside the roots, or neither a regular file nor a folder.
    """
    resolved = local(path).expanduser().resolve()
    if limits.roots and not any(resolved.is_relative_to(Path(root).resolve()) for root in limits.roots):
        raise SourceError(
            str(path), found=f"it lies at {resolved}", allowed=f"a path under {list(limits.roots)}", hint="see sources.roots in reloop.toml"
        )
    if not resolved.exists():
        raise SourceError(str(path), found="no such file or folder", allowed="a file or folder that exists", hint=f"looked at {resolved}")
    return resolved if resolved.is_dir() else regular(resolved)


def regular(path: Path) -> Path:
    """Return the path if it is a regular file; devices, pipes and sockets never end or have effects when read."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise SourceError(str(path), found="not a regular file", allowed="a regular file")
    return path


def within(folder: Path, name: str) -> str:
    """Return a relative path or pattern that cannot leave its folder.

    Raises:
        SourceError: it is an address, absolute, or climbs with `..`.
    """
    parts = PurePosixPath(str(local(name)).replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise SourceError(
            f"{folder.name}/{name}", found="a path that leaves its folder", allowed="a path inside the folder given with --path"
        )
    return str(parts)


def inside(folder: Path, files: Iterable[Path], limits: SourceSettings) -> list[Path]:
    """Return the files, sorted by name, each a regular file whose real place is inside `folder`.

    Raises:
        SourceError: a link leads out of the folder, a file is no regular file, or there are too many.
    """
    kept = []
    for file in sorted(files):
        if not file.resolve().is_relative_to(folder.resolve()):
            raise SourceError(str(file), found="a link out of its folder", allowed=f"a file inside {folder}")
        kept.append(regular(file))
        if len(kept) > limits.max_files:
            raise SourceError(str(folder), found=f"more than {limits.max_files:,} files", allowed=f"{limits.max_files:,}")
    return kept


class Bounded(io.RawIOBase):
    """A stream that refuses to give out more than an input of its stored size may.

    Args:
        stored: bytes on disk that the stream is decoded from.
    """

    def __init__(self, stream: Readable, name: str, stored: int, limits: SourceSettings) -> None:
        self._stream, self._name, self._limits = stream, name, limits
        ratio_cap = max(limits.ratio_from_bytes, int(stored * limits.max_ratio))
        self._cap, self._given = min(limits.max_expanded_bytes, ratio_cap), 0
        self._stored = stored

    def readable(self) -> bool:
        """Return True: that is what the stream is for."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer`; SourceError once the bound is passed, or where the archive is damaged."""
        view = memoryview(buffer)
        try:
            data = self._stream.read(len(view))
        except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
            raise SourceError(self._name, found=f"damaged or not readable: {error}", allowed="a complete file") from error
        self._given += len(data)
        if self._given > self._cap:
            raise SourceError(
                self._name,
                found=f"{self._stored:,} bytes that unpack to more than {self._cap:,}",
                allowed=f"at most {self._limits.max_ratio:g} times the stored size",
                hint="if the file is honest, raise sources.max_ratio or sources.max_expanded_bytes in reloop.toml",
            )
        view[: len(data)] = data
        return len(data)


def columns(name: str, found: int, limits: SourceSettings) -> None:
    """Refuse a table that is too wide."""
    if found > limits.max_columns:
        raise SourceError(
            name, found=f"{found:,} columns", allowed=f"at most {limits.max_columns:,}", hint="raise sources.max_columns in reloop.toml"
        )


def parquet(path: Path, limits: SourceSettings, name: str | None = None) -> pa.Schema:
    """Return the schema of a Parquet file that is worth decoding.

    The uncompressed size in the footer counts encoded pages: a constant column of two billion rows
    claims kilobytes. Rows times declared width is what decoding costs, so that is what is bounded;
    for strings the width is that of the longest dictionary entry, looked up only where a chunk
    could exceed the bound at all.

    Raises:
        SourceError: no Parquet, too many rows or columns, nested too deep, or decoding to too much.
    """
    name = name or path.name
    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
            columns(name, metadata.num_columns, limits)
            for field in schema:
                _nesting(name, field.name, field.type, limits)
            if metadata.num_rows > limits.max_rows:
                raise SourceError(name, found=f"{metadata.num_rows:,} rows", allowed=f"at most {limits.max_rows:,}")
            cap = min(limits.max_expanded_bytes, max(limits.ratio_from_bytes, int(path.stat().st_size * limits.max_ratio)))
            decoded = _decoded_bytes(path, metadata, cap)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise SourceError(name, found=f"no readable Parquet: {error}", allowed="a Parquet file") from error
    if decoded > cap:
        raise SourceError(
            name,
            found=f"{path.stat().st_size:,} bytes that decode to about {decoded:,}",
            allowed=f"{cap:,} bytes",
            hint="if the file is honest, raise sources.max_ratio or sources.max_expanded_bytes in reloop.toml",
        )
    return schema


def _nesting(file: str, column: str, kind: pa.DataType, limits: SourceSettings) -> None:
    """Refuse a column whose type is nested too deep; walks with a stack, as the type may be deeper than Python's."""
    pending = [(kind, 1)]
    while pending:
        inner, depth = pending.pop()
        if depth > limits.max_nesting:
            raise SourceError(
                f"{file}: column {column!r}", found=f"nested deeper than {limits.max_nesting}", allowed=f"{limits.max_nesting}"
            )
        pending += [(inner.field(n).type, depth + 1) for n in range(inner.num_fields)]


def _decoded_bytes(path: Path, metadata: pq.FileMetaData, cap: int) -> int:
    """Return an upper bound, close where it matters, on the bytes a whole file decodes to."""
    total: int = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        for position in range(rows.num_columns):
            chunk = rows.column(position)
            values = max(int(chunk.num_values), int(rows.num_rows))
            encodings = set(chunk.encodings)
            if width := WIDTHS.get(chunk.physical_type):
                total += values * width
            elif encodings & {"RLE_DICTIONARY", "PLAIN_DICTIONARY"} and values * chunk.total_uncompressed_size > cap:
                total += values * _longest(path, group, chunk.path_in_schema, chunk.total_uncompressed_size)
            else:
                total += max(values * 4, int(chunk.total_uncompressed_size))
            if total > cap:
                return total
    return total


def _longest(path: Path, group: int, column: str, otherwise: int) -> int:
    """Return the length of the longest dictionary entry of a string chunk, reading its dictionary and one row."""
    with pq.ParquetFile(path, read_dictionary=[column]) as file:
        batch = next(file.iter_batches(batch_size=1, row_groups=[group], columns=[column]), None)
    if batch is None or not batch.num_columns or not pa.types.is_dictionary(batch.column(0).type):
        return otherwise  # nested: the dictionary cannot be had alone, so its whole size is the bound
    values = batch.column(0).dictionary
    return max((len(value.as_buffer()) for value in values if value.is_valid), default=0)
