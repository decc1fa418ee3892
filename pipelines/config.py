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
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipelines import misfit
from pipelines.decision_policies import (
    BundlePolicy,
    DriftPolicy,
    ExperimentPolicy,
    FairnessSettings,
    GatePolicy,
    ImpressionPolicy,
    ReleasePolicy,
    RetentionPolicy,
    RetrainPolicy,
    TriagePolicy,
)
from pipelines.errors import StateError
from pipelines.frozen import Frozen
from pipelines.model_settings import ExplorationPolicy, RankingSettings, RetrievalSettings, SearchSettings
from pipelines.rerank_policies import RerankSettings
from pipelines.serving_policies import ServingSettings

REPOSITORY: Final = Path(__file__).resolve().parents[1]


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
    def serving(self) -> Path:
        """What the service's processes share: blocked items, precomputed lists, who has news."""
        return self.root / "serving"

    @property
    def recommendations(self) -> Path:
        """Lists that were made for everybody, a folder a moment."""
        return self.root / "recommendations"

    @property
    def experiments(self) -> Path:
        """What is declared as experiments, by hand (docs/serving/experiments.md); it need not be there."""
        return self.root / "experiments.toml"

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


class StreamSettings(Frozen):
    """What carries events as they happen."""

    bus: str = ""  # sqlite:///FILE, redis://HOST:PORT/DB or kafka://HOST:PORT; empty: a file of the state folder
    topic: str = "events"


class TrainingSettings(Frozen):
    """How history becomes training windows and labels."""

    horizon_days: int = 7  # what a list is judged on: the days after the moment it was made
    ranker_windows: int = 2  # rolling windows of `horizon_days` before the judged one
    label_gap_days: int = 0  # between the last event a retriever may see and the first it is judged on
    min_history_days: int = 14  # before the first training window
    gains: dict[str, float] = Field(default={"view": 1.0, "click": 1.0, "add_to_cart": 2.0, "purchase": 3.0, "rating": 1.0})
    positive_rating: float = 4.0  # a rating below it is no positive label
    judge_on: Literal["unprompted", "all"] = (
        "unprompted"  # what lists led to speaks for the champion that made them (`datasets.labels.judging`)
    )
    exclude_seen: bool = False  # True where an item is consumed once (films); shops see repeat purchases
    max_users_per_window: int = 5000  # sampled for the ranker, seeded; evaluation uses everyone
    seed: int = 7


class Settings(Frozen):
    """Every stage's settings, as logged with every run."""

    sources: SourceSettings = SourceSettings()
    validation: ValidationSettings = ValidationSettings()
    features: FeatureSettings = FeatureSettings()
    stream: StreamSettings = StreamSettings()
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
    experiment: ExperimentPolicy = ExperimentPolicy()
    impressions: ImpressionPolicy = ImpressionPolicy()
    serving: ServingSettings = ServingSettings()

    @model_validator(mode="after")
    def _can_compare(self) -> Self:
        """Refuse rules that compare items by the vectors of a source that the run does not have."""
        rules, like = self.rerank, self.rerank.likeness
        if (rules.mmr or rules.dpp) and like.by == "vectors" and like.source not in self.retrieval.sources:
            raise ValueError(f"rerank.likeness.source is {like.source!r}, not among retrieval.sources {list(self.retrieval.sources)}")
        return self


# What lies in files is history: its quiet days are facts, not outages, and its dirt is as it is.
_HISTORY: Final = {"min_volume_share": 0.0}

# A few hundred users a week cannot rule out that a slice of them lost 10%, and hardly any are new: a loss that is shown stops a release.
_FEW: Final = {
    "slices": ("light_users", "tail_items"),
    "guard_slices_from": 1000,
    "max_slice_loss": 0.10,
    "max_segment_loss": 0.10,
    "max_fresh_loss": 0.05,
}

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
