"""Arrays side by side: the types, units and two operations on dataclasses whose fields are columns of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int32]
Longs: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = npt.NDArray[Any]

MICROS: Final = 1_000_000
DAY_MICROS: Final = 86_400 * MICROS

_Columns = TypeVar("_Columns")


def concat(parts: Sequence[_Columns]) -> _Columns:
    """Return the rows of one or more parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    columns = {c.name: np.concatenate([getattr(part, c.name) for part in parts]) for c in fields(parts[0])}  # type: ignore[arg-type]
    return type(parts[0])(**columns)


def take(part: _Columns, rows: Numbers) -> _Columns:
    """Return the rows at some positions or under a mask."""
    return type(part)(**{c.name: getattr(part, c.name)[rows] for c in fields(part)})  # type: ignore[arg-type]
