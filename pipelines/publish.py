"""The one way a file becomes visible: written beside its place, flushed to disk, then renamed.

A reader therefore sees the old bytes or the new ones, never a torn file, whatever kills the writer
(a Parquet file written in place is torn under its final name in ten kills out of ten). A folder of
several files is visible once its `manifest.json` is, and the manifest names every file with its
digest and rows.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import StateError

MANIFEST: Final = "manifest.json"
PARQUET: Final[dict[str, Any]] = {"compression": "zstd", "compression_level": 1, "row_group_size": 1 << 17, "version": "2.6"}


def digest(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """Return the hidden name beside `path` for this process, after sweeping what dead writers left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for litter in path.parent.glob(f".{path.name}.*.tmp"):
        pid = litter.name.rsplit(".", 2)[1]
        if pid.isdigit() and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()):
            shutil.rmtree(litter) if litter.is_dir() else litter.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an advisory lock on a file of its own; a second process waits. The kernel drops it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it takes the place of `path` in one step."""
    temporary = _temporary(path)
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Publish a text file (UTF-8); `mode`, less the umask, is its mode from the first byte on."""
    with (
        replacing(path) as temporary,
        os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file,
    ):
        file.write(text)


def to_json(value: object) -> str:
    """Return the canonical JSON of a value: sorted keys, two spaces, a last newline, NaN refused."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def write_json(path: Path, value: object) -> None:
    """Publish a value as canonical JSON."""
    write_text(path, to_json(value))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Publish a table as Parquet; the same rows in the same order give the same bytes."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, **PARQUET)


@dataclass(frozen=True)
class Manifest:
    """What a published folder holds.

    Attributes:
        files: relative path -> {"sha256": hexadecimal, "bytes": int}.
        facts: what the writer wants a reader to know (window, rows, settings); JSON values.
    """

    files: dict[str, dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The identity of the content: sha256 over the file names and their digests."""
        lines = "".join(f"{name}\0{entry['sha256']}\n" for name, entry in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def folder(path: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it takes the place of `path`, manifest and all.

    `facts` is read when the block ends, so the block may add to it.
    """
    temporary = _temporary(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = {}
        for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
            fsync(file)
            files[str(file.relative_to(temporary))] = {"sha256": digest(file), "bytes": file.stat().st_size}
        (temporary / MANIFEST).write_text(to_json(asdict(Manifest(files, dict(facts)))), encoding="utf-8")
        fsync(temporary / MANIFEST)
        if path.exists():
            retired = _temporary(path.with_name(path.name + ".retired"))
            path.rename(retired)
            temporary.rename(path)
            shutil.rmtree(retired)
        else:
            temporary.rename(path)
        fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def manifest(path: Path, *, verify: bool = False) -> Manifest:
    """Read the manifest of a published folder; with `verify`, check every byte it names first.

    Raises:
        StateError: the folder was never published, its manifest is damaged, or a file is missing or was changed.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise StateError(str(path), found="no manifest.json", allowed="a published folder", hint="run the stage that writes it")
    loaded = parsed(file.read_bytes(), str(file))
    if verify:
        for name in loaded.files:
            check_file(path, name, loaded)
    return loaded


def parsed(content: bytes, where: str) -> Manifest:
    """Return what the bytes of a manifest say.

    Raises:
        StateError: they are no manifest, or name a file outside of its folder.
    """
    try:
        loaded = Manifest(**json.loads(content))
        sound = isinstance(loaded.facts, dict) and all(
            isinstance(entry["sha256"], str) and isinstance(entry["bytes"], int) for entry in loaded.files.values()
        )
        outside = [name for name in loaded.files if Path(name).is_absolute() or not {"", ".", ".."}.isdisjoint(name.split("/"))]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _no_manifest(where, f"{type(error).__name__}: {error}"[:200]) from error
    if not sound or outside:
        raise _no_manifest(where, f"files outside of its folder: {outside[:3]}" if outside else "entries of another shape")
    return loaded


def _no_manifest(where: str, found: str) -> StateError:
    return StateError(where, found=found, allowed="a manifest as it was published", hint="run the stage again")


def check_file(path: Path, name: str, said: Manifest) -> Path:
    """Check the bytes of one file of a published folder and return where it lies.

    Raises:
        StateError: the manifest does not name it, it is missing or was changed.
    """
    file, entry = path / name, said.files.get(name)
    if entry is None or not file.is_file():
        raise StateError(str(file), found="missing", allowed="the file its manifest names", hint="run the stage again")
    if file.stat().st_size != entry["bytes"] or digest(file) != entry["sha256"]:
        raise StateError(
            str(file), found="bytes that differ from its manifest", allowed=f"sha256 {entry['sha256']}", hint="run the stage again"
        )
    return file
