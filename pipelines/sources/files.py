"""Where tables lie: a file, a folder, or a zip; and how their bytes are reached, bounded."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Literal, cast

from pipelines.config import SourceSettings
from pipelines.errors import SourceError
from pipelines.sources import guard

Kind = Literal["text", "json", "parquet"]

KINDS: Final[dict[str, Kind]] = {
    ".csv": "text", ".tsv": "text", ".tab": "text", ".psv": "text", ".txt": "text", ".dat": "text",
    ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One table file.

    Attributes:
        name: its path relative to the place it was found in; a member of a zip behind the zip's name.
        path: the file on disk that holds it.
        member: its name in the zip, or None.
    """

    name: str
    path: Path
    member: str | None = None

    @property
    def kind(self) -> Kind | None:
        """What it holds, judged by its name; None if that says nothing."""
        name = PurePosixPath(self.name.lower())
        return KINDS.get(name.with_suffix("").suffix if name.suffix == ".gz" else name.suffix)

    @property
    def plain(self) -> bool:
        """Whether the bytes on disk are the table's own."""
        return self.member is None and self.path.suffix.lower() != ".gz"

    @contextmanager
    def open(self, limits: SourceSettings) -> Iterator[BinaryIO]:
        """Yield the decoded bytes.

        Raises:
            SourceError: while reading, once more comes out than the stored bytes may hold.
        """
        with self.path.open("rb") as file:
            stored, stream = self.path.stat().st_size, cast("guard.Readable", file)
            if self.member is not None:
                with _archive(self.path) as archive:
                    info = archive.getinfo(self.member)
                    if info.flag_bits & 1:
                        raise SourceError(self.name, found="encrypted", allowed="a zip without a password")
                    stored = info.compress_size
                    with _opened(archive, info) as inner:
                        yield self._bounded(cast("guard.Readable", inner), stored, limits)
            else:
                yield self._bounded(stream, stored, limits)

    def _bounded(self, stream: guard.Readable, stored: int, limits: SourceSettings) -> BinaryIO:
        if self.name.lower().endswith(".gz"):
            stream = cast("guard.Readable", gzip.GzipFile(fileobj=cast("BinaryIO", stream)))
        return cast("BinaryIO", io.BufferedReader(guard.Bounded(stream, self.name, stored, limits), 1 << 20))


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(str(path), found=f"no readable zip: {error}", allowed="a zip archive") from error


def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    try:
        return cast("BinaryIO", archive.open(info))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise SourceError(f"{archive.filename}/{info.filename}", found=f"not readable: {error}", allowed="a zip of plain files") from error


class Place:
    """What a request's path leads to, as a list of table files.

    Args:
        path: a folder, a zip, or one table file; then its neighbours can be named too.

    Raises:
        SourceError: a refused path, a link out of the folder, too many files.
    """

    def __init__(self, path: Path, limits: SourceSettings) -> None:
        self.limits = limits
        self.root = guard.rooted(path, limits)
        self.only: str | None = None  # the one file that --path named
        if self.root.is_dir():
            self.entries = self._in_folder(self.root)
        elif self.root.suffix.lower() == ".zip":
            self.entries = [Entry(_without_top(name, names), self.root, name) for names in [self._members(self.root)] for name in names]
        else:
            self.only, self.root = self.root.name, self.root.parent
            self.entries = [Entry(self.only, self.root / self.only)]

    def _in_folder(self, folder: Path) -> list[Entry]:
        found = (file for file in folder.rglob("*") if not file.is_dir() and not _hidden(str(file.relative_to(folder))))
        entries = []
        for file in guard.inside(folder, found, self.limits):
            name = str(file.relative_to(folder))
            if file.suffix.lower() == ".zip":
                entries += [Entry(f"{name}/{member}", file, member) for member in self._members(file)]
            else:
                entries.append(Entry(name, file))
        return entries

    def _members(self, path: Path) -> list[str]:
        """Return the files of a zip in order of their names. They are streamed, never unpacked to where a name says."""
        with _archive(path) as archive:
            names = sorted(info.filename for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename))
        if len(names) > self.limits.max_files:
            raise SourceError(str(path), found=f"{len(names):,} files", allowed=f"at most {self.limits.max_files:,}")
        return names

    def tables(self) -> list[Entry]:
        """Return what there is if nobody says what to read: the file named, else every file whose kind is known.

        Raises:
            SourceError: nothing here looks like a table.
        """
        found = self.entries if self.only else [entry for entry in self.entries if entry.kind]
        if not found and len(self.entries) == 1:
            return self.entries  # a zip of one file without a telling name
        if not found:
            raise SourceError(
                str(self.root), found=f"no table among {self.names()}", allowed=f"files ending in {sorted(KINDS)}, also .gz or in a .zip"
            )
        return found

    def find(self, pattern: str) -> list[Entry]:
        """Return the files that a name, a pattern with * and ?, or a folder stands for; sorted by name.

        Raises:
            SourceError: the pattern leaves the folder, or nothing is there.
        """
        wanted = guard.within(self.root, pattern)
        entries = self.neighbours()
        found = [entry for entry in entries if entry.name == wanted or fnmatchcase(entry.name, wanted)]
        found = found or [entry for entry in entries if entry.name.startswith(f"{wanted}/") and (entry.kind or wanted.endswith(".zip"))]
        if not found:
            raise SourceError(f"{self.root.name}/{pattern}", found="no such file", allowed=f"one of {self.names()}")
        if wanted.lower().endswith(".zip") and len(found) > 1:
            raise SourceError(
                f"{self.root.name}/{pattern}", found=f"{len(found)} files in it", allowed=f"one of {[entry.name for entry in found]}"
            )
        return found

    def neighbours(self) -> list[Entry]:
        """Return every file that a name can reach: beside a single file those of its folder, but of no folder below."""
        if not self.only:
            return self.entries
        beside = (file for file in self.root.iterdir() if file.is_file() and not file.is_symlink() and not _hidden(file.name))
        return [Entry(file.name, file) for file in sorted(beside)]

    def parquet_files(self) -> list[Path]:
        """Return the real paths of the files that are read where they lie."""
        return [entry.path.resolve() for entry in self.neighbours() if entry.kind == "parquet" and entry.plain]

    def has(self, pattern: str) -> bool:
        """Return whether a name or pattern is here."""
        return any(fnmatchcase(entry.name, pattern) for entry in self.neighbours())

    def names(self) -> list[str]:
        """Return the first names that are here, for an error to show."""
        entries = self.neighbours()
        names = [entry.name for entry in entries[:20]]
        return [*names, f"... {len(entries) - 20} more"] if len(entries) > 20 else names


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _without_top(name: str, names: list[str]) -> str:
    """Return a member's name without the one folder that holds them all, as archives are usually made."""
    top = names[0].split("/")[0] + "/"
    return name.removeprefix(top) if all(other.startswith(top) for other in names) else name
