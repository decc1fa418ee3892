"""Historical features from our store: what users of any Feast store may expect, on worlds small enough for paper."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import offline_world as world
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureStore
from shops_world import HOUR, NOON, sales, save, shops_at

from pipelines.errors import StateError
from pipelines.features.offline_store import join


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
