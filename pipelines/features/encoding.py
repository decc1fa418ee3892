"""Feast's own bytes, a column at a time: entity keys (serialization version 3), values and timestamps.

What Feast makes of a million rows and ten features by ten million Python messages is made here by
a few dozen passes over whole columns. Every function returns a `pa.BinaryArray` whose cells equal,
byte for byte, what `serialize_entity_key` and `Value.SerializeToString` return; a missing value is
the empty message, as Feast writes it, and so is NaN in a scalar.

Formats: https://protobuf.dev/programming-guides/encoding, `feast/protos/feast/types/Value.proto`,
`feast/infra/key_encoding_utils.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from feast import ValueType

from pipelines import window
from pipelines.errors import StateError

Longs = npt.NDArray[np.int64]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
NULL_TIMESTAMP: Final = np.iinfo(np.int64).min  # Feast's mark of a missing moment
# Types that have a column writer: field number in `Value`, wire type, and the arrow type that needs no rewriting.
SCALARS: Final[dict[ValueType, tuple[int, int, pa.DataType]]] = {
    ValueType.BYTES: (1, BYTES, pa.binary()),
    ValueType.STRING: (2, BYTES, pa.string()),
    ValueType.INT32: (3, VARINT, pa.int32()),
    ValueType.INT64: (4, VARINT, pa.int64()),
    ValueType.DOUBLE: (5, FIXED64, pa.float64()),
    ValueType.FLOAT: (6, FIXED32, pa.float32()),
    ValueType.BOOL: (7, VARINT, pa.bool_()),
    ValueType.UNIX_TIMESTAMP: (8, VARINT, pa.timestamp("s")),
}
LISTS: Final[dict[ValueType, tuple[int, ValueType]]] = {
    ValueType.BYTES_LIST: (11, ValueType.BYTES),
    ValueType.STRING_LIST: (12, ValueType.STRING),
    ValueType.INT32_LIST: (13, ValueType.INT32),
    ValueType.INT64_LIST: (14, ValueType.INT64),
    ValueType.DOUBLE_LIST: (15, ValueType.DOUBLE),
    ValueType.FLOAT_LIST: (16, ValueType.FLOAT),
    ValueType.BOOL_LIST: (17, ValueType.BOOL),
}
KEYS: Final = (ValueType.STRING, ValueType.BYTES, ValueType.INT32, ValueType.INT64)


@dataclass(frozen=True)
class Encoded:
    """Rows of one view as an online store keeps them.

    Attributes:
        keys: serialized entity keys, without the project.
        values: serialized values by feature, in the order of the view.
        event_us, created_us: int64, microseconds since the epoch; a row without created time has 0.
        texts: what Feast's SQL stores keep of a feature for people to read, worked out when asked; None where they keep nothing.
    """

    keys: pa.BinaryArray
    values: Mapping[str, pa.BinaryArray]
    event_us: Longs
    created_us: Longs
    texts: Callable[[str], Sequence[str | None]]

    def __len__(self) -> int:
        return len(self.keys)

    def newest(self) -> Encoded:
        """Return the rows with every key once: its newest by event time, then created time, then place."""
        if pc.count_distinct(self.keys).as_py() == len(self):
            return self
        ids = pc.dictionary_encode(self.keys).indices.to_numpy()
        order = np.lexsort((np.arange(len(self)), self.created_us, self.event_us, ids))
        last = np.append(ids[order][1:] != ids[order][:-1], True)
        return self.take(np.sort(order[last]))

    def take(self, rows: Longs) -> Encoded:
        """Return some rows, in the order given."""
        at = pa.array(rows)
        return Encoded(
            self.keys.take(at),
            {name: cells.take(at) for name, cells in self.values.items()},
            self.event_us[rows],
            self.created_us[rows],
            lambda name: _picked(self.texts(name), rows),
        )


def _picked(cells: Sequence[str | None], rows: Longs) -> list[str | None]:
    return [cells[row] for row in rows.tolist()]


def varint(number: int) -> bytes:
    """Return one number as protobuf's variable-length integer; a negative one as its 64-bit complement."""
    rest, out = number & 0xFFFF_FFFF_FFFF_FFFF, bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def binary(lengths: npt.NDArray[Any], content: npt.NDArray[np.uint8]) -> pa.BinaryArray:
    """Return cells of the given lengths, cut from `content` one after the other; nothing is copied."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise StateError(
            "rows for the online store", found=f"{offsets[-1]:,} bytes in one batch", allowed="2 GB", hint="use smaller batches"
        )
    return pa.Array.from_buffers(pa.binary(), len(lengths), [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(content)])


def joined(*pieces: pa.Array | bytes) -> pa.BinaryArray:
    """Return the pieces of every row put together; a missing piece makes the cell missing."""
    scalars = [pa.scalar(piece, pa.binary()) if isinstance(piece, bytes) else piece for piece in pieces]
    return pc.binary_join_element_wise(*scalars, pa.scalar(b"", pa.binary()))


@cache
def _prefixes(tag: bytes, upto: int) -> pa.BinaryArray:
    return pa.array([tag + varint(length) for length in range(upto)], pa.binary())


def prefixed(tag: bytes, cells: pa.BinaryArray) -> pa.BinaryArray:
    """Return every cell behind `tag` and its length, as protobuf frames strings, bytes and messages."""
    lengths = pc.binary_length(cells)
    most = pc.max(lengths).as_py() or 0
    if most < 1 << 14:
        return joined(_prefixes(tag, 1 << (most + 1).bit_length()).take(lengths), cells)
    found = pc.dictionary_encode(lengths.cast(pa.int64()))
    table = pa.array([tag + varint(length) for length in found.dictionary.to_pylist()], pa.binary())
    return joined(table.take(found.indices), cells)


def _varints(numbers: Longs, tag: bytes = b"") -> pa.BinaryArray:
    """Return `tag` and the varint of every number."""
    rest = numbers.view(np.uint64)
    most = len(varint(int(rest.max()))) if len(rest) else 1
    cells = np.empty((len(rest), len(tag) + most), np.uint8)
    cells[:, : len(tag)] = np.frombuffer(tag, np.uint8)
    lengths = np.full(len(rest), len(tag) + 1, np.int64)
    for n in range(most):
        more = rest > np.uint64(0x7F)
        cells[:, len(tag) + n] = (rest & np.uint64(0x7F)).astype(np.uint8) | (more.astype(np.uint8) << 7)
        lengths += more
        rest = rest >> np.uint64(7)
    if most == 1:
        return binary(lengths, cells.reshape(-1))
    return binary(lengths, cells[np.arange(cells.shape[1]) < lengths[:, None]])


def _fixed(numbers: npt.NDArray[Any], tag: bytes = b"") -> pa.BinaryArray:
    """Return `tag` and the little-endian bytes of every number."""
    width = numbers.dtype.itemsize
    cells = np.empty((len(numbers), len(tag) + width), np.uint8)
    cells[:, : len(tag)] = np.frombuffer(tag, np.uint8)
    cells[:, len(tag) :] = np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), width)
    return binary(np.full(len(numbers), cells.shape[1]), cells.reshape(-1))


def ends(cells: pa.BinaryArray) -> npt.NDArray[np.int32]:
    """Return where the cells begin and end in the array's data, one number more than cells."""
    return np.frombuffer(cells.buffers()[1], np.int32, count=len(cells) + 1, offset=4 * cells.offset)


