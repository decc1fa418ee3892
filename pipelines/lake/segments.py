"""Segments of the impression log: what the processes of the service wrote, line by line, until it is landed.

    impressions/segments/<name>.new      made, and not yet its writer's; always empty
    impressions/segments/<name>.open     being written, or left behind by a process that was killed
    impressions/segments/<name>.jsonl    closed

A line is one answer as JSON: request_id, user_id, shown_at (microseconds UTC), model_version, variant, surface, rung, items as
[item_id, rank, score, propensity, sources], none of them where nothing was shown, and for some requests features: {name: a value for each item}. A line without its end is
what a kill left of a write that was never confirmed: it is no row, and counted. Any other line that cannot be read is kept as a row of
nothing but its text, so that quarantine shows it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pipelines import columns as c
from pipelines.config import Home

NEW: Final = ".new"
OPEN: Final = ".open"
CLOSED: Final = ".jsonl"
ANONYMOUS: Final = "anonymous:"  # before the request id, where nobody was signed in
DEVICE: Final = "request.device"  # among the feature values: the code of the device that the request named, -1 where none
COUNTRY: Final = "request.country"  # and whether it named a country
UNREADABLE: Final = "the line is not an answer as the service writes it"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def folder(home: Home) -> Path:
    """Return where segments lie."""
    return home.root / "impressions" / "segments"


def closed(home: Home) -> list[Path]:
    """Return the segments that nobody writes any more, by name; those that a dead process left behind are closed first."""
    place = folder(home)
    for left in sorted(place.glob(f"*{OPEN}")):
        _close_if_left(left)
    return sorted(place.glob(f"*{CLOSED}"))


def _close_if_left(file: Path) -> None:
    with _unlocked(file) as size:
        if size and file.is_file():
            file.rename(file.with_suffix(CLOSED))


def abandoned(home: Home) -> list[Path]:
    """Return the empty segments of writers that are gone: they ended before the first line.

    Their lock says so, not their process id, which means nothing in another container. A writer that is just about to lock its file
    renames it then: who removes it by the name told here removes nothing.
    """
    found = []
    for file in sorted([*folder(home).glob(f"*{NEW}"), *folder(home).glob(f"*{OPEN}")]):
        with _unlocked(file) as size:
            if size == 0:
                found.append(file)
    return found


@contextmanager
def _unlocked(file: Path) -> Iterator[int | None]:
    """Hold the lock of a segment that nobody writes and yield its bytes; None where somebody writes it, or it is gone."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    size: int | None = None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.fstat(descriptor).st_size
    except BlockingIOError:  # it is being written
        pass
    try:
        yield size
    finally:
        os.close(descriptor)


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the impressions of a segment as rows of `tables.staged("impressions")`, in the order of the file; `source_row` is left to the reader."""
    for line in file.read_bytes().split(b"\n")[:-1]:
        text = line.decode("utf-8", "replace")
        try:
            found = list(_of_answer(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            found = [{c.RAW: text, c.REASONS: [UNREADABLE]}]
        yield from found


def torn(file: Path) -> bool:
    """Tell whether a segment ends in a line without its end."""
    with file.open("rb") as opened:
        if not opened.seek(0, os.SEEK_END):
            return False
        opened.seek(-1, os.SEEK_END)
        return opened.read(1) != b"\n"


def _of_answer(said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one answer; whatever does not have the form of one raises."""
    shared = {name: _text(said[name]) for name in (c.REQUEST_ID, c.USER_ID, c.MODEL_VERSION, c.VARIANT, c.SURFACE, c.RUNG)}
    shown_at = EPOCH + timedelta(microseconds=int(said[c.SHOWN_AT]))
    features: dict[str, list[float | None]] = said.get("features") or {}
    for at, (item, rank, score, propensity, sources) in enumerate(said["items"] or [[c.NOTHING, 0, None, 1, []]]):
        yield {
            **shared,
            c.ITEM_ID: _text(item),
            c.RANK: int(rank),
            c.SHOWN_AT: shown_at,
            c.SOURCES: [str(one) for one in sources],
            c.SCORE: _number(score),
            c.PROPENSITY: _number(propensity),
            c.FEATURE_VALUES: [(name, _number(values[at])) for name, values in sorted(features.items())] or None,
        }


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]
