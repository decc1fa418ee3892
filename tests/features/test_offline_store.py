"""Feast's offline interface on our store beside joins: saved datasets, spans of rows, appends, logs, measurements."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import offline_world as world
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FileSource
from feast.data_source import PushMode
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
from shops_world import HOUR, NOON, sales, save, shops_at

from pipelines.features.offline_store import DuckDBAsofOfflineStore


def test_the_configuration_by_class_path_gives_our_store(repo: FeatureStore):
    assert type(get_offline_store_from_config(repo.config.offline_store)) is DuckDBAsofOfflineStore


def test_a_saved_dataset_is_the_answer_and_is_not_overwritten_by_chance(open_repo: Callable[..., FeatureStore], tmp_path: Path):
    repo = open_repo(chunk_rows=1)
    rows = shops_at(NOON, NOON + HOUR)
    for name in ("one.parquet", "folder"):
        storage = SavedDatasetFileStorage(path=str(tmp_path / name))
        with pytest.warns(RuntimeWarning, match="experimental"):
            saved = repo.create_saved_dataset(repo.get_historical_features(rows, ["shops:sales"]), name, storage)
        assert sorted(saved.to_df()["sales"]) == [10, 11]  # a selection, whose order nothing fixes
        assert pq.read_table(tmp_path / name)["sales"].to_pylist() == [10, 11], "the file has the order of the answer"
        with pytest.warns(RuntimeWarning, match="experimental"):
            assert repo.get_saved_dataset(name).to_df()["shop"].tolist() == [1, 1]
        job = repo.get_historical_features(shops_at(NOON), ["shops:sales"])
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            job.persist(storage)
        job.persist(storage, allow_overwrite=True)
        assert pq.read_table(tmp_path / name)["sales"].to_pylist() == [10]


def test_a_dataset_saved_with_on_demand_features_has_them(repo: FeatureStore, tmp_path: Path):
    job = repo.get_historical_features(shops_at(NOON, factor=2), ["scaled:scaled"])
    job.persist(SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet")))
    assert pq.read_table(tmp_path / "saved.parquet")["scaled"].to_pylist() == [20]


def pull(repo: FeatureStore, start: datetime | None, end: datetime | None, *, latest: bool) -> list[dict]:
    source = repo.get_feature_view("shops").batch_source
    store = DuckDBAsofOfflineStore
    method = store.pull_latest_from_table_or_query if latest else store.pull_all_from_table_or_query
    job = method(repo.config, source, ["shop"], ["sales"], "at", "made", start, end)
    assert "read_parquet" in job.to_sql()
    answer = job.to_arrow()
    assert answer.column_names == ["shop", "sales", "at", "made"]
    return sorted(answer.select(["shop", "sales"]).to_pylist(), key=lambda row: (row["shop"], row["sales"]))


def test_the_latest_rows_of_a_span_are_the_newest_that_were_known_at_its_end(repo: FeatureStore):
    long_ago = NOON - 100 * HOUR
    assert pull(repo, long_ago, NOON, latest=True) == [{"shop": 1, "sales": 10}, {"shop": 3, "sales": 30}]
    assert pull(repo, long_ago, NOON + HOUR, latest=True) == [{"shop": 1, "sales": 11}, {"shop": 2, "sales": 20}, {"shop": 3, "sales": 30}]
    assert pull(repo, NOON - HOUR, NOON.replace(tzinfo=None), latest=True) == [{"shop": 1, "sales": 10}]
    assert pull(repo, NOON, NOON, latest=True) == []


@pytest.mark.parametrize("moments", [[NOON, NOON], [NOON, NOON - HOUR]], ids=["one moment", "several"])
def test_a_row_without_a_key_is_a_row_so_that_whoever_loads_it_is_told(tmp_path: Path, repo: FeatureStore, moments: list[datetime]):
    source = tmp_path / "nobody.parquet"
    times = pa.array(moments, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"shop": pa.array([1, None], pa.int64()), "sales": [1, 2], "at": times, "made": times}), source)
    job = DuckDBAsofOfflineStore.pull_latest_from_table_or_query(
        repo.config,
        FileSource(path=str(source), timestamp_field="at", created_timestamp_column="made"),
        ["shop"],
        ["sales"],
        "at",
        "made",
        NOON - 100 * HOUR,
        NOON,
    )
    assert sorted(job.to_arrow()["shop"].to_pylist(), key=str) == [1, None]


def test_all_rows_of_a_span_are_all_rows_ends_included(repo: FeatureStore):
    assert len(pull(repo, None, None, latest=False)) == 4
    assert [row["sales"] for row in pull(repo, NOON - HOUR, NOON + HOUR, latest=False)] == [10, 11, 20]
    assert pull(repo, NOON + 2 * HOUR, None, latest=False) == []


def test_pushed_rows_are_appended_to_the_source_in_its_order(repo: FeatureStore):
    later = NOON + 2 * HOUR
    repo.push(
        "push",
        pd.DataFrame({"sales": [99], "margin": [0.9], "made": [later], "shop": [1], "at": [later]}).rename(columns={"margin": "RAW"}),
        to=PushMode.OFFLINE,
    )
    assert sales(repo, shops_at(later - timedelta(microseconds=1), later)) == [11, 99]


def test_rows_with_other_columns_are_refused(repo: FeatureStore):
    with pytest.raises(ValueError, match="in this order"):
        DuckDBAsofOfflineStore.offline_write_batch(repo.config, repo.get_feature_view("routes"), pa.table({"place": [1]}), None)


def test_the_same_batch_twice_in_a_folder_is_there_once(tmp_path: Path):
    store = world.open_store(tmp_path)
    rows = [{"a": "1", "b": "1", "event": NOON, "created": NOON, "x": 5, "w": 1.0, "z": "p"}]
    told: list[int] = []
    for _ in range(2):
        batch = pa.Table.from_pylist(rows, schema=world.SCHEMA)
        DuckDBAsofOfflineStore.offline_write_batch(store.config, store.get_feature_view("ageless"), batch, told.append)
    assert told == [1, 1]
    assert pq.read_table(tmp_path / "facts")["x"].to_pylist() == [5]


@pytest.mark.parametrize("partition_by", [[], ["shop"]])
def test_logged_features_are_read_back_and_a_flush_twice_is_there_once(repo: FeatureStore, tmp_path: Path, partition_by: list[str]):
    log = pa.table({"shop": [1, 2], "sales": [10, 20], "__log_timestamp": pa.array([NOON, NOON], world.US)})
    config = LoggingConfig(destination=FileLoggingDestination(path=str(tmp_path / "log"), partition_by=partition_by), sample_rate=1.0)
    saved = tmp_path / "flushed"
    save(saved / "part.parquet", log.to_pylist())
    for data in (log, log, log.slice(0, 0), saved) if not partition_by else (log, log):
        DuckDBAsofOfflineStore.write_logged_features(repo.config, data, None, config, repo.registry)
    source = config.destination.to_data_source()
    job = DuckDBAsofOfflineStore.pull_all_from_table_or_query(
        repo.config, source, [], ["shop", "sales"], "__log_timestamp", None, NOON, NOON
    )
    assert sorted((int(row["shop"]), row["sales"]) for row in job.to_arrow().to_pylist()) == [(1, 10), (2, 20)]


def test_feast_measures_our_sources_as_its_own(repo: FeatureStore):
    source = repo.get_feature_view("shops").batch_source
    (measured,) = DuckDBAsofOfflineStore.compute_monitoring_metrics(repo.config, source, [("sales", "numeric")], "at")
    assert measured["feature_name"] == "sales"
    assert DuckDBAsofOfflineStore.get_monitoring_max_timestamp(repo.config, source, "at") == NOON + HOUR


@pytest.mark.parametrize("seed", range(6))
def test_what_is_materialized_to_a_moment_is_what_training_sees_at_it(tmp_path: Path, seed: int):
    store = world.open_store(tmp_path)
    rows, _, layout = world.random_world(seed)
    world.write(tmp_path, rows, layout)
    end = sorted(row["event"] for row in rows)[len(rows) * 2 // 3]
    source = store.get_feature_view("with_ttl").batch_source
    job = DuckDBAsofOfflineStore.pull_latest_from_table_or_query(
        store.config, source, ["a", "b"], list(world.FEATURES), "event", "created", end - world.TTL, end
    )
    pulled = {(row["a"], row["b"]): [row[name] for name in world.FEATURES] for row in job.to_arrow().to_pylist() if row["a"] and row["b"]}
    keys = sorted({(row["a"], row["b"]) for row in rows if row["a"] and row["b"]})
    entities = [{"a": a, "b": b, "event_timestamp": end, "n": n} for n, (a, b) in enumerate(keys)]
    trained = {
        (answer["a"], answer["b"]): [answer[name] for name in world.features_of("with_ttl").values()]
        for answer in world.expected(rows, entities, ["with_ttl"])
    }
    assert {key: pulled.get(key, [None] * 3) for key in keys} == trained
    assert len(pulled) > 2
