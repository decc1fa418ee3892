"""The session of a user: what they did last, updated by every event that is pushed, and by the mart of the day.

The definition is `pipelines/streaming/session.py`'s; dbt/models/marts/user_session.sql computes the
same from the lake. A row is pushed, and a mart row written, only when something became known of the
user, so a lookup reaches back as far as a session is remembered.
"""

from datetime import timedelta

from entities import user
from feast import FeatureService, FeatureView, Field, PushSource
from feast.types import Array, Float64, Int32, Int64, String
from sources import mart

user_session_source = mart("user_session", "dbt mart user_session: one row per user and day on which something became known of them.")

user_session_pushed = PushSource(
    name="user_session_pushed",
    batch_source=user_session_source,
    description="Sessions as `reloop stream` pushes them, event by event.",
    owner="features",
)

user_session = FeatureView(
    name="user_session",
    entities=[user],
    ttl=timedelta(days=30),
    source=user_session_pushed,
    description="What a user did last and is after now, event by event; a user quiet for 30 days has none.",
    owner="features",
    tags={"cadence": "event", "layer": "mart", "rows": "changes"},
    schema=[
        Field(name="user_id", dtype=String, description="The user."),
        Field(
            name="last_item_ids", dtype=Array(String), description="Items of the last 50 events within 30 days of the newest, newest first."
        ),
        Field(name="last_event_types", dtype=Array(String), description="What was done with each of `last_item_ids`."),
        Field(name="last_event_ids", dtype=Array(String), description="The events behind `last_item_ids`."),
        Field(name="last_event_us", dtype=Array(Int64), description="When each of them happened, microseconds since 1970 UTC."),
        Field(
            name="session_events", dtype=Int32, description="Events of the running visit, 50 at most; a pause of over 30 minutes ends one."
        ),
        Field(name="session_seconds", dtype=Float64, description="Seconds from the first to the last event of the running visit."),
        Field(
            name="categories",
            dtype=Array(String),
            description="The 10 categories of highest affinity, best first; null where none is known.",
        ),
        Field(
            name="category_affinities",
            dtype=Array(Float64),
            description="Share of each of `categories` in the last events, each halved with every 24 hours before the newest.",
        ),
        Field(name="top_category", dtype=String, description="The first of `categories`; null where none is known."),
        Field(name="top_category_affinity", dtype=Float64, description="The first of `category_affinities`, within [0, 1]."),
    ],
)

session_v1 = FeatureService(
    name="session_v1",
    features=[user_session],
    description="The running session of a user: what models of sequences ask at serving time.",
    owner="ranking",
)
