"""Why an item stands where it stands in a user's list: from a bundle, the user's history and the features of a moment.

For one item, listed or not: the place and score in every source's list, in the blend and in the ranker's order; its features
with their units and what each added to the score; the rules that lifted it; and its place had one thing been
otherwise: without each rule that is on, and without each source that proposed it.

A counterfactual without a source leaves its list empty and asks the same ranker again; nothing is trained anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines import config
from pipelines.config import Home
from pipelines.datasets.interactions import Floats, Histories, histories, load
from pipelines.errors import ReloopError
from pipelines.ranking import importance, proposals, two_stage
from pipelines.ranking.context import Context
from pipelines.ranking.feature_table import Columns, specs
from pipelines.ranking.features import assemble
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.protocol import Ranker
from pipelines.ranking.rerank import chain
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.ranking.two_stage import RANKED, TwoStage
from pipelines.retrieval import cold_users, merging
from pipelines.retrieval.protocol import Candidates
from pipelines.window import utc

N_HISTORY: Final = 10  # newest events that are told


@dataclass(frozen=True)
class Question:
    """Who asks which model, and when.

    Attributes:
        users: the history, one row.
        goods: what the rules know of the items; None where none is on.
        titles: of the model's items, in their order; None for one that the catalogue does not name.
        context_of: what the features of some candidates are made of; as training would have them at the moment when None.
    """

    home: Home
    model: TwoStage
    user_id: str
    as_of: datetime
    users: Histories
    goods: Goods | None
    titles: pa.ChunkedArray | None = None
    context_of: Callable[[Proposals], Context] | None = None

    def _context(self, found: Proposals) -> Context:
        if self.context_of is not None:
            return self.context_of(found)
        return self.model.context(self.home, found, self.users, np.array([self.user_id]), self.as_of)

    def title(self, item: int) -> str | None:
        """Return what the catalogue calls an item, None where it says nothing."""
        return None if self.titles is None else self.titles[item].as_py()

    def answered(self, lists: dict[str, Candidates]) -> Asked:
        """Return what the model makes of the sources' lists.

        Raises:
            StateError: the features that the ranker reads are not all there.
        """
        model = self.model
        said, lists = lists, cold_users.alone(lists)
        found = proposals.of_blend(merging.merge(lists, model.k_blend, model.recipe))
        context = self._context(found) if model.serves == RANKED else None
        score = model.order(found, context)
        item, best, _ = found.ranked(score, 1, model.k_blend)
        return Asked(self, said, lists, found, context, score, Ranked.ordered(item, best))


@dataclass(frozen=True)
class Asked:
    """Everything that an answer was made of.

    Attributes:
        said: what each source would propose, one row each.
        lists: what was taken of it: of a user who is left to `cold_users`, its list alone.
        context: of the candidates; None where the blend is served.
        score: float64 [n], what the candidates were ordered by.
        ranked: their order before the rules.
    """

    question: Question
    said: dict[str, Candidates]
    lists: dict[str, Candidates]
    candidates: Proposals
    context: Context | None
    score: npt.NDArray[np.float64]
    ranked: Ranked

    @property
    def model(self) -> TwoStage:
        """Return the model that was asked."""
        return self.question.model

    def shown(self, *, without: str | None = None) -> tuple[Ranked, npt.NDArray[np.uint32]]:
        """Return the list after the rules, or after all but one of them, and which lifted what."""
        settings = chain.without(self.model.rerank, *([without] if without else []))
        if self.question.goods is None or not chain.active(settings):
            return self.ranked, np.zeros(self.ranked.item.shape, np.uint32)
        return chain.reranked(self.ranked, self.question.goods, self.question.users, settings)

    def row_of(self, item: int) -> int | None:
        """Return the row of an item among the candidates."""
        found = np.flatnonzero(self.candidates.item == item)
        return int(found[0]) if len(found) else None


def ask(home: Home, model: TwoStage, user_id: str, as_of: datetime) -> Asked:
    """Return everything that a user's list at a moment is made of.

    Raises:
        StateError: the features that the ranker reads are not all there.
    """
    known = load(home, as_of, config.load(home).training, item_ids=model.item_ids)
    user_ids = np.array([user_id])
    users = histories(known, user_ids)
    goods = model.goods(known) if chain.active(model.rerank) else None
    titles = None if known.items is None else known.items[c.TITLE]
    return Question(home, model, user_id, as_of, users, goods, titles).answered(_proposed(model, users))


def _proposed(model: TwoStage, users: Histories) -> dict[str, Candidates]:
    return {name: source.retrieve(users, model.k_per_source, exclude_seen=model.exclude_seen) for name, source in model.retrievers.items()}


def explain(home: Home, model: TwoStage, user_id: str, as_of: datetime, *, item_id: str | None = None, k: int = 10) -> dict[str, Any]:
    """Return the explanation, ready for JSON.

    Args:
        item_id: what is asked about; the first of the list when None.
        k: length of the list that is told.

    Returns:
        `user`, `as_of`, `serves`, `exploration` (whether the settings have places drawn for beyond this), `history` (newest
        first), `list` (place, item, title, score, sources, rules), and `item`: None for a user who is shown nothing, else `item_id`, `title`, `place` (None where it is not listed), `candidate`, `sources`, `blend`, `ranker`,
        `rules` (its place after each), `lifted_by`, `features` (largest contribution first), `counterfactuals`.

    Raises:
        ReloopError: the model knows no such item.
        StateError: the features that the ranker reads are not all there.
    """
    places = {str(name): at for at, name in enumerate(model.item_ids)}
    if item_id is not None and item_id not in places:
        hint = "an item that came after the training can be in no list until the next one"
        raise ReloopError(f"item {item_id!r}", found="unknown to this release", allowed=f"one of its {len(places)} items", hint=hint)
    return told(ask(home, model, user_id, as_of), None if item_id is None else places[item_id], k)


def told(asked: Asked, item: int | None, k: int) -> dict[str, Any]:
    """Return what `explain` does of an answer that was asked for.

    Args:
        item: of the model; the first of the list when None.
    """
    shown, fired = asked.shown()
    top = [int(item) for item in shown.item[0, :k] if item >= 0]
    chosen = item if item is not None else next(iter(top), None)
    return {
        "user": asked.question.user_id,
        "as_of": utc(asked.question.as_of).isoformat(),
        "serves": asked.model.serves,
        "exploration": config.load(asked.question.home).exploration.method != "off",
        "history": _history(asked),
        "list": [_line(asked, shown, fired, place) for place in range(len(top))],
        "item": None if chosen is None else _about(asked, chosen),
    }


def _history(asked: Asked) -> dict[str, Any]:
    users, ids = asked.question.users, asked.model.item_ids
    newest = [
        {"item": str(ids[item]), "title": asked.question.title(int(item)), "days_ago": round(float(users.as_of - at) / 86_400_000_000, 2)}
        for item, at in list(zip(users.item, users.at, strict=True))[: -N_HISTORY - 1 : -1]
    ]
    return {"events": len(users.item), "newest": newest}


def _line(asked: Asked, shown: Ranked, fired: npt.NDArray[np.uint32], place: int) -> dict[str, Any]:
    item = int(shown.item[0, place])
    row, rules = asked.row_of(item), chain.active(asked.model.rerank)
    proposed_by = (
        [] if row is None else [name for at, name in enumerate(asked.candidates.sources) if np.isfinite(asked.candidates.rank[row, at])]
    )
    return {
        "place": place + 1,
        "item": str(asked.model.item_ids[item]),
        "title": asked.question.title(item),
        "score": float(shown.score[0, place]),
        "sources": proposed_by,
        "rules": [name for bit, name in enumerate(rules) if int(fired[0, place]) >> bit & 1],
    }


def _about(asked: Asked, item: int) -> dict[str, Any]:
    shown, fired = asked.shown()
    place, row = _place(shown, item), asked.row_of(item)
    model = asked.model
    rules = chain.active(model.rerank)
    bits = 0 if place is None else int(fired[0, place - 1])
    found: dict[str, Any] = {
        "item_id": str(model.item_ids[item]),
        "title": asked.question.title(item),
        "place": place,
        "candidate": row is not None,
        "sources": dict(_sources(asked, item)),
        "blend": None,
        "ranker": None,
        "rules": {},
        "lifted_by": [name for bit, name in enumerate(rules) if bits >> bit & 1],
        "features": [],
        "counterfactuals": [],
    }
    if row is None:
        return found
    candidates = asked.candidates
    found["blend"] = {"place": int(candidates.blend_rank[row]), "score": float(candidates.blend_score[row]), "of": len(candidates)}
    found["ranker"] = {"place": _place(asked.ranked, item), "score": float(asked.score[row]), "of": len(candidates)}
    if asked.question.goods is not None:
        found["rules"] = chain.path(asked.ranked, asked.question.goods, asked.question.users, model.rerank, row=0, item=item)
    if asked.context is not None and model.ranker is not None:
        found["features"] = _features(asked, asked.context, model.ranker, row)
    found["counterfactuals"] = [
        *({"without": f"rule {name}", "place": _place(asked.shown(without=name)[0], item)} for name in rules),
        *(_without_source(asked, name, item) for name, told in found["sources"].items() if told["proposed"]),
    ]
    return found


def _place(lists: Ranked, item: int) -> int | None:
    """Return the place of an item, from 1, in the one list; None where it is not listed."""
    at = np.flatnonzero(lists.item[0] == item)
    return int(at[0]) + 1 if len(at) else None


def _sources(asked: Asked, item: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what each source says of an item; where it did not propose it, at which place it would have come."""
    for name, found in asked.lists.items():
        at = np.flatnonzero(found.item[0] == item)
        if len(at):
            yield name, {"proposed": True, "place": int(at[0]) + 1, "score": float(found.score[0, at[0]])}
            continue
        # Beyond its list: the whole catalogue, in its order.
        everything = asked.model.retrievers[name].retrieve(
            asked.question.users, len(asked.model.item_ids), exclude_seen=asked.model.exclude_seen
        )
        beyond = np.flatnonzero(everything.item[0] == item)
        yield name, {"proposed": False, "place": int(beyond[0]) + 1 if len(beyond) else None, "score": None}


