"""Arrays of bundles that all processes of a machine share: unpacked once beside the bundle, mapped into memory, held against the bundle.

    cache/serving/<digest>/<source>/000.npy ...    the arrays of its state.npz, in the order of their names

An array inside an npz is read into memory of its own, by every process. One in a file of its own is mapped: pages are read when they
are touched and are one copy however many processes map them. A process maps a file only after it found it byte for byte what the bundle
holds, whose digest and signature were checked before; a file that differs is made anew beside it, so who has the old one mapped keeps that.
Files are read-only, and nobody writes to one in place.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from pipelines import publish
from pipelines.config import Home

CHUNK: Final = 1 << 20
PAGE: Final = 1 << 14  # bytes, from which a file is mapped

Arrays = dict[str, npt.NDArray[Any]]


def arrays_of(home: Home, digest: str) -> Callable[[Path], Arrays]:
    """Return what reads an npz of a bundle as arrays that are shared; its bytes must have been checked."""

    def read(path: Path) -> Arrays:
        cache = home.cache / "serving" / digest / path.parent.name
        with publish.locked(home.cache / "serving" / ".lock"), zipfile.ZipFile(path) as packed:
            names = sorted(packed.namelist())
            if not _same(packed, names, cache):
                _swept(home)
                _unpack(packed, names, cache)
            return {name.removesuffix(".npy"): _mapped(cache / f"{at:03d}.npy") for at, name in enumerate(names)}

    return read


def _mapped(file: Path) -> npt.NDArray[Any]:
    if file.stat().st_size < PAGE or np.load(file, mmap_mode="r", allow_pickle=False).size == 0:
        return np.asarray(np.load(file, allow_pickle=False))  # a page costs more than what is in it
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def _same(packed: zipfile.ZipFile, names: list[str], cache: Path) -> bool:
    """Tell whether a cache holds an npz's arrays, byte for byte."""
    for at, name in enumerate(names):
        file = cache / f"{at:03d}.npy"
        if not file.is_file() or file.stat().st_size != packed.getinfo(name).file_size:
            return False
        with packed.open(name) as wanted, file.open("rb") as found:
            if not _equal(wanted, found):
                return False
    return True


def _equal(wanted: IO[bytes], found: IO[bytes]) -> bool:
    while True:
        one, other = wanted.read(CHUNK), found.read(CHUNK)
        if one != other:
            return False
        if not one:
            return True


def _unpack(packed: zipfile.ZipFile, names: list[str], cache: Path) -> None:
    with publish.folder(cache, {}) as out:
        for at, name in enumerate(names):
            with packed.open(name) as source, (out / f"{at:03d}.npy").open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            (out / f"{at:03d}.npy").chmod(0o444)


def _swept(home: Home) -> None:
    """Remove what belongs to bundles that retention has taken; who has it mapped keeps it."""
    for cache in (home.cache / "serving").glob("?" * 64):
        if not (home.bundles / cache.name).is_dir():
            shutil.rmtree(cache, ignore_errors=True)
