"""The last answers of every process, for who asks how one came about: a ring of bytes a process, in a file that all can read.

    serving/answers/<pid>    8 bytes: where the next record goes; then records, a line of JSON each, new over old

Kept as bytes and not as objects: thousands of lists in memory would be walked by every garbage collection. A reader meets a
record that is just being overwritten as one that is no JSON, and knows it no more.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pipelines.config import Home

_HEAD: Final = struct.Struct("<Q")
_BEGIN: Final = b'\n{"request_id":"%s",'


def folder(home: Home) -> Path:
    """Return where the rings of a state folder lie."""
    return home.serving / "answers"


class Ring:
    """What this process answered.

    Args:
        size: bytes; the last size/5,000 answers or so.
    """

    def __init__(self, home: Home, size: int) -> None:
        self._size = size
        folder(home).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = folder(home) / str(os.getpid())
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(descriptor, _HEAD.size + size)
            self._map = mmap.mmap(descriptor, _HEAD.size + size)
        finally:
            os.close(descriptor)
        self._at = 0

    def keep(self, line: bytes) -> None:
        """Keep a record: JSON that begins with its `request_id`; one that is longer than the ring is not kept."""
        record = b"\n" + line + b"\n"
        if len(record) > self._size:
            return
        if self._at + len(record) > self._size:
            self._map[_HEAD.size + self._at :] = bytes(self._size - self._at)
            self._at = 0
        self._map[_HEAD.size + self._at : _HEAD.size + self._at + len(record)] = record
        self._at += len(record)
        _HEAD.pack_into(self._map, 0, self._at)

    def close(self) -> None:
        """Forget everything."""
        self._map.close()
        self.path.unlink(missing_ok=True)


def find(home: Home, request_id: str) -> Mapping[str, Any] | None:
    """Return the record of an answer of any process, the newest of several (`as_of`); None where it is not remembered."""
    begin = _BEGIN % json.dumps(request_id)[1:-1].encode()
    found = list[Mapping[str, Any]]()
    for record in _records(home, begin):
        with suppress(ValueError):  # half of it was overwritten
            found.append(json.loads(record))
    return max(found, key=lambda one: str((one.get("answer") or {}).get("as_of", "")), default=None)


def _records(home: Home, begin: bytes) -> Iterator[bytes]:
    """Yield what begins so, in every ring."""
    for path in folder(home).iterdir() if folder(home).is_dir() else ():
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                at = mapped.find(begin)
                while at >= 0:
                    yield mapped[at + 1 : max(mapped.find(b"\n", at + 1), at + 1)]
                    at = mapped.find(begin, at + 1)
        except (OSError, ValueError):  # its process has just ended, or has just begun
            continue
