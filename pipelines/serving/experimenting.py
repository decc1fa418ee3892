"""Experiments on the way of a request: which engine answers whom, and under which label it is logged.

A thread looks at `experiments.toml` once a second and loads the releases that its arms name. An experiment takes part once everything that
its arms need is loaded, so that nobody is logged in an arm that he did not get; a file that cannot be read leaves what was.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from pipelines.config import Home
from pipelines.errors import ReloopError
from pipelines.evaluation.interleaving import TEAM, team_draft
from pipelines.ranking.two_stage import TwoStage
from pipelines.rerank_policies import RerankSettings
from pipelines.serving import assignment
from pipelines.serving.assignment import Arm, Experiments, fraction
from pipelines.serving.engine import Engine
from pipelines.serving.request import RUNGS, Answer, Ask, Release

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
    """

    def __init__(self, home: Home, base: Pick, load: Load, poll_seconds: float = 1.0) -> None:
        self.home, self.poll_seconds, self.trouble = home, poll_seconds, ""
        self._base, self._load = base, load
        self._ready = _Ready(Experiments({}), {})
        self._loaded: dict[int, Answering] = {}
        self._reordering: dict[tuple[str, str], tuple[Answering, Arm, Answering]] = {}
        self._read: tuple[int, int] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

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
        if changes.rerank is None:
            return engine
        kept = self._reordering.get((experiment, arm))
        if kept is None or kept[0] is not engine or kept[1] is not changes:
            kept = self._reordering[experiment, arm] = (engine, changes, _reordering(engine, changes.rerank))
        return kept[2]

    def start(self) -> None:
        """Look once, then in a thread."""
        self.follow()
        self._thread = threading.Thread(target=self._run, name="reloop-experiments", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; who takes part goes on doing so."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(self.poll_seconds):
            self.follow()

    def follow(self) -> None:
        """Look at the file, and do what follows; whatever goes wrong is told, and what takes part stays. Called by one thread at a time."""
        try:
            file = self.home.root / assignment.FILE
            state = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
            if state == self._read and not self.trouble:
                return
            self._ready = self._taking(assignment.load(self.home))
            self._read = state
        except (ReloopError, OSError) as error:
            self._tell(str(error))

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
        self._tell("; ".join(waiting))
        return _Ready(Experiments(taking), engines)

    def _engine(self, version: int) -> Answering:
        if version not in self._loaded:
            self._loaded[version] = self._load(version)
        return self._loaded[version]

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            LOG.error("%s", trouble)
        self.trouble = trouble


def _reordering(engine: Answering, rules: RerankSettings) -> Answering:
    """Return an engine that re-ranks by other rules; what is no engine of ours stays as it is."""
    if not isinstance(engine, Engine):
        return engine
    serving = replace(engine.serving, model=replace(engine.serving.model, rerank=rules))
    return replace(engine, serving=serving, bindings={}, beside={})
