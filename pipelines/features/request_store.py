"""The online store as a request reads it: everything of one user in one round trip, in numbers, within a time.

Keys, fields and values are Feast's own, read with the store's configuration but past Feast's classes: an answer of
`get_online_features` is a table of protobuf messages, which costs ten times what the store itself takes. The tests hold
the two together.

Redis answers one pipeline of HMGET; SQLite one SELECT a view, over a read-only connection of the thread.
"""

from __future__ import annotations

import sqlite3
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast.infra.online_stores.helpers import _mmh3, compute_table_id, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.Value_pb2 import Value
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipelines import columns as c
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features.moments import ttl_micros
from pipelines.features.repository import open_store, schema
from pipelines.window import micros

SESSION: Final = "user_session"
SESSION_FIELDS: Final = ("last_event_us", "last_event_ids", "last_item_ids", "last_event_types")
STRING: Final = 2  # Feast's ValueType of a key
CACHE_KB: Final = 65_536  # of a SQLite store, for each thread that reads, at most
DOUBLE, FLOAT, INT32, INT64, BOOL = 0x29, 0x35, 0x18, 0x20, 0x38  # the first byte of a value says what it is (Value.proto)

_DOUBLE: Final = struct.Struct("<d").unpack_from
_FLOAT: Final = struct.Struct("<f").unpack_from

Floats = npt.NDArray[np.float64]
Cells = Sequence[bytes | None]


@dataclass(frozen=True)
class View:
    """One view of the store: its columns that are numbers, in the order of `repository.schema`."""

    name: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    ttl_us: int


@dataclass(frozen=True)
class Held:
    """What the store holds of one user.

    Attributes:
        user: float64 [n columns of the user's view]; NaN where missing.
        beside: by key (`category`, `brand`) the words that the store knows with the user, and float64 [n_words, n_columns].
        session: (event_us, event_id, item_id, event_type), newest first.
    """

    user: Floats
    beside: dict[str, tuple[tuple[str, ...], Floats]]
    session: tuple[tuple[int, str, str, str], ...]


class Fetch(Protocol):
    """Reads cells: for each (view, entity key) asked, the event time in microseconds and a cell a column; None where there is no row."""

    def __call__(self, asked: Sequence[tuple[View, bytes]]) -> list[tuple[int, Cells] | None]:
        """Return the rows asked for, in order."""
        ...


class RequestStore:
    """A reader of the store of a state folder; threads may share it.

    Args:
        timeout_ms: longest wait for an answer of Redis.
    """

    def __init__(self, home: Home, timeout_ms: float) -> None:
        store = open_store(home)
        session = store.get_feature_view(SESSION)
        numeric = [spec for spec in schema(home) if not pa.types.is_string(spec.dtype) and spec.keys != (c.ITEM_ID,)]
        views: dict[str, View] = {}
        for spec in numeric:
            columns = tuple(other.name.partition("__")[2] for other in numeric if other.view == spec.view)
            views[spec.view] = View(spec.view, spec.keys, columns, int(spec.ttl.total_seconds() * 1_000_000))
        self.user = next(view for view in views.values() if view.keys == (c.USER_ID,))
        self.beside = {next(key for key in view.keys if key != c.USER_ID): view for view in views.values() if len(view.keys) == 2}
        self.session = View(SESSION, (c.USER_ID,), SESSION_FIELDS, ttl_micros(session))
        tables = {view.name: store.get_feature_view(view.name) for view in (self.user, self.session, *self.beside.values())}
        self._fetch: Fetch = _reader(store.config, tables, timeout_ms)

    def names(self, key: str | None = None) -> tuple[str, ...]:
        """Return the columns of the user's view, or of that beside a key, as `<view>__<feature>`."""
        view = self.user if key is None else self.beside[key]
        return tuple(f"{view.name}__{column}" for column in view.columns)

    def nobody(self) -> Held:
        """Return what is held of nobody in particular: nothing."""
        beside: dict[str, tuple[tuple[str, ...], Floats]] = {
            key: ((), np.empty((0, len(view.columns)))) for key, view in self.beside.items()
        }
        return Held(np.full(len(self.user.columns), np.nan), beside, ())

    def read(self, user_id: str, words: dict[str, Sequence[str]], as_of: datetime) -> Held:
        """Return what is known of a user, alone and with some categories and brands; values past their ttl at `as_of` are missing.

        Raises:
            StateError: the store did not answer, or not in time.
        """
        user = user_id.encode()
        asked = [(view, entity_key(view.keys, (user,))) for view in (self.user, self.session)]
        for key, view in self.beside.items():
            names = tuple(sorted(view.keys))
            asked += [
                (view, entity_key(names, (word.encode(), user) if names[0] == key else (user, word.encode())))
                for word in words.get(key, ())
            ]
        now = micros(as_of)
        found = [
            None if row is None or (view.ttl_us and row[0] < now - view.ttl_us) else row[1]
            for (view, _), row in zip(asked, self._fetch(asked), strict=True)
        ]
        beside, first = {}, 2
        for key, view in self.beside.items():
            some = tuple(words.get(key, ()))
            values = [_numbers(cells, len(view.columns)) for cells in found[first : first + len(some)]]
            beside[key] = (some, np.array(values, np.float64).reshape(len(some), len(view.columns)))
            first += len(some)
        user_row = np.array(_numbers(found[0], len(self.user.columns)), np.float64)
        return Held(user_row, beside, () if found[1] is None else _session(found[1], now))


