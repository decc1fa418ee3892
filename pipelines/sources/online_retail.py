"""UCI Online Retail: a year of invoices of a UK gift wholesaler, as dirty as real data is.

Decisions, each because the file leaves it open:

- Times have no zone. The shop is in the UK, so they are Europe/London; in summer an invoice of
  10:00 happened at 09:00 UTC.
- `85123a` and `85123A` are one product: stock codes are compared in upper case.
- A product code is five digits and up to two letters, or one of the shop's own gift sets (DCGS...,
  PADS). Postage, bank charges, samples, manual corrections and vouchers are none.
- Every line that is not a sale of a product to a known customer goes to quarantine, under the first
  reason that holds: cancellation, negative_quantity, non_product_code, zero_price, missing_user.
- Exact repeats are one event: that is judged when rows are validated, here every row is kept.
- A product's title is the description most often seen so far, its price the one most often paid on
  the day; a version holds from the sale that proved it, so nothing leaks back.
"""

from __future__ import annotations

from typing import Any, Final

from pipelines import columns as c
from pipelines.sources import mapping
from pipelines.sources.entities import changes
from pipelines.sources.expressions import literal
from pipelines.sources.opened import Reading
from pipelines.sources.table import Origin

# What the thing is, as against what it looks like: the last such word of a title is its category.
NOUNS: Final = (
    "ALBUM", "APRON", "ASHTRAY", "BAG", "BANNER", "BASKET", "BATH", "BELL", "BIN", "BIRDHOUSE", "BOOK", "BOTTLE", "BOWL", "BOX", "BRACELET",
    "BROOCH", "BUNTING", "CABINET", "CAKESTAND", "CANDLE", "CARD", "CASE", "CHAIN", "CHALK", "CHARM", "CHIME", "CLOCK", "COASTER", "COVER",
    "CUP", "CUSHION", "CUTLERY", "DECORATION", "DISH", "DOILY", "DOLL", "DOORMAT", "DRAWER", "EARRINGS", "EGG", "FAN", "FRAME", "GAME",
    "GARLAND", "GLASS", "HANGER", "HOLDER", "HOOK", "INCENSE", "JAR", "JIGSAW", "JUG", "KEY", "KIT", "KNOB", "LADDER", "LAMP", "LANTERN",
    "LIGHT", "MAGNET", "MAT", "MIRROR", "MUG", "NAPKIN", "NECKLACE", "NOTEBOOK", "ORNAMENT", "PAPER", "PARASOL", "PEN", "PENCIL", "PHOTO",
    "PLANTER", "PLASTER", "PLATE", "POT", "PURSE", "RACK", "RIBBON", "RING", "RUG", "SCARF", "SHELF", "SHOPPER", "SIGN", "SOAP", "SPOON",
    "STAND", "STICKER", "STOOL", "STRAW", "TABLE", "TAPE", "TEAPOT", "TIN", "TISSUE", "TOWEL", "TOY", "TRAY", "TREE", "UMBRELLA", "VASE",
    "WARMER", "WRAP", "WREATH",
)  # fmt: skip
PRODUCT: Final = r"(?i)^(\d{5}[a-z]{0,2}|DCGS.*|PADS)$"


def origin() -> Origin:
    """Return how the file is read."""
    content: dict[str, Any] = {
        "events": {
            "user_id": "CustomerID",
            "item_id": {"column": "StockCode", "case": "upper"},
            "session_id": "InvoiceNo",
            "event_type": {"constant": c.PURCHASE},
            "event_at": {"column": "InvoiceDate", "format": ["%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M:%S"], "zone": "Europe/London"},
            "value": ["Quantity", "UnitPrice"],
            "quantity": "Quantity",
            "skip": [
                {"column": "InvoiceNo", "matches": "^[Cc]", "reason": "cancellation"},
                {"column": "Quantity", "below": 0, "reason": "negative_quantity"},
                {"column": "StockCode", "lacks": PRODUCT, "reason": "non_product_code"},
                {"column": "UnitPrice", "at_most": 0, "reason": "zero_price"},
                {"column": "CustomerID", "missing": True, "reason": "missing_user"},
            ],
        },
        "users": {"user_id": "CustomerID", "country": "Country"},
    }
    return Origin(mapping.parse(content, "online-retail"), items=_write_items)


def _write_items(reading: Reading) -> None:
    """Write product versions: one at a product's first sale, then one at the last sale of each day that changed something."""
    scope = reading.event_scope
    title = f"upper({scope.column('Description', 'title').sql})"
    price = f"try_cast({scope.column('UnitPrice', 'price').sql} AS DOUBLE)"
    sales = (
        f"SELECT {c.ITEM_ID}, {c.RECEIVED_AT} AS {c.VALID_FROM}, {c.SOURCE_ROW}, {title} AS said, {price} AS paid"
        f" FROM ({reading.event_rows}) WHERE len({c.REASONS}) = 0 AND {c.ITEM_ID} IS NOT NULL"
    )
    in_order = f"ORDER BY {c.VALID_FROM}, {c.SOURCE_ROW} ROWS UNBOUNDED PRECEDING"
    same_day = f"PARTITION BY {c.ITEM_ID}, date_trunc('day', {c.VALID_FROM})"
    counted = (
        f"SELECT *, count(said) OVER (PARTITION BY {c.ITEM_ID}, said {in_order}) AS said_times,"
        f" count(*) OVER ({same_day}, paid {in_order}) AS paid_times, row_number() OVER (PARTITION BY {c.ITEM_ID} {in_order}) AS nth FROM ({sales})"
    )
    # Among equals the largest text or price wins: any rule will do that does not depend on threads.
    usual = (
        f"SELECT *, max(CASE WHEN said IS NOT NULL THEN {{'n': said_times, 'x': said}} END) OVER (PARTITION BY {c.ITEM_ID} {in_order}) AS usual_title,"
        f" max({{'n': paid_times, 'x': paid}}) OVER ({same_day} {in_order}) AS usual_price FROM ({counted})"
    )
    last = f"row_number() OVER ({same_day} ORDER BY {c.VALID_FROM} DESC, {c.SOURCE_ROW} DESC) = 1"
    pattern = r".*\b(" + "|".join(NOUNS) + r")(?:E?S)?\b"
    noun = f"nullif(regexp_extract(usual_title.x, {literal(pattern)}, 1), '')"
    states = (
        f"SELECT {c.ITEM_ID}, {c.VALID_FROM}, {c.SOURCE_ROW}, usual_title.x AS {c.TITLE}, {noun} AS {c.CATEGORY}, usual_price.x AS {c.PRICE}"
        f" FROM ({usual}) QUALIFY nth = 1 OR {last}"
    )
    lacking = ", ".join(f"NULL AS {name}" for name in (c.BRAND, c.ATTRIBUTES, c.AVAILABLE, c.CREATED_AT))
    query = f"SELECT *, {lacking} FROM ({changes(states, c.ITEM_ID, [c.TITLE, c.CATEGORY, c.PRICE])})"
    reading.write("items", query, f"{c.VALID_FROM} NULLS FIRST, {c.ITEM_ID}, {c.SOURCE_ROW}")
