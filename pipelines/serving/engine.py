"""One loaded release, bound to what a process knows: from a question to an ordered list.

histories and stored features -> retrievers -> blend -> features -> ranker -> rules, each in its time. What cannot be done in time
or goes wrong is told in `degraded`: a retriever is left out, without features or ranker the blend orders the list.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines import config
from pipelines.config import Settings
from pipelines.datasets.interactions import Floats, Histories
from pipelines.errors import StateError
from pipelines.features.request_store import Held
from pipelines.ranking import proposals, two_stage
from pipelines.ranking.context import BY_VECTORS
from pipelines.ranking.features import assemble
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.two_stage import RANKED, TwoStage
from pipelines.registry.choosing import Serving
from pipelines.retrieval import cold_users, merging, topk
from pipelines.retrieval.protocol import Candidates
from pipelines.retrieval.vectors import Vectors
from pipelines.serving import moment, preferences, shown, surfaces
from pipelines.serving.alike import Alike
from pipelines.serving.binding import Binding, Placed, bind, placed
from pipelines.serving.deadline import Watch
from pipelines.serving.knowledge import Knowledge, Known, needed
from pipelines.serving.request import BLEND, EMPTY, FULL, Answer, Ask, Release
from pipelines.serving.shown import Features
from pipelines.serving_policies import DeadlinePolicy

PERSONAL: Final = ("home", "session")  # what is made for who asks; the other surfaces are about items (`surfaces`)
DEEPER: Final = 4  # times as many candidates where filters leave few
PATIENT_MS: Final = 1e9
KEPT: Final = 2  # snapshots that an engine stays bound to: who began with the old one ends with it


@dataclass(frozen=True)
class Found:
    """What an answer is made of, before anything is left out.

    Attributes:
        lists: what each source proposed, one row each.
        score: float64 [n], what the candidates are ordered by, best is highest.
        matrix: float32 [n, n_features], what the ranker read; None where it was not asked.
    """

    ask: Ask
    binding: Binding
    users: Histories
    lists: dict[str, Candidates]
    candidates: Proposals
    score: npt.NDArray[np.float64]
    matrix: Floats | None


@dataclass(frozen=True)
class Engine:
    """Answers from one release; any number of threads.

    Attributes:
        placed: of each source that has vectors, those of its items.
        bindings, beside: to the newest snapshots, by their names; entries are added and dropped, never changed.
    """

    knowledge: Knowledge
    serving: Serving
    settings: Settings
    placed: Mapping[str, Placed]
    bindings: dict[tuple[int, ...], Binding] = field(default_factory=dict)
    beside: dict[tuple[int, ...], Alike] = field(default_factory=dict)
    turn: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Be told of snapshots before they answer."""
        self.knowledge.engines[id(self)] = self

    @property
    def release(self) -> Release:
        """The bundle that answers."""
        return Release(self.serving.version, self.serving.digest, self.serving.parts)

    @property
    def model(self) -> TwoStage:
        """The release's model."""
        return self.serving.model

    def binding(self, known: Known) -> Binding:
        """Return where the release's items stand in some snapshots; worked out when they are met first.

        Raises:
            StateError: no snapshots were published.
        """
        if (found := self.bindings.get(known.name)) is None:
            with self.turn:
                if (found := self.bindings.get(known.name)) is None:
                    found = self.bindings[known.name] = bind(self.model, *needed(known))
                    for old in sorted(self.bindings)[:-KEPT]:
                        self.bindings.pop(old, None)
        return found

    def alike(self, known: Known) -> Alike:
        """Return what answers for items, of a release and some snapshots."""
        binding = self.binding(known)
        if (found := self.beside.get(known.name)) is None:
            with self.turn:
                if (found := self.beside.get(known.name)) is None:
                    found = self.beside[known.name] = Alike(binding, self.model, dict(self.placed))
                    for old in sorted(self.beside)[:-KEPT]:
                        self.beside.pop(old, None)
        return found

    def follows(self, known: Known) -> bool:
        """Return whether it is bound to some snapshots."""
        return known.name in self.bindings

    def ready(self) -> None:
        """Bind it to what is known now, if it is not yet; before the first snapshots there is nothing to do."""
        known = self.knowledge.known
        if known.requests is not None and known.items is not None and not self.follows(known):
            self.prepare(known)

    def prepare(self, known: Known) -> None:
        """Bind it to snapshots, and work out what models work out at their first question: nobody waits for it here, so nothing is late.

        Raises:
            StateError: one of them was never published.
        """
        requests, _ = needed(known)
        self.alike(known)
        patient = Watch(DeadlinePolicy(retrieve_by_ms=PATIENT_MS, rank_by_ms=PATIENT_MS))
        users = requests.histories.users
        with suppress(Exception):  # a release in trouble says so when it is asked in earnest
            self.found(Ask("home", "", requests.as_of, 1, users[0].as_py() if len(users) else None), patient, known=known)

    def answer(self, ask: Ask) -> Answer:
        """Return the list for a question, on the rung `full` or `blend`.

        Raises:
            ReloopError: there is nothing to answer from.
        """
        if ask.surface not in PERSONAL:
            return surfaces.answer(self, ask)
        watch = Watch(self.settings.serving.deadline)
        found = self.found(ask, watch, deeper=DEEPER if ask.filters.narrow() else 1)
        with watch.stage("rerank"):
            items, features = shown.listed(self, found, watch)
            rung = BLEND if found.matrix is None and self.model.serves == RANKED else FULL
            if ask.filters and len(items) < ask.k:
                items, rung = surfaces.filled(self, found, items, rung)
                if isinstance(features, Features):
                    features.n = len(items)
        rung = rung if items else EMPTY
        known = self._knows(ask, found)
        return Answer(ask, items, rung, self.release, tuple(watch.degraded), stage_ms=watch.ms, features=features, known=known)

    def _knows(self, ask: Ask, found: Found) -> bool | None:
        """Return whether anything is known of who asks; None where nobody is named."""
        if ask.user_id is None:
            return None
        profiled = found.binding.requests.histories.place(ask.user_id) >= 0
        return profiled or len(found.users.item) > 0 or self.knowledge.preferences.of(ask.user_id) is not None

    def found(self, ask: Ask, watch: Watch, *, deeper: int = 1, known: Known | None = None) -> Found:
        """Return the candidates of a question with their scores.

        Args:
            deeper: times as many candidates as usual: filters will leave few of them.
            known: None is what is known now.
        """
        known = known or self.knowledge.known
        binding, model = self.binding(known), self.model
        held = self.held(ask, known, watch)
        with watch.stage("histories"):
            users = moment.history(ask, moment.told(ask, held), binding, self.settings.training, model.item_ids)
        lists: dict[str, Candidates] = {}
        vectors: dict[str, Vectors] = {}
        with watch.stage("retrieve"):
            for name in model.retrievers:
                lists[name] = self._proposed(name, users, watch, deeper * model.k_per_source, vectors)
        said = self._chosen(ask.user_id, users, watch)
        with watch.stage("blend"):
            given, recipe = cold_users.alone(lists), model.recipe
            if said is not None:
                given[preferences.SOURCE] = preferences.proposed(
                    said, self.alike(known), users, model.k_per_source, exclude_seen=model.exclude_seen
                )
                heaviest = max([1.0, *recipe.weights.values()])
                recipe = replace(recipe, weights={**recipe.weights, preferences.SOURCE: preferences.WEIGHT * heaviest})
            candidates = proposals.of_blend(merging.merge(given, deeper * model.k_blend, recipe))
        score, matrix = candidates.blend_score.astype(np.float64), None
        # The ranker never saw anybody choose: where a choice is all there is, the blend orders the list.
        if model.serves == RANKED and held is not None and said is None and len(candidates):
            ranked = self._ranked(candidates, users, binding, (held, vectors), watch)
            if ranked is not None:
                score, matrix = ranked
        return Found(ask, binding, users, lists, candidates, score, matrix)

    def held(self, ask: Ask, known: Known, watch: Watch) -> Held | None:
        """Return what the store holds of who asks; nothing is asked of nobody. None where it is in trouble."""
        try:
            with watch.stage("store"):
                if ask.user_id is None:
                    return self.knowledge.store().nobody()
                held = self.knowledge.held(ask.user_id, known, ask.as_of)
                if np.isnan(held.user).all() and known.active(ask.user_id):  # evicted, emptied, or never loaded
                    watch.degraded.append("store: it holds nothing of a user who was here in the week before the snapshot")
                return held
        except Exception as error:  # noqa: BLE001 - the blend orders the list, from the snapshot's history
            watch.failed("store", error)
            return None

    def _chosen(self, user_id: str | None, users: Histories, watch: Watch) -> preferences.Said | None:
        """Return what a newcomer said to like; None, and a line, where it cannot be read."""
        try:
            return preferences.wanted(self.knowledge.preferences, user_id, users)
        except StateError as error:
            watch.failed("preferences", error)
            return None

    def _proposed(self, name: str, users: Histories, watch: Watch, k: int, vectors: dict[str, Vectors]) -> Candidates:
        """Return what a source proposes; nothing, and a line, of one that fails or would begin too late. Its vectors are kept."""
        if not watch.late(name, self.settings.serving.deadline.retrieve_by_ms):
            try:
                source = self.model.retrievers[name]
                if name in self.placed:
                    source, vectors[name] = self.placed[name].asked(source, users)
                return source.retrieve(users, k, exclude_seen=self.model.exclude_seen)
            except Exception as error:  # noqa: BLE001 - the other sources answer
                watch.failed(name, error)
        return topk.nothing(1, k)

    def _ranked(
        self, candidates: Proposals, users: Histories, binding: Binding, known: tuple[Held, Mapping[str, Vectors]], watch: Watch
    ) -> tuple[npt.NDArray[np.float64], Floats] | None:
        """Return the ranker's scores and what it read; None, and a line, where that fails or would begin too late."""
        (held, vectors), model, ranker = known, self.model, self.model.ranker
        if ranker is None or watch.late("ranker", self.settings.serving.deadline.rank_by_ms):
            return None
        try:
            with watch.stage("features"):
                wanted = self.placed if BY_VECTORS & set(model.groups) else {}
                # A source that proposed nothing in time is asked here after all: the ranker reads its vectors.
                of_users = {name: vectors.get(name) or source.asked(model.retrievers[name], users)[1] for name, source in wanted.items()}
                context = moment.context(
                    candidates, users, binding, held, self.knowledge.store(), groups=model.groups, memory=model.memory, vectors=of_users
                )
                matrix = two_stage.chosen(*assemble(context, candidates), ranker)
            with watch.stage("rank"):
                score = ranker.score(matrix, np.array([len(candidates)], np.int32))
        except Exception as error:  # noqa: BLE001 - the blend orders the list
            watch.failed("ranker", error)
            return None
        if not (fine := np.isfinite(score)).all():
            watch.failed(
                "ranker", StateError("scores", found=f"{int((~fine).sum())} of {len(score)} are no numbers", allowed="finite ones")
            )
            return None
        return score, matrix


def bound(knowledge: Knowledge, serving: Serving) -> Engine:
    """Return an engine of a loaded release, bound to the newest snapshots already."""
    engine = Engine(knowledge, serving, config.load(knowledge.home), placed(serving.model))
    engine.ready()
    return engine
