"""Feast's offline interface on our store: what users of any Feast store may expect, on worlds small enough for paper."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import offline_world as world
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, RequestSource
from feast.data_format import ParquetFormat
from feast.data_source import PushMode
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64
from feast.value_type import ValueType

from pipelines.errors import StateError
from pipelines.features.offline_store import DuckDBAsofOfflineStore, join

NOON = datetime(2025, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

# One row each: shop 1 is corrected at 13:00, shop 2 has nothing before noon, shop 3 is old.
SHOPS = [
    {"shop": 1, "at": NOON - HOUR, "made": NOON - HOUR, "sales": 10, "RAW": 0.5},
    {"shop": 1, "at": NOON - HOUR, "made": NOON + HOUR, "sales": 11, "RAW": 0.6},
    {"shop": 2, "at": NOON + HOUR, "made": NOON + HOUR, "sales": 20, "RAW": 0.7},
    {"shop": 3, "at": NOON - 30 * HOUR, "made": NOON - 30 * HOUR, "sales": 30, "RAW": 0.8},
]
ROUTES = [{"place": 1, "other": 11, "at": NOON, "km": 5}, {"place": 11, "other": 1, "at": NOON, "km": 7}]
PLACES = [{"place": 1, "at": NOON, "heat": 20.0}, {"place": 11, "at": NOON, "heat": 30.0}]
GLOBAL = [{"at": NOON - HOUR, "rate": 1.5}, {"at": NOON + HOUR, "rate": 2.5}]


def save(path: Path, rows: list[dict], **types: pa.DataType) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        made = made.set_column(made.schema.get_field_index(name), name, made[name].cast(kind))
    pq.write_table(made, path)
    return str(path)


def declared(folder: Path) -> list[Any]:
    """Return what the repository declares: shops (a renamed column, two times), routes (two keys), places (asked twice), a rate for all."""
    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.INT64)
    place, other = (Entity(name=name, join_keys=[name], value_type=ValueType.INT64) for name in ("place", "other"))
    files = {
        "shops": FileSource(
            name="shops_file",
            path=save(folder / "shops.parquet", SHOPS),
            file_format=ParquetFormat(),
            timestamp_field="at",
            created_timestamp_column="made",
            field_mapping={"RAW": "margin"},
        ),
        "routes": FileSource(name="routes_file", path=save(folder / "routes.parquet", ROUTES), timestamp_field="at"),
        "places": FileSource(name="places_file", path=save(folder / "places.parquet", PLACES), timestamp_field="at"),
        "rates": FileSource(name="rates_file", path=save(folder / "rates.parquet", GLOBAL), timestamp_field="at"),
    }
    shops = FeatureView(
        name="shops",
        entities=[shop],
        ttl=timedelta(hours=24),
        source=files["shops"],
        schema=[Field(name="shop", dtype=Int64), Field(name="sales", dtype=Int64), Field(name="margin", dtype=Float64)],
    )
    pushed = FeatureView(
        name="pushed", entities=[shop], ttl=None, source=PushSource(name="push", batch_source=files["shops"]), schema=shops.schema
    )
    routes = FeatureView(name="routes", entities=[place, other], ttl=None, source=files["routes"], schema=[Field(name="km", dtype=Int64)])
    places = FeatureView(name="places", entities=[place], ttl=None, source=files["places"], schema=[Field(name="heat", dtype=Float64)])
    rates = FeatureView(name="rates", entities=[], ttl=None, source=files["rates"], schema=[Field(name="rate", dtype=Float64)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        @on_demand_feature_view(
            sources=[shops, RequestSource(name="asked", schema=[Field(name="factor", dtype=Int64)])],
            schema=[Field(name="scaled", dtype=Int64)],
            mode="pandas",
        )
        def scaled(inputs: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame({"scaled": (inputs["sales"].fillna(0) * inputs["factor"]).astype("int64")})

        scaled.udf.__module__ = "scaled"
    logged = FeatureService(
        name="logged",
        features=[shops],
        logging_config=LoggingConfig(destination=FileLoggingDestination(path=str(folder / "log")), sample_rate=1.0),
    )
    return [shop, place, other, *files.values(), shops, pushed, routes, places, rates, scaled, logged]


@pytest.fixture
def open_repo(tmp_path: Path) -> Callable[..., FeatureStore]:
    def opened(**offline: Any) -> FeatureStore:
        config = RepoConfig(
            project="shops",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{tmp_path}/registry.db"},
            offline_store={
                "type": "pipelines.features.offline_store.DuckDBAsofOfflineStore",
                "temp_directory": str(tmp_path / "spill"),
                **offline,
            },
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "On demand feature view is an experimental", RuntimeWarning)
            store.apply(declared(tmp_path))
        return store

    return opened


@pytest.fixture
def repo(open_repo: Callable[..., FeatureStore]) -> FeatureStore:
    return open_repo()


def shops_at(*moments: Any, shop: Any = 1, **more: Any) -> pd.DataFrame:
    return pd.DataFrame({"shop": shop, "event_timestamp": list(moments), **more})


def sales(repo: FeatureStore, entities: Any) -> list[Any]:
    return repo.get_historical_features(entities, ["shops:sales"]).to_arrow()["sales"].to_pylist()


def test_the_configuration_by_class_path_gives_our_store(repo: FeatureStore):
    assert type(get_offline_store_from_config(repo.config.offline_store)) is DuckDBAsofOfflineStore


def test_nothing_is_seen_before_it_happened_or_was_known_and_nothing_beyond_its_ttl(repo: FeatureStore):
    rows = shops_at(NOON - 2 * HOUR, NOON, NOON + HOUR, NOON + 23 * HOUR, NOON + 23 * HOUR + timedelta(microseconds=1))
    assert sales(repo, rows) == [None, 10, 11, 11, None]
    assert sales(repo, shops_at(NOON, NOON, shop=[2, 3])) == [None, None]


def test_the_guard_on_the_creation_cannot_be_turned_off(repo: FeatureStore):
    job = repo.get_historical_features(shops_at(NOON), ["shops:sales"], filter_by_created_timestamp=False)
    assert job.to_arrow()["sales"].to_pylist() == [10]


def test_rows_come_back_as_they_went_in_with_features_behind_them(repo: FeatureStore):
    rows = shops_at(NOON + HOUR, NOON, NOON, shop=[2, 1, 1], label=["a", "b", "b"])
    answer = repo.get_historical_features(rows, ["shops:margin", "shops:sales"]).to_df()
    assert list(answer.columns) == ["shop", "event_timestamp", "label", "margin", "sales"]
    pd.testing.assert_frame_equal(answer[["shop", "event_timestamp", "label"]], rows)
    assert answer["sales"].tolist() == [20, 10, 10]
    assert answer["margin"].tolist() == [0.7, 0.5, 0.5], "the file calls it RAW"


def test_full_names_name_the_view(repo: FeatureStore):
    answer = repo.get_historical_features(shops_at(NOON), ["shops:sales", "pushed:sales"], full_feature_names=True).to_arrow()
    assert answer.column_names[2:] == ["shops__sales", "pushed__sales"]


@pytest.mark.parametrize(
    "moments",
    [
        [NOON],
        [NOON.replace(tzinfo=None)],
        ["2025-05-01T12:00:00Z"],
        ["2025-05-01 12:00:00"],
        ["2025-05-01T21:00:00+09:00"],
        pd.Series([NOON]).astype("datetime64[ns, UTC]"),
        pd.Series([NOON]).astype("datetime64[s, UTC]"),
        pd.Series([NOON]).dt.tz_convert("America/New_York"),
        pd.Series([NOON.replace(tzinfo=None)]).astype("datetime64[ms]"),
    ],
)
def test_every_way_to_write_a_moment_means_the_same(repo: FeatureStore, moments: Any):
    assert sales(repo, shops_at(*moments)) == [10]
    assert sales(repo, pa.Table.from_pandas(shops_at(*moments))) == [10]


def test_times_of_several_zones_in_one_column_are_the_moments_they_name(repo: FeatureStore):
    far = pd.Timestamp("2025-05-01T21:00:00+09:00")
    assert sales(repo, shops_at(far, pd.Timestamp("2025-05-01T08:00:00-05:00"))) == [10, 11]


def test_nanoseconds_are_rounded_down_into_the_past(repo: FeatureStore):
    before = pd.Series([pd.Timestamp(NOON + HOUR) - pd.Timedelta(1, "ns"), pd.Timestamp(NOON + HOUR)])
    assert sales(repo, shops_at(*before)) == [10, 11]


def test_a_source_in_nanoseconds_is_compared_in_nanoseconds(repo: FeatureStore, tmp_path: Path):
    ns = pa.timestamp("ns", "UTC")
    made = pa.table(
        {
            "shop": pa.array([1, 1]),
            "at": pa.array([1_746_100_800_000_000_100, 1_746_100_800_000_000_700], ns),
            "made": pa.array([1_746_100_800_000_000_100, 1_746_100_800_000_000_700], ns),
            "sales": [1, 2],
            "RAW": [0.0, 0.0],
        }
    )
    pq.write_table(made, tmp_path / "shops.parquet")
    asked = pa.table(
        {"shop": pa.array([1] * 4), "event_timestamp": pa.array([1_746_100_800_000_000_000 + n for n in (99, 100, 699, 700)], ns)}
    )
    assert sales(repo, asked) == [None, 1, 1, 2]


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int64(), pa.uint32(), pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_a_key_is_the_same_key_as_number_and_as_text(repo: FeatureStore, kind: pa.DataType):
    keys = pa.array([1, 2, None], pa.int64())
    keys = keys.cast(pa.string()).dictionary_encode() if pa.types.is_dictionary(kind) else keys.cast(kind)
    assert sales(repo, pa.table({"shop": keys, "event_timestamp": [NOON + HOUR] * 3})) == [11, 20, None]


def test_text_that_is_no_number_is_no_key_and_no_error(repo: FeatureStore):
    assert sales(repo, shops_at(NOON, NOON, NOON, shop=["1", "01", "one"])) == [10, None, None]


def test_integers_with_gaps_are_floats_in_pandas_and_keys_all_the_same(repo: FeatureStore):
    assert sales(repo, shops_at(NOON + HOUR, NOON + HOUR, NOON + HOUR, shop=[1.0, np.nan, 2.0])) == [11, None, 20]


def test_no_rows_are_an_answer_with_every_column(repo: FeatureStore):
    nobody = shops_at(NOON).iloc[:0]
    answer = repo.get_historical_features(nobody, ["shops:sales", "shops:margin"]).to_arrow()
    assert (len(answer), answer.column_names) == (0, ["shop", "event_timestamp", "sales", "margin"])
    assert answer.schema.field("sales").type == pa.int64()
    assert sales(repo, "SELECT 1 AS shop, now() AS event_timestamp WHERE false") == []


def test_a_row_without_a_moment_knows_nothing(repo: FeatureStore):
    assert sales(repo, shops_at(NOON, pd.NaT)) == [10, None]
    assert sales(repo, shops_at(pd.NaT, pd.NaT)) == [None, None]


def test_keys_of_two_columns_are_not_run_together(repo: FeatureStore):
    rows = pd.DataFrame({"place": [1, 11, 1, 11], "other": [11, 1, 1, 11], "event_timestamp": [NOON] * 4})
    assert repo.get_historical_features(rows, ["routes:km"]).to_arrow()["km"].to_pylist() == [5, 7, None, None]


def test_one_view_answers_for_two_keys_of_a_row(repo: FeatureStore):
    start = repo.get_feature_view("places").with_name("start").with_join_key_map({"place": "from_place"})
    end = repo.get_feature_view("places").with_name("end").with_join_key_map({"place": "to_place"})
    service = FeatureService(name="trip", features=[start[["heat"]], end[["heat"]]])
    repo.apply(service)
    rows = pd.DataFrame({"from_place": [1, 11], "to_place": [11, 2], "event_timestamp": [NOON, NOON]})
    answer = repo.get_historical_features(rows, service, full_feature_names=True).to_arrow()
    assert answer["start__heat"].to_pylist() == [20.0, 30.0]
    assert answer["end__heat"].to_pylist() == [30.0, None]


def test_a_view_without_entities_answers_every_row(repo: FeatureStore):
    rows = shops_at(NOON - 2 * HOUR, NOON, NOON + HOUR, shop=[1, 2, 3])
    assert repo.get_historical_features(rows, ["rates:rate"]).to_arrow()["rate"].to_pylist() == [None, 1.5, 2.5]


def test_on_demand_features_come_from_the_joined_row_and_the_request(repo: FeatureStore):
    rows = shops_at(NOON, NOON + HOUR, factor=[2, 3])
    answer = repo.get_historical_features(rows, ["scaled:scaled", "shops:sales"]).to_df()
    assert answer["scaled"].tolist() == [20, 33]


def test_entity_rows_may_be_a_query(repo: FeatureStore, tmp_path: Path):
    save(tmp_path / "asked.parquet", [{"shop": 1, "event_timestamp": NOON}, {"shop": 2, "event_timestamp": NOON + HOUR}])
    query = f"SELECT shop, event_timestamp FROM read_parquet('{tmp_path}/asked.parquet') ORDER BY shop DESC; "
    answer = repo.get_historical_features(query, ["shops:sales"]).to_arrow()
    assert answer.select(["shop", "sales"]).to_pylist() == [{"shop": 2, "sales": 20}, {"shop": 1, "sales": 10}]


def test_without_entity_rows_every_key_and_moment_of_the_span_is_one(repo: FeatureStore):
    job = repo.get_historical_features(features=["shops:sales"], start_date=NOON - HOUR, end_date=NOON + HOUR)
    assert job.to_arrow().select(["shop", "event_timestamp", "sales"]).to_pylist() == [
        {"shop": 1, "event_timestamp": NOON - HOUR, "sales": 10},
        {"shop": 2, "event_timestamp": NOON + HOUR, "sales": 20},
    ]


def test_the_metadata_say_what_was_asked(repo: FeatureStore):
    for rows in (
        shops_at(NOON, NOON + HOUR, label=1),
        f"SELECT 1 AS shop, unnest([TIMESTAMPTZ '{NOON}', TIMESTAMPTZ '{NOON + HOUR}']) AS event_timestamp, 1 AS label",
    ):
        told = repo.get_historical_features(rows, ["shops:sales"]).metadata
        assert (told.features, sorted(told.keys)) == (["shops:sales"], ["label", "shop"])
        assert (told.min_event_timestamp, told.max_event_timestamp) == (NOON, NOON + HOUR)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_size_of_the_pieces_shows_nowhere(open_repo: Callable[..., FeatureStore], size: int):
    rows = shops_at(*[NOON + n * HOUR for n in range(-3, 4)], shop=[1, 2, 3, 1, 2, 1, 2])
    whole, pieces = open_repo(), open_repo(chunk_rows=size)
    query = (
        "SELECT 1 + n % 3 AS shop, TIMESTAMPTZ '2025-05-01 12:00:00+00' + to_hours(n::INT) AS event_timestamp FROM range(9) r(n) ORDER BY n"
    )
    for entities in (rows, query):
        one, other = (repo.get_historical_features(entities, ["shops:sales", "shops:margin"]).to_arrow() for repo in (whole, pieces))
        assert one.equals(other)
        assert len(one["sales"].drop_null()) > 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (pd.DataFrame({"shop": [1]}), "event_timestamp"),
        (pd.DataFrame({"event_timestamp": [NOON]}), "also 'shop'"),
        (pd.DataFrame({"shop": [1], "one": [NOON], "two": [NOON]}), "exactly one column of times"),
        (pd.DataFrame({"shop": [1], "event_timestamp": ["yesterday"]}), "ISO 8601"),
        (pd.DataFrame({"shop": [1], "event_timestamp": [1.5]}), "allowed|expected times"),
        (pd.DataFrame({"shop": [1, "a"], "event_timestamp": [NOON] * 2}), "column 'shop'"),
        (pd.DataFrame({"shop": [1], "event_timestamp": [NOON], "sales": [1]}), "full_feature_names"),
        ("SELECT 1 AS shop", "event_timestamp"),
        ("SELEKT", "a SELECT that DuckDB runs"),
    ],
)
def test_entity_rows_that_cannot_be_joined_are_refused_in_words(repo: FeatureStore, rows: Any, said: str):
    with pytest.raises(StateError, match=said):
        repo.get_historical_features(rows, ["shops:sales"]).to_arrow()


def test_any_one_column_of_times_is_the_clock(repo: FeatureStore):
    assert sales(repo, pd.DataFrame({"shop": [1], "seen_at": [NOON]})) == [10]


def test_a_feature_that_the_file_lacks_is_named_with_what_it_has(repo: FeatureStore, tmp_path: Path):
    save(tmp_path / "shops.parquet", [{"shop": 1, "at": NOON, "made": NOON, "RAW": 0.5}])
    with pytest.raises(StateError, match=r"no column 'sales'.*'RAW'"):
        sales(repo, shops_at(NOON))
    (tmp_path / "shops.parquet").unlink()
    with pytest.raises(StateError, match="no Parquet file"):
        sales(repo, shops_at(NOON))


def test_a_column_that_only_newer_files_have_is_null_before(tmp_path: Path):
    store = world.open_store(tmp_path)
    world.write(tmp_path, [{"a": "1", "b": "1", "event": NOON, "created": NOON, "x": 1, "w": 1.0, "z": "p"}], "one")
    old = pq.read_table(tmp_path / "facts" / "part-0.parquet").drop_columns(["z"])
    earlier = pa.array([NOON - 2 * HOUR], world.US)
    pq.write_table(old.set_column(2, "event", earlier).set_column(3, "created", earlier), tmp_path / "facts" / "part-1.parquet")
    rows = [{"a": "1", "b": "1", "event_timestamp": at, "n": 0} for at in (NOON - HOUR, NOON)]
    answers = world.found(store, world.table(rows), ["with_ttl"])
    assert [(answer["with_ttl__x"], answer["with_ttl__z"]) for answer in answers] == [(1, None), (1, "p")]
    early = store.get_historical_features(world.table(rows[:1]), world.references(["with_ttl"]), full_feature_names=True).to_arrow()
    assert early["with_ttl__z"].to_pylist() == [None], "of all files that this row needs, none has the column"
    assert early.schema.field("with_ttl__z").type == pa.string()


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


def test_equality_is_chosen_where_footers_prove_snapshots_and_only_for_rows_it_proves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = world.open_store(tmp_path)
    statements: list[str] = []
    real = join.run
    monkeypatch.setattr(join, "run", lambda engine, statement: (statements.append(statement), real(engine, statement))[1])

    def ways(rows: list[dict], layout: str, keys: list[str]) -> tuple[bool, bool]:
        statements.clear()
        world.write(tmp_path, rows, layout)
        entities = [{"a": key, "b": "1", "event_timestamp": NOON + HOUR, "n": 0} for key in keys]
        assert world.found(store, world.table(entities), ["with_ttl"]) == world.expected(rows, entities, ["with_ttl"])
        return any("asked.slice" in statement for statement in statements), any("ASOF" in statement for statement in statements)

    dense = [
        {"a": key, "b": "1", "event": NOON - n * HOUR, "created": NOON - n * HOUR, "x": n, "w": 0.0, "z": "p"}
        for key in "12"
        for n in range(3)
    ]
    assert ways(dense, "snapshots", ["1", "2"]) == (True, False)
    assert ways(dense, "one", ["1", "2"]) == (True, False), "one slice: what is found is all there is"
    assert ways(dense[1:], "snapshots", ["1", "2"]) == (True, True), "key 1 has no row in the newest snapshot"
    corrected = {**dense[0], "created": NOON + 2 * HOUR}
    assert ways([corrected, *dense[1:]], "snapshots", ["1", "2"]) == (True, True), "the newest row of key 1 was not known yet"
    assert ways([dense[0], *dense], "snapshots", ["1", "2"]) == (True, True), "two rows of one key and day"


def test_files_that_no_moment_needs_are_not_read(tmp_path: Path):
    store = world.open_store(tmp_path)
    rows = [{"a": "1", "b": "1", "event": NOON + n * 24 * HOUR, "created": NOON, "x": n, "w": 0.0, "z": "p"} for n in range(5)]
    world.write(tmp_path, rows, "snapshots")
    for file in (0, 4):  # torn behind their footers: reading a page of theirs fails
        path = tmp_path / "facts" / f"part-{file}.parquet"
        content = bytearray(path.read_bytes())
        content[4:400] = bytes(396)
        path.write_bytes(content)
    entities = [{"a": "1", "b": "1", "event_timestamp": NOON + 49 * HOUR, "n": 0}]
    (answer,) = world.found(store, world.table(entities), ["with_ttl"])
    assert answer["with_ttl__x"] == 2


@pytest.mark.parametrize("seed", range(4))
def test_stock_feast_with_its_flag_on_gives_the_same_rows(tmp_path: Path, seed: int):
    """Where stock is defined: full ties it settles by chance, and it loses rows that have no moment."""
    rows, entities, layout = world.random_world(seed)
    kept = {(row["a"], row["b"], row["event"], row["created"]): row for row in rows if row["created"]}
    entities = [entity for entity in entities if entity["event_timestamp"] and entity["a"] and entity["b"]]
    views = ["with_ttl", "ageless"]
    ours = world.open_store(tmp_path)
    world.write(tmp_path, list(kept.values()), layout)
    answers = world.found(ours, world.table(entities), views)
    stock = world.open_store(tmp_path / "stock", {"type": "duckdb"})
    world.write(tmp_path / "stock", list(kept.values()), layout)
    frame = world.table(entities).to_pandas()
    theirs = stock.get_historical_features(
        frame, world.references(views), full_feature_names=True, filter_by_created_timestamp=True
    ).to_arrow()
    by_row = {row["n"]: row for row in theirs.to_pylist()}
    assert len(by_row) == len(entities) > 10
    names = [name for view in views for name in world.features_of(view).values()]
    assert [[answer[name] for name in names] for answer in answers] == [[by_row[answer["n"]][name] for name in names] for answer in answers]


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
