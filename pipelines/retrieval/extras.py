"""Packages that a source is fitted with and the default install lacks: looked for at once, imported when they are used."""

from __future__ import annotations

from importlib.util import find_spec

from pipelines.errors import ReloopError


def missing(source: str, package: str, extra: str) -> ReloopError:
    """Return the error that says which extra holds a package."""
    return ReloopError(
        source,
        found=f"{package} is not installed",
        allowed=f"the extra `{extra}`, which fitting needs (answering does not)",
        hint=f"pip install 'reloop[{extra}]', or leave the source out of retrieval.sources",
    )


def require(source: str, extra: str, *packages: str) -> None:
    """Check that packages are there, importing none.

    Raises:
        ReloopError: one is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise missing(source, package, extra)
