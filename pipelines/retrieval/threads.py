"""How many threads the native libraries may start, for as long as a block of code runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from threadpoolctl import get_cached_controller


def limited(n: int, of: Literal["blas", "openmp"] | None = None) -> AbstractContextManager[Any]:
    """Return a context in which the libraries loaded so far start at most `n` threads, those of one kind or all.

    The list of libraries is kept between calls, and made again once a module was imported: making it reads the process's map
    of memory, 13 ms in a service that answers in 30.
    """
    controller = get_cached_controller()
    # Setting and resetting all of them takes a tenth of a millisecond, and a service has set them when it began.
    if all(library.num_threads == n for library in controller.lib_controllers if of in (None, library.user_api)):
        return nullcontext()
    found: AbstractContextManager[Any] = controller.limit(limits=n, user_api=of)
    return found
