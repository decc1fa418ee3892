"""Rows into the files of a source: appended, all or nothing, and the same rows twice only once where a folder holds them."""

from __future__ import annotations

import hashlib
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipelines import publish
from pipelines.errors import StateError


def digest(table: pa.Table) -> str:
    """Return what names the content of a table: 16 hexadecimal digits of its sha256."""
    seen = hashlib.sha256()
    with pa.ipc.new_stream(pa.output_stream(sink := pa.BufferOutputStream()), table.schema) as writer:
        writer.write_table(table.combine_chunks())
    seen.update(sink.getvalue())
    return seen.hexdigest()[:16]


def append(path: Path, table: pa.Table) -> None:
    """Append rows to what a source's path names: a file is rewritten with them, a folder or pattern gets a file more.

    Raises:
        StateError: the pattern has no place for a new file.
    """
    if path.is_dir() or any(wild in path.name for wild in "*?[") or not path.suffix:
        folder, pattern = (path.parent, path.name) if any(wild in path.name for wild in "*?[") else (path, "*.parquet")
        name = f"rows-{digest(table)}.parquet"
        if any(wild in str(folder) for wild in "*?[") or not fnmatch(name, pattern):
            raise StateError(f"source {path}", found="a pattern that no new file fits", allowed=f"one that {name} fits, such as *.parquet")
        publish.write_parquet(folder / name, table)
        return
    # One process at a time: the file is read and written anew.
    with publish.locked(path.parent / ".append.lock"), publish.replacing(path) as temporary:
        before = pq.ParquetFile(path) if path.is_file() else None
        schema = before.schema_arrow if before else table.schema
        with pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=1) as writer:
            for batch in before.iter_batches(1 << 17) if before else ():
                writer.write_batch(batch)
            writer.write_table(table.cast(schema))


def log(folder: Path, table: pa.Table, partition_by: list[str]) -> None:
    """Add logged rows to a folder, parted by some columns' values; the same rows twice are there once."""
    name = f"log-{digest(table)}"
    if not partition_by:
        publish.write_parquet(folder / f"{name}.parquet", table)
        return
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / f".{name}.{os.getpid()}.tmp"
    try:
        ds.write_dataset(
            table,
            work,
            format="parquet",
            partitioning=partition_by,
            partitioning_flavor="hive",
            basename_template=f"{name}-{{i}}.parquet",
            existing_data_behavior="overwrite_or_ignore",
        )
        for file in sorted(work.rglob("*.parquet")):
            target = folder / file.relative_to(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
