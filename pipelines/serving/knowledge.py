"""What a process knows beside its releases: the request and item snapshots, followed as they are published, and the online store.

One per process, shared by the engines of all releases. The files are mapped read-only, so processes share one copy of
them. It is also the stock of the rungs that need no release (`standing.Stock`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from pipelines import columns as c
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features import item_snapshot, request_snapshot
from pipelines.features.catalogue_snapshot import POPULAR, SEGMENTS, CatalogueSnapshot
from pipelines.features.item_snapshot import ItemSnapshot
from pipelines.features.request_snapshot import RequestSnapshot
from pipelines.features.request_store import Held, RequestStore
from pipelines.serving import standing
from pipelines.serving.breaker import Breaker
from pipelines.serving.lookout import Lookout
from pipelines.serving.preferences import Book
from pipelines.serving.request import Ask, Filters
from pipelines.serving_policies import ServingSettings
from pipelines.window import floor_day, micros

WEEK_US: Final = 7 * 86_400_000_000
LOOK_SECONDS: Final = 1.0  # a pointer is looked at so often
RETRY_SECONDS: Final = 5.0  # snapshots that were refused are tried again after so long
SETTLE_SECONDS: Final = 60.0  # longest wait for the second of two snapshots that are published one after the other
NOTHING: Final[tuple[int, ...]] = (0, 0)
LOG: Final = logging.getLogger(__name__)


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


class Bound(Protocol):
    """An engine, as it follows snapshots."""

    def follows(self, known: Known) -> bool:
        """Return whether it is bound to some snapshots."""
        ...

    def prepare(self, known: Known) -> None:
        """Bind it to snapshots, and warm it. May raise."""
        ...


class Knowledge:
    """Holds and follows; any number of threads.

    Args:
        ticks: seconds that go by.
    """

    def __init__(self, home: Home, settings: ServingSettings, *, ticks: Callable[[], float] = time.monotonic) -> None:
        self.home, self.settings = home, settings
        self.preferences = Book(home)
        self.breaker = Breaker("online store", settings.ladder.breaker)
        self.engines: WeakValueDictionary[int, Bound] = WeakValueDictionary()  # by id; they enter themselves
        self.trouble = ""  # why the newest snapshots do not answer
        self._ticks, self._turn, self._opening = ticks, threading.Lock(), threading.Lock()
        self.lookout = Lookout("reloop-knowledge", self.follow, LOOK_SECONDS)
        self._store: RequestStore | None = None
        with suppress(Exception):  # it is tried again by whoever needs it, who is told
            self.store()
        self._known = Known(None, None, NOTHING)
        self._refused: tuple[tuple[int, ...], float] = (NOTHING, 0.0)
        self._halfway_since: float | None = None
        self.follow()

    @property
    def known(self) -> Known:
        """The newest snapshots that could be opened; looked for by a thread (`start`), or else by whoever asks, once a second."""
        if not self.lookout.running and self._ticks() - self._looked >= LOOK_SECONDS and self._turn.acquire(blocking=False):
            try:
                self.follow()
            finally:
                self._turn.release()
        return self._known

    def start(self) -> None:
        """Look in a thread from now on: a request never waits for a snapshot to be opened and bound."""
        self.lookout.start()

    def stop(self) -> None:
        """End the thread; what is known stays."""
        self.lookout.stop()

    def follow(self) -> None:
        """Look once: open what is new, bind every engine to it, then let it answer. Whatever goes wrong is told (`trouble`), and what was known stays.

        Called by one thread at a time.
        """
        self._looked = self._ticks()
        pointers = NOTHING
        try:
            before, pointers = self._known.pointers, self._pointers()
            gone = any(was and not now for was, now in zip(before, pointers, strict=True))  # a folder that is being made anew
            if pointers == before:
                self.trouble = ""
            if pointers == before or gone or (pointers == self._refused[0] and self._looked < self._refused[1]):
                return
            found = self._opened()
            if not self._halfway(found):
                self._bind(found)
                self._known, self.trouble = found, ""
        except Exception as error:  # noqa: BLE001 - a snapshot that cannot be read must not take the service with it
            self._refused = pointers, self._ticks() + RETRY_SECONDS
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self.trouble:
                LOG.error("the newest snapshots are refused, those of before answer: %s", trouble)  # noqa: TRY400 - said once, without a trace
            self.trouble = trouble

    def _halfway(self, found: Known) -> bool:
        """Tell whether one of the two is still of another day, because its turn to be published comes; that is waited for, not for ever."""
        known = self._known
        if not _whole(found) or not _whole(known) or _one_day(found):
            self._halfway_since = None
            return False
        if self._halfway_since is None:
            self._halfway_since = self._looked
        return self._looked - self._halfway_since < SETTLE_SECONDS

    def _bind(self, found: Known) -> None:
        """Bind the engines to snapshots before those answer.

        Raises:
            Exception: one that answers from the snapshots of before cannot be bound to these.
        """
        if found.requests is not None:
            found.requests.catalogue.most_met  # noqa: B018 - sorted here, and by no request
        if found.requests is None or found.items is None:
            return
        for engine in [one for reference in self.engines.valuerefs() if (one := reference()) is not None]:
            try:
                engine.prepare(found)
            except Exception:
                if engine.follows(self._known):
                    raise
                LOG.exception("an engine cannot be bound")

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
            with self._opening:
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

    def meeting(self, filters: Filters) -> Iterator[str]:
        """Yield every item that meets some filters, the most met first; looked for in ever larger parts of the catalogue."""
        if (catalogue := self.catalogue) is not None:
            for part in catalogue.parts():
                for place in part[standing.meeting(catalogue, filters, part)].tolist():
                    yield catalogue.item_ids[place].as_py()

    @staticmethod
    def profile(requests: RequestSnapshot, ask: Ask) -> dict[str, Any]:
        """Return what is known of who asks."""
        place = requests.histories.place(ask.user_id) if ask.user_id is not None else -1
        found: list[dict[str, Any]] = requests.histories.profiles.slice(place, 1).to_pylist() if place >= 0 else []
        return found[0] if found else {}


def _whole(known: Known) -> bool:
    return known.requests is not None and known.items is not None


def _one_day(known: Known) -> bool:
    return known.requests is not None and known.items is not None and floor_day(known.requests.as_of) == floor_day(known.items.day)


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
