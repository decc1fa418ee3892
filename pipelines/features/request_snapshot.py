"""What requests read without asking anybody: everybody's newest events and the catalogue, one folder of one moment, mapped.

    feast/requests/as_of=<moment>-<digest>/    the files of `history_snapshot` and `catalogue_snapshot`; never changes
    feast/requests/current.json                which folder is read; replaced in one step

Like the item snapshot: a reader has the old moment or the new one, whole, and any number of processes share one copy.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from pipelines import config, lake, publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features import catalogue_snapshot, history_snapshot
from pipelines.features.catalogue_snapshot import CatalogueSnapshot
from pipelines.features.history_snapshot import HistorySnapshot
from pipelines.window import floor_day, utc

POINTER: Final = "current.json"


@dataclass(frozen=True)
class RequestSnapshot:
    """One moment, mapped.

    Attributes:
        name: of its folder.
        as_of: everything in it happened and was received before.
    """

    name: str
    as_of: datetime
    histories: HistorySnapshot
    catalogue: CatalogueSnapshot


def folder(home: Home) -> Path:
    """Return where the snapshots of a state folder lie."""
    return home.feast / "requests"


def publish_snapshot(home: Home, as_of: datetime) -> Path:
    """Publish what had happened and was received before a moment, with the marts of its day; return the folder.

    The same lake gives the same bytes and the same folder. Killed anywhere, a reader keeps the old one. One process at a time
    (the features stage holds its lock).
    """
    settings, day = config.load(home), floor_day(as_of)
    building = folder(home) / "building"
    facts: dict[str, object] = {"as_of": utc(as_of).isoformat()}
    with publish.folder(building, facts) as temporary, lake.connect(home, before=as_of) as db:
        catalogue_snapshot.index_items(db)
        facts |= catalogue_snapshot.write(home, db, temporary, day, settings.training.gains)
        facts |= history_snapshot.write(home, db, temporary, day, settings.serving.history_events)
    target = folder(home) / f"as_of={utc(as_of):%Y-%m-%dT%H%M%S}-{publish.manifest(building).digest[:12]}"
    if (target / publish.MANIFEST).is_file():
        shutil.rmtree(building)
    else:
        building.rename(target)
        publish.fsync(folder(home))
    before = pointed(home)
    publish.write_json(folder(home) / POINTER, {"folder": target.name})
    for old in folder(home).glob("as_of=*"):
        if old.name not in {target.name, before}:  # who has just read the pointer still finds what it named
            shutil.rmtree(old, ignore_errors=True)
    return target


def pointed(home: Home) -> str | None:
    """Return the name of the current folder; None if nothing was ever published."""
    file = folder(home) / POINTER
    return str(json.loads(file.read_text(encoding="utf-8"))["folder"]) if file.is_file() else None


def open_snapshot(home: Home) -> RequestSnapshot:
    """Map the current snapshot.

    Raises:
        StateError: nothing was published.
    """
    for last in (False, True):
        if (name := pointed(home)) is None:
            break
        try:
            return _mapped(folder(home) / name)
        except FileNotFoundError:  # two were published between reading the pointer and now
            if last:
                raise
    raise StateError(f"request snapshot under {folder(home)}", found="none", allowed="a published one", hint="run `reloop features`")


def _mapped(place: Path) -> RequestSnapshot:
    facts = publish.manifest(place).facts
    return RequestSnapshot(place.name, utc(facts["as_of"]), history_snapshot.read(place), catalogue_snapshot.read(place))
