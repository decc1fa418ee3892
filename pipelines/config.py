"""Where state lives, and one small frozen settings class per stage. Read once, at the edge.

The order of precedence: the defaults below, then the preset of the source that filled the lake (or
the `settings` section of its mapping file), then `reloop.toml` in the state folder.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines import misfit
from pipelines.decision_policies import (
    BundlePolicy,
    DriftPolicy,
    FairnessSettings,
    GatePolicy,
    ReleasePolicy,
    RetentionPolicy,
    RetrainPolicy,
    TriagePolicy,
)
from pipelines.errors import StateError
from pipelines.frozen import Frozen
from pipelines.rerank_policies import RerankSettings

REPOSITORY: Final = Path(__file__).resolve().parents[1]
# The groups of the ranker's features, in the order of its matrix (docs/ranking/features.md).
FeatureGroup = Literal["retrieval", "standardised", "embedding", "stored", "contact", "price", "content", "session", "request", "encoding"]
FEATURE_GROUPS: Final[tuple[FeatureGroup, ...]] = get_args(FeatureGroup)
MAX_SOURCES: Final = 63  # a finished list has a bit for each (uint64), and one for exploration


@dataclass(frozen=True)
class Home:
    """The one folder that holds all state. Deleting it resets everything and touches nothing else."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """Return the folder that RELOOP_HOME names, or `var/` of the repository."""
        return cls(Path(os.environ.get("RELOOP_HOME", REPOSITORY / "var")).resolve())

    @property
    def landing(self) -> Path:
        """Staged batches: read, not judged."""
        return self.root / "landing"

    @property
    def quarantine(self) -> Path:
        """Rejected rows with their reasons, a folder a batch."""
        return self.root / "quarantine"

    @property
    def lake(self) -> Path:
        """The canonical tables."""
        return self.root / "lake"

    @property
    def warehouse(self) -> Path:
        """The DuckDB file that dbt owns; nobody else opens it."""
        return self.root / "warehouse" / "reloop.duckdb"

    @property
    def features(self) -> Path:
        """The marts dbt publishes, one Parquet file a day."""
        return self.root / "features"

    @property
    def feast(self) -> Path:
        """Feast registry and online store (SQLite)."""
        return self.root / "feast"

    @property
    def stream(self) -> Path:
        """What the consumers of the event bus remember."""
        return self.root / "stream"

    @property
    def training(self) -> Path:
        """What each training run made, a folder an as_of."""
        return self.root / "training"

    @property
    def cache(self) -> Path:
        """What costs time to make and nothing to lose, a folder a source."""
        return self.root / "cache"

    @property
    def bundles(self) -> Path:
        """Releases, content-addressed."""
        return self.root / "bundles"

    @property
    def evidence(self) -> Path:
        """What decisions on releases were made on, user by user, a folder a decision."""
        return self.root / "evidence"

    @property
    def mlflow(self) -> Path:
        """MLflow tracking database and artifacts."""
        return self.root / "mlflow"

    @property
    def releases(self) -> Path:
        """Champion pointer and ledger."""
        return self.root / "releases.db"

    @property
    def airflow(self) -> Path:
        """AIRFLOW_HOME."""
        return self.root / "airflow"

    @property
    def reports(self) -> Path:
        """What people read: run.json, Data Docs, Evidently pages."""
        return self.root / "reports"


class SourceSettings(Frozen):
    """What an input file may cost before it is refused; a mapping file cannot raise these."""

    roots: tuple[str, ...] = ()  # folders that inputs may lie in; none named means anywhere on this machine
    max_files: int = 10_000
    max_columns: int = 2_000
    max_nesting: int = 16
    max_rows: int = 5_000_000_000
    max_expanded_bytes: int = 1 << 40
    max_ratio: float = 1000.0  # decoded to stored bytes, once more than `ratio_from_bytes` come out
    ratio_from_bytes: int = 1 << 29
    max_value_bytes: int = 1 << 20  # one field of a CSV; longer means a quote that never closes
    memory_limit: str = "2GB"  # of DuckDB while a file is normalised; beyond it spills to disk
    threads: int = 2


class ValidationSettings(Frozen):
    """When rows and batches are refused."""

    max_future_minutes: float = 5.0  # an event later than its receipt by more than this has a wrong clock
    max_lateness_days: float = 30.0  # an event received later than this is quarantined, not landed
    max_quarantined_share: float = 0.9  # of the rows read; above it the batch is blocked
    max_null_share: float = 0.2  # of a day's rows, above what is usual, that lack a column or share one reason for refusal
    min_volume_share: float = 0.6  # of the median rows of the same weekday in the previous four weeks; 0 never blocks


class FeatureSettings(Frozen):
    """How much of the past becomes feature rows."""

    history_days: int = Field(default=120, ge=1)  # the first build reaches back this far; later builds only add days


class TrainingSettings(Frozen):
    """How history becomes training windows and labels."""

    horizon_days: int = 7  # what a list is judged on: the days after the moment it was made
    ranker_windows: int = 2  # rolling windows of `horizon_days` before the judged one
    label_gap_days: int = 0  # between the last event a retriever may see and the first it is judged on
    min_history_days: int = 14  # before the first training window
    gains: dict[str, float] = Field(default={"view": 1.0, "click": 1.0, "add_to_cart": 2.0, "purchase": 3.0, "rating": 1.0})
    positive_rating: float = 4.0  # a rating below it is no positive label
    exclude_seen: bool = False  # True where an item is consumed once (films); shops see repeat purchases
    max_users_per_window: int = 5000  # sampled for the ranker, seeded; evaluation uses everyone
    seed: int = 7


class IndexSettings(Frozen):
    """How sources with item vectors are searched (`retrieval.ann`); what is chosen is measured at every build."""

    kind: Literal["auto", "flat", "ivf", "hnsw", "none"] = "auto"  # none: every source searches for itself, its vectors unchecked
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


class Settings(Frozen):
    """Every stage's settings, as logged with every run."""

    sources: SourceSettings = SourceSettings()
    validation: ValidationSettings = ValidationSettings()
    features: FeatureSettings = FeatureSettings()
    training: TrainingSettings = TrainingSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    ranking: RankingSettings = RankingSettings()
    search: SearchSettings = SearchSettings()
    rerank: RerankSettings = RerankSettings()
    exploration: ExplorationPolicy = ExplorationPolicy()
    fairness: FairnessSettings = FairnessSettings()
    gate: GatePolicy = GatePolicy()
    drift: DriftPolicy = DriftPolicy()
    triage: TriagePolicy = TriagePolicy()
    retrain: RetrainPolicy = RetrainPolicy()
    bundle: BundlePolicy = BundlePolicy()
    retention: RetentionPolicy = RetentionPolicy()
    release: ReleasePolicy = ReleasePolicy()

    @model_validator(mode="after")
    def _can_compare(self) -> Self:
        """Refuse rules that compare items by the vectors of a source that the run does not have."""
        rules, like = self.rerank, self.rerank.likeness
        if (rules.mmr or rules.dpp) and like.by == "vectors" and like.source not in self.retrieval.sources:
            raise ValueError(f"rerank.likeness.source is {like.source!r}, not among retrieval.sources {list(self.retrieval.sources)}")
        return self


