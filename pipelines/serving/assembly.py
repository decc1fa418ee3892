"""Puts a process of the service together from a state folder, its settings and a clock.

Knowledge   snapshots and online store, one for all releases
Holder      the releases: champion, canary, the one before
Ladder      the rungs, with their caches and what is blocked
House       these, behind the words that HTTP asks for (`api.Room`)
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, get_args

from pipelines import columns as c
from pipelines import config
from pipelines.config import Home, Settings
from pipelines.errors import StateError
from pipelines.registry import choosing, ledger
from pipelines.registry.choosing import Serving
from pipelines.serving import api, api_gate, engine, explanation, from_session, mapped, remembered
from pipelines.serving.auth import Keyring
from pipelines.serving.batch_lists import BatchLists
from pipelines.serving.blocked import Blocked
from pipelines.serving.breaker import CODES, Breaker
from pipelines.serving.caches import Caches
from pipelines.serving.clicks import Clicks
from pipelines.serving.experimenting import Experimenting
from pipelines.serving.holder import Holder
from pipelines.serving.journal import Journal, Seen
from pipelines.serving.knowledge import Knowledge
from pipelines.serving.ladder import Ladder
from pipelines.serving.limits import Buckets, Turnstile
from pipelines.serving.lookout import Lookout
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
ASIDE_MS: Final = 5000.0  # people and Prometheus wait so long for what is looked up for them


@dataclass
class House:
    """One process of the service.

    Attributes:
        turnstile, writes: the threads that answer, and that take events; aside: that looks things up for people and for Prometheus.
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
    clicks: Clicks
    recent: Recent
    trials: Experimenting
    touched: Callable[[Sequence[str]], None]
    intake: Intake | None = None
    built: dict[str, str] = field(default_factory=dict)
    lookouts: list[Lookout] = field(default_factory=list)
    aside: Turnstile = field(init=False)
    ring: Ring = field(init=False)

    def __post_init__(self) -> None:
        """Make what needs nothing but the settings."""
        serving = config.load(self.home).serving
        self.aside = Turnstile(serving.limits.model_copy(update={"max_wait_ms": ASIDE_MS}))
        self.ring = Ring(self.home, serving.log.remembered_bytes)

    def take(self, events: Sequence[Mapping[str, Any]], request_id: str = "") -> Sequence[Verdict]:
        """Take events and return the fate of each; those of a request that comes again count once.

        Raises:
            StateError: the bus cannot be reached, or cannot keep them.
        """
        now, verdicts = self.clock(), dict[int, Verdict]()
        seen = {place: event for place, event in enumerate(events) if event.get(c.EVENT_TYPE) == c.SEEN}
        did = [(place, event) for place, event in enumerate(events) if place not in seen]
        if did and self.intake is None:  # the bus was away when the service began; it may be back
            self.intake = Intake.of(self.home, self.recent, self.touched)
        if did and self.intake is not None:
            taken = self.intake.take([event for _, event in did], now, request_id)
            verdicts = {place: verdict for (place, _), verdict in zip(did, taken, strict=True)}
            self.clicks.acted(event for place, event in did if verdicts[place].accepted)
        for place, event in seen.items():
            verdicts[place] = self._saw(event, now)
        return [verdicts[place] for place in range(len(events))]

    def _saw(self, event: Mapping[str, Any], now: datetime) -> Verdict:
        """Log that a place of an answer came into view; it is known by request and item, and learnt now, whatever it says."""
        request, item = str(event.get(c.REQUEST_ID) or ""), str(event[c.ITEM_ID])
        name = str(event.get(c.EVENT_ID) or f"{c.SEEN}:{request}:{item}")
        if not request:
            return Verdict(name, (f"{c.REQUEST_ID} is missing: a place is seen in an answer",))
        if item == c.NOTHING:  # the lake would refuse it, and enough of such rows the whole batch
            return Verdict(name, (f"{c.ITEM_ID} {c.NOTHING} is no item: it stands for an answer without any",))
        if not self.journal.saw(Seen(request, str(event[c.USER_ID]), item, now)):
            return Verdict(name, ("too many places came into view at once: send it again in a few seconds",))
        return Verdict(name)

    def prefer(self, user_id: str, said: Said) -> None:
        """Keep what a user chose; lists that were remembered without it hold no longer."""
        self.knowledge.preferences.put(user_id, said)
        self.touched([user_id])

    def release(self) -> Release:
        """Return what serves."""
        champion = self.holder.held.champion
        return champion.release if champion is not None else NOBODY

    def ready(self) -> tuple[bool, Sequence[str], Release]:
        """Return whether a list can be made here, and what is not as it should be: by thing and kind, for nobody is asked for a key here."""
        reasons = [f"version of {digest[:12]} refused: {_kind(why)}" for digest, why in self.holder.refused.items()]
        if self.holder.trouble:
            reasons.append(f"releases: {_kind(self.holder.trouble)}")
        if self.knowledge.trouble:
            reasons.append(f"snapshots: {_kind(self.knowledge.trouble)}")
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
        kept = remembered.find(self.home, request_id)
        if kept is None:
            return None
        found = remembered.told(kept)
        answer = found["answer"]
        held = self.holder.held
        try:
            made_by = self.trials.engine_of(answer["variant"], answer["model"]["bundle"], (held.champion, held.previous, held.challenger))
            shown = [item["item_id"] for item in answer["items"]]
            return {**found, "why": explanation.explained(made_by, explanation.read(found["asked"]), shown=shown)}
        except StateError as error:
            return {**found, "why": None, "not_told": f"{error.thing}: {error.found}"}
        except Exception as error:  # noqa: BLE001 - what is remembered is told whether or not it can be worked out again
            return {**found, "why": None, "not_told": f"{type(error).__name__}: {error}"[:300]}

    def keep(self, answer: Answer, body: bytes) -> None:
        """Keep an answer, and what was told of it, for who asks how it came about."""
        self.ring.keep(remembered.record(answer, body))

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
        self.metrics.stumbled({lookout.name: lookout.failed for lookout in self.lookouts})
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

        def bound(loaded: Serving) -> engine.Engine:
            made = engine.bound(knowledge, loaded)
            trials.meet(made)
            return made

        holder = Holder(home, bound, serving.rollout)
        shared = SharedCache(home, serving.cache, serving.ladder.breaker) if serving.cache.redis else None
        news, recent = News(home), Recent(serving.events)
        caches = Caches(serving.cache, news, shared=shared, precomputed=BatchLists(home, serving), withdrawn=lambda: holder.withdrawn)
        polled, retried = serving.rollout.poll_seconds, serving.rollout.retry_seconds
        trials = Experimenting(home, holder.pick, lambda version: _version(knowledge, version), polled, retried)
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
        clicks = Clicks(home, lambda: holder.held.rollout)
        service, metrics = Service(None), Metrics()
        made = House(
            home, service, clock, turnstile, writes, metrics, knowledge, holder, ladder, caches, journal, clicks, recent, trials, touched
        )
        made.service = Service(ladder.answer, _watchers(made, settings, ending))
        _start(made, settings, ending)
        trials.start()
        ending.callback(trials.stop)
        made.lookouts.append(trials.lookout)
        yield made


