"""Small files, mapped and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.config import Home
from pipelines.sources import normalising
from pipelines.sources.request import Request, Source

Rows = list[dict[str, Any]]
ReadTable = Callable[..., dict[str, Rows]]

VIEWS = {"user_id": "user", "item_id": "item", "event_type": {"constant": "view"}, "event_at": "at"}
THREE = "user,item,at\nann,apple,2024-03-01T10:00:00Z\nbob,pear,2024-03-02T10:00:00Z\nann,plum,2024-03-03T10:00:00Z\n"


def at(text: str) -> datetime:
    """Return a moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def column(rows: Rows, name: str) -> list[Any]:
    """Return one column of some rows."""
    return [row[name] for row in rows]


def table(folder: Path, name: str, keep: Iterable[str] | None = None) -> Rows:
    """Return the rows of one table of a batch or of a normalised source, of some columns if named."""
    return pq.read_table(folder / f"{name}.parquet", columns=None if keep is None else list(keep)).to_pylist()


@pytest.fixture
def read_table(home: Home, tmp_path: Path) -> ReadTable:
    """Return a function that writes files, reads them through a mapping, and returns events, items and users as rows."""

    def read(files: Mapping[str, str | bytes], mapping: dict[str, Any] | str, path: str | None = None) -> dict[str, Rows]:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        mapped = tmp_path / "mapping.yml"
        mapped.write_text(mapping if isinstance(mapping, str) else yaml.safe_dump(mapping, sort_keys=False))
        only = next(iter(files)) if len(files) == 1 else "."
        found = normalising.normalised(home, Request(source=Source.TABLE, path=folder / (path or only), mapping=mapped))
        return {name: table(found.folder, name) for name in ("events", "items", "users")}

    return read
