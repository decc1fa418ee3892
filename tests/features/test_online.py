"""Online reads: two paths behind one call, equal to Feast's own answer, in one round trip."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_world import day
from redis import Redis
from typer.testing import CliRunner

from pipelines import cli
from pipelines.config import Home
from pipelines.errors import ReloopError, StateError
from pipelines.features import build, item_snapshot, repository, store
from pipelines.features.moments import reading_at
from pipelines.features.online import OnlineFeatures
from pipelines.tables import TIMESTAMP

USERS, ITEMS, CATEGORIES = [f"u{n}" for n in range(6)], [f"i{n}" for n in range(30)], [f"c{n}" for n in range(4)]


def write_marts(
    home: Home, n: int, *, salt: int = 0, users: list[str] = USERS, items: list[str] = ITEMS, categories: list[str] = CATEGORIES
) -> None:
    """Write the marts of one day by hand: every third value is missing, all others tell their place."""
    ids = {"user_id": users, "item_id": items, "category": categories}
    for mart, keys in build.MARTS.items():
        specs = [spec for service in ("ranking_v1", "pairs_v1", "session_v1") for spec in store.schema(home, service) if spec.view == mart]
        if not specs:
            continue
        named = {key: ids.get(key, [f"{key}{place}" for place in range(3)]) for key in keys}
        rows = [(first, second) for first in named[keys[0]] for second in (named[keys[1]] if len(keys) > 1 else [""])]
        columns = {key: pa.array([row[place] for row in rows], pa.string()) for place, key in enumerate(keys)}
        columns["as_of"] = pa.array([day(n)] * len(rows), TIMESTAMP)
        for place, spec in enumerate(specs):
            numbers = [None if (row + place) % 3 == 0 else n * 1000 + salt + row * 10 + place for row in range(len(rows))]
            name = spec.name.split("__", 1)[1]
            columns[name] = pa.array([cell(spec.dtype, name, number) for number in numbers], spec.dtype)
        columns["available_at"] = columns["as_of"]
        path = home.features / mart / f"as_of={day(n):%F}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)


def cell(dtype: pa.DataType, name: str, number: int | None):
    if number is None:
        return None
    if pa.types.is_boolean(dtype):
        return bool(number % 2)
    if pa.types.is_string(dtype):
        return f"c{number % 4}" if name == "category" else f"s{number}"
    if pa.types.is_list(dtype):
        return [cell(dtype.value_type, name, number)] * (number % 3)
    return number / 7 if pa.types.is_floating(dtype) else number


@pytest.fixture(params=["sqlite", "redis"])
def shop(home: Home, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a home materialised to day 10, on SQLite and on Redis; one item left after day 8."""
    if request.param == "redis":
        monkeypatch.setenv(repository.REDIS, request.getfixturevalue("redis"))
    store.apply(home)
    write_marts(home, 8)
    store.materialize(home, day(8))
    write_marts(home, 10, items=ITEMS[:-1])
    store.materialize(home, day(10))
    return home


def asked() -> pa.Table:
    rng = np.random.default_rng(3)
    users, items = [*USERS, "nobody", None], [*ITEMS, "nothing", None]
    return pa.table(
        {
            "user_id": pa.array([users[n] for n in rng.integers(0, len(users), 80)], pa.string()),
            "item_id": pa.array([items[n] for n in rng.integers(0, len(items), 80)], pa.string()),
        }
    )


@pytest.mark.parametrize("later", [None, 0.0, 6.5, 8.5], ids=str)
def test_one_call_gives_what_get_online_features_gives(shop: Home, later: float | None):
    """Items too, which do not come from the store: every column of every view, row by row, fresh and past the ttl."""
    as_of = None if later is None else day(10) + timedelta(days=later)
    rows = asked()
    ours = OnlineFeatures(shop).read(rows, as_of=as_of)
    feast, specs = repository.open_store(shop), store.schema(shop)
    entities = {name: ours[name].fill_null("").to_pylist() for name in ("user_id", "item_id")}
    entities |= {key: ours[source].fill_null("").to_pylist() for key, source in (("category", "item_daily__category"),)}
    for key in {key for spec in specs for key in spec.keys} - set(entities):
        entities[key] = ours[f"item_daily__{key}"].fill_null("").to_pylist()
    with reading_at(as_of):
        theirs = feast.get_online_features(feast.get_feature_service("ranking_v1"), entity_rows=entities, full_feature_names=True).to_dict()
    for spec in specs:
        assert ours[spec.name].to_pylist() == pa.array(theirs[spec.name], spec.dtype).to_pylist(), spec.name
    values = [value for spec in specs for value in ours[spec.name].to_pylist()]
    assert (set(values) == {None}) if later == 8.5 else (sum(value is not None for value in values) > 500)
    assert ours.column_names == [*rows.column_names, *(spec.name for spec in specs)]


