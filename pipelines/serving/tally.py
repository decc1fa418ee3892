"""What each release's answers were like, counted by every worker in a file of its own that all of them can read.

    serving/tallies/<pid>-<begun>    int64 [RELEASES, PERIODS, CELLS], mapped into memory

A period is five seconds of the machine's monotonic clock, which all processes share; a release has a ring of them, half an hour. Adding
is a few increments under a lock; reading adds up files. Nobody waits for anybody, and a worker that is killed leaves its counts behind.

A user counts once a minute, by the first answer. Only answers that the engine was asked for count: a list that is given again says nothing of the
release. What the engine itself puts in place of models that fail (popular, under the release's own name) is its answer, on a lower rung.
"""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass, field
from math import log2
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.config import Home
from pipelines.serving import allotted
from pipelines.serving.request import CACHED, FULL, SESSION, Answer, Shown

Counts: TypeAlias = npt.NDArray[np.int64]

PERIOD_SECONDS: Final = 5.0
PERIODS: Final = 360
UNIT_SECONDS: Final = 60.0  # in which a user counts once, a worker: whose requests are alike are no independent evidence
MOST_UNITS: Final = 100_000  # users that are remembered in a minute
RELEASES: Final = 16  # champion, challenger, those of before, and arms that name a version
LATENCIES: Final = 96  # bins, eight to a doubling, from 0.1 ms
FIRST_MS: Final = 0.1
ROLLOUT: Final = "rollout-"  # begins a variant, with the challenger's version
SCORES: Final = 18  # bins of standardised scores: below -3.2, steps of 0.4, above; the last is lists whose scores are all alike
NAMES: Final = ("period", "requests", "failed", "empty", "lower", "pairs", "same")
CELLS: Final = len(NAMES) + LATENCIES + SCORES
WORDS: Final = RELEASES * PERIODS * CELLS + RELEASES  # the last are the versions that the rows are of

EDGES_MS: Final = FIRST_MS * 2.0 ** (np.arange(1, LATENCIES) / 8)  # bin i ends below edge i; the last is open


@dataclass(frozen=True)
class Figures:
    """What was counted of one release.

    Attributes:
        failed: the engine raised, was late, or gave no list; lower: the answer is on a lower rung than `full`, those included.
        pairs: answers that followed one to another user; same: with the very same list.
        latency: int64 [LATENCIES], answers by the engine's time.
        scores: int64 [SCORES], shown items by their score, standardised within the list.
    """

    requests: int = 0
    failed: int = 0
    empty: int = 0
    lower: int = 0
    pairs: int = 0
    same: int = 0
    latency: Counts = field(default_factory=lambda: np.zeros(LATENCIES, np.int64))
    scores: Counts = field(default_factory=lambda: np.zeros(SCORES, np.int64))

    @classmethod
    def of(cls, cells: Counts) -> Figures:
        """Return the figures of cells [CELLS] that were added up."""
        one = {name: int(cells[at]) for at, name in enumerate(NAMES) if name != "period"}
        return cls(**one, latency=cells[len(NAMES) : len(NAMES) + LATENCIES], scores=cells[len(NAMES) + LATENCIES :])

    def quantile_ms(self, q: float) -> float:
        """Return an upper edge of the bin that a quantile falls in, milliseconds; NaN of nothing."""
        total = int(self.latency.sum())
        if not total:
            return float("nan")
        at = int(np.searchsorted(np.cumsum(self.latency), q * total))
        return float(EDGES_MS[min(at, LATENCIES - 2)])


def latency_bin(milliseconds: float) -> int:
    """Return the bin of a time."""
    return 0 if milliseconds <= FIRST_MS else min(int(8 * log2(milliseconds / FIRST_MS)), LATENCIES - 1)


def score_bins(items: tuple[Shown, ...]) -> list[int]:
    """Return the bin of each item's score, standardised within the list; the last bin of a list whose scores are all alike."""
    scores = [shown.score for shown in items]
    n = len(scores)
    if n < 3:
        return []
    mean = sum(scores) / n
    spread = (sum((score - mean) ** 2 for score in scores) / n) ** 0.5
    if not spread > 1e-12 * max(1.0, abs(mean)):
        return [SCORES - 1] * n
    return [min(max(int((score - mean) / spread / 0.4 + 8.5), 0), SCORES - 2) for score in scores]


