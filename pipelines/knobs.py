"""Knobs of a model, as settings give them: known by name, of the right type, within their range.

A model is a frozen dataclass and its knobs are its fields, all but `state`. Types are those of the
annotations. Ranges go by the knob's name, since one knob has one name everywhere; where a model
differs, its annotation says so: `n_factors: Annotated[int, Range(0)]`. Choices are a `Literal`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pipelines.errors import StateError

Model = TypeVar("Model")


@dataclass(frozen=True)
class Range:
    """The numbers that a knob may have.

    Attributes:
        above: `least` itself is not among them.
        below: `most` itself is not among them.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        reached = value > self.least if self.above else value >= self.least
        return reached and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least:g}" if self.least > -math.inf else ""
        high = f"{'below' if self.below else 'at most'} {self.most:g}" if self.most < math.inf else ""
        return " and ".join(part for part in (low, high) if part)


_COUNT: Final = Range(1, 2**31 - 1)
_COUNT_OR_NONE: Final = Range(0, 2**31 - 1)
_WEIGHT: Final = Range(0)
_MORE: Final = Range(0, above=True)
_EXPONENT: Final = Range(0, 10)
_DAYS: Final = Range(0, 36_500, above=True)
_HALF_LIFE: Final = Range(0, 1e9, above=True)  # so long is never
_SHARE: Final = Range(0, 1)
_SOME: Final = Range(0, 1, above=True)
_DROPPED: Final = Range(0, 1, below=True)

# Of every knob that is a number, wherever it stands; of a tuple or a table of numbers, of each.
RANGES: Final[dict[str, Range]] = {
    # sizes
    "batch_size": _COUNT, "max_basket": _COUNT, "max_events": _COUNT_OR_NONE, "max_history": _COUNT, "max_items": _COUNT,
    "max_items_per_term": _COUNT, "max_length": _COUNT, "max_segments": _COUNT, "max_sessions": _COUNT, "max_tokens": _COUNT,
    "max_users": _COUNT, "max_values": _COUNT, "min_baskets": _COUNT, "n_blocks": _COUNT, "n_cross": Range(0, 16), "n_experts": Range(1, 64), "n_factors": Range(1, 4096),
    "n_hard": _COUNT_OR_NONE, "n_heads": Range(1, 64), "n_hidden": Range(1, 4096), "n_kept": _COUNT, "n_layers": Range(1, 64),
    "n_negatives": _COUNT, "n_neighbours": _COUNT, "n_pool": _COUNT, "n_shortlist": _COUNT, "n_tokens": _COUNT,
    "n_validation": _COUNT_OR_NONE, "window": _COUNT,
    # work
    "final_epochs": _COUNT_OR_NONE, "n_epochs": _COUNT, "n_epochs_asked": _COUNT, "n_rounds": _COUNT, "n_steps": _COUNT,
    "num_threads": Range(1, 1024), "patience": _COUNT, "pretrain_epochs": _COUNT_OR_NONE, "seconds": _WEIGHT, "seed": Range(0, 2**31 - 1), "warmup": _COUNT_OR_NONE,
    # times
    "baseline_days": _DAYS, "gap_minutes": Range(0, 1e7, above=True), "half_life_days": _HALF_LIFE, "recency_half_life_days": _HALF_LIFE,
    "window_days": _DAYS,
    # weights
    "k1": _MORE, "alpha": _MORE, "backward": _WEIGHT, "bias_regularization": _MORE, "add_to_cart_weight": _WEIGHT, "listwise_weight": _WEIGHT, "purchase_weight": _WEIGHT, "value_weight": _WEIGHT, "view_weight": _WEIGHT,
    "common_weight": _WEIGHT, "content_weight": _WEIGHT,
    "implicit_regularization": _WEIGHT, "loan_events": _WEIGHT, "loan_rate": _WEIGHT, "low_pass": _WEIGHT, "prior": _MORE,
    "rate_weight": _WEIGHT, "regularization": _WEIGHT, "shrinkage": _WEIGHT, "weight_decay": _WEIGHT,
    # exponents and the like
    "frequency_exponent": _EXPONENT, "from_exponent": _EXPONENT, "item_exponent": _EXPONENT, "popularity_exponent": _EXPONENT,
    "power": Range(0, 100, above=True), "sharpness": Range(0, 100), "temperature": Range(0, above=True), "to_exponent": _EXPONENT,
    "user_exponent": _EXPONENT,
    # shares
    "b": _SHARE,     "calibration": _SHARE, "decay": _SHARE, "dilution": _SHARE, "distance_decay": _SHARE, "dropout": _DROPPED, "last_share": _SHARE,
    "learning_rate": _SOME, "masked_share": _SOME, "validation_share": _DROPPED,
}  # fmt: skip


