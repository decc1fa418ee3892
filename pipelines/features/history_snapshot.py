"""Everybody's newest events for serving: what a request's history begins with, memory-mapped, one copy for all processes.

    users.arrow          user_id (sorted), country, age_band, signed_up_at, attributes: everybody with an event or a profile
    indptr.npy           int64 [n_users + 1], where the events of each user begin
    item.npy             int32, places in the items of the folder (`catalogue_snapshot`)
    at.npy               int64, microseconds UTC; oldest first, equal ones by event id
    event_type.npy       int8, position in `columns.EVENT_TYPES`
    value.npy            float32, NaN where the event has none
    device.npy           int8, position in `lake.codes.DEVICES`, -1 where unknown
    event.npy            uint64, the lower half of the MD5 of the event id: an event that the session holds, too, is known by it
    category.arrow       category_ptr.npy, category.npy: with which categories each user has a row in the online store; brands likewise

The online store remembers a user's last 50 events, models read hundreds: so a history is these rows, and behind them
what the session knows since. Only what happened and was received before `as_of` is here.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines import tables
from pipelines.config import Home
from pipelines.features.repository import schema
from pipelines.lake.codes import DEVICE_CODES, TYPE_CODES
from pipelines.lake.engine import parquet

USERS: Final = (c.COUNTRY, c.AGE_BAND, c.SIGNED_UP_AT, c.ATTRIBUTES)
COLUMNS: Final[dict[str, type[np.generic]]] = {
    "item": np.int32,
    "at": np.int64,
    "event_type": np.int8,
    "value": np.float32,
    "device": np.int8,
    "event": np.uint64,
}
BETWEEN: Final = {c.CATEGORY: "user_category_daily", c.BRAND: "user_brand_daily"}  # marts of a user and something
ROWS: Final = 1 << 18  # held at once while writing

Array = npt.NDArray[Any]


def event_key(event_id: str) -> int:
    """Return how `event.npy` knows an event: DuckDB's md5_number_lower."""
    return int.from_bytes(hashlib.md5(event_id.encode(), usedforsecurity=False).digest()[8:], "little")


@dataclass(frozen=True)
class Past:
    """What the snapshot holds of one user, oldest first; views of mapped arrays, as `COLUMNS` names them."""

    item: Array
    at: Array
    event_type: Array
    value: Array
    device: Array
    event: Array


@dataclass(frozen=True)
class HistorySnapshot:
    """The mapped files of a folder.

    Attributes:
        users: one row a user, sorted by id.
        profiles: the same without the ids, as `datasets.profiles.USERS` has them.
        words: of each key of `BETWEEN`, what its codes stand for.
        between: of each, (indptr, codes) over the users.
    """

    users: pa.ChunkedArray
    profiles: pa.Table
    indptr: Array
    columns: dict[str, Array]
    words: dict[str, tuple[str, ...]]
    between: dict[str, tuple[Array, Array]]

    def place(self, user_id: str) -> int:
        """Return the row of a user, -1 where unknown; some twenty comparisons among a million, no id is held in Python."""
        at = bisect_left(range(len(self.users)), user_id, key=lambda row: self.users[row].as_py())
        return at if at < len(self.users) and self.users[at].as_py() == user_id else -1

    def past(self, place: int, before: int) -> Past:
        """Return the events of a user before a moment in microseconds; none of a user at -1."""
        first, last = (int(self.indptr[place]), int(self.indptr[place + 1])) if place >= 0 else (0, 0)
        last = first + int(np.searchsorted(self.columns["at"][first:last], before))
        return Past(**{name: column[first:last] for name, column in self.columns.items()})

    def known_with(self, place: int, key: str) -> list[str]:
        """Return the categories, or brands, with which the online store knows a user."""
        if place < 0:
            return []
        (indptr, codes), words = self.between[key], self.words[key]
        return [words[code] for code in codes[int(indptr[place]) : int(indptr[place + 1])].tolist()]


