"""Lists of before: remembered in the process, shared by processes over Redis, precomputed for everybody.

A list is known by what was asked: surface, user, items, events, k, filters, device, country, changes. It is as good as a new one while
the same release would answer in the same variant, nothing has happened to the user since (`news`), and it is younger than
`list_seconds` of the shop's time. One that is none of this any more still answers where nothing better does, and says how old it is.

Of several threads that lack the same list one computes it; the others wait for it a bounded time, or take the one of before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, field, replace
from typing import Final, NamedTuple, Protocol

from pipelines.serving.breaker import Breaker
from pipelines.serving.news import News
from pipelines.serving.request import CACHED, Answer, Ask, Release
from pipelines.serving_policies import CachePolicy
from pipelines.window import micros

SECOND_US: Final = 1_000_000
ENTRY_BYTES: Final = 1_000  # of an answer without items, its key and its place in the table; measured, see docs/serving/ladder.md
ITEM_BYTES: Final = 450
VALUE_BYTES: Final = 32


@dataclass
class Counts:
    """What became of look-ups.

    Attributes:
        hits: answered as good as new; shared: such ones that another process had remembered.
        waited: hits that another thread was just computing.
        stale: answered by a list of before, for want of a better one or while it is being made; precomputed: by one that was made for everybody.
    """

    hits: int = 0
    shared: int = 0
    waited: int = 0
    misses: int = 0
    stale: int = 0
    precomputed: int = 0
    evicted: int = 0


class Wanted(NamedTuple):
    """A list that is asked for, by what it depends on.

    Attributes:
        key: what was asked (`key_of`).
        digest: of the release that would answer; variant: as it was picked, before the engine said more.
        news: of the user.
    """

    key: Hashable
    digest: str | None
    variant: str
    news: int


@dataclass(frozen=True)
class Kept:
    """An answer with what it depended on.

    Attributes:
        at_us: of the shop's time when it was asked for.
    """

    answer: Answer
    wanted: Wanted
    at_us: int

    def holds(self, wanted: Wanted, now_us: int, seconds: float) -> bool:
        """Whether it is as good as a new one."""
        return (
            not self.answer.degraded and not self.answer.drawn and self.wanted == wanted and 0 <= now_us - self.at_us <= seconds * SECOND_US
        )

    def size(self) -> int:
        """Return about how many bytes it takes."""
        values = sum(map(len, self.answer.features.values()))
        return ENTRY_BYTES + ITEM_BYTES * len(self.answer.items) + VALUE_BYTES * values


class Shared(Protocol):
    """Where processes share their lists (`shared_cache`); never raises, never waits long."""

    breaker: Breaker

    def get(self, wanted: Wanted, ask: Ask) -> tuple[Kept | None, str | None]:
        """Return what another process remembered, if nothing has happened to the user since, and a word to `put` a newer one with."""
        ...

    def put(self, kept: Kept, word: str) -> None:
        """Remember a list for the others."""
        ...


class Precomputed(Protocol):
    """Where lists that were made for everybody lie (`batch_lists`)."""

    breaker: Breaker

    def answer(self, ask: Ask) -> Answer | None:
        """Return the user's list; None where there is none. May raise."""
        ...


@dataclass
class _Flight:
    """A list that a thread is computing."""

    landed: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None


