"""What a model may ask: one view a mart, every feature described where it is declared.

The marts' dbt contracts fix the same columns and types; a test holds the two together. A view's
`ttl` is how far back a lookup reaches for a row: the weekly cadence of the loop and a day of grace.
dbt keeps a pair of user and category, or brand, for as many days after its last event left the window
(`ttl_days` in dbt_project.yml), so that it is seen to fall to zero before it is gone.
"""

from datetime import timedelta

from entities import brand, category, item, other_item, user
from feast import FeatureView, Field
from feast.types import Bool, Float64, Int32, String
from sources import (
    item_daily_source,
    item_pairs_daily_source,
    user_brand_daily_source,
    user_category_daily_source,
    user_daily_source,
)

TTL = timedelta(days=8)
TAGS = {"cadence": "daily", "layer": "mart"}

user_daily = FeatureView(
    name="user_daily",
    entities=[user],
    ttl=TTL,
    source=user_daily_source,
    description="What a user did lately, and over their whole past, as known at midnight UTC.",
    owner="features",
    tags={**TAGS, "rows": "daily"},  # every one of them has a row every day, so the newest day is the whole state
    schema=[
        Field(name="user_id", dtype=String, description="The user."),
        Field(name="events_1d", dtype=Int32, description="Events of any type on the last day."),
        Field(name="events_7d", dtype=Int32, description="Events of any type in the last 7 days."),
        Field(name="events_30d", dtype=Int32, description="Events of any type in the last 30 days."),
        Field(name="events_90d", dtype=Int32, description="Events of any type in the last 90 days."),
        Field(name="views_1d", dtype=Int32, description="Views on the last day; null where the source has none."),
        Field(name="views_7d", dtype=Int32, description="Views in the last 7 days; null where the source has none."),
        Field(name="views_30d", dtype=Int32, description="Views in the last 30 days; null where the source has none."),
        Field(name="views_90d", dtype=Int32, description="Views in the last 90 days; null where the source has none."),
        Field(name="clicks_30d", dtype=Int32, description="Clicks in the last 30 days; null where the source has none."),
        Field(name="add_to_carts_1d", dtype=Int32, description="Items put into the cart on the last day; null where the source has none."),
        Field(
            name="add_to_carts_7d", dtype=Int32, description="Items put into the cart in the last 7 days; null where the source has none."
        ),
        Field(
            name="add_to_carts_30d", dtype=Int32, description="Items put into the cart in the last 30 days; null where the source has none."
        ),
        Field(
            name="add_to_carts_90d", dtype=Int32, description="Items put into the cart in the last 90 days; null where the source has none."
        ),
        Field(name="purchases_1d", dtype=Int32, description="Purchases on the last day; null where the source has none."),
        Field(name="purchases_7d", dtype=Int32, description="Purchases in the last 7 days; null where the source has none."),
        Field(name="purchases_30d", dtype=Int32, description="Purchases in the last 30 days; null where the source has none."),
        Field(name="purchases_90d", dtype=Int32, description="Purchases in the last 90 days; null where the source has none."),
        Field(name="purchases_lifetime", dtype=Int32, description="Purchases ever; null where the source has none."),
        Field(
            name="events_per_active_day_30d",
            dtype=Float64,
            description="Events a day on which there was one, over the last 30 days; null without any.",
        ),
        Field(name="conversion_30d", dtype=Float64, description="Purchases a view in 30 days, drawn to the shop's rate by 20 views."),
        Field(
            name="add_to_carts_per_view_30d",
            dtype=Float64,
            description="Items put into the cart a view in 30 days, drawn to the shop's rate by 20 views.",
        ),
        Field(name="spend_30d", dtype=Float64, description="Amount paid in the last 30 days, shop currency."),
        Field(name="spend_90d", dtype=Float64, description="Amount paid in the last 90 days, shop currency."),
        Field(name="mean_purchase_price_90d", dtype=Float64, description="Mean price a unit paid in the last 90 days, shop currency."),
        Field(
            name="purchase_price_spread_90d",
            dtype=Float64,
            description="Standard deviation of the unit prices of the purchases of the last 90 days, shop currency.",
        ),
        Field(
            name="purchase_days_90d", dtype=Int32, description="Days with a purchase in the last 90 days; null where the source has none."
        ),
        Field(
            name="purchase_days_per_30_days",
            dtype=Float64,
            description="Those days a 30 days of acquaintance, of which at least 30 and at most 90 days count.",
        ),
        Field(
            name="sessions_7d",
            dtype=Int32,
            description="Sessions in the last 7 days, counted once a day they touch; null where the source has none.",
        ),
        Field(
            name="sessions_30d",
            dtype=Int32,
            description="Sessions in the last 30 days, counted once a day they touch; null where the source has none.",
        ),
        Field(
            name="sessions_90d",
            dtype=Int32,
            description="Sessions in the last 90 days, counted once a day they touch; null where the source has none.",
        ),
        Field(
            name="mean_session_minutes_30d",
            dtype=Float64,
            description="Mean minutes from a session's first to its last event of a day, over the sessions of 30 days.",
        ),
        Field(name="events_per_session_30d", dtype=Float64, description="Mean events a session, over the sessions of 30 days."),
        Field(name="active_days_7d", dtype=Int32, description="Days with an event in the last 7 days."),
        Field(name="active_days_30d", dtype=Int32, description="Days with an event in the last 30 days."),
        Field(name="active_days_90d", dtype=Int32, description="Days with an event in the last 90 days."),
        Field(name="night_share_30d", dtype=Float64, description="Share of the 30 days' events from 0 to 6 o'clock UTC."),
        Field(name="morning_share_30d", dtype=Float64, description="Share of the 30 days' events from 6 to 12 o'clock UTC."),
        Field(
            name="afternoon_share_30d",
            dtype=Float64,
            description="Share of the 30 days' events from 12 to 18 o'clock UTC; the rest is the evening.",
        ),
        Field(name="weekend_share_30d", dtype=Float64, description="Share of the 30 days' events on a Saturday or Sunday UTC."),
        Field(name="mobile_share_30d", dtype=Float64, description="Share of the 30 days' events of a known device that came from a phone."),
        Field(
            name="tablet_share_30d",
            dtype=Float64,
            description="Share of the 30 days' events of a known device that came from a tablet; the rest is the desktop.",
        ),
        Field(
            name="distinct_categories_30d", dtype=Int32, description="Categories met in the last 30 days; null where the source has none."
        ),
        Field(name="top_category_share_30d", dtype=Float64, description="Share of the 30 days' events in the favourite category."),
        Field(
            name="category_concentration_30d",
            dtype=Float64,
            description="Sum of the squared shares of the categories in the 30 days' events; 1 is all in one.",
        ),
        Field(
            name="distinct_brands_30d",
            dtype=Int32,
            description="Brands met more than once in the last 30 days; null where the source has none.",
        ),
        Field(
            name="top_brand_share_30d",
            dtype=Float64,
            description="Share of the 30 days' events with the favourite brand, if it was met more than once.",
        ),
        Field(
            name="brand_concentration_30d",
            dtype=Float64,
            description="Sum of the squared shares of the brands met more than once, among their 30 days' events; 1 is all with one.",
        ),
        Field(name="ratings_lifetime", dtype=Int32, description="Ratings ever given; null where the source has none."),
        Field(name="rating_mean", dtype=Float64, description="Mean rating ever given, in the source's unit."),
        Field(name="days_since_last_event", dtype=Float64, description="Days since the last known event."),
        Field(name="days_since_last_add_to_cart", dtype=Float64, description="Days since an item was last known to be put into the cart."),
        Field(name="days_since_last_purchase", dtype=Float64, description="Days since the last known purchase."),
        Field(name="tenure_days", dtype=Float64, description="Days since sign-up or the first known event, whichever was earlier."),
        Field(name="country", dtype=String, description="Country in the profile known then; null where unknown."),
        Field(name="age_band", dtype=String, description="Age band in the profile known then; null where unknown."),
    ],
)

