"""A source file read once into sorted canonical Parquet, from which windows are sliced."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.config import Home
from pipelines.errors import SourceError
from pipelines.sources.request import Request


@dataclass(frozen=True)
class Normalised:
    """A source in canonical form.

    Attributes:
        folder: events.parquet sorted by received_at, items.parquet and users.parquet by valid_from; nulls first.
        first, last: the earliest and the latest readable received_at.
        settings: the settings section of the mapping that was used.
    """

    folder: Path
    first: datetime
    last: datetime
    settings: dict[str, Any]


def normalised(home: Home, request: Request) -> Normalised:
    """Return the source of a request in canonical form, reading it if that was not done before."""
    raise SourceError(str(request.source), found=f"no reader yet for {request.path} under {home.root}")
