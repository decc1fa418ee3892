"""Feast's SQLite online store with a write rule, one transaction a batch, and reads that honour the ttl.

Tables, keys and values are Feast's own. A row replaces an entity's features together or not at
all: only if it is not older, by (event time, created time), than what the entity holds. SQLite
keeps whole seconds, as Feast declares its columns; of two rows of one second the one with the
later created time stands, and of two alike the one written last.

Moments are UTC whatever zone the process lives in: Feast's own class writes and reads local time,
which is the same thing only as long as writer and reader share a zone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.protos.feast.types.Value_pb2 import Value

from pipelines.errors import StateError
from pipelines.features.conditional_writes import ConditionalWrites
from pipelines.features.encoding import Encoded
from pipelines.features.moments import asked_moment, ttl_micros

SECOND: Final = 1_000_000
CACHE_KB: Final = 128 * 1024
WAIT_SECONDS: Final = 30
VARIABLES: Final = 30_000  # SQLite takes 32,766 in one statement


class ConditionalSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):  # type: ignore[misc]  # feast is untyped
    """Feast's settings of its SQLite store, and ours.

    Attributes:
        expire_on_read: by the machine's clock, a value past its view's ttl is missing; as for Redis.
    """

    type: Literal["pipelines.features.online_sqlite.ConditionalSqliteOnlineStore"] = (
        "pipelines.features.online_sqlite.ConditionalSqliteOnlineStore"
    )
    expire_on_read: bool = False


class ConditionalSqliteOnlineStore(ConditionalWrites, SqliteOnlineStore):  # type: ignore[misc]  # feast is untyped
    """The store by which `feature_store.yaml` serves from a file."""

    wants_sorted_keys: Final = True  # rows in the order of the tree are appended, not scattered over it

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.RLock()  # `feast serve` pushes from many threads over Feast's one connection

    def loads_in_bulk(self, config: Any) -> bool:
        """Whether `loading` serves this configuration; vectors and numeric filters go through Feast's own writer."""
        return not config.online_store.vector_enabled and not config.online_store.enable_openai_compatible_store

    def _get_conn(self, config: Any) -> sqlite3.Connection:
        if self._conn is None:
            super()._get_conn(config).execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000}")
            super()._get_conn(config).execute("PRAGMA journal_mode = WAL")  # readers go on while a batch is written
        connection: sqlite3.Connection = super()._get_conn(config)
        return connection

    def update(self, config: Any, tables_to_delete: Any, tables_to_keep: Any, *rest: Any, **more: Any) -> None:
        """Create and drop tables as Feast does, without the index that the primary key makes superfluous."""
        super().update(config, tables_to_delete, tables_to_keep, *rest, **more)
        with self._get_conn(config) as connection:
            for table in tables_to_keep:
                connection.execute(f"DROP INDEX IF EXISTS {_quoted(_name(config, table) + '_ek')}")

    @contextmanager
    def loading(self, config: Any, table: Any) -> Iterator[Callable[[Encoded], None]]:
        """Yield a function that writes rows of a view, each call in a transaction of its own.

        Raises:
            StateError: the file cannot be written, or lost what it was given.
        """
        connection, name = self._get_conn(config), _quoted(_name(config, table))
        features = [feature.name for feature in table.features]
        sample: list[bytes] = []

        def write(rows: Encoded) -> None:
            sample.append(rows.keys[0].as_py())
            with self._turn:
                _write(connection, name, sorted(features), rows.newest())

        try:
            connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
            try:
                yield write
            finally:
                connection.execute("PRAGMA cache_size = -2000")
            lost = [key for key in sample if not connection.execute(f"SELECT 1 FROM {name} WHERE entity_key = ? LIMIT 1", [key]).fetchone()]
        except sqlite3.Error as error:
            raise StateError(
                f"online store {self._get_db_path(config)}",
                found=f"{type(error).__name__}: {error}",
                allowed="a file that takes every row",
                hint="run `feast apply`: the file lacks the view's table"
                if "no such table" in str(error)
                else "see that no other program holds it and the disk has room, then run the same command again",
            ) from error
        if lost:
            raise StateError(
                f"online store {self._get_db_path(config)}", found=f"{len(lost)} entities gone right after writing", allowed="every row"
            )

    def sweep(self, config: Any, table: Any, oldest_us: int) -> int:
        """Remove the view's rows whose event time is before `oldest_us`; return how many entities there were."""
        name = _quoted(_name(config, table))
        with self._turn, self._get_conn(config) as connection:
            features = max(len(table.features), 1)
            return connection.execute(f"DELETE FROM {name} WHERE event_ts < ?", [oldest_us // SECOND]).rowcount // features

    def online_read(
        self, config: Any, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        """Return each entity's event time and values; (None, None) for one that is unknown or too old at the moment of the read."""
        connection, name, ttl = self._get_conn(config), _quoted(_name(config, table)), ttl_micros(table)
        keys = [serialize_entity_key(key, entity_key_serialization_version=config.entity_key_serialization_version) for key in entity_keys]
        oldest = _oldest(connection, config, ttl)
        wanted = set(requested_features) if requested_features else None
        held: dict[bytes, dict[str, Any]] = {}
        moments: dict[bytes, int] = {}
        # The cast keeps Feast's converter away, which takes the number for a local time.
        asked = list(dict.fromkeys(keys))
        for first in range(0, len(asked), VARIABLES):
            some = asked[first : first + VARIABLES]
            query = f"SELECT entity_key, feature_name, value, CAST(event_ts AS INTEGER) FROM {name} WHERE entity_key IN ({','.join('?' * len(some))})"
            with self._turn:
                answers = connection.execute(query, some).fetchall()
            for key, feature, value, event in answers:
                if (oldest is None or event >= oldest) and (wanted is None or feature in wanted):
                    held.setdefault(key, {})[feature] = Value.FromString(value)
                    moments[key] = event
        return [(datetime.fromtimestamp(moments[key], UTC), held[key]) if key in held else (None, None) for key in keys]


def _oldest(connection: sqlite3.Connection, config: Any, ttl: int) -> int | None:
    """Return the first second whose values are still answers; None if all are."""
    moment = asked_moment()
    if moment is None and config.online_store.expire_on_read:
        moment = int(connection.execute("SELECT unixepoch('now')").fetchone()[0]) * SECOND
    return None if moment is None or not ttl else -((ttl - moment) // SECOND)


def _name(config: Any, table: Any) -> str:
    return str(compute_table_id(config.project, table, config.registry.enable_online_feature_view_versioning))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _write(connection: sqlite3.Connection, name: str, features: list[str], rows: Encoded) -> None:
    """Write the rows that are not older than what is held; all of them become visible at once."""
    if connection.in_transaction:
        connection.commit()
    connection.execute("BEGIN IMMEDIATE")  # from here on nobody else writes, so what was read stays true
    try:
        if connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone():
            stale = _stale(connection, name, rows)
            if len(stale):
                rows = rows.take(np.setdiff1d(np.arange(len(rows)), stale))
        connection.executemany(_upsert(name, features), _entities(features, rows))
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _upsert(name: str, features: list[str]) -> str:
    """Return the statement that writes one entity, its features in the order of the table's tree.

    One statement an entity takes a bit more than half the time of one a feature.
    """
    cells = ", ".join(f"(?1, {_literal(feature)}, ?{4 + 2 * n}, ?{5 + 2 * n}, ?2, ?3)" for n, feature in enumerate(features))
    return (
        f"INSERT INTO {name} (entity_key, feature_name, value, value_text, event_ts, created_ts) VALUES {cells}"
        " ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, value_text = excluded.value_text,"
        " event_ts = excluded.event_ts, created_ts = excluded.created_ts"
    )


def _entities(features: list[str], rows: Encoded) -> Iterator[tuple[Any, ...]]:
    """Yield what `_upsert` binds: key, event time, created time, then value and text of every feature."""
    created = [moment or None for moment in (rows.created_us // SECOND).tolist()]
    cells = chain.from_iterable((rows.values[name].to_pylist(), rows.texts(name)) for name in features)
    return zip(rows.keys.to_pylist(), (rows.event_us // SECOND).tolist(), created, *cells, strict=True)


def _stale(connection: sqlite3.Connection, name: str, rows: Encoded) -> list[int]:
    """Return the positions of rows that are older than what their entity holds."""
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS coming (entity_key BLOB, event INTEGER, created INTEGER, place INTEGER)")
    connection.execute("DELETE FROM coming")
    arriving = zip(
        rows.keys.to_pylist(), (rows.event_us // SECOND).tolist(), (rows.created_us // SECOND).tolist(), range(len(rows)), strict=True
    )
    connection.executemany("INSERT INTO coming VALUES (?, ?, ?, ?)", arriving)
    found = connection.execute(
        f"SELECT place FROM coming WHERE EXISTS (SELECT 1 FROM {name} held WHERE held.entity_key = coming.entity_key AND"
        " (held.event_ts > coming.event OR (held.event_ts = coming.event AND coalesce(held.created_ts, 0) > coming.created)))"
    )
    return [place for (place,) in found]
