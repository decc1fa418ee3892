"""What users did with their answers while a canary runs, counted by every worker in a file of its own that all of them can read.

    serving/clicks/<pid>-<begun>    int64 [STEPS, 1 + 2 * BUCKETS * 2], mapped into memory: a step's key, then [side, bucket, (answers, clicked)]
    serving/clicked.bin             uint64 [REQUESTS], mapped by all of them: names of requests that were clicked, each at a place of its own hash

A user's side of a rollout is a function of the user (`holder.gets_challenger`), so a click needs no look at what was shown: an accepted event that
names its request is a click of that request, once (whichever worker takes it), on its user's side. Every answer to a named user counts, whatever its rung: what a
canary's failure puts in its place is what its users got. Users fall into buckets by a hash, so that what is alike in one user's requests
stays in one bucket, and a bucket is a unit of evidence however many requests it holds. Each step of a rollout has counts of its own.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines import columns as c
from pipelines.config import Home
from pipelines.registry.rollouts import Rollout
from pipelines.serving import allotted
from pipelines.serving.assignment import fraction
from pipelines.serving.holder import gets_challenger
from pipelines.serving.request import Answer

Sums: TypeAlias = npt.NDArray[np.int64]  # [BUCKETS, 2], answers and those of them that were clicked

BUCKETS: Final = 256
STEPS: Final = 8  # of the newest rollouts; the oldest is overwritten
CELLS: Final = 1 + 2 * BUCKETS * 2
WORDS: Final = STEPS * CELLS
REQUESTS: Final = 1 << 17  # places for clicked requests; a newer one takes the place of an older, which is then forgotten


def key(rollout: Rollout) -> int:
    """Return what the counts of a rollout's step are known by, never 0."""
    digest = hashlib.blake2b(f"{rollout.key}/{rollout.step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1 | 1


class Clicks:
    """Counts in one process; any number of threads.

    Args:
        rollout: that users are dealt out by now; None while none runs.
    """

    def __init__(self, home: Home, rollout: Callable[[], Rollout | None]) -> None:
        self._rollout = rollout
        folder(home).mkdir(parents=True, exist_ok=True)
        self.path = folder(home) / f"{os.getpid()}-{time.perf_counter_ns()}"
        self._map = allotted.mapped(self.path, WORDS * 8, anew=True)
        self._cells = memoryview(self._map).cast("q")
        self._turn = threading.Lock()
        self._rows: OrderedDict[int, int] = OrderedDict()
        self._met_map = allotted.mapped(home.serving / "clicked.bin", 8 * REQUESTS)
        self._met = memoryview(self._met_map).cast("Q")

    def close(self) -> None:
        """Let the file go; it stays for who reads."""
        with self._turn:
            for cells, file in ((self._cells, self._map), (self._met, self._met_map)):
                cells.release()
                file.close()

    def __call__(self, answer: Answer) -> None:
        """Count an answer; a watcher of the service."""
        if answer.ask.user_id is not None and (now := self._rollout()) is not None and now.share > 0:
            with self._turn:
                self._count(now, answer.ask.user_id, 0)

    def acted(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Count what accepted events say was clicked."""
        now = self._rollout()
        if now is None or not now.share > 0:
            return
        for event in events:
            request, user = event.get(c.REQUEST_ID), event.get(c.USER_ID)
            if not request or not user or event.get(c.EVENT_TYPE) not in c.EVENT_TYPES:
                continue
            with self._turn:
                if self._first(request):
                    self._count(now, user, 1)

    def _first(self, request: str) -> bool:
        """Tell whether nobody met a click of a request yet; two workers at the very same instant may both be told so."""
        name = int.from_bytes(hashlib.blake2b(str(request).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") or 1
        place = name % REQUESTS
        if self._met[place] == name:
            return False
        self._met[place] = name
        return True

    def _count(self, now: Rollout, user: str, what: int) -> None:
        side = 0 if gets_challenger(now, user) else 1
        bucket = int(fraction("clicks", user) * BUCKETS)
        self._cells[self._row(key(now)) * CELLS + 1 + (side * BUCKETS + bucket) * 2 + what] += 1

    def _row(self, step: int) -> int:
        if (row := self._rows.get(step)) is None:
            row = len(self._rows) if len(self._rows) < STEPS else self._rows.popitem(last=False)[1]
            for at in range(row * CELLS, (row + 1) * CELLS):
                self._cells[at] = 0
            self._cells[row * CELLS] = step
            self._rows[step] = row
        return row


def folder(home: Home) -> Path:
    """Return where the counts lie."""
    return home.serving / "clicks"


def of(home: Home, rollout: Rollout) -> tuple[Sums, Sums]:
    """Return what all workers counted of a rollout's step: challenger's side and control's."""
    total = np.zeros((2, BUCKETS, 2), np.int64)
    for path in folder(home).iterdir() if folder(home).is_dir() else ():
        try:
            words = np.fromfile(path, np.int64)
        except OSError:  # just swept
            continue
        if len(words) == WORDS:
            rows = words.reshape(STEPS, CELLS)
            total += rows[rows[:, 0] == key(rollout), 1:].sum(axis=0).reshape(2, BUCKETS, 2)
    return total[0], total[1]


def sweep(home: Home, rollout: Rollout | None) -> None:
    """Remove the counts of processes that are gone, but for those of the step that runs."""
    for path in list(folder(home).glob("*-*")) if folder(home).is_dir() else ():
        if not Path(f"/proc/{path.name.partition('-')[0]}").exists():
            words = np.fromfile(path, np.int64)
            if rollout is None or len(words) != WORDS or key(rollout) not in words[::CELLS]:
                path.unlink(missing_ok=True)
