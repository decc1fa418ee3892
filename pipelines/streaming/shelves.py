"""Which category an item was known to have at a moment, from the versions in the lake."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from pipelines import columns as c
from pipelines import lake
from pipelines.config import Home
from pipelines.streaming.session import SessionEvent


class Shelves:
    """The categories of all items over time; follows the lake as it grows.

    A version counts from the moment it is both valid and received; one that becomes known after a
    newer one changes nothing. That is `known_versions` of dbt/macros/versions.sql.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._head = -1
        self._known: dict[str, tuple[list[int], list[str | None]]] = {}

    def refresh(self) -> None:
        """Read the items again if the lake has changed since they were read."""
        if (head := lake.head(self._home)) != self._head:
            self._known, self._head = self._read(), head

    def _read(self) -> dict[str, tuple[list[int], list[str | None]]]:
        engine = lake.connect(self._home)
        try:
            names = {row[0] for row in engine.execute("SELECT column_name FROM (DESCRIBE items)").fetchall()}
            received = c.RECEIVED_AT if c.RECEIVED_AT in names else c.VALID_FROM
            rows = engine.execute(
                f"SELECT {c.ITEM_ID}, epoch_us({c.VALID_FROM}), epoch_us(greatest({c.VALID_FROM}, {received})) AS holds_from, {c.CATEGORY}"
                f" FROM items ORDER BY {c.ITEM_ID}, holds_from, {c.VALID_FROM}, {received}"
            ).fetchall()
        finally:
            engine.close()
        known: dict[str, tuple[list[int], list[str | None]]] = {}
        newest: dict[str, int] = {}
        for item, valid_from, holds_from, category in rows:
            if valid_from >= newest.get(item, valid_from):
                newest[item] = valid_from
                moments, categories = known.setdefault(item, ([], []))
                moments.append(holds_from)
                categories.append(category)
        return known

    def category(self, item_id: str, event_us: int) -> str | None:
        """Return the category of an item at a moment; None where the item or its category was not known then."""
        moments, categories = self._known.get(item_id, ((), ()))
        place = bisect_right(moments, event_us)
        return categories[place - 1] if place else None

    def place(self, events: Sequence[SessionEvent]) -> list[SessionEvent]:
        """Return events with the categories that their items had when they happened."""
        return [event._replace(category=self.category(event.item_id, event.event_us)) for event in events]
