"""Rows of text on their way into columns, and what is kept of those that are none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

ROW: Final = "_row"  # 0-based position in the source
BAD: Final = "_bad"  # why a row could not be told apart; then _text holds it
TEXT: Final = "_text"
CHUNK: Final = 1 << 15

Row = list[str]


@dataclass(frozen=True)
class Chunk:
    """Some rows, each with a field for every column; `bad` tells of those that are none: position -> (reason, the row as text)."""

    rows: list[Row]
    bad: dict[int, tuple[str, str]]


def schema(width: int) -> pa.Schema:
    """Return the schema of a raw table: its columns are called c0, c1, ..."""
    return pa.schema([(ROW, pa.int64()), (BAD, pa.string()), (TEXT, pa.string()), *((f"c{n}", pa.string()) for n in range(width))])


def as_table(chunk: Chunk, first: int) -> pa.Table:
    """Return a chunk of rows as a raw table; rows that are no Unicode go to _text with their bytes escaped."""
    try:
        return _columns(chunk, first)
    except UnicodeEncodeError:
        for position, row in enumerate(chunk.rows):
            text = chunk.bad[position][1] if position in chunk.bad else json.dumps(row, ensure_ascii=False)
            try:
                text.encode()
            except UnicodeEncodeError:
                chunk.bad[position] = ("unreadable text", text.encode("utf-8", "backslashreplace").decode())
                chunk.rows[position] = [""] * len(row)
        return _columns(chunk, first)


def _columns(chunk: Chunk, first: int) -> pa.Table:
    count = len(chunk.rows)
    bad, text = pa.nulls(count, pa.string()), pa.nulls(count, pa.string())
    if chunk.bad:
        bad, text = (pa.array([chunk.bad.get(n, (None, None))[part] for n in range(count)], pa.string()) for part in (0, 1))
    values = [pa.array(column, pa.string()) for column in zip(*chunk.rows, strict=True)]
    return numbered(values, bad, text, first)


def numbered(values: list[pa.Array], bad: pa.Array, text: pa.Array, first: int) -> pa.Table:
    """Return columns as a raw table whose first row has the number `first`."""
    numbers = pa.array(np.arange(first, first + len(bad), dtype=np.int64))
    return pa.Table.from_arrays([numbers, bad, text, *values], schema=schema(len(values)))
