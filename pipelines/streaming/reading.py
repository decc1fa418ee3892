"""Messages to events: decoded, judged by the rules of the lake, parted into what may enter and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import duckdb
import pyarrow as pa

from pipelines import columns as c
from pipelines import tables
from pipelines.config import ValidationSettings
from pipelines.streaming.bus import Message
from pipelines.validation.judging import reasons
from pipelines.validation.row_rules import MAX_ID_LENGTH, table_rules

TIMES: Final = (c.EVENT_AT, c.RECEIVED_AT)
NUMBERS: Final = (c.VALUE, c.QUANTITY)
IDS: Final = (c.EVENT_ID, c.USER_ID, c.ITEM_ID)
CONTROL: Final = re.compile("[\x00-\x1f\x7f]")
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
STAGED: Final = tables.staged("events")


@dataclass(frozen=True)
class Judged:
    """The messages of one delivery, in order.

    Attributes:
        accepted: (message, row in the canonical columns).
        refused: (message, row in the staged columns, its `reasons` filled).
    """

    accepted: list[tuple[Message, dict[str, Any]]]
    refused: list[tuple[Message, dict[str, Any]]]


class Judge:
    """Decodes and judges; holds the DuckDB in which the rules run, so an instance belongs to one thread.

    One rule is the stream's own: no event happened or was received after the bus took it. The rules of the
    lake believe what an event says of its receipt, and a session that once reaches the year 2060 stays there.
    """

    def __init__(self, settings: ValidationSettings) -> None:
        self._engine = duckdb.connect(config={"threads": "1"})
        self._settings = settings
        said = reasons(table_rules(settings)["events"])
        self._future = timedelta(minutes=settings.max_future_minutes)
        self._query = f"SELECT {said} AS reasons FROM staged ORDER BY {c.SOURCE_ROW}"

    def judge(self, messages: Sequence[Message]) -> Judged:
        """Return the fate of every message; nothing is dropped."""
        rows = [decoded(message, position) for position, message in enumerate(messages)]
        judged = Judged([], [])
        doubtful = [row for row in rows if not plain(row, self._settings)]
        found = dict(zip((row[c.SOURCE_ROW] for row in doubtful), self._reasons(doubtful), strict=True))
        for message, row in zip(messages, rows, strict=True):
            if wrong := [*found.get(row[c.SOURCE_ROW], ()), *self._ahead(message, row)]:
                judged.refused.append((message, {**row, c.REASONS: wrong}))
            else:
                judged.accepted.append((message, {name: row[name] for name in tables.EVENTS.names}))
        return judged

    def _reasons(self, rows: list[dict[str, Any]]) -> list[list[str]]:
        """Return why each row is refused, in order, by the rules of the lake; planning them costs 9 ms of processor time, however few the rows."""
        if not rows:
            return []
        self._engine.register("staged", pa.Table.from_pylist(rows, schema=STAGED))
        found = self._engine.execute(self._query).fetchall()
        self._engine.unregister("staged")
        return [said for (said,) in found]

    def _ahead(self, message: Message, row: dict[str, Any]) -> list[str]:
        """Return which times of an event are after the bus took it, by the bus' clock, and by how much they may be."""
        if not message.published_us:  # a bus that keeps no time
            return []
        latest = taken(message) + self._future
        minutes = self._future.total_seconds() / 60
        return [f"{name} is more than {minutes:g} minutes after the bus took it" for name in TIMES if row[name] and row[name] > latest]

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


def plain(row: Mapping[str, Any], settings: ValidationSettings) -> bool:
    """Tell whether a staged row is beyond doubt by the rules of the lake (`row_rules`); one of which this is false is judged by them."""
    event_at, received_at = row[c.EVENT_AT], row[c.RECEIVED_AT]
    return (
        not row[c.REASONS]
        and all(row[name] and len(row[name]) <= MAX_ID_LENGTH and not CONTROL.search(row[name]) for name in IDS)
        and row[c.EVENT_TYPE] in c.EVENT_TYPES
        and event_at is not None
        and received_at is not None
        and all(1990 <= moment.year < 2070 for moment in (event_at, received_at))
        and event_at <= received_at + timedelta(minutes=settings.max_future_minutes)
        and received_at <= event_at + timedelta(days=settings.max_lateness_days)
        and all(row[name] is None or row[name] >= 0 for name in NUMBERS)
    )


def decoded(message: Message, position: int) -> dict[str, Any]:
    """Return a message as a staged row; what could not be read is null, with the reason, and `raw` keeps the message."""
    row: dict[str, Any] = dict.fromkeys(STAGED.names)
    row |= {c.SOURCE_ROW: position, c.REASONS: []}
    try:
        event = json.loads(message.payload)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        row[c.REASONS] = ["the message is no JSON object"]
        row[c.RAW] = message.payload.decode("utf-8", "replace")
        return row
    for name in tables.EVENTS.names:
        value = event.get(name)
        if isinstance(value, str) and name not in TIMES:  # as the lake reads a cell
            value = value.strip(" ") or None
        if value is None:
            continue
        read = _moment(value) if name in TIMES else _number(value) if name in NUMBERS else _text(value)
        if read is None:
            row[c.REASONS].append(f"{name} could not be read: {str(value)[:80]!r}")
        row[name] = read
    if event.get(c.RECEIVED_AT) is None:  # the bus knows when it took the event, the same in every delivery
        row[c.RECEIVED_AT] = taken(message)
    if row[c.REASONS] or event.keys() - row.keys():
        row[c.RAW] = message.payload.decode("utf-8", "replace")
    return row


def taken(message: Message) -> datetime:
    """Return when the bus took a message."""
    return EPOCH + timedelta(microseconds=message.published_us)


def _moment(value: object) -> datetime | None:
    """Return an ISO 8601 time in UTC; one without a zone is none, for nobody says whose clock it was."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _number(value: object) -> float | None:
    """Return a number; `true` is none, and what JSON writes beyond a double is none either."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return number if math.isfinite(number := float(value)) else None
    except OverflowError:
        return None


def _text(value: object) -> str | None:
    """Return a string, if it is one that can be stored: no lone surrogates."""
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value
