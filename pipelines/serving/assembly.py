"""Puts a process of the service together from a state folder, its settings and a clock.

Knowledge   snapshots and online store, one for all releases
Holder      the releases: champion, canary, the one before
Ladder      the rungs, with their caches and what is blocked
House       these, behind the words that HTTP asks for (`api.Room`)
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from pydantic_core import to_json

from pipelines import config
from pipelines.config import Home, Settings
from pipelines.errors import StateError
from pipelines.registry import choosing, ledger
from pipelines.serving import api, api_gate, engine, explanation, from_session, remembered
from pipelines.serving.auth import Keyring
from pipelines.serving.batch_lists import BatchLists
from pipelines.serving.blocked import Blocked
from pipelines.serving.breaker import CODES, Breaker
from pipelines.serving.caches import Caches
from pipelines.serving.experimenting import Experimenting
from pipelines.serving.holder import Holder
from pipelines.serving.journal import Journal
from pipelines.serving.knowledge import Knowledge
from pipelines.serving.ladder import Ladder
from pipelines.serving.limits import Buckets, Turnstile
from pipelines.serving.metrics import Metrics
from pipelines.serving.news import News
from pipelines.serving.preferences import Said
from pipelines.serving.realtime import Follower, Intake, Verdict
from pipelines.serving.recent import Recent
from pipelines.serving.remembered import Ring
from pipelines.serving.request import Answer, Ask, Change, Clock, Release, Surface
from pipelines.serving.rollout import Steward
from pipelines.serving.service import Service, Watcher
from pipelines.serving.shadow import Shadow
from pipelines.serving.shared_cache import SharedCache
from pipelines.serving.tally import Tally
from pipelines.serving.traces import Traces
from pipelines.window import utc

LOG: Final = logging.getLogger(__name__)
NOBODY: Final = Release(None, None)
PULSE_SECONDS: Final = 2.0


@dataclass
class House:
    """One process of the service.

    Attributes:
        turnstile, writes: the threads that answer, and that take events.
        intake: None where the bus cannot be reached.
        built: digest -> the cycle that built the release (ISO 8601), as the ledger says.
    """

    home: Home
    service: Service
    clock: Clock
    turnstile: Turnstile
    writes: Turnstile
    metrics: Metrics
    knowledge: Knowledge
    holder: Holder
    ladder: Ladder
    caches: Caches
    journal: Journal
    recent: Recent
    touched: Callable[[Sequence[str]], None]
    intake: Intake | None = None
    built: dict[str, str] = field(default_factory=dict)
    breakers: list[Breaker] = field(default_factory=list)

    def take(self, events: Sequence[Mapping[str, Any]]) -> Sequence[Verdict]:
        """Take events and return the fate of each.

        Raises:
            StateError: the bus cannot be reached, or cannot keep them.
        """
        if self.intake is None:  # the bus was away when the service began; it may be back
            self.intake = Intake.of(self.home, self.recent, self.touched)
        return self.intake.take(events, self.clock())

    def prefer(self, user_id: str, said: Said) -> None:
        """Keep what a user chose; lists that were remembered without it hold no longer."""
        self.knowledge.preferences.put(user_id, said)
        self.touched([user_id])

    def release(self) -> Release:
        """Return what serves."""
        champion = self.holder.held.champion
        return champion.release if champion is not None else NOBODY

    def ready(self) -> tuple[bool, Sequence[str], Release]:
        """Return whether a list can be made here, and what is not as it should be."""
        reasons = [f"version of {digest[:12]} refused: {why}" for digest, why in self.holder.refused.items()]
        if self.holder.trouble:
            reasons.append(f"releases: {self.holder.trouble}")
        if self.knowledge.trouble:
            reasons.append(f"snapshots: {self.knowledge.trouble}")
        reasons += [f"{breaker.name} is left alone" for breaker in self._breakers() if breaker.state == "open"]
        catalogue = self.knowledge.catalogue
        if catalogue is None:
            reasons.append("no catalogue yet: run `reloop features`")
        release = self.release()
        if release.version is None:
            reasons.append("no release yet")
        return release.version is not None or catalogue is not None, reasons, release

    def remembered(self, request_id: str) -> Mapping[str, Any] | None:
        """Return what is known of one of the last answers of any process; and why, where its release is still held."""
        found = remembered.find(self.home, request_id)
        if found is None or "asked" not in found:
            return found
        answer = found["answer"]
        engines = (self.holder.held.champion, self.holder.held.previous, self.holder.held.challenger)
        try:
            held = next(one for one in engines if isinstance(one, engine.Engine) and one.release.digest == answer["model"]["bundle"])
            shown = [item["item_id"] for item in answer["items"]]
            return {**found, "why": explanation.explained(held, explanation.read(found["asked"]), shown=shown)}
        except StopIteration:
            return {**found, "why": None, "not_told": "the release that answered is not loaded any more"}
        except Exception as error:  # noqa: BLE001 - what is remembered is told whether or not it can be worked out again
            return {**found, "why": None, "not_told": f"{type(error).__name__}: {error}"[:300]}

    def users(self, starts: str, limit: int) -> list[str]:
        """Return ids of known users that begin so, in order."""
        requests = self.knowledge.known.requests
        if requests is None:
            return []
        ids = requests.histories.users
        first = bisect_left(range(len(ids)), starts, key=lambda row: ids[row].as_py())
        return [user for user in ids.slice(first, limit).to_pylist() if user.startswith(starts)]

    def vitals(self) -> None:
        """Bring the metrics that age by themselves up to now."""
        catalogue = self.knowledge.catalogue
        self.metrics.vitals(len(catalogue.item_ids) if catalogue is not None else 0)
        self.metrics.waiting.set(self.turnstile.waiting + self.writes.waiting)
        self.metrics.released(self.release(), self._age())
        self.metrics.snapshots_refused.set(bool(self.knowledge.trouble))
        self.metrics.release_refused.set(len(self.holder.refused))
        self.metrics.rollout_share.set(self.holder.held.rollout.share if self.holder.held.rollout else 0.0)
        for breaker in self._breakers():
            self.metrics.trouble(breaker.name, CODES[breaker.state])
        self.metrics.looked_up(self.caches.record())
        self.metrics.logged({"written": self.journal.counts.rows, "dropped": self.journal.counts.dropped, "lost": self.journal.counts.lost})
        known = self.knowledge.known
        if known.requests is not None:
            self.metrics.feature_age.labels("requests").set((self.clock() - known.requests.as_of).total_seconds())
        if known.items is not None:
            self.metrics.feature_age.labels("items").set((self.clock() - known.items.day).total_seconds())

    def _age(self) -> float | None:
        """Return the seconds since the cycle that built what serves; None where nothing does."""
        digest = self.release().digest
        if digest is None:
            return None
        if digest not in self.built:
            self.built[digest] = next(
                (entry["as_of"] for entry in reversed(ledger.history(self.home)) if entry.get("digest") == digest), ""
            )
        return (self.clock() - utc(self.built[digest])).total_seconds() if self.built[digest] else None

    def _breakers(self) -> list[Breaker]:
        return [self.knowledge.breaker, *self.caches.breakers(), *self.ladder.breakers()]


@contextmanager
def house(home: Home, clock: Clock) -> Iterator[House]:
    """Yield the service of a state folder, ready to answer; what it started ends with it."""
    settings = config.load(home)
    serving = settings.serving
    with ExitStack() as ending:
        knowledge = Knowledge(home, serving)
        holder = Holder(home, lambda loaded: engine.bound(knowledge, loaded), serving.rollout)
        shared = SharedCache(home, serving.cache, serving.ladder.breaker) if serving.cache.redis else None
        news, recent = News(home), Recent(serving.events)
        caches = Caches(serving.cache, news, shared=shared, precomputed=BatchLists(home, serving), withdrawn=lambda: holder.withdrawn)
        trials = Experimenting(home, holder.pick, lambda version: _version(knowledge, version), serving.rollout.poll_seconds)
        ladder = Ladder(
            serving,
            trials.pick,
            lambda: knowledge,
            Blocked(home),
            cached=caches,
            session=lambda release, ask, seeds, k: from_session.proposed(release.model, ask, seeds, k),  # type: ignore[attr-defined]
            recent=recent.of,
            exclude_seen=settings.training.exclude_seen,
        )

        def touched(users: Sequence[str]) -> None:
            news.touch(users)
            if shared is not None:
                shared.touch(users)

        # Events wait for the bus and the judge of the rows; lists do not wait for them.
        turnstile, writes = Turnstile(serving.limits), Turnstile(serving.limits)
        journal = Journal(home, settings.impressions)
        made = House(home, Service(None), clock, turnstile, writes, Metrics(), knowledge, holder, ladder, caches, journal, recent, touched)
        made.breakers = [knowledge.breaker, *([shared.breaker] if shared is not None else [])]
        made.service = Service(ladder.answer, _watchers(made, settings, ending))
        _start(made, settings, ending)
        trials.start()
        ending.callback(trials.stop)
        yield made


def _version(knowledge: Knowledge, version: int) -> engine.Engine:
    """Return an engine of a model version, for an arm of an experiment.

    Raises:
        StateError: no such version was ever judged, or its bundle is gone or damaged.
    """
    digest = choosing.digests(knowledge.home).get(version)
    if digest is None:
        raise StateError(f"version {version}", found="no entry of the ledger", allowed="a version that was judged or released")
    return engine.bound(knowledge, choosing.loaded(knowledge.home, version, digest))


def _watchers(made: House, settings: Settings, ending: ExitStack) -> tuple[Watcher, ...]:
    """Return what sees every answer: metrics, explanations, the impression log, what the guard reads, the silent challenger."""
    ring, tally = Ring(made.home, settings.serving.log.remembered_bytes), Tally(made.home, lambda: made.release().version)
    shadow = Shadow(made.home, settings.serving.rollout)
    steward = Steward(made.home, settings.serving.rollout, shadow)

    def remember(answer: Answer) -> None:
        ring.keep(to_json(api.explained(answer), inf_nan_mode="null"))

    for close in (ring.close, tally.close, made.journal.close):
        ending.callback(close)
    made.journal.start()
    steward.start()
    ending.callback(steward.stop)
    return made.metrics.answered, remember, made.journal, tally, shadow


def _start(made: House, settings: Settings, ending: ExitStack) -> None:
    """Load what serves and warm it, then let events in."""
    made.holder.start()
    ending.callback(made.holder.stop)
    made.knowledge.start()
    ending.callback(made.knowledge.stop)
    warm(made)
    try:
        made.intake = Intake.of(made.home, made.recent, made.touched)
    except StateError as error:
        LOG.error("events cannot be taken: %s", error)  # noqa: TRY400 - a server that is away needs no trace
    ending.callback(lambda: made.intake.close() if made.intake is not None else None)
    if settings.serving.events.consume:
        follower = Follower(made.home, made.touched)
        follower.start()
        ending.callback(follower.stop)
    ending.callback(made.turnstile.close)
    ending.callback(made.writes.close)
    ending.enter_context(_pulse(made))


def warm(made: House) -> None:
    """Ask each surface of the release once, so that the first visitors do not pay for cold pages and first imports."""
    champion, now = made.holder.held.champion, made.clock()
    if champion is None or made.knowledge.catalogue is None:
        return
    items = tuple(made.knowledge.catalogue.item_ids[:1].to_pylist())
    for user in [*made.users("", 3), None]:
        for surface in get_args(Surface):
            changes: tuple[Change, ...] = ("cheaper",) if surface == "like" else ()
            try:
                champion.answer(Ask(surface, "warm", now, user_id=user, item_ids=items, changes=changes))
            except Exception as error:  # noqa: BLE001 - whoever asks is answered from a lower rung, and told why
                LOG.warning("warming %s: %s: %s", surface, type(error).__name__, error)


@contextmanager
def _pulse(made: House) -> Iterator[None]:
    """Keep the metrics of a process fresh, whichever process is asked for them."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(PULSE_SECONDS):
            try:
                made.vitals()
            except Exception:
                LOG.exception("metrics")

    thread = threading.Thread(target=beat, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5.0)


def gated(
    made: House,
    home: Home,
    *,
    keyring: Keyring | None = None,
    hosts: frozenset[str] = frozenset(),
    rates: Path | None = None,
    salt: bytes = b"",
    traces: Traces | None = None,
) -> api_gate.Gate:
    """Return the application of a house behind its gate."""
    settings = config.load(home).serving
    return api_gate.Gate(
        api.app(made, keys=keyring is not None),
        settings.limits,
        settings.log,
        made.metrics,
        Buckets(rates, salt),
        made.turnstile,
        keyring=keyring,
        hosts=hosts,
        traces=traces,
    )
