"""Columns become the very bytes that Feast makes one value at a time."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from feast import ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.errors import StateError
from pipelines.features import encoding
from pipelines.window import micros

TEXT = st.text(st.characters(codec="utf-8"), max_size=40) | st.just("x" * 20_000)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
MOMENT = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
SINGLE = st.floats(width=32)
TYPES = {
    ValueType.STRING: (pa.string(), TEXT),
    ValueType.BYTES: (pa.binary(), st.binary(max_size=300)),
    ValueType.INT32: (pa.int32(), INT32),
    ValueType.INT64: (pa.int64(), INT64),
    ValueType.DOUBLE: (pa.float64(), st.floats()),
    ValueType.FLOAT: (pa.float32(), SINGLE),
    ValueType.BOOL: (pa.bool_(), st.booleans()),
    ValueType.UNIX_TIMESTAMP: (pa.timestamp("us", "UTC"), MOMENT),
    ValueType.STRING_LIST: (pa.list_(pa.string()), st.lists(TEXT, max_size=4)),
    ValueType.BYTES_LIST: (pa.list_(pa.binary()), st.lists(st.binary(max_size=20), max_size=4)),
    ValueType.INT32_LIST: (pa.list_(pa.int32()), st.lists(INT32, max_size=4)),
    ValueType.INT64_LIST: (pa.list_(pa.int64()), st.lists(INT64, max_size=4)),
    ValueType.DOUBLE_LIST: (pa.list_(pa.float64()), st.lists(st.floats(), max_size=40)),
    ValueType.FLOAT_LIST: (pa.list_(pa.float32()), st.lists(SINGLE, max_size=4)),
    ValueType.BOOL_LIST: (pa.list_(pa.bool_()), st.lists(st.booleans(), max_size=4)),
}


def by_feast(column: pa.Array, kind: ValueType) -> list[Value]:
    """Return the messages Feast makes, but for two corners in which they depend on the other rows of a batch.

    Beside a null, whole numbers go through a double there; and b"" is missing if all bytes of the batch are empty.
    """
    if kind is ValueType.BYTES and not any(column.to_pylist()):
        return [Value() if value is None else Value(bytes_val=value) for value in column.to_pylist()]
    if kind is ValueType.INT64 and column.null_count:
        return [Value() if value is None else Value(int64_val=value) for value in column.to_pylist()]
    return python_values_to_proto_values(column.to_numpy(zero_copy_only=False), kind)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_column_is_written_as_feast_writes_its_values(kind: ValueType):
    dtype, cell = TYPES[kind]

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.none() | cell, max_size=12))
    @example([None, None])
    def compare(cells: list) -> None:
        column = pa.array([*cells, *cells[:1]], dtype)
        for part in (column, column.slice(1), column.slice(0, 0)):
            messages = by_feast(part, kind) if len(part) else []
            assert encoding.values(part, kind).to_pylist() == [message.SerializeToString() for message in messages]
            assert list(encoding.texts(part, kind)) == [extract_text_and_num(message, compute_num=False)[0] for message in messages]

    compare()


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array(["a", None, "a"]).dictionary_encode(), ValueType.STRING),
        (pa.array(["a", None], pa.large_string()), ValueType.STRING),
        (pa.array([[1], [], None], pa.large_list(pa.int32())), ValueType.INT32_LIST),
        (pa.array([1, 2], pa.int64()), ValueType.DOUBLE),
        (pa.array(['{"a": 1}', None]), ValueType.JSON),
        (pa.array([datetime(2025, 1, 1, 0, 0, 1, 7)], pa.timestamp("ns")), ValueType.UNIX_TIMESTAMP),
        (pa.array([["a", None], None]), ValueType.STRING_LIST),
    ],
    ids=str,
)
def test_columns_of_other_arrow_types_are_written_as_feast_writes_them_too(column: pa.Array, kind: ValueType):
    assert encoding.values(column, kind).to_pylist() == [message.SerializeToString() for message in by_feast(column, kind)]


def test_nan_is_missing_in_a_scalar_and_a_number_in_a_list():
    nan = float("nan")
    assert encoding.values(pa.array([nan, 1.0]), ValueType.DOUBLE).to_pylist()[0] == b""
    (written,) = encoding.values(pa.array([[nan]], pa.list_(pa.float64())), ValueType.DOUBLE_LIST).to_pylist()
    assert np.isnan(Value.FromString(written).double_list_val.val[0])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(TEXT, INT64, INT32, st.binary(max_size=20)), min_size=1, max_size=8))
def test_a_composite_entity_key_is_written_as_feast_writes_it(rows: list):
    kinds = {"user_id": ValueType.STRING, "shop": ValueType.INT64, "aisle": ValueType.INT32, "tag": ValueType.BYTES}
    columns = {name: pa.array([row[n] for row in rows], TYPES[kind][0]) for n, (name, kind) in enumerate(kinds.items())}
    fields = {"user_id": "string_val", "shop": "int64_val", "aisle": "int32_val", "tag": "bytes_val"}
    expected = [
        serialize_entity_key(
            EntityKey(join_keys=list(kinds), entity_values=[Value(**{fields[name]: row[n]}) for n, name in enumerate(kinds)]),
            entity_key_serialization_version=3,
        )
        for row in rows
    ]
    assert encoding.entity_keys(columns, kinds).to_pylist() == expected


def test_a_missing_key_is_an_error_that_names_it():
    with pytest.raises(StateError, match="join key user_id: 1 missing"):
        encoding.entity_keys({"user_id": pa.array(["a", None])}, {"user_id": ValueType.STRING})


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(MOMENT, max_size=12))
@example([datetime(1970, 1, 1, tzinfo=UTC)])
def test_a_moment_is_written_as_protobuf_writes_it(moments: list):
    expected = []
    for moment in moments:
        message = Timestamp()
        message.FromDatetime(moment)
        expected.append(message.SerializeToString())
    assert encoding.timestamps(np.array([micros(moment) for moment in moments], np.int64)).to_pylist() == expected
    assert encoding.micros(pa.array(moments, pa.timestamp("us", "UTC"))).tolist() == [micros(moment) for moment in moments]


def test_of_rows_of_one_key_the_newest_stays():
    keys = pa.array([b"a", b"b", b"a", b"a", b"b"])
    values = {"f": pa.array([b"1", b"2", b"3", b"4", b"5"])}
    rows = encoding.Encoded(keys, values, np.array([1, 5, 2, 2, 5]), np.array([9, 1, 3, 2, 1]), lambda _: ["1", "2", "3", "4", "5"])
    kept = rows.newest()
    assert kept.keys.to_pylist() == [b"a", b"b"]
    assert kept.values["f"].to_pylist() == [b"3", b"5"], "by event time, then created time, then place"
    assert kept.texts("f") == ["3", "5"]
