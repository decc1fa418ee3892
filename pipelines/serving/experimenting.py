"""Experiments on the way of a request: which engine answers whom, and under which label it is logged.

A thread looks at `experiments.toml` once a second and loads the releases that its arms name. An experiment takes part once everything that
its arms need is loaded, so that nobody is logged in an arm that he did not get; a file that cannot be read leaves what was. What arms that
re-rank or explore make of a release is made and bound before a request asks for it, and lives as long as the release does.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from pipelines.config import Home
from pipelines.errors import ReloopError, StateError
from pipelines.evaluation.interleaving import TEAM, team_draft
from pipelines.ranking.two_stage import TwoStage
from pipelines.serving import assignment
from pipelines.serving.assignment import Arm, Experiments, fraction
from pipelines.serving.engine import Engine
from pipelines.serving.lookout import Lookout
from pipelines.serving.request import RUNGS, Answer, Ask, Release
from pipelines.serving.tally import ROLLOUT

LOG: Final = logging.getLogger(__name__)


class Answering(Protocol):
    """What answers from a release."""

    @property
    def release(self) -> Release:
        """The bundle that answers."""
        ...

    def answer(self, ask: Ask) -> Answer:
        """Return the list for a request; may raise."""
        ...


Pick = Callable[[Ask], tuple[Answering | None, str]]
Load = Callable[[int], Answering]


@dataclass(frozen=True)
class Drafting:
    """Answers with a draft of what two others answer; each item says among its sources whose pick it was.

    How likely a draft is to show an item at a place nobody has worked out: propensities are unknown.

    Attributes:
        sides: the arms' names.
    """

    a: Answering
    b: Answering
    sides: tuple[str, str]
    salt: str

    @property
    def release(self) -> Release:
        """The bundle of side a; an item of side b came from another."""
        return self.a.release

    @property
    def model(self) -> TwoStage:
        """The model of side a: what the rungs below answer from."""
        return self.a.model  # type: ignore[attr-defined,no-any-return]

    def answer(self, ask: Ask) -> Answer:
        """Return the list; the same request is drafted the same."""
        answers = (self.a.answer(ask), self.b.answer(ask))
        orders = [{one.item_id: one for one in answer.items} for answer in answers]
        seed = int(fraction("draft", self.salt, ask.request_id) * (1 << 53))
        drafted = team_draft(list(orders[0]), list(orders[1]), ask.k, seed)
        items = tuple(
            replace(one, rank=rank, sources=(*one.sources, TEAM + self.sides[side]), propensity=math.nan)
            for rank, (item, side) in enumerate(zip(drafted.items, drafted.sides, strict=True), 1)
            for one in (orders[side][item],)
        )
        worst = max((answer.rung for answer in answers), key=RUNGS.index)
        stages = {f"{name}_{side}": ms for side, answer in zip(self.sides, answers, strict=True) for name, ms in answer.stage_ms.items()}
        return replace(
            answers[0], items=items, rung=worst, degraded=answers[0].degraded + answers[1].degraded, stage_ms=stages, features={}
        )


@dataclass(frozen=True)
class _Ready:
    """What takes part; replaced as a whole."""

    experiments: Experiments
    engines: dict[tuple[str, str], Answering]  # by experiment and arm, of arms that name a release


class Experimenting:
    """Picks for the ladder; any number of threads may call `pick`.

    Args:
        base: which engine answers without experiments, and its side of the rollout.
        load: returns the engine of a model version; may raise.
        poll_seconds: between two looks at the file.
        retry_seconds: before a version that could not be loaded is tried again.
    """

    def __init__(self, home: Home, base: Pick, load: Load, poll_seconds: float = 1.0, retry_seconds: float = 30.0) -> None:
        self.home, self.poll_seconds, self.trouble = home, poll_seconds, ""
        self._base, self._load, self._retry_seconds = base, load, retry_seconds
        self._ready = _Ready(Experiments({}), {})
        self._loaded: dict[int, Answering] = {}
        self._failed: dict[int, tuple[float, Exception]] = {}  # version -> when it is tried again, and what was wrong
        self._met: dict[int, weakref.ref[Engine]] = {}
        # By experiment, arm and engine. Each keeps arrays of a release: what is made goes with the engine that it was made of.
        self._reordering: dict[tuple[str, str, int], tuple[weakref.ref[Engine], Arm, Engine]] = {}
        self._turn = threading.Lock()
        self._read: tuple[int, int] | None = None
        self.lookout = Lookout("reloop-experiments", self.follow, poll_seconds)

    def pick(self, ask: Ask) -> tuple[Answering | None, str]:
        """Return the engine that answers a request, and the label of everything that it takes part in."""
        engine, side = self._base(ask)
        ready = self._ready
        if engine is None or not ready.experiments.declared:
            return engine, side
        # Nobody's requests are no unit that comes back.
        assigned = ready.experiments.assign({"user": ask.user_id, "request": ask.request_id}, ask.as_of)
        for one in assigned:
            engine = self._of(ready, one.experiment, one.arm, one.changes, engine)
        return engine, "|".join(filter(None, (side, assignment.label(assigned))))

    def _of(self, ready: _Ready, experiment: str, arm: str, changes: Arm, base: Answering) -> Answering:
        if changes.interleave is not None:
            arms = ready.experiments.declared[experiment].arms
            a, b = (self._of(ready, experiment, side, arms[side], base) for side in changes.interleave)
            return Drafting(a, b, changes.interleave, experiment)
        engine = ready.engines.get((experiment, arm), base)
        if not isinstance(engine, Engine) or (changes.rerank is None and changes.exploration is None):
            return engine  # what is no engine of ours stays as it is
        return self._reordered((experiment, arm, id(engine)), changes, engine)

    def _reordered(self, key: tuple[str, str, int], changes: Arm, engine: Engine) -> Engine:
        """Return what an arm makes of an engine: the same as long as both stay."""
        if (found := self._kept(key, changes, engine)) is None:
            with self._turn:
                if (found := self._kept(key, changes, engine)) is None:
                    found = _changed(engine, changes)
                    self._reordering[key] = (weakref.ref(engine), changes, found)
        return found

    def _kept(self, key: tuple[str, str, int], changes: Arm, engine: Engine) -> Engine | None:
        made_of, by, found = self._reordering.get(key, (None, None, None))
        return found if made_of is not None and made_of() is engine and by == changes else None

    def meet(self, engine: Answering) -> None:
        """Make and bind what arms make of an engine that is to answer, so that no request waits for it; any thread."""
        if isinstance(engine, Engine):
            self._met[id(engine)] = weakref.ref(engine)
            self._prepare(self._ready, engine)

    def _prepare(self, ready: _Ready, base: Engine) -> None:
        for name, experiment in ready.experiments.declared.items():
            for arm, changes in experiment.arms.items():
                if changes.rerank is None:  # what explores otherwise is bound where its engine is
                    continue
                try:
                    made = self._of(ready, name, arm, changes, base)
                    if isinstance(made, Engine):
                        made.ready()
                except Exception as error:  # noqa: BLE001 - a release in trouble says so when it is asked in earnest
                    LOG.warning("arm %s of %s is not bound yet: %s: %s", arm, name, type(error).__name__, error)

    def engine_of(self, variant: str, digest: str | None, bases: Iterable[Answering | None]) -> Engine:
        """Return the engine that answered under a label, from a bundle: what arms made of one of the bases.

        Raises:
            StateError: an arm or the release is gone, or the list was a draft of two.
        """
        thing, ready = "what answered", self._ready
        arms = [
            (name, arm) for name, _, arm in (part.partition(":") for part in variant.split("|")) if not name.startswith(ROLLOUT) and arm
        ]
        for name, arm in arms:
            if name not in ready.experiments.declared or arm not in ready.experiments.declared[name].arms:
                raise StateError(thing, found=f"arm {arm} of experiment {name} is gone")
        for engine in bases:
            for name, arm in arms:
                if engine is not None:
                    engine = self._of(ready, name, arm, ready.experiments.declared[name].arms[arm], engine)  # noqa: PLW2901
            if isinstance(engine, Drafting):
                raise StateError(thing, found="a draft of two lists")
            if isinstance(engine, Engine) and engine.release.digest == digest:
                return engine
        raise StateError(thing, found="its release is not loaded any more")

    def start(self) -> None:
        """Look once, then in a thread."""
        self.follow()
        self.lookout.start()

    def stop(self) -> None:
        """End the thread; who takes part goes on doing so."""
        self.lookout.stop()

    def follow(self) -> None:
        """Look at the file, and do what follows; whatever goes wrong is told, and what takes part stays. Called by one thread at a time."""
        try:
            file = self.home.experiments
            state = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
            if state == self._read and not self.trouble:
                return
            ready = self._taking(assignment.load(self.home))
            for engine in [made_of() for made_of in list(self._met.values())]:
                if engine is not None:
                    self._prepare(ready, engine)
            self._ready, self._read = ready, state
        except (ReloopError, OSError) as error:
            self._tell(str(error))
        finally:
            self._forget()

    def _forget(self) -> None:
        """Let go of what was made of engines that are gone, or for arms that are: each keeps a whole release alive."""
        declared = self._ready.experiments.declared
        for key, (made_of, _, _) in list(self._reordering.items()):
            if made_of() is None or key[0] not in declared or key[1] not in declared[key[0]].arms:
                self._reordering.pop(key, None)
        for name, met in list(self._met.items()):
            if met() is None:
                self._met.pop(name, None)

    def _taking(self, declared: Experiments) -> _Ready:
        """Return the experiments whose arms are all there; the others wait, and it is told why."""
        engines: dict[tuple[str, str], Answering] = {}
        taking, waiting = {}, []
        for name, experiment in declared.declared.items():
            try:
                found = {(name, arm): self._engine(one.version) for arm, one in experiment.arms.items() if one.version is not None}
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a release, its experiment does not run
                waiting.append(f"experiment {name} waits: {type(error).__name__}: {error}")
                continue
            taking[name] = experiment
            engines |= found
        wanted = {one.version for experiment in taking.values() for one in experiment.arms.values()}
        self._loaded = {version: engine for version, engine in self._loaded.items() if version in wanted}
        declares = {one.version for experiment in declared.declared.values() for one in experiment.arms.values()}
        self._failed = {version: kept for version, kept in self._failed.items() if version in declares}
        self._tell("; ".join(waiting))
        return _Ready(Experiments(taking), engines)

    def _engine(self, version: int) -> Answering:
        """Return the engine of a version; one that could not be loaded is not tried again at every look.

        Raises:
            Exception: whatever is wrong with it.
        """
        if version in self._loaded:
            return self._loaded[version]
        retry_at, error = self._failed.pop(version, (0.0, None))
        if error is None or time.perf_counter() >= retry_at:
            try:
                self._loaded[version] = self._load(version)
            except Exception as found:  # noqa: BLE001 - kept, and raised at every look until then
                retry_at, error = time.perf_counter() + self._retry_seconds, found.with_traceback(None)
            else:
                return self._loaded[version]
        self._failed[version] = (retry_at, error)
        raise error

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            LOG.error("%s", trouble)
        self.trouble = trouble


def _changed(engine: Engine, changes: Arm) -> Engine:
    """Return an engine that re-ranks by other rules, or explores otherwise."""
    if changes.exploration is not None:
        engine = replace(engine, settings=engine.settings.model_copy(update={"exploration": changes.exploration}))
    if changes.rerank is not None:
        serving = replace(engine.serving, model=replace(engine.serving.model, rerank=changes.rerank))
        engine = replace(engine, serving=serving, bindings={}, beside={})
    return engine
