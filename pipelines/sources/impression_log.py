"""The closed segments of the impression log as a staged batch: everything is kept, nothing is judged.

    impressions/batch.json                        the batch in progress: its id and segments; until it is landed no other is begun
    landing/<batch_id>/impressions.parquet        in `tables.staged("impressions")`

A batch's id is a digest of its segments' bytes, so whoever is killed and comes again makes the same one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import publish, tables
from pipelines.config import Home
from pipelines.lake import segments
from pipelines.lake.landing import judged_folder

SOURCE: Final = "service"
BATCH: Final = "impressions"
MAX_BYTES: Final = 256 << 20  # of segments in a batch
AT_ONCE: Final = 50_000  # rows in memory


def _plan(home: Home) -> Path:
    return home.root / "impressions" / "batch.json"


def stage(home: Home) -> str | None:
    """Publish the next batch and return its id; None where no segment is closed. One process at a time."""
    plan = _plan(home)
    if plan.is_file():
        said = json.loads(plan.read_text(encoding="utf-8"))
        batch_id, files = str(said["batch_id"]), [segments.folder(home) / name for name in said["segments"]]
    else:
        files = list(_next(segments.closed(home)))
        if not files:
            return None
        sink = hashlib.sha256()
        for file in files:
            sink.update(f"{file.name} {publish.digest(file)}\n".encode())
        batch_id = f"{BATCH}-{sink.hexdigest()[:16]}"
        publish.write_json(plan, {"batch_id": batch_id, "segments": [file.name for file in files]})
    there = [file for file in files if file.is_file()]
    if len(there) < len(files):  # landed, and being cleared away when the process was killed
        return batch_id
    facts: dict[str, Any] = {"source": SOURCE, "segments": [file.name for file in files], "torn": sum(map(segments.torn, files))}
    with publish.folder(home.landing / batch_id, facts) as folder:
        facts["rows"] = {"impressions": _write(folder / "impressions.parquet", files)}
    return batch_id


def _next(files: list[Path]) -> Iterator[Path]:
    size = 0
    for file in files:
        size += file.stat().st_size
        if size > MAX_BYTES and size > file.stat().st_size:
            return
        yield file


def _write(path: Path, files: list[Path]) -> int:
    schema, count = tables.staged("impressions"), 0
    options = {key: value for key, value in publish.PARQUET.items() if key != "row_group_size"}
    rows = (row for file in files for row in segments.rows(file))
    with pq.ParquetWriter(path, schema, **options) as writer:
        while block := list(islice(rows, AT_ONCE)):
            numbered = [row | {c.SOURCE_ROW: count + at} for at, row in enumerate(block)]
            writer.write_table(pa.Table.from_pylist(numbered, schema=schema))
            count += len(block)
    return count


def clear(home: Home, batch_id: str) -> None:
    """Forget the segments of a batch that has landed, and what was staged of it."""
    plan = _plan(home)
    if not plan.is_file():
        return
    said = json.loads(plan.read_text(encoding="utf-8"))
    if said["batch_id"] != batch_id:
        return
    for name in said["segments"]:
        (segments.folder(home) / name).unlink(missing_ok=True)
    for folder in (home.landing / batch_id, judged_folder(home, batch_id)):
        shutil.rmtree(folder, ignore_errors=True)
    plan.unlink()