item_daily = FeatureView(
    name="item_daily",
    entities=[item],
    ttl=TTL,
    source=item_daily_source,
    description="What an item is, and how it fared lately, as known at midnight UTC.",
    owner="features",
    tags={**TAGS, "rows": "daily"},  # every one of them has a row every day, so the newest day is the whole state
    schema=[
        Field(name="item_id", dtype=String, description="The item."),
        Field(name="category", dtype=String, description="Its category in the version valid and known then."),
        Field(name="brand", dtype=String, description="Its brand in the version valid and known then."),
        Field(name="price", dtype=Float64, description="Its list price in the version valid and known then, shop currency."),
        Field(name="is_available", dtype=Bool, description="Whether the version valid and known then is on offer."),
        Field(name="events_1d", dtype=Int32, description="Events of any type on the last day."),
        Field(name="events_7d", dtype=Int32, description="Events of any type in the last 7 days."),
        Field(name="events_30d", dtype=Int32, description="Events of any type in the last 30 days."),
        Field(name="events_90d", dtype=Int32, description="Events of any type in the last 90 days."),
        Field(name="views_1d", dtype=Int32, description="Views on the last day; null where the source has none."),
        Field(name="views_7d", dtype=Int32, description="Views in the last 7 days; null where the source has none."),
        Field(name="views_30d", dtype=Int32, description="Views in the last 30 days; null where the source has none."),
        Field(name="views_90d", dtype=Int32, description="Views in the last 90 days; null where the source has none."),
        Field(name="add_to_carts_1d", dtype=Int32, description="Times put into a cart on the last day; null where the source has none."),
        Field(name="add_to_carts_7d", dtype=Int32, description="Times put into a cart in the last 7 days; null where the source has none."),
        Field(
            name="add_to_carts_30d", dtype=Int32, description="Times put into a cart in the last 30 days; null where the source has none."
        ),
        Field(
            name="add_to_carts_90d", dtype=Int32, description="Times put into a cart in the last 90 days; null where the source has none."
        ),
        Field(name="purchases_1d", dtype=Int32, description="Purchases on the last day; null where the source has none."),
        Field(name="purchases_7d", dtype=Int32, description="Purchases in the last 7 days; null where the source has none."),
        Field(name="purchases_30d", dtype=Int32, description="Purchases in the last 30 days; null where the source has none."),
        Field(name="purchases_90d", dtype=Int32, description="Purchases in the last 90 days; null where the source has none."),
        Field(name="revenue_30d", dtype=Float64, description="Amount paid for it in the last 30 days, shop currency."),
        Field(name="mean_purchase_price_90d", dtype=Float64, description="Mean price a unit paid in the last 90 days, shop currency."),
        Field(name="price_to_category_median", dtype=Float64, description="List price over the median of the category."),
        Field(
            name="price_percentile_in_category",
            dtype=Float64,
            description="Share of the other items of the category that are cheaper, 0 to 1.",
        ),
        Field(name="conversion_30d", dtype=Float64, description="Purchases a view in 30 days, drawn to the shop's rate by 20 views."),
        Field(name="conversion_90d", dtype=Float64, description="Purchases a view in 90 days, drawn to the shop's rate by 20 views."),
        Field(
            name="add_to_carts_per_view_30d",
            dtype=Float64,
            description="Times put into a cart a view in 30 days, drawn to the shop's rate by 20 views.",
        ),
        Field(name="trend_ratio_1d", dtype=Float64, description="Events of the last day over the mean day of the last 7, each plus one."),
        Field(name="trend_ratio_7d", dtype=Float64, description="Events of the last 7 days over those of the 7 before, each plus one."),
        Field(name="popularity_rank_7d", dtype=Int32, description="Rank by events of the last 7 days; 1 is the most popular."),
        Field(name="popularity_rank_30d", dtype=Int32, description="Rank by events of the last 30 days; 1 is the most popular."),
        Field(
            name="popularity_rank_in_category_7d",
            dtype=Int32,
            description="Rank within its category by events of the last 7 days; 1 is the most popular.",
        ),
        Field(name="ratings_30d", dtype=Int32, description="Ratings in the last 30 days; null where the source has none."),
        Field(name="ratings_lifetime", dtype=Int32, description="Ratings ever received; null where the source has none."),
        Field(name="rating_mean", dtype=Float64, description="Mean rating ever received, in the source's unit."),
        Field(name="rating_mean_smoothed", dtype=Float64, description="Mean rating ever received, drawn to the shop's mean by 10 ratings."),
        Field(name="days_since_last_event", dtype=Float64, description="Days since the last known event."),
        Field(name="days_since_last_purchase", dtype=Float64, description="Days since the last known purchase."),
        Field(name="age_days", dtype=Float64, description="Days since creation or the first known event, whichever was earlier."),
    ],
)

