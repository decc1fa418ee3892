"""JAX and optax, imported when a neural source is trained and not before."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy.typing as npt

from pipelines.retrieval import extras

Array: TypeAlias = Any  # a numpy array in serving, a JAX array (or its tracer) in training
Params: TypeAlias = dict[str, npt.NDArray[Any]]  # learnt arrays by name

WHO: Final = "a neural retriever"
EXTRA: Final = "neural"


def jax() -> Any:
    """Return the module `jax`.

    Raises:
        ReloopError: it is not installed.
    """
    try:
        import jax
    except ImportError as error:
        raise extras.missing(WHO, "jax", EXTRA) from error
    return jax


def optax() -> Any:
    """Return the module `optax`.

    Raises:
        ReloopError: it is not installed.
    """
    try:
        import optax
    except ImportError as error:
        raise extras.missing(WHO, "optax", EXTRA) from error
    return optax


def accelerated() -> bool:
    """Tell whether JAX computes on something other than the processor."""
    return bool(jax().default_backend() != "cpu")


def require(source: str) -> None:
    """Check that a neural source can be trained, importing nothing.

    Raises:
        ReloopError: JAX or optax is not installed.
    """
    extras.require(source, EXTRA, "jax", "optax")