def _session(cells: Cells, now: int) -> tuple[tuple[int, str, str, str], ...]:
    """Return the events of a row of the session that happened before a moment."""
    lists: list[Sequence[Any]] = []
    for cell in cells:
        value = Value.FromString(cell or b"")
        which = value.WhichOneof("val")
        lists.append([] if which is None else getattr(value, which).val)
    return tuple(event for event in zip(*lists, strict=True) if event[0] < now)


def _numbers(cells: Cells | None, n: int) -> list[float]:
    return [np.nan] * n if cells is None else [number(cell) for cell in cells]


def number(cell: bytes | None) -> float:
    """Return a serialized scalar of Feast as a float; NaN where it is missing.

    Raises:
        StateError: it is no number.
    """
    if not cell:
        return float("nan")
    kind = cell[0]
    if kind == DOUBLE:
        return float(_DOUBLE(cell, 1)[0])
    if kind == FLOAT:
        return float(_FLOAT(cell, 1)[0])
    if kind not in {INT32, INT64, BOOL}:
        raise StateError("online store", found=f"a value that begins with {kind:#x}", allowed="a number")
    if len(cell) == 2:
        return float(cell[1])
    whole = shift = 0
    for byte in cell[1:]:
        whole |= (byte & 0x7F) << shift
        shift += 7
    return float(whole - (1 << 64) if whole >= 1 << 63 else whole)


@lru_cache(maxsize=64)
def _head(keys: tuple[str, ...]) -> bytes:
    names = [key.encode() for key in keys]
    return struct.pack("<I", len(keys)) + b"".join(struct.pack("<II", STRING, len(name)) + name for name in names)


def entity_key(keys: tuple[str, ...], values: tuple[bytes, ...]) -> bytes:
    """Return the serialized entity key (version 3) of some text keys, sorted by name, as `feast.infra.key_encoding_utils` writes it."""
    return _head(keys) + b"".join(struct.pack("<II", STRING, len(value)) + value for value in values)


def _reader(config: Any, tables: dict[str, Any], timeout_ms: float) -> Fetch:
    if "connection_string" in config.online_store.model_fields_set or hasattr(config.online_store, "connection_string"):
        return _OfRedis(config, tables, timeout_ms)
    return _OfSqlite(config, tables)


