"""What does not fit a form: pydantic's findings in words that a person can act on, with the near miss of a mistyped name."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def said(error: ValidationError, model: type[BaseModel], under: str = "") -> str:
    """Return every finding as `where: what`, joined by semicolons.

    Args:
        model: what was to be filled in; its fields are what a mistyped name is compared with.
        under: what stands before every name, such as `settings.`.
    """
    return "; ".join(_finding(dict(wrong), model, under) for wrong in error.errors())


def _finding(wrong: dict[str, Any], model: type[BaseModel], under: str) -> str:
    where = f"{under}{'.'.join(map(str, wrong['loc']))}"
    if wrong["type"] == "extra_forbidden":
        known = _fields(model, wrong["loc"][:-1])
        near = get_close_matches(str(wrong["loc"][-1]), known, n=1)
        return f"{where}: no such name; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}")
    said = str(wrong["msg"]).removeprefix("Value error, ")
    if not wrong["loc"]:  # a check of the whole form names its fields itself
        return said
    return f"{where}: {said}" + (f" (got {wrong['input']!r:.80})" if isinstance(wrong["input"], str | int | float) else "")


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the names that may stand at a place of a form; positions and names of entries lead nowhere of their own."""
    here = [model]
    for step in path:
        inner = [kind for form in here if step in form.model_fields for kind in _forms(form.model_fields[str(step)].annotation)]
        here = inner or here
    return sorted({name for form in here for name in form.model_fields})


def _forms(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the forms that a type is made of, however it wraps them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _forms(inner)
