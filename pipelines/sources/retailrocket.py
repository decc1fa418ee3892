"""RetailRocket: the events.csv of the original, with its item properties where they lie beside it, and the sample of buyers."""

from __future__ import annotations

from typing import Any, Final

from pipelines import columns as c
from pipelines.errors import SourceError
from pipelines.sources import delimited, mapping
from pipelines.sources.entities import changes, write_items
from pipelines.sources.files import Place
from pipelines.sources.mapping import FileSpec
from pipelines.sources.opened import Reading
from pipelines.sources.table import Origin

WORDS: Final = {"view": c.VIEW, "cart": c.ADD_TO_CART, "addtocart": c.ADD_TO_CART, "buy": c.PURCHASE, "transaction": c.PURCHASE}
PROPERTIES: Final = "item_properties*.csv*"


def origin(place: Place) -> Origin:
    """Return how the events found are read; times are told apart by their size (the original has milliseconds).

    Raises:
        SourceError: no events file, or one with other columns.
    """
    name = place.only or place.find("events.csv*")[0].name
    header = delimited.header_names(name, FileSpec(), place.find(name), place.limits)
    user, item = ("visitorid", "itemid") if "visitorid" in header else ("user", "item")
    if missing := {"timestamp", "event", user, item} - set(header):
        raise SourceError(
            name,
            found=f"columns {header}",
            allowed="timestamp, visitorid, event, itemid (or user, item)",
            hint=f"{sorted(missing)} missing; use --source table with a mapping",
        )
    files: dict[str, Any] = {"events": {"path": name}}
    content: dict[str, Any] = {
        "files": files,
        "events": {
            "file": "events",
            "user_id": user,
            "item_id": item,
            "event_type": {"column": "event", "values": WORDS},
            "event_at": "timestamp",
        },
    }
    if place.has(PROPERTIES):
        files["properties"] = {"path": PROPERTIES}
        return Origin(mapping.parse(content, "retailrocket"), items=_write_properties)
    return Origin(mapping.parse(content, "retailrocket"), items=write_items)


def _write_properties(reading: Reading) -> None:
    """Write item versions: category and availability as they changed; the other properties are hashes without a meaning."""
    scope = reading.scope("items", "properties")
    item, name, value, at = (scope.column(key, key).sql for key in ("itemid", "property", "value", "timestamp"))
    moment = scope.moment(mapping.When(column="timestamp"), "timestamp")
    query = (
        f"SELECT {item} AS {c.ITEM_ID}, {moment} AS {c.VALID_FROM}, min(source_row) AS {c.SOURCE_ROW},"
        f" max(CASE WHEN {name} = 'categoryid' THEN {value} END) AS x_category, max(CASE WHEN {name} = 'available' THEN {value} = '1' END) AS x_available"
        f" FROM {reading.file('properties')[0]} WHERE {name} IN ('categoryid', 'available') AND {item} IS NOT NULL AND {at} IS NOT NULL GROUP BY 1, 2"
    )
    carried = ", ".join(f"last_value(x_{key} IGNORE NULLS) OVER seen AS {key}" for key in (c.CATEGORY, c.AVAILABLE))
    query = (
        f"SELECT {c.ITEM_ID}, {c.VALID_FROM}, {c.SOURCE_ROW}, {carried} FROM ({query})"
        f" WINDOW seen AS (PARTITION BY {c.ITEM_ID} ORDER BY {c.VALID_FROM} ROWS UNBOUNDED PRECEDING)"
    )
    lacking = ", ".join(f"NULL AS {name}" for name in (c.TITLE, c.BRAND, c.PRICE, c.ATTRIBUTES, c.CREATED_AT))
    query = f"SELECT *, {lacking} FROM ({changes(query, c.ITEM_ID, [c.CATEGORY, c.AVAILABLE])})"
    reading.write("items", query, f"{c.VALID_FROM} NULLS FIRST, {c.ITEM_ID}, {c.SOURCE_ROW}")