class _OfRedis:
    def __init__(self, config: Any, tables: dict[str, Any], timeout_ms: float) -> None:
        self._timeout_ms, self._project = timeout_ms, config.project.encode()
        nodes, given = RedisOnlineStore._parse_connection_string(config.online_store.connection_string)
        self._where = f"{nodes[0]['host']}:{nodes[0]['port']}"
        wait = timeout_ms / 1000
        limits = {"socket_timeout": wait, "socket_connect_timeout": wait, "retry": Retry(NoBackoff(), 0)}
        self._client = Redis(host=nodes[0]["host"], port=int(nodes[0]["port"]), **(given | limits))
        versioned = config.registry.enable_online_feature_view_versioning
        self._names = {name: compute_versioned_name(table, versioned) for name, table in tables.items()}
        self._fields: dict[str, list[bytes | str]] = {}

    def __call__(self, asked: Sequence[tuple[View, bytes]]) -> list[tuple[int, Cells] | None]:
        try:
            pipe = self._client.pipeline(transaction=False)
            for view, key in asked:
                pipe.hmget(key + self._project, self._fields_of(view))
            answers = pipe.execute()
        except RedisError as error:
            raise StateError(
                f"Redis at {self._where}",
                found=f"{type(error).__name__}: {error}",
                allowed=f"an answer within {self._timeout_ms:g} ms",
                hint="see that it runs and is not overloaded",
            ) from error
        return [None if moment is None else (_moment(moment), cells) for *cells, moment in answers]

    def _fields_of(self, view: View) -> list[bytes | str]:
        if (fields := self._fields.get(view.name)) is None:
            name = self._names[view.name]
            fields = self._fields[view.name] = [*(_mmh3(f"{name}:{column}") for column in view.columns), f"_ts:{name}"]
        return fields


def _moment(cell: bytes) -> int:
    """Return a serialized protobuf Timestamp (1: seconds, 2: nanos) in microseconds."""
    parts, at = {1: 0, 2: 0}, 0
    while at < len(cell):
        field, at, whole, shift = cell[at] >> 3, at + 1, 0, 0
        while True:
            byte = cell[at]
            whole |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        parts[field] = whole - (1 << 64) if whole >= 1 << 63 else whole
    return parts[1] * 1_000_000 + parts[2] // 1000


class _OfSqlite:
    def __init__(self, config: Any, tables: dict[str, Any]) -> None:
        self._path = config.online_store.path
        versioned = config.registry.enable_online_feature_view_versioning
        self._names = {name: str(compute_table_id(config.project, table, versioned)).replace('"', '""') for name, table in tables.items()}
        self._of_thread = threading.local()

    def __call__(self, asked: Sequence[tuple[View, bytes]]) -> list[tuple[int, Cells] | None]:
        try:
            return self._read(asked)
        except sqlite3.Error as error:
            raise StateError(
                f"online store {self._path}",
                found=f"{type(error).__name__}: {error}",
                allowed="a file with the views' tables",
                hint="run `reloop features`",
            ) from error

    def _read(self, asked: Sequence[tuple[View, bytes]]) -> list[tuple[int, Cells] | None]:
        connection: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)
            connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")  # the default of 2 MB holds not even the upper levels of a large store
        rows: dict[tuple[str, bytes], dict[str, bytes]] = {}
        moments: dict[tuple[str, bytes], int] = {}
        by_view: dict[str, list[bytes]] = {}
        for view, key in asked:
            by_view.setdefault(view.name, []).append(key)
        for name, keys in by_view.items():
            query = f'SELECT entity_key, feature_name, value, CAST(event_ts AS INTEGER) FROM "{self._names[name]}" WHERE entity_key IN ({",".join("?" * len(keys))})'
            last, held = b"", dict[str, bytes]()
            for key, feature, value, moment in connection.execute(query, keys):
                if key != last:  # SQLite hands out the rows of a key together
                    last, held = key, rows.setdefault((name, key), {})
                    moments[name, key] = moment * 1_000_000
                held[feature] = value
        answers: list[tuple[int, Cells] | None] = []
        for view, key in asked:
            of_key = rows.get((view.name, key))
            answers.append(None if of_key is None else (moments[view.name, key], [of_key.get(column) for column in view.columns]))
        return answers
