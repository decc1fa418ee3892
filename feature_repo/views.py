"""What a model may ask: one view a mart, every feature described where it is declared.

The marts' dbt contracts fix the same columns and types; a test holds the two together. A view's
`ttl` is how far back a lookup reaches for a row: the weekly cadence of the loop and a day of grace.
dbt keeps a pair of user and category for as many days after its last event left the window
(`ttl_days` in dbt_project.yml), so that it is seen to fall to zero before it is gone.
"""

from datetime import timedelta

from entities import category, item, user
from feast import FeatureView, Field
from feast.types import Bool, Float64, Int32, String
from sources import item_daily_source, user_category_daily_source, user_daily_source

TTL = timedelta(days=8)
TAGS = {"cadence": "daily", "layer": "mart"}

user_daily = FeatureView(
    name="user_daily",
    entities=[user],
    ttl=TTL,
    source=user_daily_source,
    description="What a user did lately, and over their whole past, as known at midnight UTC.",
    owner="features",
    tags=TAGS,
    schema=[
        Field(name="user_id", dtype=String, description="The user."),
        Field(name="events_7d", dtype=Int32, description="Events of any type in the last 7 days."),
        Field(name="events_30d", dtype=Int32, description="Events of any type in the last 30 days."),
        Field(name="views_7d", dtype=Int32, description="Views in the last 7 days; null where the source has no views."),
        Field(name="views_30d", dtype=Int32, description="Views in the last 30 days; null where the source has no views."),
        Field(name="add_to_carts_30d", dtype=Int32, description="Items put into the cart in the last 30 days; null where unknown."),
        Field(name="purchases_7d", dtype=Int32, description="Purchases in the last 7 days; null where the source has none."),
        Field(name="purchases_30d", dtype=Int32, description="Purchases in the last 30 days; null where the source has none."),
        Field(name="purchases_lifetime", dtype=Int32, description="Purchases ever; null where the source has none."),
        Field(name="spend_30d", dtype=Float64, description="Amount paid in the last 30 days, shop currency."),
        Field(name="mean_purchase_price_90d", dtype=Float64, description="Mean price a unit paid in the last 90 days, shop currency."),
        Field(name="sessions_30d", dtype=Int32, description="Sessions in the last 30 days, counted once a day they touch."),
        Field(name="active_days_30d", dtype=Int32, description="Days with an event in the last 30 days."),
        Field(name="distinct_categories_30d", dtype=Int32, description="Categories met in the last 30 days."),
        Field(name="top_category_share_30d", dtype=Float64, description="Share of the 30 days' events in the favourite category."),
        Field(name="conversion_30d", dtype=Float64, description="Purchases a view in 30 days, drawn to the shop's rate by 20 views."),
        Field(name="ratings_lifetime", dtype=Int32, description="Ratings ever given; null where the source has none."),
        Field(name="rating_mean", dtype=Float64, description="Mean rating ever given, in the source's unit."),
        Field(name="days_since_last_event", dtype=Float64, description="Days since the last known event."),
        Field(name="days_since_last_purchase", dtype=Float64, description="Days since the last known purchase."),
        Field(name="tenure_days", dtype=Float64, description="Days since sign-up or the first known event, whichever was earlier."),
    ],
)

item_daily = FeatureView(
    name="item_daily",
    entities=[item],
    ttl=TTL,
    source=item_daily_source,
    description="What an item is, and how it fared lately, as known at midnight UTC.",
    owner="features",
    tags=TAGS,
    schema=[
        Field(name="item_id", dtype=String, description="The item."),
        Field(name="category", dtype=String, description="Its category in the version valid then."),
        Field(name="price", dtype=Float64, description="Its list price in the version valid then, shop currency."),
        Field(name="is_available", dtype=Bool, description="Whether the version valid then is on offer."),
        Field(name="events_1d", dtype=Int32, description="Events of any type on the last day."),
        Field(name="events_7d", dtype=Int32, description="Events of any type in the last 7 days."),
        Field(name="events_30d", dtype=Int32, description="Events of any type in the last 30 days."),
        Field(name="views_7d", dtype=Int32, description="Views in the last 7 days; null where the source has no views."),
        Field(name="views_30d", dtype=Int32, description="Views in the last 30 days; null where the source has no views."),
        Field(name="add_to_carts_7d", dtype=Int32, description="Times put into a cart in the last 7 days; null where unknown."),
        Field(name="purchases_7d", dtype=Int32, description="Purchases in the last 7 days; null where the source has none."),
        Field(name="purchases_30d", dtype=Int32, description="Purchases in the last 30 days; null where the source has none."),
        Field(name="mean_purchase_price_90d", dtype=Float64, description="Mean price a unit paid in the last 90 days, shop currency."),
        Field(name="price_to_category_median", dtype=Float64, description="List price over the median of the category."),
        Field(name="conversion_30d", dtype=Float64, description="Purchases a view in 30 days, drawn to the shop's rate by 20 views."),
        Field(name="trend_ratio_7d", dtype=Float64, description="Events of the last 7 days over those of the 7 before, each plus one."),
        Field(name="popularity_rank_7d", dtype=Int32, description="Rank by events of the last 7 days; 1 is the most popular."),
        Field(name="ratings_lifetime", dtype=Int32, description="Ratings ever received; null where the source has none."),
        Field(name="rating_mean", dtype=Float64, description="Mean rating ever received, in the source's unit."),
        Field(name="days_since_last_event", dtype=Float64, description="Days since the last known event."),
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
        Field(name="purchases_30d", dtype=Int32, description="The user's purchases in it in 30 days; null where the source has none."),
        Field(name="share_of_events_30d", dtype=Float64, description="Share of the user's events of 30 days that were in the category."),
        Field(name="days_since_last_event", dtype=Float64, description="Days since the user's last known event in the category."),
    ],
)