class Tally:
    """Counts the answers of one process; any number of threads."""

    def __init__(self, home: Home) -> None:
        """Make the file."""
        folder(home).mkdir(parents=True, exist_ok=True)
        self.path = folder(home) / f"{os.getpid()}-{time.perf_counter_ns()}"
        self._map = allotted.mapped(self.path, WORDS * 8, anew=True)
        self._cells = memoryview(self._map).cast("q")
        self._turn = threading.Lock()
        self._minute, self._met = 0, set[tuple[int, str | None]]()
        self._rows: dict[int, int] = {}
        self._last: dict[int, tuple[str | None, int]] = {}

    def close(self) -> None:
        """Let the file go; it stays for who reads."""
        with self._turn:
            self._cells.release()
            self._map.close()

    def __call__(self, answer: Answer) -> None:
        """Count an answer; a watcher of the service."""
        failed = any(line.startswith(FULL) for line in answer.degraded)
        # What a lower rung answers in its place is the failure of the release that was asked.
        version = (answer.asked.version if answer.asked is not None else None) if failed else answer.release.version
        if not (failed or answer.rung not in {CACHED, SESSION}) or answer.remembered or version is None:
            return
        minute = int(time.perf_counter() / UNIT_SECONDS)
        if minute != self._minute:
            self._minute, self._met = minute, set()
        unit = (version, answer.ask.user_id)
        if answer.ask.user_id is not None and (unit in self._met or len(self._met) >= MOST_UNITS):
            return
        self._met.add(unit)
        shown, key = hash(tuple(item.item_id for item in answer.items)), version
        bins = score_bins(answer.items) if answer.rung == FULL else []
        took = latency_bin(answer.stage_ms.get(FULL, 0.0))
        period = int(time.perf_counter() / PERIOD_SECONDS)
        with self._turn:
            start = (self._row(version) * PERIODS + period % PERIODS) * CELLS
            cells = self._cells
            if cells[start] != period:
                for at in range(start, start + CELLS):
                    cells[at] = 0
                cells[start] = period
            cells[start + 1] += 1
            cells[start + 2] += failed
            cells[start + 3] += not answer.items
            cells[start + 4] += failed or answer.rung != FULL
            user, before = self._last.get(key, (None, 0))
            if answer.items and answer.ask.user_id is not None and not failed:
                if user is not None and user != answer.ask.user_id:
                    cells[start + 5] += 1
                    cells[start + 6] += shown == before
                self._last[key] = (answer.ask.user_id, shown)
            cells[start + len(NAMES) + took] += 1
            for at in bins:
                cells[start + len(NAMES) + LATENCIES + at] += 1

    def _row(self, version: int) -> int:
        """Return the row of a version; a new one takes the place of the one that was counted longest ago."""
        if (row := self._rows.pop(version, None)) is None:
            row = len(self._rows) if len(self._rows) < RELEASES else self._rows.pop(next(iter(self._rows)))
            base = row * PERIODS * CELLS
            for at in range(PERIODS):
                self._cells[base + at * CELLS] = 0
            self._cells[RELEASES * PERIODS * CELLS + row] = version
        self._rows[version] = row  # the last counted is the last to give way
        return row


def folder(home: Home) -> Path:
    """Return where the counts lie."""
    return home.serving / "tallies"


def between(home: Home, version: int, begun: float, ended: float) -> Figures:
    """Return what all workers counted of a release between two moments of `time.perf_counter`, whole periods."""
    first, last = int(begun / PERIOD_SECONDS), int(ended / PERIOD_SECONDS)
    total = np.zeros(CELLS, np.int64)
    for path in folder(home).iterdir() if folder(home).is_dir() else ():
        try:
            words = np.memmap(path, np.int64, mode="r")
        except (OSError, ValueError):  # just made, or just swept
            continue
        if len(words) != WORDS:
            continue
        for row in np.flatnonzero(words[-RELEASES:] == version):
            cells = words[row * PERIODS * CELLS : (row + 1) * PERIODS * CELLS].reshape(PERIODS, CELLS)
            inside = (cells[:, 0] >= first) & (cells[:, 0] <= last) & (cells[:, 0] > 0)
            total += cells[inside].sum(axis=0)
    return Figures.of(total)


def sweep(home: Home) -> None:
    """Remove the counts of processes that are gone, once they are too old to be read, or of before the machine began."""
    now = time.perf_counter() / PERIOD_SECONDS
    for path in list(folder(home).glob("*-*")) if folder(home).is_dir() else ():
        pid, _, begun = path.name.partition("-")
        if pid.isdigit() and begun.isdigit() and _began(int(pid)) <= int(begun) / 1e9 <= time.perf_counter():
            continue
        words = np.fromfile(path, np.int64)
        if len(words) != WORDS or not now - PERIODS <= words[: RELEASES * PERIODS * CELLS : CELLS].max() <= now + 1:
            path.unlink(missing_ok=True)


def _began(pid: int) -> float:
    """Return when a process began, seconds as `time.perf_counter` counts them; infinity where there is none. Ids are used again."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return math.inf
    asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.perf_counter()  # the kernel counts suspended time, too
    return int(told[19]) / os.sysconf("SC_CLK_TCK") - asleep
