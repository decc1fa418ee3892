"""What a process knows beside its releases: the request and item snapshots, followed as they are published, and the online store.

One per process, shared by the engines of all releases. The files are mapped read-only, so processes share one copy of
them. It is also the stock of the rungs that need no release (`standing.Stock`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pipelines import columns as c
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features import item_snapshot, request_snapshot
from pipelines.features.catalogue_snapshot import POPULAR, SEGMENTS, CatalogueSnapshot
from pipelines.features.item_snapshot import ItemSnapshot
from pipelines.features.request_snapshot import RequestSnapshot
from pipelines.features.request_store import Held, RequestStore
from pipelines.serving.breaker import Breaker
from pipelines.serving.preferences import Book
from pipelines.serving.request import Ask
from pipelines.serving_policies import ServingSettings
from pipelines.window import floor_day, micros

WEEK_US: Final = 7 * 86_400_000_000
LOOK_SECONDS: Final = 1.0  # a pointer is looked at so often


@dataclass(frozen=True)
class Known:
    """The snapshots of one moment; replaced as a whole.

    Attributes:
        requests, items: None where none was published.
    """

    requests: RequestSnapshot | None
    items: ItemSnapshot | None
    pointers: tuple[int, ...]

    @property
    def name(self) -> tuple[int, ...]:
        """What tells it from others."""
        return self.pointers

    def active(self, user_id: str) -> bool:
        """Return whether a user had an event in the week before the day of the marts, and must therefore have a row in the online store."""
        if self.requests is None:
            return False
        midnight = micros(floor_day(self.requests.as_of))
        past = self.requests.histories.past(self.requests.histories.place(user_id), midnight)
        return bool(len(past.at)) and int(past.at[-1]) >= midnight - WEEK_US


class Knowledge:
    """Holds and follows; any number of threads.

    Args:
        ticks: seconds that go by.
    """

    def __init__(self, home: Home, settings: ServingSettings, *, ticks: Callable[[], float] = time.monotonic) -> None:
        self.home, self.settings = home, settings
        self.preferences = Book(home)
        self.breaker = Breaker("online store", settings.ladder.breaker)
        self._ticks, self._turn = ticks, threading.Lock()
        self._store: RequestStore | None = None
        with suppress(Exception):  # it is tried again by whoever needs it, who is told
            self.store()
        self._looked = ticks()
        self._known = self._opened()

    @property
    def known(self) -> Known:
        """The newest snapshots, looked for once a second; where they are taken away, those of before stay."""
        now = self._ticks()
        if now - self._looked >= LOOK_SECONDS and self._turn.acquire(blocking=False):
            try:
                self._looked = now
                before, pointers = self._known.pointers, self._pointers()
                gone = any(was and not now for was, now in zip(before, pointers, strict=True))  # a folder that is being made anew
                if pointers != before and not gone:
                    self._known = self._opened()
            finally:
                self._turn.release()
        return self._known

    def _pointers(self) -> tuple[int, ...]:
        files = [module.folder(self.home) / module.POINTER for module in (request_snapshot, item_snapshot)]
        return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)

    def _opened(self) -> Known:
        pointers = self._pointers()
        return Known(
            request_snapshot.open_snapshot(self.home) if pointers[0] else None,
            item_snapshot.current(self.home) if pointers[1] else None,
            pointers,
        )

    def store(self) -> RequestStore:
        """Return the reader of the online store, opened at the first use.

        Raises:
            StateError: no store was made here.
        """
        if self._store is None:
            with self._turn:
                if self._store is None:
                    self._store = RequestStore(self.home, self.settings.deadline.store_ms)
        return self._store

    def held(self, user_id: str, known: Known, as_of: datetime) -> Held:
        """Return what the online store holds of a user, in one round trip; a store in trouble is not asked for a while.

        Raises:
            ReloopError: it did not answer, or is not asked now.
        """
        words: dict[str, Sequence[str]] = {}
        if known.requests is not None:
            histories = known.requests.histories
            place = histories.place(user_id)
            words = {key: histories.known_with(place, key) for key in histories.between}
        with self.breaker.guarding():
            return self.store().read(user_id, words, as_of)

    @property
    def catalogue(self) -> CatalogueSnapshot | None:
        """The catalogue of the newest snapshot."""
        requests = self.known.requests
        return requests.catalogue if requests is not None else None

    def about(self, item_id: str) -> Mapping[str, object]:
        """Return what the catalogue says of an item; empty where it is unknown."""
        catalogue = self.catalogue
        return {} if catalogue is None else described(catalogue, catalogue.place(item_id))

    def segment(self, ask: Ask) -> str:
        """Return the segment of who asks: the country of the profile or the request, else the age band; "" where none is known."""
        requests = self.known.requests
        if requests is None:
            return ""
        profile = self.profile(requests, ask)
        told = ((column, profile.get(column) or (ask.country if column == c.COUNTRY else None)) for column in SEGMENTS)
        return next((f"{column}={word}" for column, word in told if word and (POPULAR, f"{column}={word}") in requests.catalogue.lists), "")

    def popular(self, segment: str, kind: str = POPULAR) -> list[tuple[str, float]]:
        """Return the items of a segment, best first; empty of an unknown one."""
        catalogue = self.catalogue
        if catalogue is None or (kind, segment) not in catalogue.lists:
            return []
        items, scores = catalogue.lists[kind, segment]
        return [(catalogue.item_ids[item].as_py(), float(score)) for item, score in zip(items.tolist(), scores, strict=True)]

    @staticmethod
    def profile(requests: RequestSnapshot, ask: Ask) -> dict[str, Any]:
        """Return what is known of who asks."""
        place = requests.histories.place(ask.user_id) if ask.user_id is not None else -1
        found: list[dict[str, Any]] = requests.histories.profiles.slice(place, 1).to_pylist() if place >= 0 else []
        return found[0] if found else {}


def described(catalogue: CatalogueSnapshot, place: int) -> Mapping[str, object]:
    """Return what the catalogue says of an item; what is unknown is left out."""
    return {} if place < 0 else catalogue.told(place)


def needed(known: Known) -> tuple[RequestSnapshot, ItemSnapshot]:
    """Return both snapshots.

    Raises:
        StateError: one was never published.
    """
    if known.requests is None or known.items is None:
        raise StateError("snapshots for requests", found="none", allowed="published ones", hint="run `reloop features`")
    return known.requests, known.items
