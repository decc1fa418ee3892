"""A request reads from the online store what Feast would, in one round trip, within its time, and nothing that is too old."""

from __future__ import annotations

import math
import socket
import time
from datetime import timedelta

import numpy as np
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feature_world import END

from pipelines import columns as c
from pipelines.errors import StateError
from pipelines.features import request_store
from pipelines.features.repository import open_store
from pipelines.features.request_store import RequestStore


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, -1, -(2**31), 2**31 - 1])
def test_whole_numbers_are_read_as_protobuf_writes_them(value):
    assert request_store.number(Value(int32_val=value).SerializeToString()) == value
    assert request_store.number(Value(int64_val=value).SerializeToString()) == value


@pytest.mark.parametrize("value", [0.0, -1.5, 1e300, math.inf])
def test_other_numbers_truth_values_and_missing_ones_are_read_too(value):
    assert request_store.number(Value(double_val=value).SerializeToString()) == value
    assert request_store.number(Value(bool_val=True).SerializeToString()) == 1
    assert request_store.number(Value(bool_val=False).SerializeToString()) == 0
    assert math.isnan(request_store.number(b""))
    assert math.isnan(request_store.number(None))
    assert math.isnan(request_store.number(Value(double_val=math.nan).SerializeToString()))


def test_what_is_no_number_is_refused():
    with pytest.raises(StateError, match="begins with 0x12"):
        request_store.number(Value(string_val="7").SerializeToString())


@pytest.mark.parametrize("key", [{"user_id": "ann"}, {"user_id": "é😀", "category": ""}, {"brand": "x" * 400, "user_id": "b"}])
def test_entity_keys_are_feasts_own(key):
    message = EntityKey(join_keys=list(key), entity_values=[Value(string_val=value) for value in key.values()])
    names = tuple(sorted(key))
    ours = request_store.entity_key(names, tuple(key[name].encode() for name in names))
    assert ours == serialize_entity_key(message, entity_key_serialization_version=3)


def test_a_redis_that_takes_connections_and_says_nothing_is_waited_for_as_long_as_was_asked(home, monkeypatch):
    from pipelines.features import store

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store.apply(home)  # while the store is SQLite: only the registry is needed
        monkeypatch.setenv("RELOOP_REDIS", f"127.0.0.1:{silent.getsockname()[1]}")
        reader = RequestStore(home, timeout_ms=40)
        began = time.perf_counter()
        with pytest.raises(StateError, match="an answer within 40 ms"):
            reader.read("ann", {}, request_store.datetime(2025, 1, 1))
        assert time.perf_counter() - began < 5


@pytest.fixture(params=["sqlite", "redis"])
def online_shop(request, lived, monkeypatch):
    """Return a shop with its features in a store, some of its users, and the moment."""
    from pipelines.features import request_snapshot, store

    if request.param == "redis":
        monkeypatch.setenv("RELOOP_REDIS", request.getfixturevalue("redis"))
    store.materialize(lived, END)
    users = request_snapshot.open_snapshot(lived).histories.users
    return lived, [users[at].as_py() for at in range(0, len(users), max(1, len(users) // 10))], END


def equal_to_feast(home, users: list[str], at) -> int:
    """Check every value of some users against Feast; return how many were there."""
    from pipelines.features import request_snapshot

    reader, there = RequestStore(home, 1000), 0
    histories, feast = request_snapshot.open_snapshot(home).histories, open_store(home)
    for user in users:
        words = {key: histories.known_with(histories.place(user), key) for key in (c.CATEGORY, c.BRAND)}
        held = reader.read(user, words, at)
        asked = [name.replace("__", ":") for name in reader.names()]
        stock = feast.get_online_features(features=asked, entity_rows=[{c.USER_ID: user}], full_feature_names=True).to_dict()
        rows = [(held.user, [stock[name][0] for name in reader.names()])]
        for key, some in words.items():
            if some:
                asked = [name.replace("__", ":") for name in reader.names(key)]
                entities = {c.USER_ID: [user] * len(some), key: list(some)}
                stock = feast.get_online_features(features=asked, entity_rows=entities, full_feature_names=True).to_dict()
                rows += [(held.beside[key][1][at], [stock[name][at] for name in reader.names(key)]) for at in range(len(some))]
        for ours, theirs in rows:
            expected = np.array([math.nan if value is None else float(value) for value in theirs])
            assert np.array_equal(ours, expected, equal_nan=True)
            there += int((~np.isnan(ours)).sum())
    return there


def test_values_are_those_that_feast_reads_and_missing_past_their_ttl(online_shop):
    home, users, at = online_shop
    assert equal_to_feast(home, users, at) > 100
    reader = RequestStore(home, 1000)
    users = sorted(users, key=lambda user: not reader.read(user, {}, at).session)
    old = reader.read(users[0], {}, at + timedelta(days=9))  # the ttl of the marts is 8 days
    assert np.isnan(old.user).all()
    fresh = reader.read(users[0], {}, at)
    assert fresh.session
    assert fresh.session == tuple(sorted(fresh.session, reverse=True))
    assert all(event[0] < request_store.micros(at) for event in fresh.session)
    assert reader.read("nobody", {}, at).session == ()
