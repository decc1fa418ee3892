"""What models go by: how candidates are proposed and searched, put in order, searched for knobs, and given away to new items."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from pipelines.frozen import Frozen

# The groups of the ranker's features, in the order of its matrix (docs/ranking/features.md).
FeatureGroup = Literal["retrieval", "standardised", "embedding", "stored", "contact", "price", "content", "session", "request", "encoding"]
FEATURE_GROUPS: Final[tuple[FeatureGroup, ...]] = get_args(FeatureGroup)
MAX_SOURCES: Final = 63  # a finished list has a bit for each (uint64), and one for exploration


class IndexSettings(Frozen):
    """How sources with item vectors are searched (`retrieval.ann`); what is chosen is measured at every build."""

    kind: Literal["auto", "flat", "ivf", "hnsw", "scan", "none"] = "auto"  # none: every source searches for itself, its vectors unchecked
    flat_below: int = 50_000  # fewer items than this are compared with one by one, which is exact and as fast
    hnsw_below: int = 200_000  # with `auto`, a graph is tried up to this many items: above, building it takes minutes
    target_recall: float = Field(default=0.99, gt=0, le=1)  # recall@100 against exact: the cheapest that reaches it is taken
    min_recall: float = Field(default=0.98, gt=0, le=1)  # a build below it fails
    choose_by: Literal["work", "latency"] = "work"  # distances counted, the same on every machine; or seconds, which are not
    max_bad_share: float = Field(
        default=0.001, ge=0, le=1
    )  # of items whose vector is NaN, infinite, zero or a copy; above it a build fails
    n_queries: int = Field(default=1000, ge=2)  # users whose vectors are asked to choose, and to measure what was chosen
    seed: int = 7


class Quota(Frozen):
    """How many of the blend's places a source is sure of, and how many it may fill alone."""

    least: int = Field(default=0, ge=0)  # its so many best items are always in
    most: int | None = Field(default=None, ge=0)  # of the items that no other source proposes


class RetrievalSettings(Frozen):
    """Which sources propose candidates, how many, and how their lists are blended."""

    sources: tuple[str, ...] = Field(
        default=("popular", "popular_7d", "item_knn", "sequence_rules", "user_knn", "als", "repeat"), min_length=1
    )
    parameters: dict[str, dict[str, Any]] = Field(default={})  # source -> knobs, over each model's own defaults
    k_per_source: int = Field(default=50, ge=1)
    k_blend: int = Field(default=150, ge=1)  # candidates a user after the blend
    blend: Literal["learned", "rrf"] = "learned"  # weights learnt on the ranker's windows, or those below
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default={})  # of `rrf`; a source that is not named has 1
    quotas: dict[str, Quota] = Field(default={})
    min_contribution: float = Field(
        default=0.005, ge=0
    )  # recall that a source must plausibly add to the blend, else `retrieval prune` names it
    index: IndexSettings = IndexSettings()

    @model_validator(mode="after")
    def _has_sources(self) -> Self:
        if twice := sorted({name for name in self.sources if self.sources.count(name) > 1}):
            raise ValueError(f"retrieval.sources names {twice} more than once")
        if len(self.sources) > MAX_SOURCES:
            raise ValueError(f"retrieval.sources has {len(self.sources)}, a list has room for {MAX_SOURCES}")
        if self.weights and not any(self.weights.get(name, 1.0) > 0 for name in self.sources):
            raise ValueError("retrieval.weights are 0 for every source: nothing would be proposed")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for knob, names in (("weights", self.weights), ("quotas", self.quotas)):
            if strangers := sorted(set(names) - set(self.sources)):
                raise ValueError(f"retrieval.{knob} names {strangers}, which are not among retrieval.sources {list(self.sources)}")
        if self.weights and self.blend != "rrf":
            raise ValueError(f"retrieval.weights are those of blend = 'rrf', retrieval.blend is {self.blend!r}")
        if (total := sum(quota.least for quota in self.quotas.values())) > self.k_blend:
            raise ValueError(f"retrieval.quotas guarantee {total} places, retrieval.k_blend has {self.k_blend}")
        for name, quota in self.quotas.items():
            if quota.least > self.k_per_source:
                raise ValueError(f"retrieval.quotas.{name}.least is {quota.least}, the source is asked for {self.k_per_source} items")
            if quota.most is not None and quota.most < quota.least:
                raise ValueError(f"retrieval.quotas.{name}.most is {quota.most}, below its least {quota.least}")
        return self


