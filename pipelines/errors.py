"""Errors that say what, where, what was found, what is allowed, and what to do."""

from __future__ import annotations


class ReloopError(Exception):
    """A failure that a person can act on.

    Args:
        thing: what is wrong, named as the user knows it (a file, a table, a column, a setting).
        found: what was met.
        allowed: what would have been accepted.
        hint: what to do about it.
    """

    def __init__(self, thing: str, *, found: str, allowed: str = "", hint: str = "") -> None:
        self.thing, self.found, self.allowed, self.hint = thing, found, allowed, hint
        super().__init__(thing, found, allowed, hint)

    def __str__(self) -> str:
        text = f"{self.thing}: {self.found}"
        if self.allowed:
            text += f"; expected {self.allowed}"
        text += "." if not text.endswith(".") else ""
        return f"{text} Hint: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.thing, self.found, self.allowed, self.hint))


def _rebuild(kind: type[ReloopError], thing: str, found: str, allowed: str, hint: str) -> ReloopError:
    return kind(thing, found=found, allowed=allowed, hint=hint)


class SourceError(ReloopError):
    """A source cannot be read: missing file, unknown layout, refused path, oversized input."""


class MappingError(ReloopError):
    """A table mapping is wrong or does not fit its file."""


class ValidationBlocked(ReloopError):
    """A critical data check failed: the data does not enter and nothing downstream changes."""


class StateError(ReloopError):
    """The state folder lacks something a stage needs, or holds something it refuses."""


class NotEnoughData(ReloopError):
    """There is too little history for what was asked; nothing is broken."""


class StaleFence(ReloopError):
    """Another process has published since this one began; its result stands."""