class Caches:
    """The caches of a process; any number of threads."""

    def __init__(
        self,
        policy: CachePolicy,
        news: News,
        *,
        shared: Shared | None = None,
        precomputed: Precomputed | None = None,
        withdrawn: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """Remember nothing yet.

        Args:
            withdrawn: digests of releases that were rolled back from; what they made is given to nobody any more.
        """
        self._withdrawn = withdrawn
        self.policy, self.news, self.counts = policy, news, Counts()
        self._shared, self._precomputed = shared, precomputed
        self._turn = threading.Lock()
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._bytes = 0
        self._flights: dict[Hashable, _Flight] = {}

    def record(self) -> dict[str, int]:
        """Return the counts, and what is held."""
        return {**asdict(self.counts), "entries": len(self._kept), "bytes": self._bytes}

    def breakers(self) -> list[Breaker]:
        """Return the breakers of what lies elsewhere."""
        return [held.breaker for held in (self._shared, self._precomputed) if held is not None]

    def through(
        self,
        ask: Ask,
        release: Release,
        variant: str,
        compute: Callable[[], Answer | None],
        *,
        sound: Callable[[Answer], bool],
        wait_ms: float,
    ) -> Answer | None:
        """Return a list that holds, or what `compute` returns; that is remembered if nothing was wrong with it.

        Args:
            sound: whether all of a list of before may still be shown.
            wait_ms: longest wait for another thread that computes the same.
        """
        if self.policy.list_seconds <= 0:
            return compute()
        # Read before anything else is, so that an event meanwhile makes the list out of date.
        wanted = Wanted(key_of(ask), release.digest, variant, self.news.of(ask.user_id))
        if (found := self._remembered(wanted, ask, sound)) is not None:
            return found
        flight, leads = self._boarded(wanted)
        if leads:
            try:
                return self._led(flight, wanted, ask, compute, sound)
            finally:
                with self._turn:
                    self._flights.pop(wanted, None)
                flight.landed.set()
        old = self._kept.get(wanted.key)
        if old is not None and old.holds(wanted, micros(ask.as_of), 2 * self.policy.list_seconds) and sound(old.answer):
            self._count("stale")
            return _stale(old.answer, f"cached: of {(micros(ask.as_of) - old.at_us) / SECOND_US:.0f} s ago, a new one is being made")
        if flight.landed.wait(min(wait_ms, self.policy.wait_ms) / 1000) and flight.answer is not None and sound(flight.answer):
            self._count("hits", "waited")
            return _again(flight.answer)
        return compute()

    def _led(
        self, flight: _Flight, wanted: Wanted, ask: Ask, compute: Callable[[], Answer | None], sound: Callable[[Answer], bool]
    ) -> Answer | None:
        """Return what another process shares, or what `compute` returns, for those who wait, too."""
        other, word = (None, None) if self._shared is None else self._shared.get(wanted, ask)
        if other is not None and other.holds(wanted, micros(ask.as_of), self.policy.list_seconds) and sound(other.answer):
            self._put(other)
            self._count("hits", "shared")
            flight.answer = other.answer
            return _again(other.answer)
        self._count("misses")
        answer = compute()
        if answer is not None and answer.items:
            self._put(kept := Kept(replace(answer, variant=answer.variant or wanted.variant), wanted, micros(ask.as_of)))
            if not answer.degraded and not answer.drawn:
                flight.answer = answer
                if self._shared is not None and word is not None:
                    self._shared.put(kept, word)
        return answer

    def before(self, ask: Ask) -> Answer | None:
        """Return the list of before that is still to be had: this very one, or that which was made for everybody."""
        kept = self._kept.get(key_of(ask))
        withdrawn = self._withdrawn()
        if (
            kept is not None
            and kept.answer.release.digest not in withdrawn
            and 0 <= (age := micros(ask.as_of) - kept.at_us) <= self.policy.stale_seconds * SECOND_US
        ):
            self._count("stale")
            since = "" if kept.wanted.news == self.news.of(ask.user_id) else ", and something has happened since"
            return _stale(kept.answer, f"cached: of {age / SECOND_US:.0f} s ago{since}")
        if self._precomputed is not None and (answer := self._precomputed.answer(ask)) is not None:
            if answer.release.digest in withdrawn:
                return None
            self._count("precomputed")
            return answer
        return None

    def _remembered(self, wanted: Wanted, ask: Ask, sound: Callable[[Answer], bool]) -> Answer | None:
        kept = self._kept.get(wanted.key)
        if kept is None or not kept.holds(wanted, micros(ask.as_of), self.policy.list_seconds) or not sound(kept.answer):
            return None
        with self._turn:
            if wanted.key in self._kept:
                self._kept.move_to_end(wanted.key)
            self.counts.hits += 1
        return _again(kept.answer)

    def _boarded(self, name: Hashable) -> tuple[_Flight, bool]:
        with self._turn:
            if (flight := self._flights.get(name)) is not None:
                return flight, False
            flight = self._flights[name] = _Flight()
            return flight, True

    def _put(self, kept: Kept) -> None:
        with self._turn:
            if (old := self._kept.pop(kept.wanted.key, None)) is not None:
                self._bytes -= old.size()
            self._kept[kept.wanted.key] = kept
            self._bytes += kept.size()
            while len(self._kept) > self.policy.entries or self._bytes > self.policy.max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1].size()
                self.counts.evicted += 1

    def _count(self, *names: str) -> None:
        with self._turn:
            for name in names:
                setattr(self.counts, name, getattr(self.counts, name) + 1)


def key_of(ask: Ask) -> tuple[Hashable, ...]:
    """Return what a list is known by: everything that was asked, but for who asked when."""
    return (ask.surface, ask.user_id, ask.item_ids, ask.events, ask.k, ask.filters, ask.device, ask.country, ask.changes)


def _again(answer: Answer) -> Answer:
    """Return an answer as it is given another time, as good as new."""
    return replace(answer, remembered=True, stage_ms={})


def _stale(answer: Answer, why: str) -> Answer:
    """Return an answer of before as it is given for want of a better one."""
    return replace(answer.given_again(), rung=CACHED, degraded=(why,), stage_ms={})
