"""What the decisions go by: may this model serve, are its lists fair, has the world changed, is a training due."""

from __future__ import annotations

from datetime import date
from typing import Final, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from pipelines.frozen import Policy

# What the gate guards beside the quality for slices of users (`registry.gate_guardrails`).
Guardrail = Literal[
    "coverage", "tail_exposure", "gini", "diversity", "miscalibration", "ece", "empty_lists", "latency", "bundle_size", "null_rates",
    "score_ties", "score_psi",
]  # fmt: skip
GUARDRAILS: Final[tuple[Guardrail, ...]] = get_args(Guardrail)
# What may be wrong with the data, as a person accepts it (`monitoring.faults`).
FAULTS: Final = (
    "schema change", "null burst", "unit change", "volume drop", "upstream gap", "duplicates", "bot burst", "wrong clock", "new value",
    "refused rows",
)  # fmt: skip


class FairnessSettings(Policy):
    """What the fairness report is about, and bounds that a gate may guard; one that is not set bounds nothing."""

    provider: Literal["brand", "seller"] = "brand"
    max_popularity_lift: float | None = Field(default=None)  # mean popularity of lists over that of histories, minus 1
    max_miscalibration: float | None = Field(default=None, ge=0)  # KL from the history's categories to the list's, nats
    max_relative_quality_gap: float | None = Field(default=None, ge=0, le=1)  # NDCG@10 of the best user group to the worst, of the best
    max_provider_distance: float | None = Field(default=None, ge=0, le=1)  # of attention from demand, over all providers
    min_tail_ratio: float | None = Field(default=None, ge=0)  # attention that tail items get over demand for them


class GatePolicy(Policy):
    """What a challenger must show (a bare "NDCG improved" fires on half of equal retrains).

    Losses are relative where not said otherwise, and bound what the one-sided interval still allows, not the estimate.
    """

    confidence: float = Field(default=0.95, gt=0.5, lt=1)  # over all the times one champion is challenged (`registry.gate_sequence`)
    min_effect: float = Field(
        default=0.01, ge=0, le=1
    )  # relative NDCG@10 that the lower bound must exceed: more than equal retrains differ by
    min_users: int = Field(default=2000, ge=2)  # of the fresh window; below it the answer is "not enough evidence"
    windows: int = Field(default=4, ge=1, le=52)  # weeks of this champion's reign whose evidence is pooled, the fresh one among them
    min_windows: int = Field(
        default=2, ge=1
    )  # so many there must be, or one lucky week would decide; not for a first model or an old champion
    max_fresh_loss: float = Field(default=0.03, ge=0, le=1)  # NDCG@10 of this very challenger on the fresh window
    max_age_days: float = Field(default=28.0, gt=0)  # an older champion yields to a challenger that is not worse
    non_inferiority_margin: float = Field(default=0.01, ge=0, le=1)  # for an old champion, and against the incumbents
    baseline: str = "popular"  # what the first model must beat
    incumbents: tuple[str, ...] = ("popular_7d", "sequence_rules", "item_knn")  # what no release may be worse than
    slices: tuple[Literal["light_users", "cold_users", "tail_items"], ...] = ("light_users", "cold_users", "tail_items")
    max_slice_loss: float = Field(default=0.05, ge=0, le=1)  # NDCG@10 of each but cold users
    max_cold_loss: float = Field(default=0.10, ge=0, le=1)  # of cold users, who are few: a twentieth of the judged in the simulated shop
    min_slice_users: int = Field(default=200, ge=2)  # in each slice; fewer are "not enough evidence"
    guard_slices_from: int = Field(default=0, ge=0)  # a slice of fewer users stops a promotion only where harm is shown
    cold_events: int = Field(default=2, ge=0)  # events before the window, up to which a user is cold
    segments: tuple[Literal["country", "age_band", "device"], ...] = ("country", "age_band", "device")  # those the data has
    max_segment_loss: float = Field(default=0.05, ge=0, le=1)  # NDCG@10 of each of the largest four values of a segment
    min_segment_users: int = Field(default=1000, ge=2)  # a smaller one stops a promotion only where harm is shown
    guardrails: tuple[Guardrail, ...] = GUARDRAILS  # of the lists and of what it takes to make them
    max_coverage_loss: float = Field(default=0.10, ge=0, le=1)  # items in anyone's first ten
    max_tail_exposure_loss: float = Field(default=0.10, ge=0, le=1)  # attention, by place, that tail items get
    max_gini_increase: float = Field(default=0.05, ge=0, le=1)  # absolute
    max_diversity_loss: float = Field(default=0.20, ge=0, le=1)  # pairs of a list from different categories
    max_miscalibration_increase: float = Field(default=0.10, ge=0)  # absolute, nats
    max_ece_increase: float = Field(default=0.01, ge=0, le=1)  # absolute; where both rankers tell probabilities
    max_empty_increase: float = Field(default=0.005, ge=0, le=1)  # absolute, share of users
    max_latency_increase: float = Field(default=0.25, ge=0)  # median over users
    max_latency_seconds: float = Field(default=0.05, gt=0)  # processor seconds a list, where a ranker follows a blend or a blend a ranker
    max_size_increase: float = Field(default=0.5, ge=0)  # beyond what the events learnt from have grown by
    max_null_increase: float = Field(default=0.10, ge=0, le=1)  # absolute, of any feature, from training rows to those that were ranked
    max_ties: float = Field(default=0.9, ge=0, le=1)  # of neighbours in the first ten; a ranker that collapsed scores all alike
    max_score_psi: float = Field(default=5.0, ge=0)  # of scores standardised within their list: another model, not another world

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        """Refuse to ask for more windows than are looked at."""
        if self.min_windows > self.windows:
            raise ValueError(f"gate.min_windows is {self.min_windows}, above gate.windows {self.windows}")
        return self


