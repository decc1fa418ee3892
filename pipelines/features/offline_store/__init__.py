"""Feast's offline store over Parquet files, point-in-time correct in both times, by equality or ASOF on DuckDB.

In `feature_store.yaml`: `offline_store: {type: pipelines.features.offline_store.DuckDBAsofOfflineStore}`.
Beside the event's time, the time since which a row is known (`created_timestamp_column`) always
counts: a value corrected later is seen by no row before the correction. Feast's own stores leave
that to a flag that is off.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from copy import copy
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import _get_requested_feature_views_to_features_dict, compute_non_entity_date_range

from pipelines.errors import StateError
from pipelines.features.offline_store import writing
from pipelines.features.offline_store.entities import EVENT_TIMESTAMP, Entities
from pipelines.features.offline_store.job import Engine, HistoricalJob, SelectionJob
from pipelines.features.offline_store.join import View
from pipelines.features.offline_store.sources import LARGEST, PER_SECOND, Source, place, quoted
from pipelines.window import micros


class DuckDBAsofOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """How much of the machine a retrieval takes.

    Attributes:
        memory_limit: of DuckDB's buffers, in its notation; beyond it, it spills to disk.
        threads: of DuckDB; 0 means every core.
        chunk_rows: entity rows joined at a time: working memory grows with it, not with the entity rows.
        temp_directory: where it spills; unset, the system's.
    """

    type: str = "pipelines.features.offline_store.DuckDBAsofOfflineStore"
    memory_limit: str = "2GB"
    threads: int = 0
    chunk_rows: int = 2_000_000
    temp_directory: str | None = None


def _engine(config: RepoConfig) -> Engine:
    set_to = config.offline_store
    folder = Path(set_to.temp_directory or Path(tempfile.gettempdir()) / "reloop-offline-store")
    return Engine(set_to.threads or os.cpu_count() or 1, set_to.memory_limit, folder, set_to.chunk_rows)


class DuckDBAsofOfflineStore(OfflineStore):  # type: ignore[misc]  # Feast ships no types
    """What Feast asks of an offline store. Sources are `FileSource`s of Parquet files on local disks."""

    supports_filter_by_created_timestamp = True  # and not to be turned off

    @staticmethod
    def get_historical_features(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        feature_views: list[Any],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = True,  # noqa: ARG004 - Feast's signature
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return a job for entity rows with the features that were true and known at each row's moment.

        Args:
            entity_df: a frame, an arrow table, or a SELECT that DuckDB runs; with none, every key
                and moment that the views hold from `start_date` to `end_date`.
            full_feature_names: call a feature `<view>__<feature>`.

        Raises:
            StateError: a join key, a time or a feature is missing, a name would occur twice, or a source is unreadable.
        """
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        asked, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)
        views = [
            _view(config, view, features, full_feature_names=full_feature_names)
            for view, features in ((view, asked.get(view, [])) for view in feature_views)
            if features
        ]
        engine = _engine(config)
        if entity_df is None:
            entity_df = _everything(views, *compute_non_entity_date_range(feature_views, start_date, end_date))

        def entities(opened: duckdb.DuckDBPyConnection) -> Entities:
            return Entities.of(entity_df, opened)

        with engine.open() as opened:
            rows = entities(opened)
            _check(rows, views)
            metadata = RetrievalMetadata(
                list(feature_refs), [name for name in rows.schema.names if name != rows.clock], *rows.bounds(opened)
            )
        return HistoricalJob(
            entities,
            views,
            engine=engine,
            repo_path=config.repo_path,
            metadata=metadata,
            on_demand=on_demand,
            full_names=full_feature_names,
        )

    @staticmethod
    def pull_latest_from_table_or_query(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return a job for the newest row of each key in [start_date, end_date] that was known by `end_date`.

        It is the row that `get_historical_features` finds at `end_date`, so that what is
        materialized to a moment equals what training sees at it.
        """
        columns = [*join_key_columns, *feature_name_columns]
        source = Source.open(data_source, config.repo_path, event=timestamp_field, created=created_timestamp_column)
        files, where = _span(source, start_date, end_date, known=True)
        keys, moment = ", ".join(f"v.{quoted(name)}" for name in join_key_columns), source.moment(source.event)
        newest = ""
        if join_key_columns and not files.one_moment:  # sorting only the newest rows of a key is half the work
            # A row without a key is a row: whoever loads it is told, at whatever moment it is.
            same = " AND ".join(f"newest.{quoted(name)} IS NOT DISTINCT FROM v.{quoted(name)}" for name in join_key_columns)
            newest = f" JOIN (SELECT {keys}, max({moment}) AS __moment FROM {files.sql()} v WHERE {where} GROUP BY ALL) newest ON {same} AND __moment = {moment}"
        order = [f"{source.moment(name)} DESC" for name in (source.event, source.created) if name]
        order += [f"v.{quoted(name)} DESC NULLS LAST" for name in feature_name_columns]
        only = f"QUALIFY row_number() OVER (PARTITION BY {keys or '1'} ORDER BY {', '.join(order)}) = 1"
        return _selection(config, source, columns, f"FROM {files.sql()} v{newest} WHERE {where} {only}")

    @staticmethod
    def pull_all_from_table_or_query(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return a job for all rows in [start_date, end_date]; a bound that is None does not bind."""
        columns = [*join_key_columns, *feature_name_columns]
        source = Source.open(data_source, config.repo_path, event=timestamp_field, created=created_timestamp_column)
        files, where = _span(source, start_date, end_date, known=False)
        return _selection(config, source, columns, f"FROM {files.sql()} v WHERE {where}")

    @staticmethod
    def offline_write_batch(config: RepoConfig, feature_view: Any, table: pa.Table, progress: Callable[[int], Any] | None) -> None:
        """Append rows to the source of a view.

        Raises:
            ValueError: the columns are not those of the source, in its order, as Feast has it.
        """
        source = feature_view.batch_source
        path = place(source.path, config.repo_path)
        in_source = {new: old for old, new in source.field_mapping.items()}  # Feast hands over the names of the view
        table = table.rename_columns([in_source.get(name, name) for name in table.column_names])
        try:
            schema = Source.open(source, config.repo_path).files[-1].schema
        except StateError:  # the first rows make the source
            schema = table.schema
        if schema.names != table.column_names:
            raise ValueError(
                f"The table to write has the columns {table.column_names}. The source {path} has, in this order, {schema.names}."
            )
        writing.append(path, table.cast(schema))
        if progress:
            progress(len(table))

    @staticmethod
    def write_logged_features(config: RepoConfig, data: pa.Table | Path, source: Any, logging_config: Any, registry: Any) -> None:  # noqa: ARG004 - Feast's signature
        """Add logged features to their destination, a folder of Parquet files."""
        from feast.infra.offline_stores.file_source import FileLoggingDestination

        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise StateError("feature log", found=type(destination).__name__, allowed="a FileLoggingDestination")
        table = pq.read_table(data) if isinstance(data, Path) else data
        writing.log(place(destination.path, config.repo_path), table, destination.partition_by or [])

    def get_table_column_names_and_types_from_data_source(self, config: RepoConfig, data_source: Any) -> Iterable[tuple[str, str]]:
        """Return the columns of a source and their arrow types; a source may be a folder or a pattern."""
        schema = Source.open(data_source, config.repo_path).files[-1].schema
        return [(field.name, str(field.type)) for field in schema]

    @classmethod
    def _stock(cls, method: str, config: RepoConfig, *arguments: Any, **named: Any) -> Any:
        """Let Feast's DuckDB store measure: statistics for monitoring know no point in time."""
        from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig

        theirs = copy(config)
        theirs._offline_store = DuckDBOfflineStoreConfig()
        return getattr(DuckDBOfflineStore, method)(theirs, *arguments, **named)

    @staticmethod
    def compute_monitoring_metrics(config: RepoConfig, *arguments: Any, **named: Any) -> list[dict[str, Any]]:
        """Return statistics of feature columns, as Feast's DuckDB store computes them."""
        return list(DuckDBAsofOfflineStore._stock("compute_monitoring_metrics", config, *arguments, **named))

    @staticmethod
    def get_monitoring_max_timestamp(config: RepoConfig, *arguments: Any, **named: Any) -> datetime | None:
        """Return the latest event of a source."""
        found: datetime | None = DuckDBAsofOfflineStore._stock("get_monitoring_max_timestamp", config, *arguments, **named)
        return found

    @staticmethod
    def ensure_monitoring_tables(config: RepoConfig) -> None:
        """Create Feast's tables of statistics where they are missing."""
        DuckDBAsofOfflineStore._stock("ensure_monitoring_tables", config)

    @staticmethod
    def save_monitoring_metrics(config: RepoConfig, *arguments: Any, **named: Any) -> None:
        """Write statistics to Feast's tables."""
        DuckDBAsofOfflineStore._stock("save_monitoring_metrics", config, *arguments, **named)

    @staticmethod
    def query_monitoring_metrics(config: RepoConfig, *arguments: Any, **named: Any) -> list[dict[str, Any]]:
        """Return statistics from Feast's tables."""
        return list(DuckDBAsofOfflineStore._stock("query_monitoring_metrics", config, *arguments, **named))

    @staticmethod
    def clear_monitoring_baseline(config: RepoConfig, *arguments: Any, **named: Any) -> None:
        """Let no statistics be the baseline any more."""
        DuckDBAsofOfflineStore._stock("clear_monitoring_baseline", config, *arguments, **named)


def _view(config: RepoConfig, view: Any, features: list[str], *, full_feature_names: bool) -> View:
    """Return a feature view as the join needs it: in the names of its source, opened."""
    if view.batch_source is None:
        raise StateError(f"feature view {view.name}", found="no batch source", allowed="one with a FileSource")
    in_source = {new: old for old, new in view.batch_source.field_mapping.items()}
    event, created = (in_source.get(name, name) for name in (view.batch_source.timestamp_field, view.batch_source.created_timestamp_column))
    source = Source.open(view.batch_source, config.repo_path, event=event, created=created)
    renamed = view.projection.join_key_map or {}
    keys = {
        in_source.get(entity.name, entity.name): renamed.get(entity.name, entity.name)
        for entity in view.entity_columns
        if entity.name != DUMMY_ENTITY_ID
    }
    prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
    names = {in_source.get(feature, feature): prefix + feature for feature in dict.fromkeys(features)}
    source.require([*keys, *names])
    return View(source, keys, names, view.ttl or None)


def _check(rows: Entities, views: list[View]) -> None:
    """Raise StateError if a join key is missing from the entity rows, or the answer would have two columns of a name."""
    for view in views:
        if missing := [name for name in view.keys.values() if name not in rows.schema.names]:
            raise StateError(
                f"entity rows for the {view.source.name}",
                found=f"columns {rows.schema.names}",
                allowed=f"also {', '.join(map(repr, missing))}",
            )
    names = [*rows.schema.names, *(name for view in views for name in view.features.values())]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StateError(
            "the answer",
            found=f"the column {', '.join(map(repr, twice))} twice",
            allowed="distinct names",
            hint="ask with full_feature_names=True",
        )


def _everything(views: list[View], start: datetime, end: datetime) -> str:
    """Return the query for every key and moment that some views hold in [start, end]."""
    if len({tuple(view.keys.values()) for view in views}) != 1:
        raise StateError("retrieval without entity rows", found="views with different join keys", allowed="views of the same entities")
    parts = []
    for view in views:
        keys = "".join(f"v.{quoted(column)} AS {quoted(name)}, " for column, name in view.keys.items())
        moment = view.source.moment(view.source.event)
        parts.append(
            f"SELECT DISTINCT {keys}make_timestamptz(({moment} + {PER_SECOND[view.source.unit] // 10**6 - 1}) // {PER_SECOND[view.source.unit] // 10**6}) AS {EVENT_TIMESTAMP}"
            f" FROM {view.source.sql()} v WHERE {_between(view.source, start, end)}"
        )
    return " UNION ".join(parts) + " ORDER BY ALL"


def _between(source: Source, start: datetime | None, end: datetime | None) -> str:
    """Return the condition that an event lies in [start, end]; a time without zone is UTC."""
    scale, moment = PER_SECOND[source.unit] // 10**6, source.moment(source.event)
    bounds = [f"{moment} {sign} {micros(bound) * scale}" for sign, bound in ((">=", start), ("<=", end)) if bound is not None]
    return " AND ".join(bounds) or "true"


def _span(source: Source, start: datetime | None, end: datetime | None, *, known: bool) -> tuple[Source, str]:
    """Return the files that may hold events in [start, end], and the condition that a row does (and was known by `end`)."""
    scale = PER_SECOND[source.unit] // 10**6
    low, high = (default if bound is None else micros(bound) * scale for bound, default in ((start, -LARGEST), (end, LARGEST)))
    where = _between(source, start, end)
    if known and source.created:
        where += f" AND {source.moment(source.created)} <= {high}"
    return source.between(low, high) or source, where


def _selection(config: RepoConfig, source: Source, columns: list[str], origin: str) -> SelectionJob:
    """Return the job that selects columns, and the source's times, from somewhere."""
    source.require(columns)
    every = dict.fromkeys([*columns, source.event, *([source.created] if source.created else [])])
    statement = f"SELECT {', '.join(f'v.{quoted(name)}' for name in every)} {origin}"
    return SelectionJob(statement, engine=_engine(config), repo_path=config.repo_path)
