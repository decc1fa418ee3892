"""What newcomers said to like when asked: kept, and used until they have done enough to be known by.

serving/preferences.db    one row a user, the newest answer; shared by all processes
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from pipelines import columns as c
from pipelines.config import Home
from pipelines.datasets.interactions import Histories
from pipelines.errors import StateError
from pipelines.retrieval import topk
from pipelines.retrieval.protocol import Candidates
from pipelines.serving.alike import Alike, fused

SOURCE: Final = "preferences"
UNTIL: Final = 5  # different items of a history above which what was done speaks for itself
WEIGHT: Final = 2.0  # times that of the heaviest other source


@dataclass(frozen=True)
class Said:
    """What a user chose; anything may be empty, and what the catalogue does not hold says nothing."""

    categories: tuple[str, ...] = ()
    brands: tuple[str, ...] = ()
    item_ids: tuple[str, ...] = ()


class Book:
    """The answers of a state folder; any number of threads and processes."""

    def __init__(self, home: Home) -> None:
        self._file, self._of_thread = home.serving / "preferences.db", threading.local()

    def put(self, user_id: str, said: Said) -> None:
        """Keep an answer; one of before is replaced.

        Raises:
            StateError: the file cannot be written.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._trouble("make room on the disk, or remove serving/preferences.db if it is damaged"), self._connection() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS preferences (user_id TEXT PRIMARY KEY, said TEXT NOT NULL)")
            connection.execute("INSERT OR REPLACE INTO preferences VALUES (?, ?)", [user_id, json.dumps(asdict(said))])

    def of(self, user_id: str) -> Said | None:
        """Return the answer of a user; None where nobody asked.

        Raises:
            StateError: the file cannot be read.
        """
        if not self._file.exists():
            return None
        with self._trouble("remove serving/preferences.db if it is damaged"):
            connection = self._connection()
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'preferences'").fetchone() is None:  # no answer was ever kept
                return None
            row = connection.execute("SELECT said FROM preferences WHERE user_id = ?", [user_id]).fetchone()
        return None if row is None else Said(**{name: tuple(values) for name, values in json.loads(row[0]).items()})

    @contextmanager
    def _trouble(self, hint: str) -> Iterator[None]:
        """Tell what is wrong with the file, and open it anew next time."""
        try:
            yield
        except sqlite3.Error as error:
            if (broken := getattr(self._of_thread, "connection", None)) is not None:
                self._of_thread.connection = None
                broken.close()
            raise StateError("preferences", found=f"{type(error).__name__}: {error}", allowed="a file of choices", hint=hint) from error

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if found is None:
            found = self._of_thread.connection = sqlite3.connect(self._file, timeout=1.0)
            found.execute("PRAGMA journal_mode = WAL")
        return found


def wanted(book: Book, user_id: str | None, users: Histories) -> Said | None:
    """Return what is to be made of a user's answer: nothing where there is none or it has no word in it, or the user is known by deeds."""
    if user_id is None or len(np.unique(users.item)) > UNTIL:
        return None
    said = book.of(user_id)
    return said if said is not None and (said.categories or said.brands or said.item_ids) else None


def proposed(said: Said, alike: Alike, users: Histories, k: int, *, exclude_seen: bool) -> Candidates:
    """Return what speaks to a choice: the most met items of the chosen categories and brands, and what is like the chosen items.

    A chosen item is not proposed back.
    """
    shop, found = alike.shop, topk.nothing(1, k)
    chosen = [place for item in said.item_ids if (place := shop.place(item)) >= 0]
    lists = [(place, alike.similar(place)) for place in chosen]
    met = -shop.items["n_events"].to_numpy()
    for name, words in ((c.CATEGORY, said.categories), (c.BRAND, said.brands)):
        code_of, codes = alike.binding.code_of[name], shop.words[name][0]
        for number, word in enumerate(words):
            shelf = np.flatnonzero(codes == code_of.get(word, -2))
            lists.append((-1 - number, [(SOURCE, shelf[np.argsort(met[shelf], kind="stable")][:k])]))
    item = alike.item_of[fused(lists).place]
    left_out: Sequence[int] = [*alike.item_of[chosen].tolist(), *(users.item.tolist() if exclude_seen else [])]
    item = item[(item >= 0) & ~np.isin(item, left_out)][:k]
    found.item[0, : len(item)] = item
    found.score[0, : len(item)] = 1 / (1 + np.arange(len(item)))
    return found
