"""A circuit breaker: what was in trouble a moment ago is not waited for by every request (Nygard, Release It!, 2018, ch. 5)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from pipelines.errors import ReloopError
from pipelines.serving_policies import BreakerPolicy

State = Literal["closed", "open", "half_open"]
CODES: Final[dict[State, int]] = {"closed": 0, "half_open": 1, "open": 2}  # as metrics have them


class Open(ReloopError):
    """The breaker is open: nothing was asked."""


class Breaker:
    """Guards one thing that may be in trouble; any number of threads.

    Closed, everything passes. It opens at the `failures`-th failure in a row, or at any failure `trouble_seconds` after the first of
    a row: by whichever comes first, so that a busy process and a quiet one both open within a second of trouble.
    Open, nothing passes for `open_seconds`, twice as long after every probe that failed, `most_seconds` at most. Then one
    call passes (half open): what becomes of it closes the breaker or opens it again.

    Attributes:
        name: what it guards, as reasons and metrics tell it.
        opened: how often it opened.
    """

    def __init__(self, name: str, policy: BreakerPolicy, *, ticks: Callable[[], float] = time.monotonic) -> None:
        self.name, self.policy, self.opened = name, policy, 0
        self._ticks, self._turn = ticks, threading.Lock()
        self._row, self._since, self._until, self._pause = 0, 0.0, 0.0, policy.open_seconds
        self._state: State = "closed"
        self._why = ""

    @property
    def state(self) -> State:
        """What the next call would meet: `half_open` where it would be the probe."""
        if self._state == "open" and self._ticks() >= self._until:
            return "half_open"
        return self._state

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Let a block pass, and learn from how it ends.

        Raises:
            Open: nothing passes now.
        """
        self.enter()
        try:
            yield
        except Exception as error:
            self.failed(f"{type(error).__name__}: {error}")
            raise
        self.succeeded()

    def enter(self) -> None:
        """Pass, or be refused.

        Raises:
            Open: nothing passes now.
        """
        state = self._state
        if state == "closed":
            return
        with self._turn:
            now = self._ticks()
            if self._state != "closed" and now < self._until:
                raise Open(self.name, found=f"not asked for another {(self._until - now) * 1000:.0f} ms after {self._why}")
            if self._state != "closed":
                self._state, self._until = "half_open", now + self._pause  # a probe that never comes back does not keep the others out

    def failed(self, why: str) -> None:
        """Say that a call that passed went wrong."""
        with self._turn:
            now = self._ticks()
            self._row, self._why = self._row + 1, why[:200]
            if self._row == 1:
                self._since = now
            if self._state == "half_open":
                self._pause = min(2 * self._pause, self.policy.most_seconds)
            elif self._state == "open" or not (self._row >= self.policy.failures or now - self._since >= self.policy.trouble_seconds):
                return
            self.opened += self._state == "closed"
            self._state, self._until = "open", now + self._pause

    def succeeded(self) -> None:
        """Say that a call that passed went well."""
        if self._row == 0 and self._state == "closed":
            return
        with self._turn:
            if self._state != "open":  # what began before the trouble says nothing of now
                self._row, self._state, self._pause = 0, "closed", self.policy.open_seconds