# What lies in files is history: its quiet days are facts, not outages, and its dirt is as it is.
_HISTORY: Final = {"min_volume_share": 0.0}

# A few hundred users a week cannot rule out that a slice of them lost 5%, and hardly any are new.
_FEW: Final = {"slices": ("light_users", "tail_items"), "max_slice_loss": 0.10, "max_segment_loss": 0.10, "max_fresh_loss": 0.05}

PRESETS: Final[dict[str, dict[str, Any]]] = {
    # 4,372 customers: a week has 300 to 1,000 of them, so the gate must answer with fewer. On some
    # days most rows lack their customer.
    "online-retail": {"gate": {"min_users": 200, "min_slice_users": 50, **_FEW}, "validation": {**_HISTORY, "max_null_share": 0.8}},
    # The sample keeps one row per user, item and behaviour; most weeks have a few hundred buyers.
    "retailrocket": {"gate": {"min_users": 100, "min_slice_users": 50, **_FEW}, "validation": _HISTORY},
    # A film is rated once, and MovieLens users rate in one or two sittings.
    "movielens": {
        "gate": {"min_users": 50, "min_slice_users": 25, **_FEW},
        "training": {"exclude_seen": True, "horizon_days": 14},
        "validation": _HISTORY,
    },
    "table": {"validation": _HISTORY},
}


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `under` with the sections of `over` laid on top, knob by knob."""
    sections = {name: {**under.get(name, {}), **knobs} for name, knobs in over.items()}
    return {**under, **sections}


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StateError(
            str(file), found=str(error), allowed="TOML, a section a stage", hint="see pipelines/config.py for the knobs"
        ) from error


def source_file(home: Home) -> Path:
    """Return the file in which the lake remembers its source: {"source", "settings"}."""
    return Path(home.lake) / "_source.json"


def load(home: Home) -> Settings:
    """Return the settings in force for a state folder.

    Raises:
        StateError: a section or knob is unknown, or has the wrong type.
    """
    remembered: dict[str, Any] = {"source": "", "settings": {}}
    if source_file(home).is_file():
        remembered |= json.loads(source_file(home).read_text(encoding="utf-8"))
    return resolve(home, remembered["source"], remembered["settings"])


def resolve(home: Home, source: str, knobs: dict[str, Any]) -> Settings:
    """Return the settings for a source: defaults, its preset, `knobs` (of its mapping), then `reloop.toml`.

    Raises:
        StateError: a section or knob is unknown, or has the wrong type.
    """
    knobs = _merge(PRESETS.get(source, {}), knobs)
    file = home.root / "reloop.toml"
    if file.is_file():
        knobs = _merge(knobs, _toml(file))
    try:
        return Settings.model_validate(knobs)
    except ValidationError as error:
        raise StateError(
            f"settings ({file.name}, or the mapping's `settings` section)",
            found=misfit.said(error, Settings),
            allowed="sections and knobs as in pipelines/config.py",
        ) from error