user_category_daily = FeatureView(
    name="user_category_daily",
    entities=[user, category],
    ttl=TTL,
    source=user_category_daily_source,
    description="How much a user has lately had to do with a category, as known at midnight UTC; no row, no dealings.",
    owner="features",
    tags=TAGS,
    schema=[
        Field(name="user_id", dtype=String, description="The user."),
        Field(name="category", dtype=String, description="The category."),
        Field(name="events_30d", dtype=Int32, description="The user's events in the category in the last 30 days."),
        Field(
            name="add_to_carts_30d",
            dtype=Int32,
            description="The user's items in it put into the cart in 30 days; null where the source has none.",
        ),
        Field(name="purchases_30d", dtype=Int32, description="The user's purchases in it in 30 days; null where the source has none."),
        Field(name="share_of_events_30d", dtype=Float64, description="Share of the user's events of 30 days that were in the category."),
        Field(name="days_since_last_event", dtype=Float64, description="Days since the user's last known event in the category."),
    ],
)

user_brand_daily = FeatureView(
    name="user_brand_daily",
    entities=[user, brand],
    ttl=TTL,
    source=user_brand_daily_source,
    description="How much a user has lately had to do with a brand, as known at midnight UTC; no row, no dealings.",
    owner="features",
    tags=TAGS,
    schema=[
        Field(name="user_id", dtype=String, description="The user."),
        Field(name="brand", dtype=String, description="The brand."),
        Field(name="events_30d", dtype=Int32, description="The user's events with the brand in the last 30 days."),
        Field(
            name="add_to_carts_30d",
            dtype=Int32,
            description="The user's items of it put into the cart in 30 days; null where the source has none.",
        ),
        Field(name="purchases_30d", dtype=Int32, description="The user's purchases of it in 30 days; null where the source has none."),
        Field(name="share_of_events_30d", dtype=Float64, description="Share of the user's events of 30 days that were with the brand."),
        Field(name="days_since_last_event", dtype=Float64, description="Days since the user's last known event with the brand."),
    ],
)

