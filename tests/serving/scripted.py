"""A small stock, and an engine that does what a test tells it: answers, raises, hangs, or gives what is no list."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.serving.request import FULL, Answer, Ask, Release, Shown, Why
from pipelines.serving.standing import EVERYBODY, Standing
from pipelines.serving_policies import DeadlinePolicy, ServingSettings
from pipelines.window import utc

NOW = utc("2025-03-01T12:00")
RELEASE = Release(3, "d" * 64)
STOCK = Standing(
    lists={
        EVERYBODY: [(f"p{n}", 100.0 - n) for n in range(20)],
        "SE": [(f"s{n}", 50.0 - n) for n in range(5)],
    },
    catalogue={
        **{
            f"p{n}": {"title": f"P {n}", "category": "pots" if n % 2 else "pans", "price": float(n), "available": n != 4} for n in range(20)
        },
        **{f"s{n}": {"category": "saunas", "price": 1000.0 + n, "available": True} for n in range(5)},
        **{f"i{n}": {"category": "pots", "price": 5.0, "available": True} for n in range(20)},
    },
    segments={"anna": "SE"},
)


PATIENT = ServingSettings(deadline=DeadlinePolicy(request_ms=20_000))  # a busy machine is no fault of the release
HASTY = ServingSettings(deadline=DeadlinePolicy(request_ms=100))


def ask(**said: object) -> Ask:
    """Return a request for three items."""
    return Ask(**({"surface": "home", "request_id": "r1", "as_of": NOW, "k": 3, "user_id": "bo"} | said))


def shown(*items: str, score: float = 1.0) -> tuple[Shown, ...]:
    """Return places of an answer."""
    return tuple(Shown(item, rank, score, Why("for_you", "Picked for you")) for rank, item in enumerate(items, 1))


@dataclass
class Engine:
    """Answers `i0, i1, ...` unless it is told otherwise."""

    does: Callable[[Ask], Answer] | None = None
    release: Release = RELEASE
    asked: list[Ask] = field(default_factory=list)

    def answer(self, asked: Ask) -> Answer:
        self.asked.append(asked)
        if self.does is not None:
            return self.does(asked)
        names = [f"i{n}" for n in range(20) if f"i{n}" not in asked.filters.exclude]
        return Answer(asked, shown(*names[: asked.k]), FULL, self.release)


def raising(asked: Ask) -> Answer:
    """Fail."""
    raise ValueError("the ranker is broken")


def hanging(asked: Ask, *, never: threading.Event = threading.Event()) -> Answer:  # noqa: B008 - shared on purpose: nobody sets it
    """Never come back."""
    never.wait()
    raise AssertionError


def items(answer: Answer) -> list[str]:
    """Return the ids of an answer in order."""
    return [place.item_id for place in answer.items]
