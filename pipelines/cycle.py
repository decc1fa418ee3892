"""What each stage did in one training cycle: recorded as it happens, read for the table at the end.

A record is `reports/cycles/<as_of>/<stage>[.<key>].json`. Starts and ends also go, one JSON line
each, to the file that `RELOOP_PROGRESS` names, which is what the progress bar of `reloop run` reads.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines import publish
from pipelines.config import Home
from pipelines.window import stamp, stamped, utc


def folder(home: Home, as_of: datetime) -> Path:
    """Return the folder of one cycle's records."""
    return home.reports / "cycles" / stamp(as_of)


def _announce(line: dict[str, Any]) -> None:
    if path := os.environ.get("RELOOP_PROGRESS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")


@contextmanager
def stage(home: Home, as_of: datetime, name: str, key: str | None = None) -> Iterator[dict[str, Any]]:
    """Time a stage and record what it put into the yielded dict, also when it fails.

    Args:
        name: the stage, one of the words of the README's picture.
        key: tells records of one stage apart (a batch, a retriever).
    """
    label = name if key is None else f"{name}.{key}"
    record: dict[str, Any] = {}
    _announce({"stage": label, "as_of": utc(as_of).isoformat(), "state": "running"})
    began, state, error = time.perf_counter(), "failed", None
    try:
        yield record
        state = "done"
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
        raise
    finally:
        seconds = round(time.perf_counter() - began, 3)
        publish.write_json(
            folder(home, as_of) / f"{label}.json", {**record, "stage": name, "key": key, "state": state, "error": error, "seconds": seconds}
        )
        _announce({"stage": label, "as_of": utc(as_of).isoformat(), "state": state, "seconds": seconds})


def read(path: Path) -> dict[str, Any]:
    """Return one record."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def records(home: Home, as_of: datetime, name: str) -> list[dict[str, Any]]:
    """Return the records of one stage in one cycle, in order of their keys; empty if it did not run."""
    found = folder(home, as_of).glob("*.json")
    loaded = [read(path) for path in sorted(found)]
    return [record for record in loaded if record["stage"] == name]


def every(home: Home, name: str) -> list[tuple[datetime, dict[str, Any]]]:
    """Return the record of a stage without keys in every cycle that has one, oldest first; folders that are no cycle's are passed over."""
    found = [(stamped(path.parent.name), path) for path in sorted((home.reports / "cycles").glob(f"*/{name}.json"))]
    return [(moment, read(path)) for moment, path in found if moment is not None]


def forget(home: Home, as_of: datetime, *names: str) -> None:
    """Drop the records of some stages of one cycle: those of a rerun cut into other batches would add to the old ones."""
    for path in folder(home, as_of).glob("*.json"):
        if read(path)["stage"] in names:
            path.unlink()
