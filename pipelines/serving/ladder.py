"""The fallback ladder: full, blend, cached, session, segment, popular, empty. It always answers, in time, and says from where and why.

    rung               answers from                              is passed over when
    full, blend        the engine of the release                 it raises, is late, gives what is no list, or did so a moment ago
    cached             a list of before: remembered, precomputed there is none, or it is too old
    session            the release's item-to-item sources, on    nothing has happened in the session, no such source
                       the events of the session alone
    segment_popular    what is popular in the user's segment     no segment is known
    popular            what is popular over all                  nothing is
    empty              nothing                                   never

Better rungs that did not answer are named in `Answer.degraded`, each with its reason. Filters hold on every rung, and what
is blocked is taken out last, whoever answered.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Final, Protocol

from pipelines.columns import COUNTRY
from pipelines.errors import ReloopError, StateError
from pipelines.serving.blocked import FOR_YOU, Blocked
from pipelines.serving.breaker import Breaker, Open
from pipelines.serving.crew import Busy, Crew, Late
from pipelines.serving.critique import differs
from pipelines.serving.request import CACHED, EMPTY, FULL, POPULAR, SEGMENT, SESSION, Answer, Ask, Release, Shown, Why
from pipelines.serving.standing import EVERYBODY, Stock, meets
from pipelines.serving_policies import ServingSettings
from pipelines.streaming.session import SessionEvent, newest
from pipelines.window import micros

LOG: Final = logging.getLogger(__name__)
NO_RELEASE: Final = Release(None, None)
MOST_EXCLUDED: Final = 256  # blocked ids that are told to the engine beforehand; others that it proposes, when it did
TURNS: Final = 3  # times that an engine is asked for one list, so that takedowns leave it full
DEEP: Final = 200  # items of a popular list that are looked through for each one wanted
RELEASES: Final = 8  # that are asked at once; of one more, the one that was asked longest ago is let go


class Answering(Protocol):
    """An engine: a release bound to what is known."""

    @property
    def release(self) -> Release:
        """The bundle that answers."""
        ...

    def answer(self, ask: Ask) -> Answer:
        """Return a list on the rung `full` or `blend`; may raise, may hang."""
        ...


class Remembering(Protocol):
    """The cached rung (`caches`)."""

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
        """Return a list that is as good as a new one, or what `compute` returns."""
        ...

    def before(self, ask: Ask) -> Answer | None:
        """Return the best list of before, however it came about; None where there is none. May raise."""
        ...


Pick = Callable[[Ask], tuple[Answering | None, str]]
FromSession = Callable[[Answering, Ask, Sequence[str], int], Sequence[tuple[str, float, str]]]


@dataclass
class _Asked:
    """What a release is asked with: its own, so that one in trouble takes nothing from another."""

    breaker: Breaker
    crew: Crew[Answer]
    last: float = 0.0


@dataclass
class _Way:
    """How far a request has come: its clock, and why better rungs did not answer."""

    begun: float
    request_ms: float
    reasons: list[str] = field(default_factory=list)
    stage_ms: dict[str, float] = field(default_factory=dict)

    def left_ms(self) -> float:
        return self.request_ms - (time.perf_counter() - self.begun) * 1000

    def passed(self, rung: str, error: object) -> None:
        self.reasons.append(f"{rung}: {_said(error)}"[:300])


class Ladder:
    """Answers every request; any number of threads.

    Args:
        pick: which engine answers whom, and the variant; None, or an error, where no release can serve.
        stock: what the lower rungs answer from; asked anew for each request, so it may be replaced.
        cached: the cached rung; None where nothing is kept.
        session: proposals (item, score, source) of an engine for the items of a session; None where there are none.
        recent: events of a user that were accepted before a moment (microseconds) and may not be in the store yet, newest first.
        exclude_seen: whether lower rungs leave out what the session holds.
    """

    def __init__(
        self,
        settings: ServingSettings,
        pick: Pick | None,
        stock: Callable[[], Stock],
        blocked: Blocked,
        *,
        cached: Remembering | None = None,
        session: FromSession | None = None,
        recent: Callable[[str, int], Sequence[SessionEvent]] | None = None,
        exclude_seen: bool = False,
    ) -> None:
        self.settings, self.blocked, self.exclude_seen = settings, blocked, exclude_seen
        self._pick, self._stock, self._cached, self._session, self._recent = pick, stock, cached, session, recent
        self._releases: dict[str, _Asked] = {}

    def breakers(self) -> list[Breaker]:
        """Return the breakers of the releases that answered, newest last."""
        return [asked.breaker for asked in list(self._releases.values())]

    def answer(self, ask: Ask) -> Answer:
        """Return an answer within the deadline, whatever happens; what went wrong is told in it."""
        way = _Way(time.perf_counter(), self.settings.deadline.request_ms)
        try:
            found = self._best(ask, way)
        except Exception as error:
            LOG.exception("request %s", ask.request_id)
            way.passed("ladder", error)
            found = Answer(ask, (), EMPTY, NO_RELEASE)
        stages = {**found.stage_ms, **way.stage_ms, "all": self.settings.deadline.request_ms - way.left_ms()}
        return self.blocked.without(replace(found, ask=ask, degraded=(*way.reasons, *found.degraded), stage_ms=stages))

    def _best(self, ask: Ask, way: _Way) -> Answer:
        engine, variant = self._picked(ask, way)
        asked = None if engine is None else engine.release
        told = self._told(ask)
        for rung, attempt in self._rungs(ask, told, engine, variant, way):
            found = self._try(way, rung, attempt)
            if found is not None and found.items and not (found := self.blocked.without(found)).items:
                way.passed(rung, "blocked: all that there was")
            if found is not None and found.items:
                return replace(found, variant=_label(rung, found, variant), assigned=variant, asked=asked)
        return Answer(ask, (), EMPTY, asked or NO_RELEASE, assigned=variant, asked=asked)

    def _picked(self, ask: Ask, way: _Way) -> tuple[Answering | None, str]:
        try:
            engine, variant = (None, "") if self._pick is None else self._pick(ask)
        except Exception as error:  # noqa: BLE001 - without a release the lower rungs answer
            way.passed(FULL, error)
            return None, ""
        if engine is None:
            way.passed(FULL, "no release yet")
        return engine, variant

    def _permitted(self, ask: Ask, kept: Answer | None) -> Answer | None:
        """Return what of a list of before may be shown now, the first k of it, with what the catalogue says now; None of an empty one."""
        if kept is None:
            return None
        check(kept)
        about, good = self._good(ask, kept)
        left = kept if all(good) else kept.keeping(good)
        if len(left.items) > ask.k:
            left = left.keeping([True] * ask.k)
        return replace(left, items=tuple(replace(shown, about=about[shown.item_id]) for shown in left.items)) if left.items else None

    def _good(self, ask: Ask, kept: Answer) -> tuple[Mapping[str, Mapping[str, object]], list[bool]]:
        """Return what the catalogue says of each item now, and whether it may be shown: filters hold, and what was sold out is left out."""
        stock, out = self._stock(), self.blocked.items.union(ask.filters.exclude)
        if self.exclude_seen:
            out |= {event.item_id for event in ask.events}
        filters = replace(ask.filters, exclude=()) if ask.filters.exclude else ask.filters
        about = {shown.item_id: stock.about(shown.item_id) for shown in kept.items}
        return about, [item not in out and meets(filters, item, said) for item, said in about.items()]

    def _told(self, ask: Ask) -> Ask:
        """Return the request with what the process knows beside it: events of a moment ago, items that are blocked."""
        events = ask.events
        if self._recent is not None and ask.user_id is not None and (fresh := self._recent(ask.user_id, micros(ask.as_of))):
            events = tuple(newest((*fresh, *events)))
        blocked = self.blocked.items
        exclude = (*ask.filters.exclude, *sorted(blocked)[:MOST_EXCLUDED]) if blocked else ask.filters.exclude
        if events is ask.events and exclude is ask.filters.exclude:
            return ask
        return replace(ask, events=events, filters=replace(ask.filters, exclude=exclude))

    def _rungs(
        self, ask: Ask, told: Ask, engine: Answering | None, variant: str, way: _Way
    ) -> Iterator[tuple[str, Callable[[], Answer | None]]]:
        cached = self._cached
        if engine is not None:
            yield FULL, lambda: self._newest(ask, told, engine, variant, way)
        if cached is not None:
            yield CACHED, lambda: self._permitted(told, cached.before(ask))
        if self._session is not None and engine is not None:
            yield SESSION, lambda: self._of_session(told, engine)
        yield SEGMENT, lambda: self._popular(told, SEGMENT)
        yield POPULAR, lambda: self._popular(told, POPULAR)

    def _newest(self, ask: Ask, told: Ask, engine: Answering, variant: str, way: _Way) -> Answer | None:
        """Return the engine's answer, or a remembered one that is as good."""

        def full() -> Answer | None:
            return self._full(told, engine, way)

        def sound(kept: Answer) -> bool:
            return is_list(kept) and all(self._good(told, kept)[1])

        if self._cached is None:
            return full()
        wait_ms = way.left_ms() - self.settings.ladder.reserve_ms
        return self._cached.through(ask, engine.release, variant, full, sound=sound, wait_ms=wait_ms)

    def _try(self, way: _Way, rung: str, attempt: Callable[[], Answer | None]) -> Answer | None:
        begun = time.perf_counter()
        try:
            found = attempt()
        except Exception as error:  # noqa: BLE001 - the next rung answers, and the reason is told
            way.passed(rung, error)
            return None
        finally:
            way.stage_ms[rung] = (time.perf_counter() - begun) * 1000
        if found is None and rung in {CACHED, SESSION}:
            way.passed(rung, "nothing kept" if rung == CACHED else "nothing to go by")
        return found

    def _full(self, ask: Ask, engine: Answering, way: _Way) -> Answer | None:
        """Return the engine's answer; None, with the reason, where it has none that may be shown in time."""
        asked = self._release(engine.release)
        breaker = asked.breaker
        try:
            breaker.enter()
            answer = self._asked(ask, engine, asked.crew, way)
        except (Busy, Open) as error:  # nothing was asked of the release
            way.passed(FULL, error)
            return None
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a release, a lower rung answers
            breaker.failed(_said(error))
            way.passed(FULL, error)
            return None
        breaker.succeeded()
        if not answer.items:
            way.passed(FULL, "; ".join(("nothing to show", *answer.degraded)))
        return answer

    def _asked(self, ask: Ask, engine: Answering, crew: Crew[Answer], way: _Way) -> Answer:
        """Return the engine's list; one that is short for what is blocked in it is asked for again without that, while there is time.

        Raises:
            Exception: whatever the engine raised; it was late; its answer is no list.
        """
        answer = self._once(ask, engine, crew, way)
        for _ in range(TURNS - 1):
            met = self.blocked.items.intersection(shown.item_id for shown in answer.items)
            if not met.difference(ask.filters.exclude):
                break
            ask = replace(ask, filters=replace(ask.filters, exclude=(*ask.filters.exclude, *sorted(met))))
            try:
                answer = self._once(ask, engine, crew, way).given_again()  # it follows a draw that was not shown: its chances are unknown
            except (Busy, Late):
                break  # that of before is short, and it is a list
        return answer

    def _once(self, ask: Ask, engine: Answering, crew: Crew[Answer], way: _Way) -> Answer:
        answer = crew.call(lambda: engine.answer(ask), way.left_ms() - self.settings.ladder.reserve_ms)
        check(answer)
        return answer

    def _release(self, release: Release) -> _Asked:
        key, ladder = release.digest or "", self.settings.ladder
        if (found := self._releases.get(key)) is None:
            made = _Asked(Breaker(f"release {release.version}", ladder.breaker), Crew("engine", ladder.threads, ladder.waiting))
            found = self._releases.setdefault(key, made)
        found.last = time.perf_counter()
        while len(self._releases) > RELEASES:
            oldest, _ = min(list(self._releases.items()), key=lambda one: one[1].last)
            if (gone := self._releases.pop(oldest, None)) is not None:
                gone.crew.close()
        return found

    def _of_session(self, ask: Ask, engine: Answering) -> Answer | None:
        """Return what the release's item-to-item sources say of the items in hand."""
        seeds = list(dict.fromkeys([*ask.item_ids, *(event.item_id for event in ask.events)]))
        if not seeds or self._session is None:
            return None
        proposed = self._session(engine, ask, seeds, ask.k * 4 + len(seeds))
        named = next((item for item in seeds if item not in self.blocked.items), None)
        why = FOR_YOU
        if named is not None:
            why = Why("because_you_viewed", f"Because you viewed {self._stock().about(named).get('title') or named}", named)
        left_out = set(ask.item_ids) | ({event.item_id for event in ask.events} if self.exclude_seen else set())
        items = self._listed(ask, ((item, score, (source,), why) for item, score, source in proposed), left_out)
        return Answer(ask, items, SESSION, engine.release) if items else None

    def _popular(self, ask: Ask, rung: str) -> Answer | None:
        stock = self._stock()
        segment = stock.segment(ask) if rung == SEGMENT else EVERYBODY
        if rung == SEGMENT and segment == EVERYBODY:
            return None
        column, _, word = segment.rpartition("=")
        why = Why("popular", f"Popular {'in' if column == COUNTRY else 'among'} {word}" if word else "Popular now")
        left_out = set(ask.item_ids) | ({event.item_id for event in ask.events} if self.exclude_seen else set())
        depth = DEEP * max(ask.k, 1)
        ranked = iter(stock.popular(segment)[:depth])
        if rung == POPULAR and ask.filters.narrow():  # the list is of what is wanted most, and may hold nothing of the kind
            ranked = chain(ranked, ((item, 0.0) for item in islice(stock.meeting(ask.filters), depth)))
        items = self._listed(ask, ((item, score, (POPULAR,), why) for item, score in ranked), left_out)
        return Answer(ask, items, rung, NO_RELEASE) if items else None

    def _listed(self, ask: Ask, ranked: Iterable[tuple[str, float, tuple[str, ...], Why]], left_out: set[str]) -> tuple[Shown, ...]:
        """Return the first k that may be shown, with what the catalogue says of them."""
        stock, blocked, found = self._stock(), self.blocked.items, list[Shown]()
        filters = replace(ask.filters, exclude=()) if ask.filters.exclude else ask.filters
        left_out = left_out | set(ask.filters.exclude)
        anchor = next((told for item in ask.item_ids if (told := stock.about(item))), {}) if ask.changes else {}
        for item, score, sources, why in ranked:
            if len(found) >= ask.k:
                break
            if item in left_out or item in blocked or not meets(filters, item, about := stock.about(item)):
                continue
            if not anchor or differs(anchor, about, ask.changes):
                found.append(Shown(item, len(found) + 1, float(score), why, sources, about=about))
                left_out.add(item)
        return tuple(found)


def check(answer: Answer) -> None:
    """Refuse an answer that is no list: scores that are no numbers, an item twice, an item without a name.

    Raises:
        StateError: it must not be shown.
    """
    if wrong := sum(not math.isfinite(shown.score) for shown in answer.items):
        raise StateError("list", found=f"{wrong} of {len(answer.items)} scores are no numbers", allowed="finite scores")
    names = {shown.item_id for shown in answer.items}
    if len(names) != len(answer.items) or "" in names:
        raise StateError("list", found="an item twice, or one without a name", allowed="each item once")


def is_list(answer: Answer) -> bool:
    """Tell whether an answer is what `check` takes."""
    try:
        check(answer)
    except StateError:
        return False
    return True


def _label(rung: str, found: Answer, variant: str) -> str:
    """Return the variant of a list: only what an arm's own engine made, now or before, is the arm's."""
    if rung == FULL:
        return found.variant or variant
    return variant if rung == CACHED and found.variant == variant else ""


def _said(error: object) -> str:
    if isinstance(error, (Late, Busy)):
        return error.found
    return (
        f"{error.thing}: {error.found}"
        if isinstance(error, ReloopError)
        else f"{type(error).__name__}: {error}"
        if isinstance(error, Exception)
        else str(error)
    )
