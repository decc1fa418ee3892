"""What can befall the simulated shop: faults break what it sends for a day, shifts change the world from a day on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Generic, TypeVar

from pipelines.errors import SourceError


class Fault(StrEnum):
    """A defect of the data sent for one day; the world behind it is unchanged."""

    SCHEMA_CHANGE = "schema_change"
    NULLS = "nulls"
    DUPLICATES = "duplicates"
    LATE = "late"
    OUT_OF_ORDER = "out_of_order"
    PRICE_IN_CENTS = "price_in_cents"
    BOT_BURST = "bot_burst"
    VOLUME_DROP = "volume_drop"
    ENUM_ADD = "enum_add"
    FUTURE_CLOCK = "future_clock"

    @property
    def description(self) -> str:
        """Return what the fault does, in one sentence."""
        return _FAULTS[self]


class Shift(StrEnum):
    """A change of the world that starts on a day and stays."""

    TASTE_SHIFT = "taste_shift"
    CATALOGUE_CHURN = "catalogue_churn"
    TRAFFIC_MIX = "traffic_mix"

    @property
    def description(self) -> str:
        """Return what the shift does, in one sentence."""
        return _SHIFTS[self]


_FAULTS = {
    Fault.SCHEMA_CHANGE: "The column item_id is sent as product_id and the column device is gone.",
    Fault.NULLS: "30% of the rows lack their user_id or their item_id.",
    Fault.DUPLICATES: "10% of the rows are sent twice.",
    Fault.LATE: "20% of the rows are received two to six days after they happened.",
    Fault.OUT_OF_ORDER: "The rows are sent in random order, half of them received up to three hours after their turn.",
    Fault.PRICE_IN_CENTS: "The value of every purchase is in cents, a hundred times too large.",
    Fault.BOT_BURST: "Three users send thousands of views, two a second.",
    Fault.VOLUME_DROP: "Half of the rows never arrive.",
    Fault.ENUM_ADD: "5% of the views are sent under the unknown event type wishlist.",
    Fault.FUTURE_CLOCK: "2% of the rows carry an event_at one to thirty days after they were received.",
}

_SHIFTS = {
    Shift.TASTE_SHIFT: "Everybody's taste turns, towards one fashion and towards cheaper items.",
    Shift.CATALOGUE_CHURN: "A quarter of the items is replaced at once; from then on launches and retirements are four times as frequent.",
    Shift.TRAFFIC_MIX: "Four times as many people sign up, from new countries, and most sessions move to the app.",
}

_Name = TypeVar("_Name", bound=StrEnum)


@dataclass(frozen=True, order=True)
class Incident(Generic[_Name]):
    """A named fault or shift and its (first) day."""

    day: date
    name: _Name


def parse(kind: type[_Name], texts: Iterable[str]) -> tuple[Incident[_Name], ...]:
    """Return the incidents written as `name@YYYY-MM-DD`, ordered by day and name, repetitions dropped.

    >>> parse(Fault, ["nulls@2025-02-03"])[0].day
    datetime.date(2025, 2, 3)

    Raises:
        SourceError: a text is not of that form, the name is none of `kind`, or there is no such day.
    """
    thing = kind.__name__.lower()
    found = set()
    for text in texts:
        name, at, day = text.partition("@")
        if not at:
            raise SourceError(
                f"{thing} {text!r}", found="no @", allowed="name@YYYY-MM-DD", hint=f"for example {next(iter(kind))}@2025-02-03"
            )
        if name not in list(kind):
            raise SourceError(f"{thing} {text!r}", found=f"the name {name!r}", allowed=f"one of {[str(member) for member in kind]}")
        try:
            found.add(Incident(date.fromisoformat(day), kind(name)))
        except ValueError as error:
            raise SourceError(f"{thing} {text!r}", found=f"the day {day!r}", allowed="a day of the calendar, YYYY-MM-DD") from error
    return tuple(sorted(found))
