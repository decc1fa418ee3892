"""The impression log of a process: every answer it gave, appended to a segment of its own; never in the way of a request.

    impressions/segments/<pid>-<word>-<number>.new      made, not yet locked by its writer
                                              .open     being written, under its writer's lock; `.jsonl` once it is closed

One line of JSON an answer, as `lake.segments` reads it. A request only puts its answer into a bounded buffer; a thread of the process
writes what waits there every `flush_seconds`, flushes it to disk, and closes the segment once it is large or old. What finds the buffer
full, or a disk that refuses it, is dropped and counted. A process that is killed loses what it had not flushed; what it left behind is
known by the lock that nobody holds any more.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pipelines import columns as c
from pipelines.config import Home
from pipelines.decision_policies import ImpressionPolicy
from pipelines.lake import segments
from pipelines.lake.codes import device_code
from pipelines.ranking.newcomers import SOURCE
from pipelines.serving.assignment import fraction
from pipelines.serving.request import FULL, Answer
from pipelines.window import micros

LOG: Final = logging.getLogger(__name__)
MARKS_SHARE: Final = 0.25  # of the buffer, that places which came into view may take


@dataclass
class Counts:
    """What became of answers and their rows, since the process began."""

    answers: int = 0  # written
    rows: int = 0  # written
    dropped: int = 0  # rows that found no room
    lost: int = 0  # rows that the disk refused
    segments: int = 0  # closed


@dataclass(frozen=True)
class Seen:
    """A place of an answer that came into view, as the client says."""

    request_id: str
    user_id: str
    item_id: str
    at: datetime


class Journal:
    """A watcher of the service: `journal(answer)`; any number of threads may call it.

    Args:
        ticks: seconds that go by.
    """

    def __init__(self, home: Home, policy: ImpressionPolicy, *, ticks: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.policy, self.counts = segments.folder(home), policy, Counts()
        self._ticks = ticks
        self._waiting: deque[Answer | Seen] = deque()
        self._rows = self._marks = 0
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._name, self._number = f"{os.getpid()}-{secrets.token_hex(6)}", 0
        self._file: int | None = None
        self._path = self.folder
        self._size, self._opened_at = 0, 0.0
        self._troubled = False

    def __call__(self, answer: Answer) -> None:
        """Take an answer; nothing is written here, and nothing is raised."""
        self._take(answer)

    def saw(self, place: Seen) -> bool:
        """Take a place that came into view; as with answers, nothing is raised. False where such places have taken their share of the buffer."""
        return self._take(place)

    def _take(self, answer: Answer | Seen) -> bool:
        rows, mark = _rows(answer), isinstance(answer, Seen)
        with self._turn:
            # What clients send in bulk must not crowd out what was shown.
            if mark and self._marks >= self.policy.buffer_rows * MARKS_SHARE:
                self.counts.dropped += rows
                return False
            if self._rows + rows > self.policy.buffer_rows:
                self.counts.dropped += rows
                return False
            self._rows += rows
            self._marks += mark
            self._waiting.append(answer)
            return True

    def start(self) -> None:
        """Write in a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="reloop-journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and close the segment."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)
        self.flush()
        self._finish()

    def _run(self) -> None:
        while not self._stop.wait(self.policy.flush_seconds):
            self.flush()
            if self._file is not None and self._ticks() - self._opened_at >= self.policy.segment_seconds:
                self._finish()

    def flush(self) -> None:
        """Write what waits; called by one thread at a time."""
        with self._turn:
            answers, self._waiting, self._rows, self._marks = self._waiting, deque(), 0, 0
        if not answers:
            return
        rows = sum(map(_rows, answers))
        try:
            self._write(b"".join(_seen(one) if isinstance(one, Seen) else _line(one, self._samples(one)) for one in answers))
            self.counts.answers += sum(isinstance(one, Answer) for one in answers)
            self.counts.rows += rows
            self._troubled = False
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the disk or an answer, the service goes on
            self.counts.lost += rows
            if not self._troubled:
                LOG.error("impressions are not logged, answers go on: %s: %s", type(error).__name__, error)  # noqa: TRY400 - once a second is no place for a trace
            self._troubled = True

    def _samples(self, answer: Answer) -> bool:
        """Tell whether a request's feature values are logged: it was ranked now, of what is stored and told of its user alone."""
        ask, policy = answer.ask, self.policy
        made_now = answer.rung == FULL and not answer.remembered and not answer.degraded and ask.surface == "home"
        plain = ask.user_id is not None and not ask.events and not ask.filters  # what the caller tells is in no lake
        ranked = not any(SOURCE in one.sources for one in answer.items)  # of what a draw put there, no ranker read anything
        return (
            made_now
            and plain
            and ranked
            and bool(answer.features)
            and fraction("sample", policy.salt, ask.request_id) < policy.feature_share
        )

    def _write(self, lines: bytes) -> None:
        if (
            self._file is not None and not os.fstat(self._file).st_nlink
        ):  # somebody removed it: nobody would ever find what is written there
            self._finish()
        file = self._begin() if self._file is None else self._file
        try:
            view = memoryview(lines)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
            self._size += len(lines)
        except OSError:
            os.ftruncate(file, self._size)  # the next lines must not begin in the middle of one
            raise
        if self._size >= self.policy.segment_bytes:
            self._finish()

    def _begin(self) -> int:
        """Open a segment; under its own name it is never without its lock, which tells whoever tidies that it is in use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / f"{self._name}-{self._number:06d}{segments.OPEN}"
        self._number += 1
        made = self._path.with_suffix(segments.NEW)
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            made.rename(self._path)
        except OSError:
            os.close(descriptor)
            raise
        self._file, self._size, self._opened_at = descriptor, 0, self._ticks()
        return descriptor

    def _finish(self) -> None:
        """Close the segment, to be landed. One that cannot be renamed is left without its lock: the collector closes it then."""
        if self._file is None:
            return
        try:
            self._path.rename(self._path.with_suffix(segments.CLOSED))
            self.counts.segments += 1
        except OSError as error:
            LOG.error("a segment of impressions is left open, the next begins: %s: %s", type(error).__name__, error)  # noqa: TRY400 - a disk that refuses needs no trace
        finally:
            descriptor, self._file = self._file, None
            with suppress(OSError):
                os.close(descriptor)


def _rows(answer: Answer | Seen) -> int:
    """Return the rows that an answer becomes; an empty one is an exposure, too."""
    return 1 if isinstance(answer, Seen) else max(len(answer.items), 1)


def _seen(place: Seen) -> bytes:
    """Return a place that came into view as one line; whose answer it was, the answer's own line says."""
    said = {c.REQUEST_ID: place.request_id, c.USER_ID: place.user_id, c.SHOWN_AT: micros(place.at)}
    said |= dict.fromkeys((c.MODEL_VERSION, c.VARIANT, c.SURFACE, c.RUNG))
    return _encoded(said | {"items": [[place.item_id, c.SEEN_RANK, None, None, []]]})


def _line(answer: Answer, with_features: bool) -> bytes:
    """Return an answer as one line."""
    ask = answer.ask
    said: dict[str, Any] = {
        "request_id": ask.request_id,
        # Nobody in particular, and nobody twice: outcomes find it by its request.
        "user_id": ask.user_id or f"{segments.ANONYMOUS}{ask.request_id}",
        "shown_at": micros(ask.as_of),
        "model_version": None if answer.release.version is None else str(answer.release.version),
        # Who was assigned, whoever's the list was: an arm whose engine fails is to be blamed for what its users got.
        "variant": answer.assigned or answer.variant or None,
        "surface": ask.surface,
        "rung": answer.rung,
        "items": [[one.item_id, one.rank, _number(one.score), _number(one.propensity), list(one.sources)] for one in answer.items],
    }
    if with_features:
        said["features"] = {name: [_number(value) for value in values] for name, values in answer.features.items()}
        told = {segments.DEVICE: float(device_code(ask.device)), segments.COUNTRY: float(ask.country is not None)}
        said["features"] |= {name: [value] * len(answer.items) for name, value in told.items()}
    return _encoded(said)


def _encoded(said: dict[str, Any]) -> bytes:
    return json.dumps(said, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
