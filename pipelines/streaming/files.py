"""Events in a file, for a bus: a day played again, or what another system wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import SourceError


def events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a Parquet or JSON-lines file as they stand there, a batch in memory at a time.

    Raises:
        SourceError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise SourceError(str(path), found="no such file", allowed="a Parquet or JSON-lines file of events")
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(10_000):
                    yield from batch.to_pylist()
            return
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise SourceError(f"{path} line {number}", found=type(event).__name__, allowed="one JSON object a line")
                yield event
    except (pa.ArrowInvalid, ValueError) as error:
        raise SourceError(str(path), found=str(error), allowed="a Parquet file, or one JSON object a line") from error