def data(cells: pa.BinaryArray) -> memoryview:
    """Return the bytes that `ends` counts in."""
    return memoryview(cells.buffers()[2] or b"")


def _scattered(cells: pa.BinaryArray, valid: npt.NDArray[np.bool_]) -> pa.BinaryArray:
    """Return `cells` in the places that are valid, and empty cells in the others."""
    if valid.all():
        return cells
    lengths = np.zeros(len(valid), np.int64)
    lengths[valid] = np.diff(ends(cells))
    return binary(lengths, np.frombuffer(data(cells), np.uint8))


def _plain(column: pa.Array) -> npt.NDArray[Any]:
    """Return a column without nulls as numpy, moments as whole numbers of their unit."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    numbers: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers


def _scalar_cells(column: pa.Array, wire: int, tag: bytes) -> pa.BinaryArray:
    """Return the cells of a column without nulls."""
    if wire == BYTES:
        return prefixed(tag, column.cast(pa.binary()))
    numbers = _plain(column)
    return _varints(numbers.astype(np.int64), tag) if wire == VARINT else _fixed(numbers, tag)


def _seconds(column: pa.Array) -> pa.Array:
    """Return moments as whole seconds, rounded down; a missing one as Feast marks it."""
    seconds = pc.floor_temporal(column, unit="second").cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    return pc.divide(seconds, 1_000_000).fill_null(NULL_TIMESTAMP)


def _natural(column: pa.Array, kind: ValueType) -> pa.Array | None:
    """Return a column in the arrow type that `kind` is written from; None if Feast must convert it itself."""
    dtype, wanted = column.type, SCALARS[kind][2]
    if pa.types.is_dictionary(dtype):
        return _natural(column.dictionary_decode(), kind)
    if kind is ValueType.UNIX_TIMESTAMP:
        return _seconds(column) if pa.types.is_timestamp(dtype) else None
    allowed = {
        ValueType.BYTES: pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype),
        ValueType.STRING: pa.types.is_string(dtype) or pa.types.is_large_string(dtype),
        ValueType.INT32: pa.types.is_integer(dtype),
        ValueType.INT64: pa.types.is_integer(dtype),
        ValueType.DOUBLE: pa.types.is_float64(dtype),
        ValueType.FLOAT: pa.types.is_float32(dtype),
        ValueType.BOOL: pa.types.is_boolean(dtype),
    }
    return column.cast(wanted) if allowed[kind] else None


def values(column: pa.Array, kind: ValueType) -> pa.BinaryArray:
    """Return a column as serialized `Value` messages of one type.

    Scalars and lists of the common types take the column writers; anything else (maps, sets, JSON,
    decimals, columns whose arrow type is not the declared one) goes through Feast's own converter.
    """
    if kind in SCALARS and (natural := _natural(column, kind)) is not None:
        number, wire, _ = SCALARS[kind]
        valid = natural.is_valid().to_numpy(zero_copy_only=False)
        if wire in {FIXED32, FIXED64}:
            valid &= ~np.isnan(natural.to_numpy(zero_copy_only=False))
        held = natural if valid.all() else natural.filter(pa.array(valid))
        return _scattered(_scalar_cells(held, wire, varint(number << 3 | wire)), valid)
    if kind in LISTS and (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        number, element = LISTS[kind]
        items = _natural(column.flatten(), element)
        if items is not None:
            return _lists(column, items, element, varint(number << 3 | BYTES))
    return _by_feast(column, kind)


def _lists(column: pa.Array, items: pa.Array, element: ValueType, tag: bytes) -> pa.BinaryArray:
    """Return lists as messages of one repeated field: packed numbers, or strings one by one."""
    counts = pc.list_value_length(column)
    valid = counts.is_valid().to_numpy(zero_copy_only=False)
    each = counts.fill_null(0).to_numpy(zero_copy_only=False)[valid]
    wire = SCALARS[element][1]
    if wire == BYTES:
        cells = prefixed(b"\x0a", items.cast(pa.binary()).fill_null(b""))
    else:  # NaN is written as it is: only a scalar NaN means that nothing is known
        cells = _scalar_cells(items.fill_null(pa.scalar(0).cast(items.type)), wire, b"")
    packed = binary(np.diff(ends(cells)[np.concatenate([[0], np.cumsum(each)])]), np.frombuffer(data(cells), np.uint8))
    if wire != BYTES:
        packed = _scattered(prefixed(b"\x0a", packed.filter(pa.array(each > 0))), each > 0)
    return _scattered(prefixed(tag, packed), valid)


def _by_feast(column: pa.Array, kind: ValueType) -> pa.BinaryArray:
    from feast.type_map import python_values_to_proto_values

    messages = python_values_to_proto_values(column.to_numpy(zero_copy_only=False), kind)
    return pa.array([message.SerializeToString() for message in messages], pa.binary())


def texts(column: pa.Array, kind: ValueType) -> Sequence[str | None]:
    """Return what Feast's SQL stores keep beside a value for people to read: Python's `str` of a scalar."""
    if kind not in {ValueType.STRING, ValueType.INT32, ValueType.INT64, ValueType.DOUBLE, ValueType.FLOAT, ValueType.BOOL}:
        return [None] * len(column)
    natural = _natural(column, kind)
    if kind is ValueType.STRING or natural is None or natural.null_count:
        held = (column if natural is None else natural).to_pylist()
    else:
        held = natural.to_numpy(zero_copy_only=False).tolist()
    # NaN is the only value that differs from itself, and is written as missing.
    return held if kind is ValueType.STRING else [None if value is None or value != value else str(value) for value in held]  # noqa: PLR0124


def entity_keys(columns: Mapping[str, pa.Array], kinds: Mapping[str, ValueType]) -> pa.BinaryArray:
    """Return serialized entity keys of version 3: the names in order, then for each its type, length and value.

    Raises:
        StateError: a key is missing, or of a type that Feast does not allow in keys.
    """
    names = sorted(columns)
    little = np.dtype("<u4")
    head = np.array([len(names)], little).tobytes()
    for name in names:
        head += np.array([ValueType.STRING.value, len(name.encode())], little).tobytes() + name.encode()
    pieces: list[pa.Array | bytes] = [head]
    for name in names:
        kind, column = kinds[name], columns[name]
        natural = _natural(column, kind) if kind in KEYS else None
        if natural is None or natural.null_count:
            raise StateError(
                f"join key {name}",
                found=f"{column.null_count} missing values"
                if kind in KEYS and column.null_count
                else f"type {column.type} for {kind.name}",
                allowed=f"a value in every row, of one of {[key.name for key in KEYS]}",
                hint="drop such rows in the view's source",
            )
        cells = natural.cast(pa.binary()) if SCALARS[kind][1] == BYTES else _fixed(natural.to_numpy(zero_copy_only=False))
        lengths = pc.binary_length(cells).to_numpy(zero_copy_only=False).astype(little)
        pieces += [np.array([kind.value], little).tobytes(), _fixed(lengths), cells]
    return joined(*pieces) if len(columns[names[0]]) else pa.array([], pa.binary())


def timestamps(micros: Longs) -> pa.BinaryArray:
    """Return moments (microseconds since the epoch) as `google.protobuf.Timestamp` messages, a zero field left out."""
    found = pc.dictionary_encode(pa.array(micros))
    distinct = found.dictionary.to_numpy()
    pieces = []
    for tag, numbers in ((b"\x08", distinct // 1_000_000), (b"\x10", distinct % 1_000_000 * 1000)):
        held = numbers != 0
        pieces.append(_scattered(_varints(np.ascontiguousarray(numbers[held]), tag), held))
    return joined(*pieces).take(found.indices)


def micros(column: pa.Array) -> Longs:
    """Return moments as microseconds since the epoch; naive ones are UTC, as everywhere in Feast."""
    plain = column.cast(pa.timestamp("us", column.type.tz), safe=False) if pa.types.is_timestamp(column.type) else column
    numbers: Longs = plain.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return numbers


def framed(cells: pa.BinaryArray, lead: bytes = b"\r\n") -> tuple[pa.BinaryArray, pa.BinaryArray]:
    """Return Redis' header of every cell (`lead`, `$`, length, line end), and the cells."""
    lengths = pc.binary_length(cells)
    most = pc.max(lengths).as_py() or 0
    if most < 1 << 14:
        return _headers(lead, 1 << (most + 1).bit_length()).take(lengths), cells
    found = pc.dictionary_encode(lengths)
    return pa.array([b"%s$%d\r\n" % (lead, length) for length in found.dictionary.to_pylist()], pa.binary()).take(found.indices), cells


@cache
def _headers(lead: bytes, upto: int) -> pa.BinaryArray:
    return pa.array([b"%s$%d\r\n" % (lead, length) for length in range(upto)], pa.binary())


def from_messages(rows: Sequence[tuple[Any, Mapping[str, Any], datetime, datetime | None]]) -> Encoded:
    """Return rows as Feast's `online_write_batch` is handed them: (entity key, values, event time, created time)."""
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.infra.online_stores.helpers import extract_text_and_num

    def column(of: Sequence[datetime | None]) -> Longs:
        return np.array([0 if moment is None else window.micros(moment) for moment in of], np.int64)

    names = list(rows[0][1])
    texts = {name: [extract_text_and_num(found[name], compute_num=False)[0] for _, found, *_ in rows] for name in names}
    return Encoded(
        pa.array([serialize_entity_key(key, entity_key_serialization_version=3) for key, *_ in rows], pa.binary()),
        {name: pa.array([found[name].SerializeToString() for _, found, *_ in rows], pa.binary()) for name in names},
        column([event for _, _, event, _ in rows]),
        column([created for *_, created in rows]),
        texts.__getitem__,
    )
