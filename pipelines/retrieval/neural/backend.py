"""JAX and optax, imported when a neural source is trained and not before."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy.typing as npt

from pipelines.errors import ReloopError

Array: TypeAlias = Any  # a numpy array in serving, a JAX array (or its tracer) in training
Params: TypeAlias = dict[str, npt.NDArray[Any]]  # learnt arrays by name


def jax() -> Any:
    """Return the module `jax`.

    Raises:
        ReloopError: it is not installed.
    """
    try:
        import jax
    except ImportError as error:
        raise _missing("jax") from error
    return jax


def optax() -> Any:
    """Return the module `optax`.

    Raises:
        ReloopError: it is not installed.
    """
    try:
        import optax
    except ImportError as error:
        raise _missing("optax") from error
    return optax


def accelerated() -> bool:
    """Tell whether JAX computes on something other than the processor."""
    return bool(jax().default_backend() != "cpu")


def _missing(name: str) -> ReloopError:
    return ReloopError(
        "a neural retriever",
        found=f"{name} is not installed",
        allowed="the extra `neural`, which training needs (answering does not)",
        hint="pip install 'reloop[neural]', or leave the source out of retrieval.sources",
    )