def _features(asked: Asked, context: Context, ranker: Ranker, row: int) -> list[dict[str, Any]]:
    """Return every feature of a candidate with what it added to the score, the largest first."""
    matrix, names = assemble(context, asked.candidates)
    matrix = two_stage.chosen(matrix, names, ranker)
    added = importance.contributions(ranker, matrix[row : row + 1])
    described = {
        spec.name: spec
        for spec in specs(Columns.declared(asked.question.home, asked.candidates.sources, context.vectors), asked.model.groups)
    }
    share = np.zeros(len(ranker.features)) if added is None else added[0, :-1]
    told = []
    for at in np.argsort(-np.abs(share), kind="stable"):
        name, spec = ranker.features[at], described.get(ranker.features[at])
        told.append(
            {
                "feature": name,
                "value": _number(matrix[row : row + 1, at]),
                "unit": spec.unit if spec else "",
                "meaning": spec.meaning if spec else "",
                "added": None if added is None else float(share[at]),
            }
        )
    return told


def _number(value: Floats) -> float | None:
    return float(value[0]) if np.isfinite(value[0]) else None


def _without_source(asked: Asked, name: str, item: int) -> dict[str, Any]:
    """Return where an item would stand had a source proposed nothing."""
    found = asked.said[name]
    silent = Candidates(np.full_like(found.item, -1), np.full_like(found.score, -np.inf))
    again = asked.question.answered({**asked.said, name: silent})
    return {"without": f"source {name}", "place": _place(again.shown()[0], item)}