class DriftPolicy(Policy):
    """When a feature, a score or a label counts as drifted (docs/decisions/drift.md)."""

    psi_threshold: float = Field(default=0.2, ge=0)  # below it nothing has drifted, however sure it is that it moved
    psi_moved: float = Field(default=0.05, ge=0)  # what moved by more counts where most of the ranker's gain did (`min_moved_importance`)
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=1)  # a check, over all features together
    bins: int = Field(default=10, ge=2, le=100)
    min_rows: int = Field(default=300, ge=1)  # on either side; fewer are not compared
    smoothing: float = Field(default=0.5, gt=0)  # rows added to every bin
    min_drifted_importance: float = Field(default=0.1, ge=0, le=1)  # share of the ranker's gain carried by drifted features
    min_moved_importance: float = Field(default=0.5, ge=0, le=1)  # or by features that at least moved
    windows: int = Field(default=3, ge=1, le=7)  # the day and those before it, each compared anew
    persistent: int = Field(default=2, ge=1, le=7)  # of these, on which a feature must exceed its threshold
    max_null_rise: float = Field(default=0.1, gt=0, le=1)  # of a feature's share of missing values; above it is a fault, not a shift
    outputs_call: bool = False  # whether scores and lists that drifted call for a training by themselves; a champion's own age moves them
    output_users: int = Field(default=1000, ge=0)  # users a check, for whom the champion's scores and lists are compared; 0: none

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        """Refuse levels in the wrong order, and to ask for more days than are compared."""
        if self.persistent > self.windows:
            raise ValueError(f"drift.persistent is {self.persistent}, above drift.windows {self.windows}")
        if self.psi_moved > self.psi_threshold:
            raise ValueError(f"drift.psi_moved is {self.psi_moved:g}, above drift.psi_threshold {self.psi_threshold:g}")
        return self


