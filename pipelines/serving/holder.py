"""The releases that a process has loaded: it follows the champion pointer, and an answer comes from exactly one of them.

A thread of its own looks at the release database once a second. A bundle that is to serve is rehearsed, loaded beside the one that
serves, bound, and asked what was asked lately; then one reference is replaced. A request reads that reference once, so it never
meets half of a swap, and the engine it got stays whole however often the reference changes. The release of before stays loaded: a
rollback to it loads nothing. What is damaged is refused, and what served goes on.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import choosing, ledger, rehearsal, releases, rollback
from pipelines.registry.choosing import Serving
from pipelines.registry.rollouts import Follower, Rollout, Seen
from pipelines.serving import mapped
from pipelines.serving.assignment import fraction
from pipelines.serving.lookout import Lookout
from pipelines.serving.request import Answer, Ask, Release
from pipelines.serving.tally import ROLLOUT
from pipelines.serving_policies import RolloutPolicy

LOG: Final = logging.getLogger(__name__)


class Engine(Protocol):
    """What answers from one release."""

    @property
    def release(self) -> Release:
        """The bundle that answers."""
        ...

    def answer(self, ask: Ask) -> Answer:
        """Return the list for a request; may raise."""
        ...


@dataclass(frozen=True)
class Held:
    """What a process answers from; replaced as a whole.

    Attributes:
        champion: None before the first release.
        previous: what served before it, or what a rollback would choose; kept for the way back.
        challenger: of a canary, loaded before the first user gets it.
        rollout: that the challenger belongs to; None where it could not be loaded, so nobody gets it.
        fence: of the pointer that the champion follows; that of before where the newest is refused.
    """

    champion: Engine | None = None
    previous: Engine | None = None
    challenger: Engine | None = None
    rollout: Rollout | None = None
    fence: int = 0


@dataclass(frozen=True)
class Swap:
    """One change of the champion.

    Attributes:
        was_loaded: nothing had to be read.
        seconds: by the clock, of each phase: rehearse, load, bind, warm, switch.
    """

    version: int
    digest: str
    was_loaded: bool
    seconds: dict[str, float]


class Holder:
    """Holds the engines of a process."""

    def __init__(self, home: Home, bind: Callable[[Serving], Engine], policy: RolloutPolicy) -> None:
        """Hold nothing yet; `start` loads what serves.

        Args:
            bind: makes an engine of a loaded release; called in the holder's thread.
        """
        self.home, self.bind, self.policy = home, bind, policy
        self.held = Held()
        self.swaps: deque[Swap] = deque(maxlen=64)
        self.refused: dict[str, str] = {}  # digest -> why, of what should be loaded and is not
        self.withdrawn: frozenset[str] = frozenset()  # digests that were rolled back from: what they made is not shown any more
        self.trouble = ""  # why the release database cannot be read
        self._retry_at: dict[str, float] = {}
        self._phases: dict[str, dict[str, float]] = {}
        self._asks: deque[Ask] = deque(maxlen=max(policy.warm_asks, 1))
        self._follower: Follower | None = None
        self._taken: Seen | None = None
        self._announced: dict[str, Any] = {}
        self.lookout = Lookout("reloop-holder", self.follow, policy.poll_seconds)

    def pick(self, ask: Ask) -> tuple[Engine | None, str]:
        """Return the engine that answers a request, and its side of the rollout that runs; None before the first release."""
        held = self.held
        self._asks.append(ask)
        if held.challenger is None or held.rollout is None:
            return held.champion, ""
        if gets_challenger(held.rollout, ask.user_id):
            return held.challenger, f"{ROLLOUT}{held.rollout.version}:canary"
        return held.champion, f"{ROLLOUT}{held.rollout.version}:champion"

    def start(self) -> None:
        """Load what serves, then follow in a thread."""
        self.follow()
        self.lookout.start()

    def stop(self) -> None:
        """End the thread; what is held goes on answering."""
        self.lookout.stop()
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        (folder(self.home) / f"{os.getpid()}.json").unlink(missing_ok=True)

    def follow(self) -> None:
        """Look once, and do what follows; whatever goes wrong is told, and what is held stays. Called by one thread at a time."""
        try:
            if self._follower is None:
                self._follower = Follower(self.home)
            seen = self._follower.look()
            if self._is_due(seen):
                self._take(seen)
                self._taken = seen
            self.trouble = ""
        except Exception as error:  # noqa: BLE001 - a database that is away must not take the service with it
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self.trouble:
                LOG.error("releases cannot be followed, what serves goes on: %s", trouble)  # noqa: TRY400 - once a second is no place for a trace
            self.trouble = trouble

    def _is_due(self, seen: Seen) -> bool:
        """Tell whether something else is to be held, or something refused is to be tried again."""
        now = time.perf_counter()
        return seen != self._taken or any(now >= at for at in self._retry_at.values())

    def _take(self, seen: Seen) -> None:
        held, loaded = self.held, self._loaded()
        self.withdrawn = rollback.withdrawn(ledger.history(self.home))
        champion, fence = self._champion(seen)
        previous = held.previous
        if champion is not held.champion:
            previous = held.champion or self._way_back(champion)
        challenger = self._challenger(seen)
        kept = {seen.pointer.digest, seen.rollout.digest if seen.rollout else None}
        for digest in set(self.refused) - kept:
            del self.refused[digest]
            self._retry_at.pop(digest, None)
        begun = time.perf_counter()
        self.held = Held(champion, previous, challenger, seen.rollout if challenger is not None else None, fence)
        if champion is not held.champion and champion is not None:
            release = champion.release
            phases = self._phases.pop(str(release.digest), {})
            swap = Swap(
                int(release.version or 0), str(release.digest), champion in loaded, {**phases, "switch": time.perf_counter() - begun}
            )
            self.swaps.append(swap)
            LOG.info("version %s (%s) serves", swap.version, swap.digest[:12])
        self.announce()

    def _champion(self, seen: Seen) -> tuple[Engine | None, int]:
        """Return the engine of the pointer, or what is held where that is refused, with the fence that it follows."""
        held, pointer = self.held, seen.pointer
        if pointer.version is None or pointer.digest is None:
            return held.champion, pointer.fence
        wrong = choosing.unknown(pointer, ledger.history(self.home))
        found = None
        if wrong is None:
            found = self._engine(pointer.version, pointer.digest)
        elif releases.pointer(self.home) == pointer:  # else it moved between the two looks, and the next one sees both
            self._refuse(pointer.version, pointer.digest, wrong)
            self._retry_at.pop(pointer.digest)  # the bundle may be sound, and a pointer that is mended is seen
        if found is not None:
            choosing.report_file(self.home).unlink(missing_ok=True)
            return found, pointer.fence
        if held.champion is not None:
            return held.champion, held.fence
        fallen_back = choosing.serving(self.home)
        return None if fallen_back is None else self.bind(fallen_back), held.fence

    def _challenger(self, seen: Seen) -> Engine | None:
        rollout = seen.rollout
        return self._engine(rollout.version, rollout.digest) if rollout is not None and rollout.kind == ledger.CANARY else None

    def _way_back(self, champion: Engine | None) -> Engine | None:
        """Return the release that a rollback would choose, at the start of a process."""
        back = rollback.candidates(ledger.history(self.home), None if champion is None else champion.release.version)
        return self._engine(int(back[0]["version"]), str(back[0]["digest"])) if back else None

    def _loaded(self) -> list[Engine]:
        held = self.held
        return [one for one in (held.champion, held.previous, held.challenger) if one is not None]

    def _engine(self, version: int, digest: str) -> Engine | None:
        """Return an engine that is held, or load it; None where it is refused."""
        for one in self._loaded():
            if (one.release.version, one.release.digest) == (version, digest):
                return one
        if digest in self._retry_at and time.perf_counter() < self._retry_at[digest]:
            return None
        try:
            engine = self._made(version, digest)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a bundle, what serves goes on
            self._refuse(version, digest, f"{type(error).__name__}: {error}")
            return None
        self.refused.pop(digest, None)
        self._retry_at.pop(digest, None)
        return engine

    def _refuse(self, version: int, digest: str, why: str) -> None:
        if self.refused.get(digest) != why:
            LOG.error("version %s (%s) is refused, what serves goes on: %s", version, digest[:12], why)
        self.refused[digest] = why
        self._retry_at[digest] = time.perf_counter() + self.policy.retry_seconds

    def _made(self, version: int, digest: str) -> Engine:
        """Rehearse, load, bind and warm a release."""
        phases: dict[str, float] = {}
        with _timed(phases, "rehearse"):
            rehearsal.rehearse(self.home, digest)
        with _timed(phases, "load"):
            serving = choosing.loaded(self.home, version, digest, rehearse=False, arrays=mapped.arrays_of(self.home, digest))
        with _timed(phases, "bind"):
            engine = self.bind(serving)
        with _timed(phases, "warm"):
            self._warm(engine, version)
        self._phases[digest] = phases
        return engine

    def _warm(self, engine: Engine, version: int) -> None:
        """Ask what was asked lately, so that the first user does not pay for cold pages; an engine that answers nothing is refused.

        Raises:
            StateError: it failed at every request.
        """
        asks, failures = list(self._asks)[: self.policy.warm_asks], []
        for ask in asks:
            try:
                engine.answer(ask)
            except Exception as error:  # noqa: BLE001 - one request may be at fault; all of them are not
                failures.append(f"{type(error).__name__}: {error}")
        if asks and len(failures) == len(asks):
            raise StateError(f"version {version}", found=f"no answer to {len(asks)} requests: {failures[-1]}", allowed="answers")

    def announce(self) -> None:
        """Let the other processes know what this one holds (`workers`)."""
        if (status := self.status()) != self._announced:
            publish.write_json(folder(self.home) / f"{os.getpid()}.json", status)
            self._announced = status

    def status(self) -> dict[str, Any]:
        """Return what is held, as JSON values: for `/readyz`, metrics and the table of `reloop rollout`."""
        held = self.held
        return {
            "champion": _said(held.champion),
            "previous": _said(held.previous),
            "challenger": _said(held.challenger),
            "share": held.rollout.share if held.rollout else 0.0,
            "fence": held.fence,
            "refused": dict(self.refused),
            "trouble": self.trouble,
            "swap": asdict(self.swaps[-1]) if self.swaps else None,
        }


def folder(home: Home) -> Path:
    """Return where processes say what they hold."""
    return home.serving / "holders"


def workers(home: Home) -> dict[int, dict[str, Any]]:
    """Return what each living process of this machine holds, by its id, as `Holder.status` has it.

    A container with process ids of its own finds none of another's, and what it does not know is not its to remove: the supervisor does.
    """
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(folder(home).glob("*.json")):
        if not Path(f"/proc/{path.stem}").exists():
            continue
        with suppress(FileNotFoundError):
            found[int(path.stem)] = json.loads(path.read_text(encoding="utf-8"))
    return found


def gets_challenger(rollout: Rollout, user_id: str | None) -> bool:
    """Tell whether a user is among those who get the challenger; who was at a smaller share is at a larger one.

    A request without a user stays with the champion: it could not be dealt the same side again.
    """
    return user_id is not None and fraction("rollout", rollout.key, user_id) < rollout.share


@contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - begun


def _said(engine: Engine | None) -> dict[str, Any] | None:
    return None if engine is None else {"version": engine.release.version, "digest": engine.release.digest}
