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
    """When a feature counts as drifted."""

    psi_threshold: float = 0.2
    false_alarm_rate: float = 0.01  # a check, over all features together
    bins: int = 10
    min_rows: int = 300
    smoothing: float = 0.5
    min_drifted_importance: float = 0.1  # share of the ranker's gain carried by drifted features


class RetrainPolicy(Policy):
    """When a training run is due."""

    cadence_days: float = 7.0
    cooldown_days: float = 1.0
