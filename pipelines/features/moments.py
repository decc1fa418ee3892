"""When an online read happens: the moment that decides which values are too old to be answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final

from pipelines.window import micros

_READING_AT: Final[ContextVar[int | None]] = ContextVar("reading_at", default=None)


@contextmanager
def reading_at(moment: datetime | None) -> Iterator[None]:
    """Let online reads inside the block answer as of `moment`; None leaves it to the store's own setting."""
    token = _READING_AT.set(None if moment is None else micros(moment))
    try:
        yield
    finally:
        _READING_AT.reset(token)


def asked_moment() -> int | None:
    """Return the moment of the read in microseconds since the epoch; None if the caller named none."""
    return _READING_AT.get()


def ttl_micros(view: Any) -> int:
    """Return how long a value of a Feast view is an answer, in microseconds; 0 is for ever."""
    return int(view.ttl.total_seconds() * 1_000_000) if view.ttl else 0