class RankingSettings(Frozen):
    """What puts candidates in order, and the rows it learns from; deterministic for a given seed and thread count."""

    ranker: str = "lambdarank"  # see pipelines/ranking/rankers.py
    parameters: dict[str, dict[str, Any]] = Field(default={})  # ranker -> knobs, over its own defaults and those below
    baselines: tuple[str, ...] = ("logistic", "rrf")  # judged beside the ranker on the same lists, which it must beat
    learning_rate: float = Field(default=0.05, gt=0, le=1)  # these four are of all trees
    num_leaves: int = Field(default=15, ge=2, le=131_072)
    n_rounds: int = Field(default=150, ge=1)
    min_data_in_leaf: int = Field(default=50, ge=0)
    # Groups of columns, in any order; what each is worth, and why some are off, is in docs/ranking/features.md.
    features: tuple[FeatureGroup, ...] = Field(
        default=("retrieval", "standardised", "embedding", "stored", "contact", "price"), min_length=1
    )
    encoding_smoothing: float = Field(
        default=50.0, gt=0, allow_inf_nan=False
    )  # candidates that the mean of all is worth against a key's own
    negatives: Literal["shown", "sampled"] = "shown"  # which ignored candidates come first: those that were shown, where that is logged
    negatives_per_user: int = Field(
        default=60, ge=1
    )  # ignored candidates kept for training, the rest a seeded uniform sample; judging uses them all
    place_bias: float = Field(default=0.0, ge=0, le=2)  # a place p is looked at with probability p ** -place_bias; 0 is as if all were
    in_memory_gb: float = Field(default=6.0, gt=0)  # of features; more lie in a file that is mapped, under the state folder
    min_training_lists: int = Field(
        default=100, ge=1
    )  # users with a positive among their candidates; below it the blend is served as it is
    num_threads: int = Field(default=2, ge=1, le=1024)
    seed: int = Field(default=7, ge=0, lt=2**31)


class SearchSettings(Frozen):
    """The search of knobs for the ranker (`ranking.search`), before it is trained."""

    n_trials: int = Field(default=0, ge=0, le=10_000)  # 0: none; the defaults are good without (docs/ranking/search.md)
    seconds: float = Field(default=0.0, ge=0)  # of trials, after which none begins; 0: no limit. Only then a rerun finds the same
    seed: int = Field(default=7, ge=0, lt=2**31)


class ExplorationPolicy(Frozen):
    """Which places of a list new items may get (`ranking.exploration`); off unless a method is named."""

    method: Literal["off", "epsilon_greedy", "thompson"] = "off"
    slots: tuple[Annotated[int, Field(ge=1)], ...] = (5, 10)  # places of a list, the first is 1
    share: float = Field(default=0.1, gt=0, le=1)  # of the requests whose slots go to new items
    epsilon: float = Field(default=0.2, ge=0, le=1)  # of those draws, decided by lot
    max_age_days: float = Field(default=14.0, gt=0)  # an item is new until it is older than this
    max_events: int = Field(default=50, ge=0)  # or has more events than this
    min_propensity: float = Field(default=0.001, ge=0, le=1)  # of any item that may be drawn: bounds the weights of whoever learns from it
    max_cards: int = Field(default=20, ge=1)  # new items that a slot draws among
    base_rate: float = Field(default=0.02, gt=0, lt=1)  # clicks an impression, expected of an item of which nothing is known
    prior_strength: float = Field(default=20.0, gt=0)  # impressions that the expectation is worth
    salt: str = "exploration"

    @field_validator("slots")
    @classmethod
    def _in_order(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        """Return the places in their order, each once."""
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _can_keep_the_floor(self) -> Self:
        """Refuse a floor that no item could keep."""
        if self.cards() < 1:
            raise ValueError("exploration.min_propensity is above exploration.share: no item could be drawn that often")
        return self

    def cards(self) -> int:
        """Return how many new items a slot may draw among, so that each keeps `min_propensity`."""
        return self.max_cards if not self.min_propensity else min(self.max_cards, int(self.share / self.min_propensity))
