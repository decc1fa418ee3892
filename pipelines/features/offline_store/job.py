"""Retrieval jobs: nothing is read before the answer is asked for, and memory stays bounded while it is made."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata

from pipelines import publish
from pipelines.errors import StateError
from pipelines.features.offline_store import join
from pipelines.features.offline_store.entities import Entities
from pipelines.features.offline_store.sources import place


@dataclass(frozen=True)
class Engine:
    """How much of the machine a job takes.

    Attributes:
        threads: of DuckDB.
        memory_limit: of DuckDB's own buffers, in its notation; beyond it, it spills.
        temp_directory: where it spills, and where answers of several pieces are kept.
        chunk_rows: entity rows joined at a time.
    """

    threads: int
    memory_limit: str
    temp_directory: Path
    chunk_rows: int

    @contextmanager
    def open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield an in-memory DuckDB, in UTC, which loads no extension."""
        self.temp_directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "threads": str(self.threads),
            "memory_limit": self.memory_limit,
            "temp_directory": str(self.temp_directory),
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        with duckdb.connect(config=settings) as engine:
            engine.execute("SET TimeZone = 'UTC'")
            yield engine


class Job(RetrievalJob):  # type: ignore[misc]  # Feast ships no types
    """A retrieval in pieces. `to_df`, `to_arrow` and on-demand features are Feast's own, over these pieces."""

    def __init__(
        self, engine: Engine, repo_path: Path | None, metadata: RetrievalMetadata | None, on_demand: list[Any], *, full_names: bool
    ) -> None:
        self._engine, self._repo_path, self._metadata = engine, repo_path, metadata
        self._on_demand, self._full_names = on_demand, full_names

    @abstractmethod
    def pieces(self) -> Iterator[pa.Table]:
        """Yield the answer, in order; at least one table, be it empty."""

    @property
    def full_feature_names(self) -> bool:
        """Whether a feature's column begins with its view."""
        return self._full_names

    @property
    def on_demand_feature_views(self) -> list[Any]:
        """The on-demand views to be computed from the answer."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked, for a dataset saved from it."""
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's signature
        """Return the whole answer; one of several pieces is kept in a file without a name, mapped into memory."""
        pieces = self.pieces()
        first = next(pieces)
        second = next(pieces, None)
        if second is None:
            return first
        with tempfile.NamedTemporaryFile(dir=self._engine.temp_directory, suffix=".arrow", delete=False) as file:
            name = file.name
        try:
            with pa.ipc.new_file(name, first.schema) as writer:
                for piece in (first, second):
                    writer.write_table(piece)
                del first, second, piece
                for piece in pieces:
                    writer.write_table(piece)
            return pa.ipc.open_file(pa.memory_map(name)).read_all()
        finally:
            os.unlink(name)  # noqa: PTH108 - the mapping keeps the bytes until the table is gone

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    def persist(self, storage: Any, allow_overwrite: bool = False, timeout: int | None = None) -> None:  # noqa: ARG002 - Feast's signature
        """Write the answer to a saved dataset, piece by piece: one Parquet file, or a folder with one.

        Raises:
            SavedDatasetLocationAlreadyExists: something is there, and may not be overwritten.
            StateError: the storage is no Parquet file.
        """
        from feast.errors import SavedDatasetLocationAlreadyExists
        from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

        if not isinstance(storage, SavedDatasetFileStorage):
            raise StateError("saved dataset", found=type(storage).__name__, allowed="a SavedDatasetFileStorage")
        target = place(storage.file_options.uri, self._repo_path)
        if target.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=storage.file_options.uri)
        file = target if target.suffix == ".parquet" else target / "part-0.parquet"
        pieces = iter([self.to_arrow()]) if self.on_demand_feature_views else self.pieces()
        with publish.replacing(file) as temporary:
            first = next(pieces)
            with pq.ParquetWriter(temporary, first.schema, compression="zstd", compression_level=1) as writer:
                writer.write_table(first)
                for piece in pieces:
                    writer.write_table(piece)
        for other in file.parent.glob("*.parquet") if file != target else ():
            if other != file:
                other.unlink()


class HistoricalJob(Job):
    """Entity rows with the features of some views behind them, same rows in the same order."""

    def __init__(self, entities: Callable[[duckdb.DuckDBPyConnection], Entities], views: list[join.View], **of_job: Any) -> None:
        super().__init__(**of_job)
        self._entities, self._views = entities, views

    def pieces(self) -> Iterator[pa.Table]:
        """Yield entity rows with their features."""
        with self._engine.open() as engine:
            entities = self._entities(engine)
            for rows in entities.pieces(engine, self._engine.chunk_rows):
                answer = rows
                for view in self._views:
                    found = join.look_up(engine, view, rows, entities.clock)
                    for name in found.column_names:
                        answer = answer.append_column(name, found[name])
                yield answer


class SelectionJob(Job):
    """The rows of one SELECT over the files of a source."""

    def __init__(self, statement: str, **of_job: Any) -> None:
        super().__init__(metadata=None, on_demand=[], full_names=False, **of_job)
        self._statement = statement

    def to_sql(self) -> str:
        """Return the SELECT, as DuckDB runs it in UTC."""
        return self._statement

    def pieces(self) -> Iterator[pa.Table]:
        """Yield the rows; their order is not fixed."""
        with self._engine.open() as engine:
            reader = engine.sql(self._statement).to_arrow_reader(self._engine.chunk_rows)
            empty = True
            for batch in reader:
                empty = False
                yield pa.Table.from_batches([batch])
            if empty:
                yield reader.schema.empty_table()
