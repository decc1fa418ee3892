"""What a bundle is when it runs: sources propose, the blend merges, the ranker orders, rules re-rank.

    <folder>/manifest.json          digests of everything below
    <folder>/items.parquet          item_id in the order of the dense ids
    <folder>/two_stage.json         how lists are blended, order of the sources, what is served, the rules of re-ranking
    <folder>/retrieval/<source>/    as `retrieval.lineup` saves it
    <folder>/memory/                what features read beside the moment (`memory`)
    <folder>/ranker/                as `ranking.rankers` saves it; missing where there was too little to learn from

All of it loads without pickle, and nothing is parsed before its digest was found right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import config, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Floats, Histories, Ids, Interactions, histories, load, strings
from pipelines.errors import StateError
from pipelines.model_settings import MAX_SOURCES
from pipelines.ranking import newcomers, proposals, rankers, training, training_set
from pipelines.ranking.context import BEFORE_GROUPS, BY_VECTORS, Context, gather
from pipelines.ranking.features import assemble
from pipelines.ranking.memory import Memory
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.protocol import Lists, Ranker
from pipelines.ranking.rerank import chain
from pipelines.ranking.rerank import goods as shops
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import RerankSettings
from pipelines.retrieval import blend, cold_users, fitting, lineup, merging, vectors
from pipelines.retrieval.merging import Recipe
from pipelines.retrieval.protocol import Retriever
from pipelines.window import utc

RANKED: Final = "ranked"
BLEND: Final = "blend"
AS_RANKED: Final = RerankSettings(availability=None)  # no rule at all: bundles of before there were any
USERS_AT_ONCE: Final = 16_384  # one question to the feature store for each so many users


@dataclass(frozen=True)
class TwoStage:
    """A fitted two-stage recommender; it holds no parameter of any user.

    Attributes:
        item_ids: sorted, unique; the catalogue all its models index.
        retrievers: fitted, by name, in the order of the blend.
        ranker: None where there was too little to learn from.
        k_per_source, k_blend: candidates a user asked of each source, and kept of the blend.
        exclude_seen: whether items of the history are left out.
        serves: what orders the list: `ranked` or `blend`. See `judging`.
        recipe: weights and quotas of the blend, those of the training rows.
        rerank: the rules that the ranked list goes through.
        groups: of features that the training rows had.
        memory: what features read beside the moment; None in bundles whose groups need none.
    """

    item_ids: Ids
    retrievers: dict[str, Retriever]
    ranker: Ranker | None
    k_per_source: int
    k_blend: int
    exclude_seen: bool
    serves: str = RANKED
    recipe: Recipe = field(default_factory=Recipe)
    rerank: RerankSettings = AS_RANKED
    groups: tuple[str, ...] = BEFORE_GROUPS
    memory: Memory | None = None

    def __post_init__(self) -> None:
        allowed = [BLEND, *([RANKED] if self.ranker else [])]
        if self.serves not in allowed:
            raise StateError("two-stage model", found=f"it serves {self.serves!r}", allowed=f"one of {allowed}")
        if len(self.retrievers) > MAX_SOURCES:
            raise StateError("two-stage model", found=f"{len(self.retrievers)} sources", allowed=f"{MAX_SOURCES} at most")

    def propose(self, users: Histories) -> Proposals:
        """Return the blended candidates of some histories, which must index this model's items."""
        lists = {name: model.retrieve(users, self.k_per_source, exclude_seen=self.exclude_seen) for name, model in self.retrievers.items()}
        return proposals.of_blend(merging.merge(cold_users.alone(lists), self.k_blend, self.recipe))

    def context(self, home: Home, proposed: Proposals, users: Histories, user_ids: Ids, as_of: datetime) -> Context:
        """Return what the features of some candidates are made of, for requests as for judging.

        Args:
            proposed: `row` counts `user_ids` and the rows of `users`.
        """
        placed = {name: vectors.of(model, users) for name, model in self.retrievers.items()} if BY_VECTORS & set(self.groups) else {}
        return gather(
            home,
            proposed,
            users,
            user_ids=user_ids,
            item_ids=self.item_ids,
            as_of=as_of,
            groups=self.groups,
            memory=self.memory,
            vectors={name: found for name, found in placed.items() if found},
        )

    def goods(self, known: Interactions) -> Goods:
        """Return what this model's rules know of its items, at the moment up to which some interactions on them are known."""
        return shops.compared(known, self.rerank, self.retrievers)

    def recommend(self, home: Home, user_ids: Ids, users: Histories, as_of: datetime, k: int, *, goods: Goods | None = None) -> Lists:
        """Return the k best items for each user, in the order asked.

        Features are joined at `as_of`, to which the histories reach. Memory is bounded by
        `USERS_AT_ONCE`; cutting the users into calls changes nothing.

        Args:
            users: row r belongs to `user_ids[r]`, indexed by this model's items.
            goods: what the rules know of the items (`goods`); read from the lake where they need it and it is not given.

        Raises:
            StateError: the features that the ranker reads are not all there.
        """
        if goods is None and chain.active(self.rerank):
            goods = self.goods(load(home, as_of, config.load(home).training, item_ids=self.item_ids))
        parts = []
        for first in range(0, max(len(user_ids), 1), USERS_AT_ONCE):
            some, whose = user_ids[first : first + USERS_AT_ONCE], users.rows(first, min(first + USERS_AT_ONCE, len(user_ids)))
            proposed = self.propose(whose)
            context = None
            if self.serves == RANKED:
                context = self.context(home, proposed, whose, some, as_of)
            parts.append(self.listed(some, proposed, self.order(proposed, context), k, users=whose, goods=goods))
        return Lists(
            user_ids=np.concatenate([part.user_ids for part in parts]),
            item_ids=np.concatenate([part.item_ids for part in parts]),
            score=np.concatenate([part.score for part in parts]),
            sources=np.concatenate([part.sources for part in parts]),
            source_names=parts[0].source_names,
            rules=np.concatenate([part.rules for part in parts]),
            rule_names=parts[0].rule_names,
        )

    def order(self, proposed: Proposals, context: Context | None) -> npt.NDArray[np.float64]:
        """Return float64 [n], what the candidates are ordered by, best is highest; comparable within a list alone.

        Args:
            context: needed by the ranker only.

        Raises:
            StateError: the ranker is served and there is no context.
        """
        if self.serves == BLEND:
            return proposed.blend_score.astype(np.float64)
        if self.ranker is None or context is None:
            raise StateError("two-stage model", found="no features to rank by", allowed="those its ranker reads")
        return scores([self.ranker], proposed, context)[0]

    def listed(
        self,
        user_ids: Ids,
        proposed: Proposals,
        score: npt.NDArray[np.float64],
        k: int,
        *,
        users: Histories | None = None,
        goods: Goods | None = None,
    ) -> Lists:
        """Return the k best candidates of each user with their ids and sources, after the rules.

        Args:
            users, goods: needed by rules only; row r of `users` belongs to `user_ids[r]`.

        Raises:
            StateError: a rule is on and they are not given.
        """
        names_of_rules = chain.active(self.rerank)
        item, best, at = proposed.ranked(score, len(user_ids), max(k, self.k_blend) if names_of_rules else k)
        rules = np.zeros(item.shape, np.uint32)
        if names_of_rules:
            if users is None or goods is None:
                raise StateError(
                    "two-stage model", found=f"rules {list(names_of_rules)} and no goods", allowed="what they know of the items"
                )
            shown, rules = chain.reranked(Ranked.ordered(item, best), goods, users, self.rerank)
            shown, rules = shown.first(k), rules[:, :k]
            item, best, at = (
                shown.item,
                shown.score,
                np.where(shown.listed, np.take_along_axis(at, np.maximum(shown.origin, 0), axis=1), -1),
            )
        width = max(1, self.item_ids.dtype.itemsize // 4)
        names = np.full(item.shape, "", dtype=f"<U{width}")
        names[item >= 0] = self.item_ids[item[item >= 0]]
        bits = (np.isfinite(proposed.rank) * (np.uint64(1) << np.arange(len(proposed.sources), dtype=np.uint64))).sum(axis=1)
        sources = np.zeros(item.shape, dtype=np.uint64)
        sources[item >= 0] = bits[at[item >= 0]]
        return Lists(np.asarray(user_ids), names, best, sources, proposed.sources, rules=rules, rule_names=names_of_rules)

    def save(self, path: Path) -> None:
        """Publish the model as a folder of its own, with a manifest; whatever was at `path` before is replaced.

        Raises:
            StateError: the folder holds something that was not saved by this function.
        """
        if path.is_dir() and any(path.iterdir()) and not (path / publish.MANIFEST).is_file():
            raise StateError(str(path), found="a folder with other files in it", allowed="a folder of its own, or none")
        facts = {
            "sources": list(self.retrievers),
            "k_per_source": self.k_per_source,
            "k_blend": self.k_blend,
            "exclude_seen": self.exclude_seen,
            "serves": self.serves,
            "recipe": self.recipe.to_json(),
            "rerank": self.rerank.model_dump(mode="json"),
            "groups": list(self.groups),
            "ranker": rankers.name_of(self.ranker) if self.ranker else None,
        }
        with publish.folder(path, {}) as out:
            publish.write_json(out / "two_stage.json", facts)
            publish.write_parquet(out / "items.parquet", pa.table({c.ITEM_ID: pa.array(self.item_ids, pa.string())}))
            for name, model in self.retrievers.items():
                (out / "retrieval" / name).mkdir(parents=True)
                lineup.save(out / "retrieval" / name, name, model)
            if self.memory:
                self.memory.save(out / "memory")
            if self.ranker:
                rankers.save(out / "ranker", self.ranker)

    @classmethod
    def load(cls, path: Path, arrays: Callable[[Path], dict[str, npt.NDArray[Any]]] = lineup.unpacked) -> TwoStage:
        """Read what `save` published, every byte checked before anything is parsed.

        Args:
            arrays: reads the npz of a source.

        Raises:
            StateError: a file is missing, damaged or of another shape.
        """
        publish.manifest(path, verify=True)
        facts: dict[str, Any] = json.loads((path / "two_stage.json").read_text(encoding="utf-8"))
        return cls(
            item_ids=strings(pq.read_table(path / "items.parquet")[c.ITEM_ID]),
            retrievers={name: lineup.load(path / "retrieval" / name, arrays) for name in facts["sources"]},
            ranker=rankers.load(path / "ranker") if facts["ranker"] else None,
            k_per_source=facts["k_per_source"],
            k_blend=facts["k_blend"],
            exclude_seen=facts["exclude_seen"],
            serves=facts["serves"],
            # Bundles of before there were recipes were blended by equal weights.
            recipe=Recipe.from_json(facts["recipe"]) if "recipe" in facts else Recipe(),
            rerank=RerankSettings.model_validate(facts["rerank"]) if "rerank" in facts else AS_RANKED,
            groups=tuple(facts.get("groups", BEFORE_GROUPS)),
            memory=Memory.load(path / "memory") if (path / "memory").is_dir() else None,
        )


def scores(models: Sequence[Ranker], proposed: Proposals, context: Context) -> list[npt.NDArray[np.float64]]:
    """Return float64 [n] for each ranker, what it scores the candidates; features are made once for all, a block of lists at a time."""
    parts: list[list[npt.NDArray[np.float64]]] = [[np.zeros(0)] for _ in models]
    for block in proposed.blocks():
        matrix, names = assemble(context, block)
        for part, ranker in zip(parts, models, strict=True):
            part.append(ranker.score(chosen(matrix, names, ranker), np.diff(block.starts()).astype(np.int32)))
    return [np.concatenate(part) for part in parts]


def chosen(matrix: Floats, names: tuple[str, ...], ranker: Ranker) -> Floats:
    """Return the columns that a ranker reads, in its order; features that came later are left out.

    Raises:
        StateError: a feature that the ranker reads is not made any more.
    """
    wanted = ranker.features
    if wanted == names:
        return matrix
    if missing := [name for name in wanted if name not in names]:
        raise StateError(
            "features of the ranker",
            found=f"no {missing}",
            allowed="every feature it was trained on",
            hint="train again, or restore the view",
        )
    return matrix[:, [names.index(name) for name in wanted]]


def of_run(home: Home, as_of: datetime, *, serves: str | None = None) -> TwoStage:
    """Return the model that a training run made: sources of the judged fold, and the ranker.

    Args:
        serves: what orders the list; the ranker where there is one when None. A model that serves the blend has none: a ranker
            that did not earn its place is no part of a release.

    Raises:
        StateError: a stage of the run is missing or was changed.
    """
    settings = config.load(home)
    world = universe.load(home, as_of)
    ranker = None if serves == BLEND else training.trained(home, as_of)
    blend.check_settings(home, as_of, settings.retrieval)
    retrievers = {}
    for name in settings.retrieval.sources:
        publish.manifest(fitting.folder(home, as_of, name), verify=True)
        retrievers[name] = lineup.load(fitting.folder(home, as_of, name))
    return TwoStage(
        item_ids=world.item_ids,
        retrievers=retrievers,
        ranker=ranker,
        k_per_source=settings.retrieval.k_per_source,
        k_blend=settings.retrieval.k_blend,
        exclude_seen=settings.training.exclude_seen,
        serves=serves or (RANKED if ranker else BLEND),
        recipe=blend.recipe(home, as_of),
        rerank=settings.rerank,
        groups=training_set.groups(home, as_of) if ranker else BEFORE_GROUPS,
        memory=training_set.learnt(home, as_of) if ranker else None,
    )


def rank_users(home: Home, model: TwoStage, user_ids: Ids, as_of: datetime, k: int) -> Lists:
    """Return the k best items for each user from what had happened and was received before a moment.

    Where the settings ask for exploration, its slots are drawn for; the moment is then the request's name.
    """
    settings = config.load(home)
    known = load(home, as_of, settings.training, item_ids=model.item_ids)
    users = histories(known, user_ids)
    goods = model.goods(known) if chain.active(model.rerank) else None
    lists = model.recommend(home, user_ids, users, as_of, k, goods=goods)
    if settings.exploration.method == "off":
        return lists
    return newcomers.explored(
        lists,
        item_ids=model.item_ids,
        users=users,
        fresh=newcomers.new_items(known, settings.exploration),
        retrievers=model.retrievers,
        policy=settings.exploration,
        request_ids=[utc(as_of).isoformat()] * len(user_ids),
        exclude_seen=model.exclude_seen,
        rerank=model.rerank,
        goods=goods,
    )
