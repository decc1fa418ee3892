"""Who has news: one number a user that every process of a machine sees, and that is another after each event of the user.

    serving/news.bin     uint64 [PLACES], mapped by every process; a user's place is a hash of the id

Users who share a place share their news: a list is then made anew for nothing, never kept in error. A write is a number that no
other write ever is, so of two at the same time either makes what was remembered before them out of date.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterable
from typing import Final

import numpy as np

from pipelines.config import Home
from pipelines.serving import allotted

PLACES: Final = 1 << 16
BYTES: Final = 8 * PLACES


class News:
    """The table of a state folder, as this process maps it."""

    def __init__(self, home: Home) -> None:
        file = home.serving / "news.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._map = allotted.mapped(file, BYTES)  # whoever does it twice changes nothing
        self._table = np.frombuffer(self._map, np.uint64)
        self._salt = int.from_bytes(os.urandom(5), "little") << 24  # of this process: numbers of two are never the same
        self._next = itertools.count(1)

    def of(self, user_id: str | None) -> int:
        """Return the number of a user; 0 of nobody, who has no events."""
        return 0 if user_id is None else int(self._table[_place(user_id)])

    def touch(self, user_ids: Iterable[str]) -> None:
        """Say that something happened to users."""
        for user in user_ids:
            self._table[_place(user)] = self._salt | (next(self._next) & 0xFF_FFFF)


def _place(user_id: str) -> int:
    return zlib.crc32(user_id.encode("utf-8", "surrogatepass")) % PLACES
