"""Feast's compute engine for loading an online store: whole columns become stored bytes, and only newer rows are written.

`feast materialize` and `materialize-incremental` use it through `batch_engine` in
`feature_store.yaml`. A run killed at any moment is run again: what was written stays, what was
not is written then, and no entity ever holds features of two rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, StreamFeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_column_names

from pipelines.features import encoding
from pipelines.features.encoding import Encoded
from pipelines.features.moments import ttl_micros
from pipelines.window import DAY, micros

INSTANT: Final = timedelta(microseconds=1)
log = logging.getLogger(__name__)


class ColumnarComputeEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]  # feast is untyped
    """Settings of the engine.

    Attributes:
        whole_state: read back to where a row still answers at the end of the interval, however late the
            interval begins: the view's ttl, or one day for a view tagged `rows: daily`, whose entities
            have a row every day. So `materialize-incremental`, which goes on from the end of the run
            before, also finds days that were rebuilt since. Older rows never replace newer ones.
        batch_rows: rows that are encoded and sent at once.
        sweep: remove rows that are past their view's ttl at the end of the interval: what vanished
            from the source is first read as missing, and then gone.
    """

    type: Literal["pipelines.features.materialization.ColumnarComputeEngine"] = "pipelines.features.materialization.ColumnarComputeEngine"
    whole_state: bool = True
    batch_rows: int = 1 << 15
    sweep: bool = True


class ColumnarComputeEngine(LocalComputeEngine):  # type: ignore[misc]  # feast is untyped
    """The engine; views and stores that need Feast's own row by row way are handed to it."""

    def __init__(self, **settings: Any) -> None:
        inherited = {name: settings.pop(name) for name in ("repo_config", "offline_store", "online_store")}
        super().__init__(**inherited)
        self.settings = ColumnarComputeEngineConfig(**settings)

    def _materialize_one(self, registry: Any, task: MaterializationTask, **kwargs: Any) -> LocalMaterializationJob:
        """Bring one view up to the end of the task's interval; errors are in the job, as Feast wants them."""
        if not self._in_bulk(task.feature_view):
            return super()._materialize_one(registry, task, **kwargs)
        identity = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        try:
            self._load(registry, task)
        except Exception as error:  # noqa: BLE001 - Feast raises what the job holds
            return LocalMaterializationJob(job_id=identity, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=identity, status=MaterializationJobStatus.SUCCEEDED)

    def _in_bulk(self, view: Any) -> bool:
        """Whether a view is rows of one source, loaded as they are, into a store that takes columns."""
        plain = type(view) is FeatureView or (isinstance(view, StreamFeatureView) and not view.feature_transformation)
        loads = getattr(self.online_store, "loads_in_bulk", None)
        return bool(
            plain
            and view.online
            and not view.offline
            and view.entity_columns
            and not getattr(view, "aggregations", None)
            and not getattr(view, "source_views", None)
            and not getattr(view, "feature_transformation", None)
            and self.repo_config.entity_key_serialization_version == 3
            and loads is not None
            and loads(self.repo_config)
        )

    def _load(self, registry: Any, task: MaterializationTask) -> None:
        view = task.feature_view
        oldest = micros(task.end_time) - ttl_micros(view) if ttl_micros(view) else None
        start = min(task.start_time, task.end_time - reach(view)) if self.settings.whole_state else task.start_time
        tables, rows = self._tables(registry, task, start)
        newest: int | None = None
        with (
            self.online_store.loading(self.repo_config, view) as write,
            task.tqdm_builder(rows) if task.tqdm_builder else nullcontext() as bar,
        ):
            for table in tables:
                for batch in table.to_batches(max_chunksize=self.settings.batch_rows):
                    encoded = encode(batch, view)
                    newest = max(encoded.event_us.max(initial=0), newest or 0)
                    if oldest is not None and (encoded.event_us < oldest).any():
                        encoded = encoded.take(np.flatnonzero(encoded.event_us >= oldest))
                    if len(encoded):
                        write(encoded)
                    if bar is not None:
                        bar.update(len(batch))
        if oldest is not None and newest is not None and self.settings.sweep:
            # An end far behind the source's last row (`materialize-incremental` now, in a world of last year) empties no store.
            removed = self.online_store.sweep(self.repo_config, view, int(newest) - ttl_micros(view))
            log.info("%s: %d rows past their ttl removed", view.name, removed)

    def _tables(self, registry: Any, task: MaterializationTask, start: datetime) -> tuple[Iterator[pa.Table], int | None]:
        """Return the rows to write, in pieces where the offline store gives pieces, and how many there are if that is known."""
        view = task.feature_view
        job = newest_rows(view, start, task.end_time, config=self.repo_config, offline_store=self.offline_store, registry=registry)
        named = view.batch_source.field_mapping or {}

        def renamed(table: pa.Table) -> pa.Table:
            return table.rename_columns([named.get(name, name) for name in table.column_names])

        if hasattr(job, "pieces") and not getattr(self.online_store, "wants_sorted_keys", False):
            return map(renamed, job.pieces()), None
        table = renamed(job.to_arrow())
        if getattr(self.online_store, "wants_sorted_keys", False):
            table = table.take(pc.sort_indices(encode_keys(table, view)))
        return iter([table]), len(table)


def reach(view: Any) -> timedelta:
    """Return how far before a moment rows of a view lie that make up its state then."""
    if view.tags.get("rows") == "daily":
        return DAY - INSTANT
    return view.ttl or DAY - INSTANT


def newest_rows(view: Any, start: datetime, end: datetime, *, config: Any, offline_store: Any, registry: Any) -> Any:
    """Return Feast's job for the newest row of every entity from `start` to `end`, both included, in the source's names."""
    entities = [registry.get_entity(name, config.project) for name in view.entities]
    keys, features, event, created = _get_column_names(view, entities)
    return offline_store.pull_latest_from_table_or_query(
        config=config,
        data_source=view.batch_source,
        join_key_columns=keys,
        feature_name_columns=features,
        timestamp_field=event,
        created_timestamp_column=created,
        start_date=start,
        end_date=end,
    )


def encode_keys(rows: pa.Table | pa.RecordBatch, view: Any) -> pa.BinaryArray:
    """Return the serialized entity keys of some rows of a view."""
    columns = {entity.name: _one(rows.column(entity.name)) for entity in view.entity_columns}
    return encoding.entity_keys(columns, {entity.name: entity.dtype.to_value_type() for entity in view.entity_columns})


def encode(rows: pa.RecordBatch, view: Any) -> Encoded:
    """Return rows of a view as the online store keeps them."""
    created = view.batch_source.created_timestamp_column
    kinds = {feature.name: feature.dtype.to_value_type() for feature in view.features}
    return Encoded(
        encode_keys(rows, view),
        {name: encoding.values(rows.column(name), kind) for name, kind in kinds.items()},
        encoding.micros(rows.column(view.batch_source.timestamp_field)),
        encoding.micros(rows.column(created)) if created else np.zeros(len(rows), np.int64),
        lambda name: encoding.texts(rows.column(name), kinds[name]),
    )


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
