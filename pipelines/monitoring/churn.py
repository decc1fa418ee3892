"""How much of the catalogue the champion has never met, and how much of what it knows is gone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import duckdb

from pipelines import columns as c
from pipelines import lake
from pipelines.config import Home
from pipelines.window import utc

SOLD_DAYS: Final = 28  # an item with an event this lately is in the shop, where no catalogue says so


@dataclass(frozen=True)
class Churn:
    """What became of the catalogue between two moments.

    Attributes:
        since: the moment up to which the champion's sources knew the shop.
        there, there_then: items for sale now and then.
        new: of those now, how many were unknown then; gone: of those then, how many are no longer for sale.
        attention: share of the last week's events that fell on items unknown then.
    """

    since: datetime
    there: int
    there_then: int
    new: int
    gone: int
    attention: float

    @property
    def share(self) -> float:
        """Return the larger of the shares of items that are new and that are gone; NaN where nothing was or is for sale."""
        if not (self.there > 0 and self.there_then > 0):
            return float("nan")
        return max(self.new / self.there, self.gone / self.there_then)

    def says(self) -> str:
        """Return it as a sentence."""
        return (
            f"of {self.there} items {self.new} are new since {self.since:%Y-%m-%d}, of {self.there_then} then {self.gone} are gone;"
            f" {self.attention:.0%} of last week's events fell on new ones"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"since": self.since.isoformat(), "share": self.share if self.share >= 0 else None}


def measure(home: Home, since: datetime, as_of: datetime) -> Churn:
    """Compare the catalogue as it was known at two moments."""
    with lake.connect(home, before=as_of) as db:
        now, then = _there(db, as_of), _there(db, since)
        met = {
            item
            for (item,) in db.execute(f"SELECT DISTINCT {c.ITEM_ID} FROM events WHERE {_known(c.EVENT_AT)}", [utc(since)] * 2).fetchall()
        }
        met |= {
            item
            for (item,) in db.execute(f"SELECT DISTINCT {c.ITEM_ID} FROM items WHERE {_known(c.VALID_FROM)}", [utc(since)] * 2).fetchall()
        }
        week = dict(
            db.execute(
                f"SELECT {c.ITEM_ID}, count(*) FROM events WHERE {c.EVENT_AT} >= ? GROUP BY 1", [utc(as_of) - timedelta(days=7)]
            ).fetchall()
        )
    unknown = sum(n for item, n in week.items() if item not in met)
    return Churn(utc(since), len(now), len(then), len(now - met), len(then - now), unknown / max(sum(week.values()), 1))


def _known(column: str) -> str:
    return f"{column} < ? AND coalesce({c.RECEIVED_AT}, {column}) < ?"


def _there(db: duckdb.DuckDBPyConnection, moment: datetime) -> set[str]:
    """Return the items for sale at a moment: by the catalogue where it says so, else those that lately sold or were looked at."""
    said = db.execute(
        f"""SELECT {c.ITEM_ID}, arg_max({c.AVAILABLE}, struct_pack({c.VALID_FROM}, {c.RECEIVED_AT})) FROM items
        WHERE {_known(c.VALID_FROM)} GROUP BY 1""",
        [utc(moment)] * 2,
    ).fetchall()
    if any(available is not None for _, available in said):
        return {item for item, available in said if available is not False}
    lately = db.execute(
        f"SELECT DISTINCT {c.ITEM_ID} FROM events WHERE {_known(c.EVENT_AT)} AND {c.EVENT_AT} >= ?",
        [utc(moment), utc(moment), utc(moment) - timedelta(days=SOLD_DAYS)],
    ).fetchall()
    return {item for (item,) in lately}
