"""What one client, and all of them together, may take of a process: a rate, and a place in a short queue."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from pipelines.serving import allotted
from pipelines.serving_policies import LimitPolicy

T = TypeVar("T")
_SLOT: Final = struct.Struct("<Qdd")  # hash of the client, tokens left, when that was (monotonic seconds)
_PROBES: Final = 4


class Overloaded(Exception):
    """More is asked than can be answered in time.

    Attributes:
        seconds: after which to ask again.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"ask again in {seconds:.1f} s")


class Turnstile:
    """One thread that answers, and a queue before it that is as long as answers are still wanted when their turn comes.

    Answering is processor work under the interpreter's lock: a second thread would make both slower and
    the loop that serves /healthz deaf. Who would wait longer than `max_wait_ms` is told so at once.
    """

    def __init__(self, policy: LimitPolicy, *, ticks: Callable[[], float] = time.perf_counter) -> None:
        self._policy, self._ticks = policy, ticks
        self._thread = ThreadPoolExecutor(1, "answers")
        self.waiting = 0
        self.mean_seconds = 0.0  # moving mean of what an answer takes

    def wait(self) -> float | None:
        """Return the seconds after which to ask again where nobody is let in now, else None."""
        wait = self.waiting * self.mean_seconds
        full = self.waiting >= self._policy.max_waiting or wait * 1e3 > self._policy.max_wait_ms
        return max(1.0, wait) if full else None

    async def through(self, work: Callable[[], T]) -> T:
        """Return what the work returns, done on the one thread.

        Raises:
            Overloaded: too many wait, or waiting would take too long.
        """
        if (wait := self.wait()) is not None:
            raise Overloaded(wait)
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, work)
        finally:
            self.waiting -= 1

    def _timed(self, work: Callable[[], T]) -> T:
        begun = self._ticks()
        try:
            return work()
        finally:
            self.mean_seconds += 0.05 * (self._ticks() - begun - self.mean_seconds)

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._thread.shutdown()


class Lateness:
    """How late the loop of a process is: what has come and was not read waits in its socket, unseen by any queue.

    A timer is due every `EVERY_SECONDS`; it is late by as much as the loop had to do first. One stall, as of a machine that was busy
    elsewhere, is no overload: two ticks in a row must be late.
    """

    EVERY_SECONDS: Final = 0.05

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due, self._before, self._last = 0.0, 0.0, 0.0

    def seconds(self) -> float:
        """Return how late the loop is that calls this."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._loop, self._before, self._last = loop, 0.0, 0.0
            self._wait(loop)
        return min(self._before, max(self._last, time.monotonic() - self._due))

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.monotonic() + self.EVERY_SECONDS
        loop.call_later(self.EVERY_SECONDS, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self._loop:
            self._before, self._last = self._last, max(0.0, time.monotonic() - self._due)
            self._wait(loop)


class Places:
    """How many requests are in a process at once; counted by the loop alone.

    Attributes:
        taken: now.
    """

    def __init__(self, most: int) -> None:
        self._most, self.taken = most, 0

    def enter(self) -> bool:
        """Take a place and return True; False where none is left."""
        if self.taken >= self._most:
            return False
        self.taken += 1
        return True

    def leave(self) -> None:
        """Give a place back."""
        self.taken -= 1


class Buckets:
    """A token bucket for each client, in memory that all processes of the service share.

    A table of slots, found by a keyed hash of the client. Processes do not lock: two that take at the
    same instant may count one request instead of two, which errs in favour of the client. A slot whose
    bucket has filled up again says nothing and is given to the next client.

    Args:
        file: shared by the processes; None keeps the table in this one.
        salt: shared by them, too; unknown to clients, who cannot choose to collide.
    """

    def __init__(self, file: Path | None = None, salt: bytes = b"", slots: int = 1 << 14) -> None:
        self._salt, self._slots = salt, slots
        size = slots * _SLOT.size
        self._table = mmap.mmap(-1, size) if file is None else allotted.mapped(file, size)

    def take(self, client: str, per_second: float, now: float) -> float:
        """Take a token and return 0, or return the seconds until there will be one.

        Args:
            per_second: tokens that a bucket gains, and that it holds at most (at least one).
            now: monotonic seconds, of the clock that all processes share.
        """
        burst = max(per_second, 1.0)
        mark = int.from_bytes(hashlib.blake2b(client.encode(), digest_size=8, key=self._salt).digest(), "little") or 1
        at, tokens = self._place(mark, burst, per_second, now)
        if tokens >= 1.0:
            _SLOT.pack_into(self._table, at, mark, tokens - 1.0, now)
            return 0.0
        _SLOT.pack_into(self._table, at, mark, tokens, now)
        return (1.0 - tokens) / per_second

    def _place(self, mark: int, burst: float, per_second: float, now: float) -> tuple[int, float]:
        """Return where a client's bucket lies and what it holds now; the one longest unused where it has none."""
        oldest_at, oldest = 0, float("inf")
        for probe in range(_PROBES):
            at = ((mark + probe) % self._slots) * _SLOT.size
            found, tokens, seen = _SLOT.unpack_from(self._table, at)
            if found == mark:
                return at, min(burst, tokens + max(0.0, now - seen) * per_second)
            if found == 0:
                return at, burst
            if seen < oldest:
                oldest_at, oldest = at, seen
        return oldest_at, burst