def _kind(trouble: str) -> str:
    """Return the kind of an error; its text, which may name paths, hosts and users, is in the log."""
    kind, found, _ = trouble.partition(": ")
    return f"{kind}, see the log" if found and kind.isidentifier() else "see the log"


def _version(knowledge: Knowledge, version: int) -> engine.Engine:
    """Return an engine of a model version, for an arm of an experiment.

    Raises:
        StateError: no such version was ever judged, or its bundle is gone or damaged.
    """
    digest = choosing.digests(knowledge.home).get(version)
    if digest is None:
        raise StateError(f"version {version}", found="no entry of the ledger", allowed="a version that was judged or released")
    home = knowledge.home
    return engine.bound(knowledge, choosing.loaded(home, version, digest, arrays=mapped.arrays_of(home, digest)))


def _watchers(made: House, settings: Settings, ending: ExitStack) -> tuple[Watcher, ...]:
    """Return what sees every answer: metrics, the impression log, what the guard reads, the silent challenger."""
    tally = Tally(made.home)
    shadow = Shadow(made.home, settings.serving.rollout)
    steward = Steward(made.home, settings.serving.rollout, shadow)

    for close in (made.ring.close, tally.close, made.clicks.close, made.journal.close):
        ending.callback(close)
    made.journal.start()
    steward.start()
    ending.callback(steward.stop)
    made.lookouts.append(steward.lookout)
    return made.metrics.answered, made.journal, tally, made.clicks, shadow


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
        made.lookouts.append(follower.lookout)
    ending.callback(made.turnstile.close)
    ending.callback(made.writes.close)
    ending.callback(made.aside.close)
    pulse = Lookout("reloop-pulse", made.vitals, PULSE_SECONDS)
    pulse.start()
    ending.callback(pulse.stop)
    made.lookouts += [pulse, made.holder.lookout, made.knowledge.lookout]


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