def test_a_missing_key_is_nobody_even_where_somebody_has_no_name(home: Home):
    """Feast can be asked for "" only; a row without a key knows nothing, as in training."""
    store.apply(home)
    write_marts(home, 10, users=["", "u1"], items=["", "i1"], categories=["", "c1"])
    store.materialize(home, day(10))
    rows = pa.table({"user_id": pa.array([None, "u1", ""], pa.string()), "item_id": pa.array(["i1", None, "i1"], pa.string())})
    online = OnlineFeatures(home).read(rows, as_of=day(10))
    moments = pa.array([day(10)] * len(rows), TIMESTAMP)
    offline = store.historical(home, rows.append_column(store.EVENT_TIMESTAMP, moments)).drop_columns([store.EVENT_TIMESTAMP])
    assert online.to_pylist() == offline.to_pylist()
    assert any(value is not None for name, value in online.to_pylist()[2].items() if name.startswith("user_daily"))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:6380,password=x", "127.0.0.1:6380,password=x"),
        ("redis://127.0.0.1:6380", "127.0.0.1:6380"),
        ("rediss://ann:x@cache:7000/2", "cache:7000,username=ann,password=x,db=2,ssl=true"),
    ],
)
def test_the_address_of_redis_may_be_a_url(home: Home, monkeypatch: pytest.MonkeyPatch, address: str, expected: str):
    monkeypatch.setenv(repository.REDIS, address)
    assert repository.configuration(home)["online_store"]["connection_string"] == expected


def test_a_request_is_one_round_trip(home: Home, redis: str, monkeypatch: pytest.MonkeyPatch):
    """Redis counts how often it read from a client: once a request, whatever the number of views and items."""
    monkeypatch.setenv(repository.REDIS, redis)
    store.apply(home)
    write_marts(home, 10)
    store.materialize(home, day(10))
    reader, server = OnlineFeatures(home), Redis(port=int(redis.split(":")[1]))
    rows = pa.table({"user_id": ["u1"] * len(ITEMS), "item_id": ITEMS})
    reader.read(rows, as_of=day(10))

    def reads() -> int:
        return int(server.info("stats")["total_reads_processed"])

    idle = -reads() + reads()
    before = reads()
    reader.read(rows, as_of=day(10))
    assert reads() - before == idle + 1


def test_gathering_gives_the_numbers_of_the_table(shop: Home):
    snapshot = item_snapshot.open_snapshot(shop)
    items = [*ITEMS, "nothing"]
    for as_of in (None, day(10), day(17), day(30)):
        typed, numbers = snapshot.table(items, as_of=as_of), snapshot.gather(snapshot.places(items), as_of=as_of)
        assert numbers.shape == (len(items), len(snapshot.names))
        for place, name in enumerate(snapshot.names):
            expected = typed[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
            np.testing.assert_array_equal(numbers[:, place], expected, err_msg=f"{name} {as_of}")
    assert np.isnan(numbers).all()
    assert not np.isnan(snapshot.gather(snapshot.places(ITEMS))).all(axis=1).any()


def test_a_missing_or_stale_snapshot_is_an_error_that_says_what_to_do(shop: Home, tmp_path: Path):
    with pytest.raises(StateError, match="reloop features"):
        item_snapshot.open_snapshot(Home(tmp_path / "elsewhere"))
    assert item_snapshot.open_snapshot(shop, as_of=day(18)).day == day(10)
    with pytest.raises(StateError, match="it is of 2025-01-16"):
        item_snapshot.open_snapshot(shop, as_of=day(18) + timedelta(seconds=1))


def test_a_reader_follows_the_day_and_keeps_what_it_maps(shop: Home):
    reader = OnlineFeatures(shop)
    old = reader.items
    before = old.gather(old.places(ITEMS))
    for n in (11, 12, 13):
        write_marts(shop, n)
        store.materialize(shop, day(n))
    assert reader.items.day == day(13)
    np.testing.assert_array_equal(old.gather(old.places(ITEMS)), before, "the old day was unlinked, not changed")
    assert len(list(item_snapshot.folder(shop).glob("as_of=*"))) == 2


def test_publishing_again_changes_nothing_and_a_rebuilt_day_is_another_snapshot(shop: Home):
    pointer = item_snapshot.folder(shop) / item_snapshot.POINTER
    first = json.loads(pointer.read_text())
    store.materialize(shop, day(10))
    assert json.loads(pointer.read_text()) == first
    write_marts(shop, 10, salt=1)
    store.materialize(shop, day(9))
    assert json.loads(pointer.read_text()) != first, "a rebuild of the day that is served shows"
    assert item_snapshot.open_snapshot(shop).day == day(10)


def test_readers_beside_a_publisher_see_whole_days(home: Home):
    """Two days alternate under a reader: each answer is wholly of the one or of the other."""
    store.apply(home)
    write_marts(home, 10)
    feast, stop, seen, errors = repository.open_store(home), threading.Event(), set(), []
    item_snapshot.publish_snapshot(home, feast, day(10))

    def watch() -> None:
        try:
            while not stop.is_set():
                snapshot = item_snapshot.open_snapshot(home)
                numbers = snapshot.gather(snapshot.places(ITEMS))
                seen.add((snapshot.day, float(np.nansum(numbers))))
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for n in range(11, 17):
        write_marts(home, n)
        item_snapshot.publish_snapshot(home, feast, day(n))
    stop.set()
    watcher.join()
    assert errors == []
    assert len({moment for moment, _ in seen}) == len(seen) >= 2


def test_verify_compares_what_is_served_with_the_offline_store_and_writes_nothing(shop: Home):
    command = ["features", "--as-of", f"{day(10):%F}", "--verify", "--sample", "50", "--home", str(shop.root)]
    agreed = CliRunner().invoke(cli.app, [*command, "--json"])
    assert agreed.exit_code == 0, agreed.output
    assert json.loads(agreed.output)["parity"]["verdict"] == "equal"
    write_marts(shop, 10, salt=7, items=ITEMS[:-1])  # what training sees has changed, what is served has not
    with pytest.raises(ReloopError, match="differs for"):
        CliRunner().invoke(cli.app, command, catch_exceptions=False)
