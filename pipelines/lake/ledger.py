"""What each landing brought, in order: how a later stage learns which days to build again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

from pipelines.config import Home
from pipelines.lake.journal import recover

HEAD: Final = "_head.json"
LANDINGS: Final = "_landings"
FATES: Final = ("read", "accepted", "quarantined", "duplicates")


@dataclass(frozen=True)
class Landing:
    """One landing that changed the lake.

    Attributes:
        sequence: rises with every landing; ask `landings(home, after=the last one you worked in)`.
        shown: table -> the earliest UTC day on which a row that came or went was known (events:
            received; versions: received and valid): no feature row whose `as_of` is on or before
            its midnight can have changed.
    """

    sequence: int
    batch_id: str
    shown: dict[str, date]


@dataclass(frozen=True)
class LandingReport:
    """What one landing did; `rows` and `value` have the keys of `FATES`, and read is the sum of the others.

    Attributes:
        digest: identity of the judged batch; the same batch again is answered from the ledger.
        source: who the lake belongs to.
        window: [start, end] in ISO 8601, what was asked of the source; empty for tables that were handed over.
        rows: events by fate. `duplicates` counts those of the batch and those the lake already held.
        reasons: primary reason -> quarantined events.
        value: sum of `value` by fate, exact to six decimals a row.
        versions: new rows of items and users.
        replaced: events of the lake that yielded to the same event received earlier.
        touched: None, or [first received day, first event day, last event day] in ISO 8601.
        shown: items or users -> the first UTC day on which a version it brought was valid and received.
    """

    batch_id: str
    sequence: int
    digest: str
    source: str
    window: list[str]
    rows: dict[str, int]
    reasons: dict[str, int] = field(default_factory=dict)
    value: dict[str, float] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    replaced: int = 0
    touched: tuple[str, str, str] | None = None
    shown: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the figures a cycle's `ingest` record holds."""
        entry = asdict(self)
        return {key: entry[key] for key in ("source", "window", "rows", "reasons", "value", "versions", "replaced", "sequence")}


def entry_name(batch_id: str) -> str:
    """Return the ledger file of a batch, relative to the lake."""
    return f"{LANDINGS}/{batch_id}.json"


def read_entry(home: Home, batch_id: str) -> LandingReport | None:
    """Return what a batch did when it landed last, or None if it never did."""
    file = home.lake / entry_name(batch_id)
    return _parse(file) if file.is_file() else None


def head(home: Home) -> int:
    """Return the sequence number of the last landing; 0 for an empty lake."""
    recover(home)
    file = home.lake / HEAD
    return int(json.loads(file.read_text(encoding="utf-8"))["sequence"]) if file.is_file() else 0


def landings(home: Home, after: int = 0) -> list[Landing]:
    """Return the landings with a sequence number above `after` that changed something, in order."""
    if head(home) <= after:
        return []
    entries = [_parse(file) for file in (home.lake / LANDINGS).glob("*.json")]
    found = []
    for entry in entries:
        shown = {**({"events": entry.touched[0]} if entry.touched is not None else {}), **entry.shown}
        if shown and entry.sequence > after:
            found.append(Landing(entry.sequence, entry.batch_id, {table: date.fromisoformat(day) for table, day in shown.items()}))
    return sorted(found, key=lambda landing: landing.sequence)


def reports(home: Home) -> list[LandingReport]:
    """Return what every batch did when it landed last, in order of landing."""
    recover(home)
    return sorted((_parse(file) for file in (home.lake / LANDINGS).glob("*.json")), key=lambda report: report.sequence)


def _parse(file: Path) -> LandingReport:
    entry = json.loads(file.read_text(encoding="utf-8"))
    touched = entry.pop("touched")
    return LandingReport(**entry, touched=None if touched is None else (touched[0], touched[1], touched[2]))
