"""A source file read once into sorted canonical Parquet, from which windows are sliced."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from pipelines import columns as c
from pipelines import config, publish
from pipelines.config import Home
from pipelines.errors import SourceError
from pipelines.sources import events, mapping, movielens, online_retail, opened, retailrocket, table
from pipelines.sources.files import Place
from pipelines.sources.request import Request, Source
from pipelines.window import utc

FORMAT: Final = 2  # raise it when a reader changes what it makes of the same bytes


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
    """Return the source of a request in canonical form, reading it if these very files were not read before.

    Raises:
        SourceError: a file is missing, refused or damaged, or no row has a readable time.
        MappingError: the mapping is wrong or does not fit.
    """
    if request.path is None:
        raise SourceError(f"source {request.source}", found="no path", allowed="where the data lies", hint="add --path FILE")
    if (request.mapping is None) is (request.source is Source.TABLE):
        wanted = "a mapping, --map mapping.yml" if request.mapping is None else "no mapping: this source has its own"
        raise SourceError(
            f"source {request.source}", found="no mapping" if request.mapping is None else str(request.mapping), allowed=wanted
        )
    limits = config.resolve(home, str(request.source), {}).sources
    place = Place(request.path, limits)
    origin = _origin(request, place)
    folder = home.landing / "_normalised" / _identity(request, place, origin.mapping)
    if not (folder / publish.MANIFEST).is_file():
        facts: dict[str, Any] = {"settings": origin.mapping.settings}
        with publish.folder(folder, facts) as temporary:
            workspace = temporary / "workspace"
            workspace.mkdir()
            with opened.connect(temporary, place.parquet_files(), limits) as connection:
                reading = opened.Reading(connection, place, origin.mapping, workspace, temporary, limits)
                _write(reading, origin)
                facts |= _ends(reading)
            shutil.rmtree(workspace)
            shutil.rmtree(temporary / "spill", ignore_errors=True)
    facts = publish.manifest(folder).facts
    return Normalised(folder, utc(facts["first"]), utc(facts["last"]), facts["settings"])


def _origin(request: Request, place: Place) -> table.Origin:
    if request.source is Source.ONLINE_RETAIL:
        return online_retail.origin()
    if request.source is Source.MOVIELENS:
        return movielens.origin(place)
    if request.source is Source.RETAILROCKET:
        return retailrocket.origin(place)
    assert request.mapping is not None  # noqa: S101  checked before
    return table.Origin(mapping.load(request.mapping))


def _identity(request: Request, place: Place, how: mapping.Mapping) -> str:
    """Return a digest of what would be read: the files as they are now, and how."""
    seen = hashlib.sha256(f"{FORMAT} {request.source} {how.model_dump_json()}\n".encode())
    patterns = [pattern for spec in how.files.values() for pattern in spec.path]
    entries = {entry for pattern in patterns for entry in place.find(pattern)} | set([] if patterns else place.tables())
    for file in sorted({entry.path for entry in entries}):
        state = file.stat()
        seen.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return seen.hexdigest()[:16]


def _write(reading: opened.Reading, origin: table.Origin) -> None:
    try:
        events.write_events(reading)
        origin.items(reading)
        origin.users(reading)
    except duckdb.Error as error:
        raise SourceError(
            str(reading.place.root),
            found=f"it cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint="more memory or disk for DuckDB: sources.memory_limit in reloop.toml"
            if isinstance(error, duckdb.OutOfMemoryException)
            else "",
        ) from error


def _ends(reading: opened.Reading) -> dict[str, Any]:
    """Return the first and last moment of the events, as facts."""
    file = str(reading.folder / "events.parquet")
    ends = reading.connection.execute(
        f"SELECT min({c.RECEIVED_AT})::VARCHAR, max({c.RECEIVED_AT})::VARCHAR FROM read_parquet($file)", {"file": file}
    ).fetchone()
    if not ends or ends[0] is None:
        raise SourceError(str(reading.place.root), found="no row with a readable time", allowed="at least one")
    return {"first": utc(ends[0]).isoformat(), "last": utc(ends[1]).isoformat()}
