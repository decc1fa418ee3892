"""The names of columns, once. Every other module, SQL model and feature view uses these words."""

from typing import Final

# events: one row per thing a user did
EVENT_ID: Final = "event_id"
USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
EVENT_TYPE: Final = "event_type"
VALUE: Final = "value"  # amount in shop currency for purchases, the rating for ratings, else null
QUANTITY: Final = "quantity"
EVENT_AT: Final = "event_at"  # when it was true
RECEIVED_AT: Final = "received_at"  # when we learnt it
SESSION_ID: Final = "session_id"
DEVICE: Final = "device"
REQUEST_ID: Final = "request_id"  # the impression that led to the event

# items and users: one row per version
TITLE: Final = "title"
CATEGORY: Final = "category"
BRAND: Final = "brand"
PRICE: Final = "price"
ATTRIBUTES: Final = "attributes"
AVAILABLE: Final = "available"
CREATED_AT: Final = "created_at"
VALID_FROM: Final = "valid_from"  # when the version became true; it was learnt at RECEIVED_AT
SIGNED_UP_AT: Final = "signed_up_at"
COUNTRY: Final = "country"
AGE_BAND: Final = "age_band"

# impressions: one row per item shown
RANK: Final = "rank"
SHOWN_AT: Final = "shown_at"
MODEL_VERSION: Final = "model_version"
VARIANT: Final = "variant"
SURFACE: Final = "surface"  # where it was shown: home, similar, ...
RUNG: Final = "rung"  # of the fallback ladder that the answer stood on
SOURCES: Final = "sources"
SCORE: Final = "score"
PROPENSITY: Final = "propensity"
FEATURE_VALUES: Final = "feature_values"
NOTHING: Final = "(nothing)"  # item_id of an answer that showed no item; its rank is 0
SEEN_RANK: Final = -1  # of a row that says that a place came into view, at `shown_at`
SEEN_AT: Final = "seen_at"  # when the service learnt that a place came into view

# quarantine: one row per rejected row, beside the canonical columns that could be read
REASONS: Final = "reasons"
RAW: Final = "raw"
SOURCE_ROW: Final = "source_row"

# feature marts
AS_OF: Final = "as_of"  # the row holds what was true and known strictly before this instant
AVAILABLE_AT: Final = "available_at"  # when the row could first have been used
OTHER_ITEM_ID: Final = "other_item_id"  # an item beside another, in pairs of items

# training tables
SOURCE: Final = "source"
LABEL: Final = "label"  # graded relevance, 0 for a candidate the user ignored
WINDOW: Final = "window"

# event types, weakest first
VIEW: Final = "view"
CLICK: Final = "click"
ADD_TO_CART: Final = "add_to_cart"
PURCHASE: Final = "purchase"
RATING: Final = "rating"
SEEN: Final = "seen"  # said of a place of an answer; it is of the impression log, and no event
EVENT_TYPES: Final = (VIEW, CLICK, ADD_TO_CART, PURCHASE, RATING)
