"""The time of one request: how long each stage took, what was too late, what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.errors import ReloopError
from pipelines.serving_policies import DeadlinePolicy


class Watch:
    """Runs from its making on; belongs to one request.

    Args:
        ticks: seconds that go by; a benchmark counts those of the processor.

    Attributes:
        ms: milliseconds of each stage that ran, by name.
        degraded: what did not go as it should, a line each.
    """

    def __init__(self, policy: DeadlinePolicy, *, ticks: Callable[[], float] = time.perf_counter) -> None:
        self.policy, self.ms, self.degraded = policy, dict[str, float](), list[str]()
        self._ticks, self._begun = ticks, ticks()

    def passed_ms(self) -> float:
        """Return milliseconds since the request began."""
        return (self._ticks() - self._begun) * 1000

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        begun = self._ticks()
        try:
            yield
        finally:
            self.ms[name] = self.ms.get(name, 0.0) + (self._ticks() - begun) * 1000

    def late(self, name: str, by_ms: float) -> bool:
        """Return whether a stage would begin too late; if so, it is told."""
        passed = self.passed_ms()
        if passed <= by_ms:
            return False
        self.degraded.append(f"{name}: {passed:.0f} ms had passed, it begins by {by_ms:g}")
        return True

    def failed(self, name: str, error: Exception) -> None:
        """Tell what went wrong with a stage, which others make up for."""
        said = f"{error.thing}: {error.found}" if isinstance(error, ReloopError) else f"{type(error).__name__}: {error}"
        self.degraded.append(f"{name}: {said}"[:300])
