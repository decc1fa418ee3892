"""Files that processes share by mapping them, with their bytes set aside first.

A file that was only made longer is a hole: the first write to a page of it on a full disk is no error but SIGBUS, which ends the
process, and the one that is started in its place. Here a disk that is full says so before anything is mapped.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from pipelines.errors import StateError


def mapped(file: Path, size: int, *, anew: bool = False, mode: int = 0o644) -> mmap.mmap:
    """Return a file of so many bytes, mapped to be read and written; what is new of it reads as zeros.

    Args:
        anew: forget what it held.

    Raises:
        StateError: the disk has no room for it.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if anew else 0), mode)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    except OSError as error:
        raise StateError(str(file), found=f"{error}", allowed=f"{size} bytes of disk", hint="make room there, and start again") from error
    finally:
        os.close(descriptor)