class TriagePolicy(Policy):
    """What is a fault of the data, a fall of the champion, a new catalogue (docs/decisions/drift.md)."""

    fault_days: int = Field(default=7, ge=1, le=28)  # before as_of that are searched for faults; an older one no longer blocks
    accept: tuple[str, ...] = ()  # faults that a person looked at, `cause` or `cause@YYYY-MM-DD`: told, but no longer blocking
    min_fault_share: float = Field(default=0.01, gt=0, le=1)  # of a day's rows, from which what entered the lake is a fault
    max_lost_share: float = Field(default=0.1, gt=0, le=1)  # of a day's rows that were refused, from which what is left is not trained on
    max_gap_hours: float = Field(default=24.0, gt=0)  # without any event received, before as_of or in between
    price_factor: float = Field(default=1.5, gt=1)  # by which the same items' prices move together: a unit or a currency, no discount
    bot_events: int = Field(default=1000, ge=1)  # of one user on one day
    max_churn: float = Field(default=0.15, gt=0, le=1)  # of what is for sale that the champion has not met, or that it shows and is gone
    quality_confidence: float = Field(default=0.99, gt=0.5, lt=1)  # that the champion fell, one-sided
    min_quality_fall: float = Field(default=0.1, gt=0, le=1)  # of its own earlier NDCG@10
    min_quality_users: int = Field(default=200, ge=2)  # in the newest window; fewer say nothing
    quality_users: int = Field(default=2000, ge=2)  # measured a window, the same ones where they come back

    @field_validator("accept")
    @classmethod
    def _names_faults(cls, accept: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse what names no fault, for it would accept nothing."""
        for name in accept:
            cause, at, day = name.partition("@")
            if cause not in FAULTS:
                raise ValueError(f"triage.accept names '{cause}', which is none of {', '.join(FAULTS)}")
            if at:
                try:
                    known = date.fromisoformat(day).isoformat() == day
                except ValueError:
                    known = False
                if not known:
                    raise ValueError(f"triage.accept names '{name}', whose day is not YYYY-MM-DD")
        return accept

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        """Refuse to ask for more users than are measured: no fall would ever be told."""
        if self.min_quality_users > self.quality_users:
            raise ValueError(f"triage.min_quality_users is {self.min_quality_users}, above triage.quality_users {self.quality_users}")
        return self


class RetrainPolicy(Policy):
    """When a training run is due (docs/decisions/drift.md)."""

    cadence_days: float = Field(default=7.0, gt=0)  # a training is due this long after the last, whatever the world does
    cooldown_days: float = Field(default=1.0, ge=0)  # and none within this of the last
    priority_cooldown_days: float = Field(default=0.25, ge=0)  # where the champion's quality falls
    repeat_days: float = Field(default=7.0, ge=0)  # a cause that a training answered is not answered again within this
    budget_per_week: int = Field(default=3, ge=1)  # trainings in any seven days
    volume_factor: float = Field(default=3.0, gt=1)  # of a usual cadence's events since the last training: due early
    max_backoff_days: float = Field(
        default=7.0, ge=0
    )  # the cooldown doubles with each challenger in a row that failed the gate, up to this
    alert_after_rejections: int = Field(default=3, ge=1)  # in a row: a person should look

    @model_validator(mode="after")
    def _priority_is_sooner(self) -> Self:
        """Refuse a priority that waits longer than none."""
        if self.priority_cooldown_days > self.cooldown_days:
            raise ValueError(
                f"retrain.priority_cooldown_days is {self.priority_cooldown_days:g}, above retrain.cooldown_days {self.cooldown_days:g}"
            )
        return self


# How a release comes to serve: the pointer flips at once; it is loaded everywhere first; users are given to it step by step, after it
# has answered silently.
Way = Literal["direct", "blue-green", "canary", "shadow-then-canary"]


class ReleasePolicy(Policy):
    """Who lets a challenger serve that the gate would promote, and what counts as a person's word."""

    mode: Literal["auto", "review", "off"] = "auto"  # the gate releases; a person must agree; the gate speaks and nothing moves
    rollout: Way = "direct"  # how; other ways need the service to run (docs/serving/releases.md), and a champion to be compared with
    review_hours: float = Field(default=24.0, gt=0, le=8760)  # for a person to answer; then the champion stays
    by_hand: Literal["honour", "refuse"] = "honour"  # what is set by hand in MLflow's pages: alias `champion`, tag `validation_status`
    on_rejected_champion: Literal["rollback", "keep"] = "rollback"  # where a person rejects, in MLflow, the version that serves


class ExperimentPolicy(Policy):
    """When an experiment may be read, and what it takes to decide (docs/serving/experiments.md)."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)  # over all looks at an experiment, two-sided
    srm_p: float = Field(default=0.001, gt=0, lt=0.5)  # arms' counts less likely than this under their weights: nothing is read
    min_units: int = Field(default=200, ge=2)  # in every arm before the first look
    max_crossed: float = Field(default=0.01, ge=0, le=1)  # of the units, seen in more than one arm; they count in none
    cuped_days: int = Field(default=14, ge=0)  # before a unit's exposure, whose metric is the covariate; 0: no adjustment


class ImpressionPolicy(Policy):
    """How what was shown is logged, and what counts as its outcome (docs/serving/impressions.md)."""

    feature_share: float = Field(default=0.01, ge=0, le=1)  # of the requests, whose feature values are logged for the skew monitor
    salt: str = "features"  # which requests those are
    buffer_rows: int = Field(default=20_000, ge=1)  # waiting to be written, a process; what comes beyond is dropped and counted
    flush_seconds: float = Field(
        default=1.0, gt=0, le=60
    )  # at most so much is lost with a killed machine; a killed process loses its buffer
    segment_bytes: int = Field(default=16 << 20, ge=1 << 10)  # from which a segment is closed, to be landed
    segment_seconds: float = Field(default=60.0, gt=0)  # or once it is this old
    train_on_seen: bool = (
        False  # places that nobody said came into view are left out of training lists; for shops whose clients send `seen`
    )
    attribution_hours: float = Field(default=24.0, gt=0, le=8760)  # after it was shown, in which what a user does is its outcome
    skew_requests: int = Field(default=50, ge=0)  # of the last week, whose feature values are recomputed by the monitor; 0: none
    max_skew: float = Field(default=0.001, ge=0, le=1)  # of the logged feature values that may differ from those recomputed
    score_tolerance: float = Field(default=1e-6, ge=0)  # by which a score may differ from the one recomputed


class BundlePolicy(Policy):
    """What a bundle must show before anything of it is parsed, and before it may serve."""

    require_signature: bool = True  # unsigned, or signed with another environment's key: refused
    rehearsal_seconds: float = Field(default=120.0, gt=0)  # a bundle's first load, in a process that may hang
    golden_tolerance: float = Field(default=1e-9, ge=0)  # by which a score may differ from what it was when the bundle was built


class RetentionPolicy(Policy):
    """What is kept of earlier releases; the champion, the one before it and what a person is asked about stay whatever is said here."""

    keep_last: int = Field(default=5, ge=0)  # of the newest bundles, and of the newest that were released, so many each
    keep_runs: int = Field(default=3, ge=0)  # of the newest training runs; a bundle that is kept does not need its run
    # Of what the bus brought, behind the end of the lake: a window that is read again so far back is whole.
    collected_days: float = Field(default=7.0, ge=0)