def write(home: Home, db: duckdb.DuckDBPyConnection, folder: Path, as_of: datetime, most: int) -> dict[str, int]:
    """Write the files into a folder that the caller publishes; return how many users and events there are.

    Sorting is DuckDB's, out of memory; what passes through Python is a batch at a time.

    Args:
        db: the lake as of the moment, with the table `item_index` (item_id, item).
        as_of: the day of the marts.
        most: newest events kept a user; only robots have more.
    """
    db.execute(
        """CREATE TEMP TABLE user_index AS SELECT user_id, (row_number() OVER (ORDER BY user_id) - 1)::INT AS "user"
        FROM (SELECT user_id FROM events UNION SELECT user_id FROM users)"""
    )
    n_users = _count(db, "user_index")
    _write_users(db, folder / "users.arrow")
    db.execute(
        f"""CREATE TEMP TABLE kept AS SELECT "user", item, (CASE event_type {TYPE_CODES} END)::TINYINT AS event_type,
            "value"::FLOAT AS "value", ({DEVICE_CODES})::TINYINT AS device, epoch_us(event_at) AS "at", event_id
        FROM events JOIN item_index USING (item_id) JOIN user_index USING (user_id)
        QUALIFY row_number() OVER (PARTITION BY "user" ORDER BY event_at DESC, event_id DESC) <= {most}"""
    )
    n_events = _count(db, "kept")
    wanted = 'SELECT "user", item, "at", event_type, "value", device, md5_number_lower(event_id) AS event FROM kept'
    _ragged(db, folder, f'{wanted} ORDER BY "user", "at", event_id', pointer="indptr", columns=COLUMNS, n_users=n_users, n_rows=n_events)
    for key, mart in BETWEEN.items():
        rows = _met(home, key, mart, as_of)
        db.execute(f'CREATE TEMP TABLE {key}_met AS SELECT DISTINCT "user", {key} FROM ({rows}) JOIN user_index USING (user_id)')
        words = db.sql(f"SELECT DISTINCT {key} AS word FROM {key}_met ORDER BY word").to_arrow_table()
        save_arrow(folder / f"{key}.arrow", words.cast(pa.schema([("word", pa.string())])))
        db.register(f"{key}_words", words.append_column("code", pa.array(np.arange(len(words), dtype=np.int32))))
        query = f'SELECT "user", code AS {key} FROM {key}_met JOIN {key}_words ON word = {key} ORDER BY "user", code'
        _ragged(db, folder, query, pointer=f"{key}_ptr", columns={key: np.int32}, n_users=n_users, n_rows=_count(db, f"{key}_met"))
    return {"users": n_users, "events": n_events}


def _met(home: Home, key: str, mart: str, as_of: datetime) -> str:
    """Return the query of who has a row with what: in the marts of all days that a lookup reaches back to, as the online store does."""
    ttl = next(spec.ttl for spec in schema() if spec.view == mart)
    days = [as_of - timedelta(days=n) for n in range(ttl.days + 1)]
    files = [file for day in days if (file := home.features / mart / f"as_of={day:%Y-%m-%d}.parquet").is_file()]
    return parquet(files, f"{c.USER_ID}, {key}") if files else f"SELECT '' AS {c.USER_ID}, '' AS {key} WHERE false"


def _count(db: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(db.sql(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def _write_users(db: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Write one row a user, its newest version, in batches."""
    kept = ", ".join(USERS)
    rows = db.sql(
        f"""SELECT user_id, {kept} FROM user_index LEFT JOIN (
            SELECT user_id, {kept} FROM users QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY valid_from DESC, received_at DESC) = 1
        ) USING (user_id) ORDER BY user_id"""
    )
    schema = pa.schema([tables.USERS.field(c.USER_ID), *(tables.USERS.field(name) for name in USERS)])
    with pa.ipc.new_file(str(file), schema) as writer:
        for batch in rows.to_arrow_reader(ROWS):
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))


def _ragged(
    db: duckdb.DuckDBPyConnection, folder: Path, query: str, *, pointer: str, columns: dict[str, Any], n_users: int, n_rows: int
) -> None:
    """Write the columns of a query that is sorted by "user", and where each user's rows begin."""
    files = {name: _room(folder / f"{name}.npy", dtype, n_rows) for name, dtype in columns.items()}
    counts, first = np.zeros(n_users, np.int64), 0
    for batch in db.sql(query).to_arrow_reader(ROWS):
        users, rows = np.unique(batch.column("user").to_numpy(), return_counts=True)
        counts[users] += rows
        for name, file in files.items():
            file[first : first + batch.num_rows] = batch.column(name).to_numpy(zero_copy_only=False)
        first += batch.num_rows
    for file in files.values():
        if isinstance(file, np.memmap):
            file.flush()
    np.save(folder / f"{pointer}.npy", np.append(0, np.cumsum(counts)))


def _room(file: Path, dtype: Any, n_rows: int) -> Array:
    """Return an array that is a file; nothing can be mapped of an empty one."""
    if n_rows:
        return np.asanyarray(np.lib.format.open_memmap(file, "w+", dtype, (n_rows,)))
    np.save(file, np.empty(0, dtype))
    return np.empty(0, dtype)


def save_arrow(file: Path, table: pa.Table) -> None:
    """Write a table as an Arrow file to be mapped."""
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table.combine_chunks())


def mapped_arrow(file: Path) -> pa.Table:
    """Map an Arrow file."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def mapped(file: Path) -> Array:
    """Map an array."""
    try:
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except ValueError:  # nothing can be mapped of an empty one
        return np.asarray(np.load(file, allow_pickle=False))


def read(folder: Path) -> HistorySnapshot:
    """Map what `write` wrote."""
    users = mapped_arrow(folder / "users.arrow")
    return HistorySnapshot(
        users=users[c.USER_ID],
        profiles=users.drop_columns([c.USER_ID]),
        indptr=mapped(folder / "indptr.npy"),
        columns={name: mapped(folder / f"{name}.npy") for name in COLUMNS},
        words={key: tuple(mapped_arrow(folder / f"{key}.arrow")["word"].to_pylist()) for key in BETWEEN},
        between={key: (mapped(folder / f"{key}_ptr.npy"), mapped(folder / f"{key}.npy")) for key in BETWEEN},
    )
