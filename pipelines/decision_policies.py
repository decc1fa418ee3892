"""What the decisions go by: may this model serve, are its lists fair, has the world changed, is a training due."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.frozen import Policy


class FairnessSettings(Policy):
    """What the fairness report is about, and bounds that a gate may guard; one that is not set bounds nothing."""

    provider: Literal["brand", "seller"] = "brand"
    max_popularity_lift: float | None = Field(default=None)  # mean popularity of lists over that of histories, minus 1
    max_miscalibration: float | None = Field(default=None, ge=0)  # KL from the history's categories to the list's, nats
    max_relative_quality_gap: float | None = Field(default=None, ge=0, le=1)  # NDCG@10 of the best user group to the worst, of the best
    max_provider_distance: float | None = Field(default=None, ge=0, le=1)  # of attention from demand, over all providers
    min_tail_ratio: float | None = Field(default=None, ge=0)  # attention that tail items get over demand for them


class GatePolicy(Policy):
    """What a challenger must show (promises: a bare "NDCG improved" fires on half of equal retrains)."""

    confidence: float = 0.95
    min_effect: float = 0.005  # relative NDCG@10
    min_users: int = 2000  # below it the answer is "not enough evidence"
    max_age_days: float = 28.0  # an older champion yields to a challenger that is not worse
    non_inferiority_margin: float = 0.01  # relative, on the freshness track
    max_coverage_loss: float = 0.10  # relative
    max_slice_loss: float = 0.03  # relative, lower bound, on every guarded slice
    min_slice_users: int = 200
    baseline: str = "popular"  # what the first model must beat
    incumbents: tuple[str, ...] = ("popular_7d", "sequence_rules", "item_knn")  # what no release may be worse than
    slices: tuple[str, ...] = ("light_users", "tail_items")  # guarded by max_slice_loss


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
    output_users: int = Field(default=1000, ge=0)  # users a check, for whom the champion's scores and lists are compared; 0: none


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


class RetrainPolicy(Policy):
    """When a training run is due (docs/decisions/drift.md)."""

    cadence_days: float = Field(default=7.0, gt=0)  # a training is due this long after the last, whatever the world does
    cooldown_days: float = Field(default=1.0, ge=0)  # and none within this of the last
    priority_cooldown_days: float = Field(default=0.25, ge=0)  # where the champion's quality falls
    budget_per_week: int = Field(default=3, ge=1)  # trainings in any seven days
    volume_factor: float = Field(default=3.0, gt=1)  # of a usual cadence's events since the last training: due early
    max_backoff_days: float = Field(
        default=7.0, ge=0
    )  # the cooldown doubles with each challenger in a row that failed the gate, up to this
    alert_after_rejections: int = Field(default=3, ge=1)  # in a row: a person should look


class ReleasePolicy(Policy):
    """Who lets a challenger serve that the gate would promote, and what counts as a person's word."""

    mode: Literal["auto", "review", "off"] = "auto"  # the gate releases; a person must agree; the gate speaks and nothing moves
    review_hours: float = Field(default=24.0, gt=0, le=8760)  # for a person to answer; then the champion stays
    by_hand: Literal["honour", "refuse"] = "honour"  # what is set by hand in MLflow's pages: alias `champion`, tag `validation_status`
    on_rejected_champion: Literal["rollback", "keep"] = "rollback"  # where a person rejects, in MLflow, the version that serves
