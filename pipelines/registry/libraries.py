"""The libraries a bundle was built with, and whether those of this machine may read it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import bundle_folder

# Recorded with every bundle; those that read its bytes or make its scores must be of the same major version.
LIBRARIES: Final = ("lightgbm", "numpy", "pyarrow", "scipy", "faiss-cpu", "duckdb", "feast")
READERS: Final = ("lightgbm", "numpy", "pyarrow", "scipy", "faiss-cpu")


def installed() -> dict[str, str]:
    """Return the version of every library that a bundle records; those that are not here are left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def major(version: str) -> str:
    """Return what must be the same: the first number, and of 0.x the second, too.

    >>> major("4.7.0"), major("0.67.0")
    ('4', '0.67')
    """
    first, _, rest = version.partition(".")
    return f"0.{rest.partition('.')[0]}" if first == "0" else first


def misfits(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return the libraries of another major version than a bundle was built with, in words; pure.

    >>> misfits({"lightgbm": "3.3.5", "numpy": "2.4.6"}, {"lightgbm": "4.7.0", "numpy": "2.5.0"})
    ['lightgbm 4.7.0 instead of 3.x']
    """
    return [
        f"{name} {here.get(name, '(not installed)')} instead of {major(recorded[name])}.x"
        for name in READERS
        if name in recorded and (name not in here or major(here[name]) != major(recorded[name]))
    ]


def check(home: Home, path: Path, digest: str | None = None) -> None:
    """Refuse a bundle that was built with another major version of what reads it.

    Raises:
        StateError: naming each library, what is here and what it was built with.
    """
    recorded = bundle_folder.manifest(home, path, digest).facts.get("libraries", {})
    if wrong := misfits(recorded, installed()):
        exact = " ".join(f"{name}=={recorded[name]}" for name in READERS if name in recorded)
        raise StateError(
            f"bundle {path.name[:12]}",
            found=f"libraries {', '.join(wrong)}",
            allowed="the major versions it was built with",
            hint=f"install {exact}, or train again with what is installed",
        )
