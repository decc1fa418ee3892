"""The point-in-time join, worked out row by row from its definition: no index, no sort, no SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is asked of one view.

    Attributes:
        rows: every row of the source, in any order.
        keys: column of the source -> column of the entity rows.
        features: column of the source -> column of the answer.
        event, created: the source's columns of time; None if it does not say when a row was created.
    """

    rows: list[Row]
    keys: dict[str, str]
    features: dict[str, str]
    ttl: timedelta | None
    event: str = "event"
    created: str | None = "created"


def utc(moment: datetime) -> datetime:
    """A time without zone is UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def seen(asked: Asked, entity: Row, moment: datetime) -> Row:
    """Return the features of the view for one entity row."""
    best: tuple[Any, ...] | None = None
    for row in asked.rows:
        if any(entity[theirs] is None or row[ours] is None or row[ours] != entity[theirs] for ours, theirs in asked.keys.items()):
            continue
        if row[asked.event] is None or utc(row[asked.event]) > moment:  # had not happened
            continue
        if asked.created and (row[asked.created] is None or utc(row[asked.created]) > moment):  # was not known
            continue
        if asked.ttl and utc(row[asked.event]) < moment - asked.ttl:  # too old
            continue
        values = tuple((row[name] is not None, row[name]) if row[name] is not None else (False,) for name in asked.features)
        rank = (utc(row[asked.event]), utc(row[asked.created]) if asked.created else None, values)
        if best is None or _higher(rank, best[0]):
            best = (rank, row)
    return {theirs: best[1][ours] if best else None for ours, theirs in asked.features.items()}


def _higher(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Return whether a row ranks above another: by event, then by created, then by its features, null below all."""
    for mine, theirs in zip(one, other, strict=True):
        if mine != theirs:
            return bool(mine > theirs)
    return False


def joined(views: list[Asked], entities: list[Row], clock: str = "event_timestamp") -> list[Row]:
    """Return the entity rows with the features of every view."""
    answers = []
    for entity in entities:
        answer = dict(entity)
        for view in views:
            if entity[clock] is None:
                answer |= dict.fromkeys(view.features.values())
            else:
                answer |= seen(view, entity, utc(entity[clock]))
        answers.append(answer)
    return answers
