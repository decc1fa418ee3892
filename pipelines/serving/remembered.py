"""The last answers of every process, for who asks how one came about: a ring of bytes a process, in a file that all can read.

    serving/answers/<pid>    8 bytes: where the next record goes; then records, a line of JSON each, new over old

A record is what was told, as it was sent, with the question and the values that the ranker read beside it: those as they lay in memory,
because every answer is kept and hardly any is asked for (`record`, `told`). Kept as bytes and not as objects: thousands of lists in memory would be walked by every garbage collection. A reader meets a
record that is just being overwritten as one that is no JSON, and knows it no more.
"""

from __future__ import annotations

import base64
import json
import logging
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic_core import to_json

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.serving import allotted, explanation
from pipelines.serving.request import Answer

LOG: Final = logging.getLogger(__name__)
_HEAD: Final = struct.Struct("<Q")
_BEGIN: Final = b'\n{"request_id":"%s",'


def folder(home: Home) -> Path:
    """Return where the rings of a state folder lie."""
    return home.serving / "answers"


class Ring:
    """What this process answered.

    Args:
        size: bytes; the last size/5,000 answers or so. Where the disk has no room for them, nobody finds what is kept.
    """

    def __init__(self, home: Home, size: int) -> None:
        self._size = size
        folder(home).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = folder(home) / str(os.getpid())
        try:
            self._map = allotted.mapped(self.path, _HEAD.size + size, anew=True, mode=0o600)
        except StateError as error:  # answers matter more than what is told of them later
            LOG.error("answers of this process cannot be explained: %s", error)  # noqa: TRY400 - a full disk needs no trace
            self.path.unlink(missing_ok=True)
            self._map = mmap.mmap(-1, _HEAD.size + size)
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


def record(answer: Answer, body: bytes) -> bytes:
    """Return what is kept of an answer.

    Args:
        body: what was told of it, as JSON.
    """
    rows = getattr(answer.features, "rows", None)  # of a matrix as the ranker read it (`shown.Features`); else values by name
    if rows is None:
        read = b'"values":' + to_json({name: list(values) for name, values in answer.features.items()}, inf_nan_mode="null")
    else:
        kept = np.ascontiguousarray(rows, np.float32)
        read = b'"names":%s,"rows":"%s"' % (_words(tuple(answer.features)), base64.b64encode(kept.tobytes()))
    named = to_json(answer.ask.request_id)
    drawn = to_json([shown.propensity for shown in answer.items], inf_nan_mode="null")
    parts = _parts(tuple(answer.release.parts.items()))
    return b'{"request_id":%s,"answer":%s,"parts":%s,"propensity":%s,%s,"asked":%s}' % (
        named, body, parts, drawn, read, explanation.written(answer.ask),
    )  # fmt: skip


@lru_cache(maxsize=64)
def _words(names: tuple[str, ...]) -> bytes:
    return to_json(names)


@lru_cache(maxsize=64)
def _parts(parts: tuple[tuple[str, str], ...]) -> bytes:
    return to_json(dict(parts))


def told(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a record knows of an answer, as `GET /v1/requests/{id}/explanation` tells it."""
    items = kept["answer"]["items"]
    values: dict[str, Any] = kept.get("values", {})
    if "rows" in kept:
        rows = np.frombuffer(base64.b64decode(kept["rows"]), np.float32).reshape(-1, len(kept["names"]))
        values = {name: [value if np.isfinite(value) else None for value in rows[:, at].tolist()] for at, name in enumerate(kept["names"])}
    each = [
        {
            "item_id": item["item_id"],
            "propensity": kept["propensity"][place],
            "features": {name: column[place] if place < len(column) else None for name, column in values.items()},
        }
        for place, item in enumerate(items)
    ]
    whole = {"found": True, "answer": kept["answer"], "parts": kept["parts"], "items": each, "asked": kept["asked"]}
    return {"request_id": kept["request_id"], **whole}


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
