"""What we expect of data, as Great Expectations suites: one function a table, a severity on every expectation.

An expectation looks at one column of the measurements (`profile`, `feature_profile`), which DuckDB
took over every row; lines to which a check does not apply are null there, and skipped. `meta.says`
is the sentence for a person, filled from the worst line.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pipelines.config import ValidationSettings
from pipelines.validation.data_docs import gx, gxe
from pipelines.validation.profile import OFF_SCALE

Severity = Literal["critical", "warning", "info"]
LOW_VOLUME: Final = 0.6  # of a usual day: worth a look, even where history files make it no fault
HIGH_VOLUME: Final = 3.0
NEW_TYPE_SHARE: Final = 0.01  # a stray unknown type is the row's fault, one in a hundred rows is the schema's
NEW_CURRENCY: Final = 3.0  # a factor between prices that no season explains


def events(settings: ValidationSettings) -> gx.ExpectationSuite:
    """Return what a batch of events must be like to enter the lake."""
    sure = "critical" if settings.min_volume_share > 0 else "warning"
    return _suite(
        "events",
        _at_least("row_count", 1, sure, "events: the batch is empty, {count} rows"),
        *_shape("events", settings),
        _at_most(
            "conflicting_share",
            0.2,
            "critical",
            "events: {count} of {rows} rows ({share:.1%}) repeat an event_id with other content; allowed 20%. Is event_id unique in the source?",
        ),
        _at_most(
            "conflicting_share", 0.01, "warning", "events: {count} of {rows} rows ({share:.1%}) repeat an event_id with other content"
        ),
        _at_most(
            "reason_share_above_usual",
            settings.max_null_share,
            "critical",
            "events: {subject}, {count} of {rows} rows ({share:.1%}) on {day}; usual {usual:.1%}, allowed {limit:.0%} more",
        ),
        _at_most(
            "unknown_type_share_above_usual",
            NEW_TYPE_SHARE,
            "critical",
            "events: {subject} is new, column event_type, {count} of {rows} rows ({share:.1%}) on {day}; allowed {limit:.0%} more than usual",
        ),
        _at_least(
            "volume_share",
            settings.min_volume_share,
            "critical",
            "events: {count} rows with event_at on {day}, {value:.0%} of the usual {usual:.0f}; allowed {limit:.0%}",
        ),
        _at_least(
            "volume_share", LOW_VOLUME, "warning", "events: {count} rows with event_at on {day}, {value:.0%} of the usual {usual:.0f}"
        ),
        _at_most(
            "volume_share", HIGH_VOLUME, "warning", "events: {count} rows with event_at on {day}, {value:.0%} of the usual {usual:.0f}"
        ),
        *_prices("events"),
    )


def items(settings: ValidationSettings) -> gx.ExpectationSuite:
    """Return what a batch of item versions must be like."""
    return _suite("items", *_shape("items", settings), _one_version("items"), *_prices("items"))


def users(settings: ValidationSettings) -> gx.ExpectationSuite:
    """Return what a batch of user versions must be like."""
    return _suite("users", *_shape("users", settings), _one_version("users"))


def impressions(settings: ValidationSettings) -> gx.ExpectationSuite:
    """Return what a batch of the impression log must be like."""
    repeats = "impressions: {count} of {rows} rows ({share:.1%}) repeat a request and item with other content; one of each was taken"
    return _suite("impressions", *_shape("impressions", settings), _at_most("conflicting_share", 0, "warning", repeats))


def features(mart: str) -> gx.ExpectationSuite:
    """Return what the rows of a feature mart must be like on every day that was built."""
    # Only what has a row every day must have one: a source may lack categories and brands, two items may never meet,
    # and on a quiet day no session changes.
    empty = "critical" if mart in {"user_daily", "item_daily"} else "info"
    return _suite(
        f"features_{mart}",
        _at_most("not_built", 0, "critical", mart + ": {day} was not built"),
        _at_least("row_count", 1, empty, mart + ": no rows for {day}"),
        _at_most("null_keys", 0, "critical", mart + ": column {subject} is null in {count} of {rows} rows"),
        _at_most("repeated_keys", 0, "critical", mart + ": key ({subject}) repeats in {count} of {rows} rows"),
        _at_most("wrong_as_of", 0, "critical", mart + ": column {subject} is not {day} in {count} of {rows} rows"),
        _at_most("early_rows", 0, "critical", mart + ": column {subject} is before as_of in {count} of {rows} rows"),
        _at_most("not_finite", 0, "critical", mart + ": column {subject} is not finite in {count} of {rows} rows"),
        _at_most("negative", 0, "critical", mart + ": column {subject} is negative in {count} of {rows} rows"),
        _at_most("outside_unit", 0, "critical", mart + ": column {subject} is outside [0, 1] in {count} of {rows} rows"),
        _at_most("null_share", 0.99, "info", mart + ": column {subject} is null in {count} of {rows} rows ({share:.1%})"),
    )


def _shape(table: str, settings: ValidationSettings) -> list[gxe.Expectation]:
    """Return the expectations every table shares: its columns, its nulls, its quarantine."""
    # What an item or a user is like may be unknown; what happened may not.
    sparse = "critical" if table == "events" else "warning"
    return [
        gxe.ExpectColumnValuesToNotBeInSet(
            column="column",
            value_set=["missing"],
            severity="critical",
            meta={"check": "column", "says": table + ": column {subject!r} is missing, {count} of {rows} rows{beside}"},
        ),
        gxe.ExpectColumnValuesToNotBeInSet(
            column="column",
            value_set=["unknown", "missing, never filled"],
            severity="warning",
            meta={"check": "column", "says": table + ": column {subject!r} is {column}, {count} of {rows} rows"},
        ),
        _at_most(
            "null_share_above_usual",
            settings.max_null_share,
            sparse,
            table
            + ": column {subject!r} is null in {count} of {rows} rows ({share:.1%}) on {day}; usual {usual:.1%}, allowed {limit:.0%} more",
        ),
        _at_most(
            "quarantined_share",
            settings.max_quarantined_share,
            "critical",
            table + ": {count} of {rows} rows ({share:.1%}) are in quarantine; allowed {limit:.0%}. Most common: {common}",
        ),
    ]


def _one_version(table: str) -> gxe.Expectation:
    says = "{count} of {rows} rows ({share:.1%}) repeat an id and its valid_from with other content; one of each was taken"
    return _at_most("conflicting_share", 0, "warning", f"{table}: {says}")


def _prices(table: str) -> list[gxe.Expectation]:
    off = f"at least {OFF_SCALE:g} times off what the same items cost before"
    return [
        _at_most(
            "off_scale_share",
            0.1,
            "critical",
            table + ": column {subject!r} is " + off + " in {count} of {rows} rows ({share:.1%}) on {day}; has its unit changed?",
        ),
        _at_most(
            "price_factor",
            NEW_CURRENCY,
            "critical",
            table
            + ": column {subject!r} is typically {value:.1f} times off what the same items cost before, {rows} rows on {day}; another currency?",
        ),
    ]


def _at_most(column: str, limit: float, severity: str, says: str) -> gxe.Expectation:
    return gxe.ExpectColumnValuesToBeBetween(column=column, max_value=limit, severity=severity, meta=_meta(column, limit, says))


def _at_least(column: str, limit: float, severity: str, says: str) -> gxe.Expectation:
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=limit, severity=severity, meta=_meta(column, limit, says))


def _meta(column: str, limit: float, says: str) -> dict[str, Any]:
    return {"check": column, "limit": limit, "says": says}


def _suite(name: str, *expectations: gxe.Expectation) -> gx.ExpectationSuite:
    return gx.ExpectationSuite(name=name, expectations=list(expectations))
