"""JSON lines: one object a line, nested keys with dots between them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pipelines.config import SourceSettings
from pipelines.errors import SourceError
from pipelines.sources.files import Entry
from pipelines.sources.rows import CHUNK, Chunk


def _flat(value: dict[str, Any], under: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of an object as (dotted name, value); what lies deeper than three levels stays JSON."""
    for key, inner in value.items():
        if isinstance(inner, dict) and depth < 3:
            yield from _flat(inner, f"{under}{key}.", depth + 1)
        else:
            yield f"{under}{key}", inner


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return dict(_flat(found)) if isinstance(found, dict) else None


def _lines(entry: Entry, limits: SourceSettings) -> Iterator[str]:
    with entry.open(limits) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape") as text:
        while line := text.readline(limits.max_value_bytes + 1):
            if len(line) > limits.max_value_bytes:
                raise SourceError(entry.name, found=f"a line longer than {limits.max_value_bytes:,}", allowed="one JSON object a line")
            if line.strip():
                yield line


def names(entries: list[Entry], limits: SourceSettings) -> list[str]:
    """Return the keys of the first objects of every file, in order of appearance."""
    found: dict[str, None] = {}
    for entry in entries:
        for line in islice(_lines(entry, limits), CHUNK):
            found |= dict.fromkeys(_parsed(line) or {})
    if not found:
        raise SourceError(entries[0].name, found="no JSON object", allowed="one JSON object a line")
    return list(found)


def chunks(entry: Entry, columns: list[str], limits: SourceSettings) -> Iterator[Chunk]:
    """Yield the rows of a file with their values in the order of `columns`; keys not among them are left."""
    lines = _lines(entry, limits)
    while chunk := list(islice(lines, CHUNK)):
        parsed = [_parsed(line) for line in chunk]
        bad = {n: ("unreadable row", chunk[n].rstrip("\r\n")) for n, found in enumerate(parsed) if found is None}
        yield Chunk([[_scalar((found or {}).get(name)) for name in columns] for found in parsed], bad)


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
