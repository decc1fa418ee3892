"""When a single row is refused, and the sentence that says so. The condition is SQL over a staged row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipelines import columns as c
from pipelines.config import ValidationSettings

LEARNT: Final = (
    f"coalesce({c.RECEIVED_AT}, {c.VALID_FROM})"  # when a version was; a correction has the moment it corrects and a time of its own
)
MAX_ID_LENGTH: Final = 256
EARLIEST, LATEST = "TIMESTAMPTZ '1990-01-01 00:00:00+00'", "TIMESTAMPTZ '2070-01-01 00:00:00+00'"
UNKNOWN_TYPE: Final = f"{c.EVENT_TYPE} is not one of {', '.join(c.EVENT_TYPES)}"


@dataclass(frozen=True)
class Rule:
    """One reason to refuse a row; `condition` is true for a row to refuse, and never null."""

    name: str
    condition: str
    reason: str


@dataclass(frozen=True)
class TableRules:
    """How the rows of one table are judged.

    Attributes:
        key: rows with the same key are the same row; the first of them is judged, the others are duplicates.
        first: columns that say which of them came first; the rest of the row breaks ties.
        rules: in order of precedence; the first that fires is a row's primary reason.
    """

    key: tuple[str, ...]
    first: tuple[str, ...]
    rules: tuple[Rule, ...]


def table_rules(settings: ValidationSettings) -> dict[str, TableRules]:
    """Return the rules of every table that enters the lake."""
    return {
        "events": TableRules((c.EVENT_ID,), (c.RECEIVED_AT,), _events(settings)),
        "items": TableRules((c.ITEM_ID, c.VALID_FROM, LEARNT), (), (*_id(c.ITEM_ID), *_amount(c.PRICE), *_time(c.VALID_FROM))),
        "users": TableRules((c.USER_ID, c.VALID_FROM, LEARNT), (), (*_id(c.USER_ID), *_time(c.VALID_FROM))),
        "impressions": TableRules((c.REQUEST_ID, c.ITEM_ID, f"coalesce({c.RANK} < 0, false)"), (c.SHOWN_AT,), _impressions()),
    }


def _events(settings: ValidationSettings) -> tuple[Rule, ...]:
    types = ", ".join(f"'{kind}'" for kind in c.EVENT_TYPES)
    future, late = settings.max_future_minutes, settings.max_lateness_days
    return (
        *_id(c.EVENT_ID),
        *_id(c.USER_ID),
        *_id(c.ITEM_ID),
        Rule("event_type_missing", f"{c.EVENT_TYPE} IS NULL", f"{c.EVENT_TYPE} is missing"),
        Rule("event_type_unknown", f"{c.EVENT_TYPE} NOT IN ({types})", UNKNOWN_TYPE),
        *_time(c.EVENT_AT),
        *_time(c.RECEIVED_AT),
        Rule(
            "in_the_future",
            f"{c.EVENT_AT} > {c.RECEIVED_AT} + to_microseconds({_micros(minutes=future)})",
            f"{c.EVENT_AT} is more than {future:g} minutes after {c.RECEIVED_AT}",
        ),
        Rule(
            "too_late",
            f"{c.RECEIVED_AT} > {c.EVENT_AT} + to_microseconds({_micros(minutes=late * 24 * 60)})",
            f"{c.RECEIVED_AT} is more than {late:g} days after {c.EVENT_AT}",
        ),
        *_amount(c.VALUE),
        *_amount(c.QUANTITY),
    )


def _impressions() -> tuple[Rule, ...]:
    return (
        *_id(c.REQUEST_ID),
        *_id(c.USER_ID),
        *_id(c.ITEM_ID),
        *_time(c.SHOWN_AT),
        Rule(
            "rank_missing",
            f"{c.RANK} IS NULL OR {c.RANK} < {c.SEEN_RANK} OR ({c.RANK} = 0) <> ({c.ITEM_ID} = '{c.NOTHING}')",
            f"{c.RANK} is missing or below 1",
        ),
        Rule("score_not_finite", f"NOT isfinite({c.SCORE})", f"{c.SCORE} is not a finite number"),
        Rule("propensity_impossible", f"NOT ({c.PROPENSITY} > 0 AND {c.PROPENSITY} <= 1)", f"{c.PROPENSITY} is not above 0 and at most 1"),
    )


def _id(column: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{column}_missing", f"{column} IS NULL OR {column} = ''", f"{column} is missing"),
        Rule(f"{column}_too_long", f"length({column}) > {MAX_ID_LENGTH}", f"{column} is longer than {MAX_ID_LENGTH} characters"),
        Rule(f"{column}_unprintable", f"regexp_matches({column}, '[\\x00-\\x1f\\x7f]')", f"{column} holds a control character"),
    )


def _time(column: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{column}_missing", f"{column} IS NULL", f"{column} is missing"),
        Rule(f"{column}_absurd", f"{column} < {EARLIEST} OR {column} >= {LATEST}", f"{column} is not between 1990 and 2069"),
    )


def _amount(column: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{column}_not_finite", f"NOT isfinite({column})", f"{column} is not a finite number"),
        Rule(f"{column}_negative", f"{column} < 0", f"{column} is negative"),
    )


def _micros(*, minutes: float) -> int:
    return round(minutes * 60_000_000)