item_pairs_daily = FeatureView(
    name="item_pairs_daily",
    entities=[item, other_item],
    ttl=TTL,
    source=item_pairs_daily_source,
    description="What is bought or viewed together with an item, as known at midnight UTC; no row, not among the 20 first.",
    owner="features",
    tags=TAGS,
    schema=[
        Field(name="item_id", dtype=String, description="The item."),
        Field(name="other_item_id", dtype=String, description="The other item."),
        Field(
            name="co_purchases_90d",
            dtype=Int32,
            description="Users and days of the last 90 on which both were bought; null where the source has no purchases.",
        ),
        Field(
            name="bought_together_rank",
            dtype=Int32,
            description="Rank of the other among those bought with the item, 1 is the best, up to 20; null where it is not among them.",
        ),
        Field(
            name="bought_together_score",
            dtype=Float64,
            description="Those days over the geometric mean of the days on which each was bought, drawn to 0 by 5 days.",
        ),
        Field(
            name="co_views_30d",
            dtype=Int32,
            description="Users and days of the last 30 on which both were viewed; null where the source has no views.",
        ),
        Field(
            name="similar_rank",
            dtype=Int32,
            description="Rank of the other among those viewed with the item, 1 is the best, up to 20; null where it is not among them.",
        ),
        Field(
            name="similar_score",
            dtype=Float64,
            description="Those days over the geometric mean of the days on which each was viewed, drawn to 0 by 5 days.",
        ),
    ],
)