@cache
def of(kind: type) -> dict[str, tuple[Any, Range | None]]:
    """Return type and range of each knob of a model; no range where it is no number."""
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, tuple[Any, Range | None]] = {}
    for name in (knob.name for knob in fields(kind) if knob.name != "state"):
        hint, own = hints[name], None
        if get_origin(hint) is Annotated:
            hint, own = get_args(hint)[0], next((part for part in get_args(hint)[1:] if isinstance(part, Range)), None)
        found[name] = hint, own or (RANGES.get(name) if _leaves(hint) & {int, float} else None)
    return found


def changed(thing: str, model: Model, given: Mapping[str, Any], *, where: str) -> Model:
    """Return a copy of a model with some knobs changed, each checked.

    A whole number given for a fraction becomes one, a list a tuple, so that equal settings are equal knobs.

    Args:
        thing: the model as the user knows it, such as `source 'als'`.
        where: the settings that the knobs are from, such as `retrieval.parameters`.

    Raises:
        StateError: a knob is unknown, of another type, or out of its range.
    """
    known = of(cast("type", type(model)))
    if unknown := sorted(set(given) - set(known)):
        near = get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"see {where} in the settings"
        raise StateError(thing, found=f"knobs {unknown}", allowed=f"some of {list(known)}", hint=hint)
    values: dict[str, Any] = {}
    for name, value in given.items():
        hint, within = known[name]
        try:
            values[name] = _cast(hint, within, value)
        except (ValueError, OverflowError):
            allowed = described(hint, within)
            raise StateError(
                f"{thing}: knob {name}", found=f"{value!r:.80}", allowed=allowed, hint=f"see {where} in the settings"
            ) from None
    return cast("Model", replace(cast("Any", model), **values))


def described(hint: Any, within: Range | None) -> str:
    """Return what a knob may be, in words."""
    if get_origin(hint) is Literal:
        return f"one of {list(get_args(hint))}"
    if get_origin(hint) in {Union, UnionType}:
        return " or ".join(described(part, within) for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is tuple:
        return f"a list, each {described(get_args(hint)[0], within)}"
    if get_origin(hint) is dict:
        return f"a table, each value {described(get_args(hint)[1], within)}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return f"{words[hint]} {within}".strip() if within and hint in {int, float} else words[hint]


def _leaves(hint: Any) -> set[Any]:
    """Return the types that a hint is made of."""
    inner = () if get_origin(hint) is Literal else get_args(hint)
    return set().union(*(_leaves(part) for part in inner)) if inner else {hint}


def _cast(hint: Any, within: Range | None, value: Any) -> Any:
    """Return a value as its type wants it, or raise ValueError."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal and any(type(value) is type(choice) and value == choice for choice in inner):
        return value
    if origin in {Union, UnionType}:
        for part in inner:
            try:
                return _cast(part, within, value)
            except ValueError:
                continue
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_cast(inner[0], within, part) for part in value)
    if origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _cast(inner[1], within, part) for key, part in value.items()}
    if (hint is NoneType and value is None) or (hint is bool and isinstance(value, bool)) or (hint is str and isinstance(value, str)):
        return value
    if hint in {int, float} and isinstance(value, int if hint is int else int | float) and not isinstance(value, bool):
        number = cast("int | float", value if hint is int else float(value))
        if math.isfinite(number) and (within is None or number in within):
            return number
    raise ValueError
