"""The way of a request, in one place: which engine answers, what it falls back on, what is logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.serving.request import EMPTY, Answer, Ask, Release

Watcher = Callable[
    [Answer], None
]  # is shown every answer after it was made: impression log, metrics, shadow; must be quick, may not fail it


@dataclass(frozen=True)
class Service:
    """What a process of the service holds.

    Attributes:
        answers: from a request to its answer; the top of the fallback ladder. None before the first release.
        watchers: see every answer.
    """

    answers: Callable[[Ask], Answer] | None
    watchers: tuple[Watcher, ...] = ()

    def answer(self, ask: Ask) -> Answer:
        """Return an answer, whatever happens; what went wrong is told in it."""
        nothing = Answer(ask, (), EMPTY, Release(None, None), degraded=("no release yet",))
        answer = nothing if self.answers is None else self.answers(ask)
        for watcher in self.watchers:
            watcher(answer)
        return answer
