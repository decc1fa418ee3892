"""What each re-ranking rule may do (`ranking.rerank`): one small frozen policy a rule, all of them one section of the settings.

A rule is on when it has a section, `[rerank.mmr]`, or is `true` (`mmr = true`: its defaults); `false` switches
it off. Only `availability` is on by itself.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.frozen import Policy


class AvailabilityPolicy(Policy):
    """What the shop says it cannot sell is not shown; an item of which it says nothing is."""


class PurchasedPolicy(Policy):
    """What the user bought is not shown again for a while."""

    within_days: float | None = Field(default=None, gt=0, le=36_500)  # purchases longer ago do not count; none: all do


class BoostPolicy(Policy):
    """Relevance (0 to 1 within a list) is raised for margin, promotion and freshness, within bounds."""

    margin: float = Field(default=0.05, ge=0, le=1)  # for an item whose margin is its whole price, in proportion below
    promotion: float = Field(default=0.05, ge=0, le=1)  # for an item that is promoted
    freshness: float = Field(default=0.05, ge=0, le=1)  # for an item of today, half of it after `half_life_days`
    half_life_days: float = Field(default=14.0, gt=0)
    max_boost: float = Field(default=0.1, ge=0, le=1)  # of all three together
    max_places: int = Field(default=5, ge=0)  # that an item may rise
    margin_attribute: str = "margin"  # of the items table: a share of the price, 0 to 1
    promotion_attribute: str = "promoted"  # of the items table: true, yes or 1


class CalibrationPolicy(Policy):
    """The list's categories follow the user's history (Steck, RecSys 2018)."""

    trade_off: float = Field(default=0.5, ge=0, le=1)  # 0: relevance alone, 1: calibration alone
    dilution: float = Field(
        default=0.01, gt=0, lt=1
    )  # Steck's alpha: how much of the history is mixed into the list, so that logs stay finite
    half_life_days: float | None = Field(default=None, gt=0)  # after which an event of the history counts half; none: never


class PopularityPolicy(Policy):
    """The list's share of head, torso and tail items follows the user's history (Abdollahpouri et al., UMAP 2021)."""

    trade_off: float = Field(default=0.5, ge=0, le=1)
    dilution: float = Field(default=0.01, gt=0, lt=1)
    half_life_days: float | None = Field(default=None, gt=0)


class LikenessPolicy(Policy):
    """When two items are alike, as MMR and DPP see it: 0 not at all, 1 the same."""

    by: Literal["attributes", "vectors"] = "attributes"
    source: str = "als"  # of `vectors`: the retriever whose item vectors are compared, by their cosine
    category: float = Field(default=0.6, ge=0, le=1)  # of `attributes`: for the same category
    brand: float = Field(default=0.4, ge=0, le=1)  # and for the same brand

    @model_validator(mode="after")
    def _at_most_the_same(self) -> Self:
        if self.category + self.brand > 1 + 1e-9:
            raise ValueError("likeness.category and likeness.brand are more than 1 together")
        return self


class MmrPolicy(Policy):
    """Maximal marginal relevance (Carbonell, Goldstein, SIGIR 1998)."""

    trade_off: float = Field(default=0.7, ge=0, le=1)  # lambda: 1 relevance alone, 0 difference alone
    max_candidates: int = Field(default=500, ge=1)  # of a list, the best so many compete


class DppPolicy(Policy):
    """The most probable set under a determinantal point process, greedily (Chen, Zhang, Zhou, NeurIPS 2018)."""

    trade_off: float = Field(default=0.9, ge=0, le=1)  # theta: 1 relevance alone, 0 difference alone
    max_candidates: int = Field(default=500, ge=1)


class CapsPolicy(Policy):
    """How many items of one category, or brand, may stand among any `window` places that follow each other; 0: any number."""

    window: int = Field(default=10, ge=2)
    category: int = Field(default=4, ge=0)
    brand: int = Field(default=3, ge=0)


class TemporalPolicy(Policy):
    """New and lasting items have a share of every beginning of the list, as far as there are any."""

    fresh_share: float = Field(default=0.2, ge=0, le=1)
    fresh_days: float = Field(default=14.0, gt=0)  # known for so long at most
    lasting_share: float = Field(default=0.0, ge=0, le=1)
    lasting_days: float = Field(default=180.0, gt=0)  # known for longer

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.fresh_share + self.lasting_share > 1:
            raise ValueError("temporal.fresh_share and temporal.lasting_share are more than 1 together")
        if self.lasting_days < self.fresh_days:
            raise ValueError("temporal.lasting_days is below temporal.fresh_days: an item would be both")
        return self


class ExposurePolicy(Policy):
    """Who gets little attention has a share of every beginning of the list, as far as candidates reach."""

    of: Literal["item", "brand", "seller"] = "item"
    share: float = Field(default=0.1, ge=0, le=1)  # of the places
    protected: float = Field(default=0.2, ge=0, le=1)  # those with the least attention that have this share of it together
    seller_attribute: str = "seller"  # of the items table


class RerankSettings(Policy):
    """What is done to a ranked list before anyone sees it, in the order of `ranking.rerank.chain.ORDER`."""

    depth: int = Field(default=20, ge=1)  # places that rules fill; below them the order stands as it was
    availability: AvailabilityPolicy | None = AvailabilityPolicy()
    purchased: PurchasedPolicy | None = None
    boosts: BoostPolicy | None = None
    calibration: CalibrationPolicy | None = None
    popularity: PopularityPolicy | None = None
    mmr: MmrPolicy | None = None
    dpp: DppPolicy | None = None
    temporal: TemporalPolicy | None = None
    exposure: ExposurePolicy | None = None
    caps: CapsPolicy | None = None
    likeness: LikenessPolicy = LikenessPolicy()

    @field_validator(
        "availability",
        "purchased",
        "boosts",
        "calibration",
        "popularity",
        "mmr",
        "dpp",
        "temporal",
        "exposure",
        "caps",
        mode="before",
    )
    @classmethod
    def _switched(cls, value: Any) -> Any:
        """Read true as a section without knobs, false as none."""
        return ({} if value else None) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Self:
        if self.mmr is not None and self.dpp is not None:
            raise ValueError("rerank.mmr and rerank.dpp are both on: the later would undo the earlier")
        return self
