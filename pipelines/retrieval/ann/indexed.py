"""A model behind an index: the same answers as the model's own, short of the last percent of recall, without its cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Bools, Floats, Histories, Ids, Interactions, Longs, histories, moved, positions
from pipelines.errors import StateError
from pipelines.model_settings import IndexSettings
from pipelines.retrieval.ann import choosing, hygiene, plans
from pipelines.retrieval.ann.index import MEASURED_AT, Index
from pipelines.retrieval.ann.plans import Plan
from pipelines.retrieval.protocol import Candidates, Vectored


@dataclass(frozen=True)
class Built:
    """What is known of an index since it was built or changed.

    Attributes:
        recall_at_100: against exact search.
        n_queries: over how many queries it was measured; 0 where the index is exact.
        left_out: what was wrong with vectors that did not enter; see `hygiene.Findings.facts`.
        trials: what was tried to choose it.
        latency_ms, seconds: of a query, and of the build; nobody else's, so no part of what is published.
    """

    recall_at_100: float
    n_queries: int
    left_out: dict[str, Any]
    trials: tuple[dict[str, Any], ...]
    latency_ms: float = field(default=float("nan"), compare=False)
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Indexed:
    """A retriever that asks an index for what its model would find by comparing a user with every item.

    Attributes:
        model: whose vectors they are.
        settings: what may be chosen, and how well it must do.
        index: None until fitted.
        built: None until fitted.
        place: int64 [n items of the model], where each stands in the catalogue of the index; None where it is the model's own.
        added: int64, ascending, the items whose vectors are not the model's; None where nothing was added or removed.
    """

    model: Vectored
    settings: IndexSettings = field(default_factory=IndexSettings)
    index: Index | None = field(default=None, repr=False, compare=False)
    built: Built | None = field(default=None, compare=False)
    place: Longs | None = field(default=None, repr=False, compare=False)
    added: Longs | None = field(default=None, repr=False, compare=False)

    @property
    def state(self) -> dict[str, npt.NDArray[np.generic]] | None:
        """The model's arrays; those of the index are kept beside them (`keeping`)."""
        return self.model.state if self.index is not None else None

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy of the model behind an index of it.

        Raises:
            StateError: too many bad vectors, or no layout reaches the least recall.
        """
        return replace(self, model=self.model.fit(interactions)).over(interactions)

    def over(self, interactions: Interactions, like: Plan | None = None) -> Self:
        """Return the fitted model behind an index of it.

        Args:
            interactions: those it was fitted on: their users are asked for, and items that they cannot tell apart may share a vector.
            like: a layout that did before on like data.

        Raises:
            StateError: too many bad vectors, or no layout reaches the least recall.
        """
        began = time.perf_counter()
        name = type(self.model).__name__
        vector, known = self.model.item_vectors()
        exact = plans.grid(int(np.count_nonzero(known)), self.settings)[0].kind == "flat"
        findings = hygiene.inspect(vector, known, lambda: hygiene.liked_by(interactions), exact=exact)
        findings.refused_above(self.settings.max_bad_share, name)
        live = known.copy()
        live[findings.items] = False
        if not np.isfinite(vector).all():  # what may not be proposed still takes part in the product
            vector = np.where(live[:, None], vector, np.float32(0))
        queries = np.empty((0, vector.shape[1]), np.float32)
        if not exact:
            queries, told = self.model.query_vectors(_sampled(interactions, self.settings))
            queries = queries[told]
        chosen = choosing.choose(name, vector, live, queries, self.settings, first=like)
        facts = tuple(trial.facts() for trial in chosen.trials)
        built = Built(chosen.recall_at_100, chosen.n_queries, findings.facts(), facts, chosen.latency_ms, time.perf_counter() - began)
        return replace(self, index=chosen.index, built=built, place=None, added=None)

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool, blocked: Bools | None = None) -> Candidates:
        """Return up to k items a user; see `Retriever.retrieve`.

        Args:
            blocked: bool [n_items], what must not be proposed to anybody.
        """
        index, built = self._fitted()
        as_fitted = self.place is None and self.added is None and not built.left_out
        if index.structure is None and as_fitted and blocked is None:
            return self.model.retrieve(histories, k, exclude_seen=exclude_seen)
        query, told = self._asked(index, histories)
        return index.search(query, told, k, seen=histories if exclude_seen else None, blocked=blocked)

    def figures(self) -> dict[str, Any]:
        """Return what a stage records of the index; latency only where layouts were tried."""
        index, built = self._fitted()
        latency = {} if np.isnan(built.latency_ms) else {"latency_ms": round(built.latency_ms, 4)}
        measured = {"recall_at_100": built.recall_at_100, "queries": built.n_queries, "build_seconds": round(built.seconds, 3)}
        return {"kind": index.plan.kind, "effort": index.effort, **measured, **latency, "left_out": built.left_out}

    def with_items(self, items: Longs, vector: Floats, checked_on: Histories) -> Self:
        """Return a copy that also proposes some items of its catalogue, or proposes them by another vector, without training.

        Args:
            items: int64 [n], distinct.
            vector: float32 [n, d], in the model's space: of the model itself, or mapped into it.
            checked_on: users on whose vectors recall is measured again.

        Raises:
            StateError: a vector is bad or of another dimension, or recall falls below the least.
        """
        index, _ = self._fitted()
        added = np.union1d(items, np.empty(0, dtype=np.int64) if self.added is None else self.added)
        return self._checked(replace(self, index=index.with_items(items, vector), added=added), checked_on)

    def without(self, items: Longs, checked_on: Histories) -> Self:
        """Return a copy that proposes some items no more; raises as `with_items` does."""
        index, _ = self._fitted()
        left = np.setdiff1d(np.empty(0, dtype=np.int64) if self.added is None else self.added, items)
        return self._checked(replace(self, index=index.without(items), added=left), checked_on)

    def grown(self, item_ids: Ids, to_ids: Ids) -> Self:
        """Return a copy over a larger catalogue, in which new items are not proposed before they get a vector.

        Args:
            item_ids, to_ids: the catalogue until now and from now on, sorted, each once; the second holds the first.

        Raises:
            StateError: an item is missing from the larger catalogue.
        """
        index, _ = self._fitted()
        place = positions(item_ids, to_ids) if len(item_ids) else np.empty(0, dtype=np.int64)
        if len(place) != index.n_items or (place < 0).any():
            raise StateError(
                f"index over {index.n_items} items",
                found=f"{len(item_ids)} ids, {np.count_nonzero(place < 0)} of them not in the larger catalogue",
                allowed="its own ids, all of them",
            )
        return replace(
            self,
            index=index.renumbered(place, len(to_ids)),
            place=place if self.place is None else place[self.place],
            added=np.empty(0, dtype=np.int64) if self.added is None else np.sort(place[self.added]),
        )

    def _fitted(self) -> tuple[Index, Built]:
        if self.index is None or self.built is None:
            raise StateError(
                f"index of {type(self.model).__name__}",
                found="not fitted",
                allowed="a fitted copy",
                hint="call fit, or load it from a bundle",
            )
        return self.index, self.built

    def _asked(self, index: Index, histories: Histories) -> tuple[Floats, Bools]:
        """Return the model's query vectors of histories over the index's catalogue."""
        if histories.n_items != index.n_items:
            raise StateError(
                f"index of {type(self.model).__name__}",
                found=f"histories over {histories.n_items} items",
                allowed=f"histories over its own {index.n_items}",
                hint="remap them first (pipelines.datasets.interactions.remap)",
            )
        if self.place is None:
            return self.model.query_vectors(histories)
        back = np.full(index.n_items, -1, dtype=np.int64)
        back[self.place] = np.arange(len(self.place))
        return self.model.query_vectors(moved(histories, back, len(self.place)))

    def _checked(self, changed: Self, users: Histories) -> Self:
        """Return a changed copy with its recall measured anew."""
        index, built = changed._fitted()
        if index.structure is None:
            return changed
        query, told = changed._asked(index, users)
        query = query[told][: self.settings.n_queries]
        found = index.search(query, np.ones(len(query), dtype=bool), MEASURED_AT, refill=False)
        reached = choosing.recall(found, index.exact(query, MEASURED_AT))
        if not reached >= self.settings.min_recall:
            raise StateError(
                f"changed index of {type(self.model).__name__}",
                found=f"recall@{MEASURED_AT} {reached:.4f} over {len(query)} queries",
                allowed=f"at least {self.settings.min_recall}",
                hint="too much has changed for its layout: build it again (Indexed.over)",
            )
        return replace(changed, built=replace(built, recall_at_100=reached, n_queries=len(query)))


def _sampled(interactions: Interactions, settings: IndexSettings) -> Histories:
    """Return the histories of some users, a seeded draw; a few more than are asked for, since of some nothing is known."""
    n_users = len(interactions.user_ids)
    drawn = np.random.default_rng(settings.seed).permutation(n_users)[: 2 * settings.n_queries]
    return histories(interactions, interactions.user_ids[np.sort(drawn)])
