"""Threads that do what may hang, so that a request waits for it so long and no longer; as many as are said, never more (a bulkhead)."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from pipelines.errors import ReloopError

Result = TypeVar("Result")


class Late(ReloopError):
    """The work was not done in time; it may still be going on."""


class Busy(ReloopError):
    """Every thread is at work, and as much is waiting as may wait."""


class Crew(Generic[Result]):
    """A fixed number of daemon threads, started as they are needed.

    Args:
        name: of the work, for the reasons.
        threads: at most.
        waiting: pieces of work that may wait for a thread.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self.name, self.threads = name, threads
        self._room = threading.BoundedSemaphore(threads + waiting)
        self._work: queue.SimpleQueue[tuple[Future[Result], contextvars.Context, Callable[[], Result]] | None] = queue.SimpleQueue()
        self._turn, self._started, self._idle = threading.Lock(), 0, 0

    def call(self, work: Callable[[], Result], timeout_ms: float) -> Result:
        """Return what a piece of work returns, or raise what it raises.

        Raises:
            Late: it was not done in time. Where no thread had begun it, none will.
            Busy: too much is waiting already.
        """
        if timeout_ms <= 0:
            raise Late(self.name, found="no time was left for it")
        if not self._room.acquire(blocking=False):
            raise Busy(self.name, found=f"all {self.threads} threads are at work and the queue is full")
        job: Future[Result] = Future()
        job.add_done_callback(lambda _: self._room.release())
        self._hire()
        self._work.put((job, contextvars.copy_context(), work))
        try:
            return job.result(timeout_ms / 1000)
        except TimeoutError as error:
            if job.done() and not job.cancelled():  # the work itself raised it
                raise
            begun = not job.cancel()
            raise Late(self.name, found=f"not {'done' if begun else 'begun'} within {timeout_ms:.0f} ms") from error

    def close(self) -> None:
        """Let the threads end, each after what it has begun and what waits already; whoever calls after all finds new ones."""
        with self._turn:
            for _ in range(self._started):
                self._work.put(None)

    def _hire(self) -> None:
        with self._turn:
            if self._started < self.threads and self._idle <= self._work.qsize():
                self._started += 1
                threading.Thread(target=self._toil, name=f"{self.name}-{self._started}", daemon=True).start()

    def _toil(self) -> None:
        while True:
            with self._turn:
                self._idle += 1
            given = self._work.get()
            with self._turn:
                self._idle -= 1
                self._started -= given is None
            if given is None:
                return
            job, context, work = given
            if not job.set_running_or_notify_cancel():
                continue
            _done(job, context, work)


def _done(job: Future[Any], context: contextvars.Context, work: Callable[[], Any]) -> None:
    try:
        job.set_result(context.run(work))
    except BaseException as error:  # noqa: BLE001 - whoever asked is told
        job.set_exception(error)
