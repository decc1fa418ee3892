"""The canonical tables and their one pyarrow schema each.

Times are microseconds in UTC. A version of an item or a user holds from `valid_from` and was learnt at `received_at`;
a source that does not say when learnt it as it began. Ids are strings here, at the border; inside the models they become
dense integers (`pipelines.datasets.interactions`). A column that a source lacks is null, never zero.
"""

from typing import Final

import pyarrow as pa

from pipelines import columns as c

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")

EVENTS: Final = pa.schema(
    [
        pa.field(c.EVENT_ID, pa.string(), nullable=False),
        pa.field(c.USER_ID, pa.string(), nullable=False),
        pa.field(c.ITEM_ID, pa.string(), nullable=False),
        pa.field(c.EVENT_TYPE, pa.string(), nullable=False),
        pa.field(c.VALUE, pa.float64()),
        pa.field(c.QUANTITY, pa.float64()),
        pa.field(c.EVENT_AT, TIMESTAMP, nullable=False),
        pa.field(c.RECEIVED_AT, TIMESTAMP, nullable=False),
        pa.field(c.SESSION_ID, pa.string()),
        pa.field(c.DEVICE, pa.string()),
        pa.field(c.REQUEST_ID, pa.string()),
    ]
)

ITEMS: Final = pa.schema(
    [
        pa.field(c.ITEM_ID, pa.string(), nullable=False),
        pa.field(c.TITLE, pa.string()),
        pa.field(c.CATEGORY, pa.string()),
        pa.field(c.BRAND, pa.string()),
        pa.field(c.PRICE, pa.float64()),
        pa.field(c.ATTRIBUTES, pa.map_(pa.string(), pa.string())),
        pa.field(c.AVAILABLE, pa.bool_()),
        pa.field(c.CREATED_AT, TIMESTAMP),
        pa.field(c.VALID_FROM, TIMESTAMP, nullable=False),
        pa.field(c.RECEIVED_AT, TIMESTAMP),
    ]
)

USERS: Final = pa.schema(
    [
        pa.field(c.USER_ID, pa.string(), nullable=False),
        pa.field(c.SIGNED_UP_AT, TIMESTAMP),
        pa.field(c.COUNTRY, pa.string()),
        pa.field(c.AGE_BAND, pa.string()),
        pa.field(c.ATTRIBUTES, pa.map_(pa.string(), pa.string())),
        pa.field(c.VALID_FROM, TIMESTAMP, nullable=False),
        pa.field(c.RECEIVED_AT, TIMESTAMP),
    ]
)

IMPRESSIONS: Final = pa.schema(
    [
        pa.field(c.REQUEST_ID, pa.string(), nullable=False),
        pa.field(c.USER_ID, pa.string(), nullable=False),
        pa.field(c.ITEM_ID, pa.string(), nullable=False),
        pa.field(c.RANK, pa.int32(), nullable=False),
        pa.field(c.SHOWN_AT, TIMESTAMP, nullable=False),
        pa.field(c.MODEL_VERSION, pa.string()),
        pa.field(c.VARIANT, pa.string()),
        pa.field(c.SOURCES, pa.list_(pa.string())),
        pa.field(c.SCORE, pa.float64()),
        pa.field(c.PROPENSITY, pa.float64()),
        pa.field(c.FEATURE_VALUES, pa.map_(pa.string(), pa.float64())),
        pa.field(c.SURFACE, pa.string()),
        pa.field(c.RUNG, pa.string()),
    ]
)

# The feature marts and the key of a row beside its day.
MARTS: Final = {
    "user_daily": (c.USER_ID,),
    "item_daily": (c.ITEM_ID,),
    "user_category_daily": (c.USER_ID, c.CATEGORY),
    "user_session": (c.USER_ID,),
    "user_brand_daily": (c.USER_ID, c.BRAND),
    "item_pairs_daily": (c.ITEM_ID, c.OTHER_ITEM_ID),
}
CANONICAL: Final = {"events": EVENTS, "items": ITEMS, "users": USERS, "impressions": IMPRESSIONS}


def staged(table: str) -> pa.Schema:
    """Return the schema of a staged table: the canonical columns, every one nullable, and the source row.

    A staged row has been read but not judged, so anything may be missing from it. `source_row` is
    the 0-based position of the row in the source; `raw` is the row as the source wrote it (JSON),
    kept only where a value could not be read, so that quarantine loses nothing.
    """
    fields = [pa.field(field.name, field.type) for field in CANONICAL[table]]
    return pa.schema(
        [*fields, pa.field(c.SOURCE_ROW, pa.int64()), pa.field(c.REASONS, pa.list_(pa.string())), pa.field(c.RAW, pa.string())]
    )


def quarantined(table: str) -> pa.Schema:
    """Return the schema of a quarantine file: the staged columns; `reasons` is never empty there."""
    return staged(table)
