"""What is known of items and of users besides what happened: one row an index, in the newest version known at a moment."""

from __future__ import annotations

from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import columns as c
from pipelines import tables

ITEMS: Final = (c.TITLE, c.CATEGORY, c.BRAND, c.PRICE, c.ATTRIBUTES, c.AVAILABLE, c.CREATED_AT)
USERS: Final = (c.COUNTRY, c.AGE_BAND, c.SIGNED_UP_AT, c.ATTRIBUTES)
KEYS: Final = {"items": (c.ITEM_ID, ITEMS), "users": (c.USER_ID, USERS)}


def versions(db: duckdb.DuckDBPyConnection, table: str, ids: npt.NDArray[np.str_]) -> pa.Table:
    """Return every version of some items or users: `row`, int32 position in `ids`, and the columns named above.

    Sorted by (row, valid_from, received_at), so that the last version of a row that was known at a moment is the one that held.

    Args:
        db: the lake as of a moment (`lake.connect`).
        table: "items" or "users".
    """
    key, kept = KEYS[table]
    db.register("asked", pa.table({key: pa.array(ids, pa.string()), "row": pa.array(np.arange(len(ids)), pa.int32())}))
    wanted = ", ".join(("row", *kept, c.VALID_FROM, c.RECEIVED_AT))
    found = db.sql(f"SELECT {wanted} FROM {table} JOIN asked USING ({key}) ORDER BY row, {c.VALID_FROM}, {c.RECEIVED_AT}").to_arrow_table()
    db.unregister("asked")
    schema = tables.CANONICAL[table]
    return found.cast(pa.schema([pa.field("row", pa.int32()), *(schema.field(name) for name in found.column_names[1:])]))


def newest(found: pa.Table, n_rows: int, before: int) -> pa.Table:
    """Return [n_rows] the version of each row that held and was known before a moment; nulls where there is none.

    Args:
        found: as `versions` returns them.
        before: microseconds UTC.
    """
    limit = pa.scalar(before, pa.int64()).cast(tables.TIMESTAMP)
    known = found.filter(pc.and_(pc.less(found[c.VALID_FROM], limit), pc.less(found[c.RECEIVED_AT], limit)))
    place = np.full(n_rows, -1, dtype=np.int64)
    place[known["row"].to_numpy()] = np.arange(known.num_rows)  # the last assignment of a row stays
    return taken(known.drop_columns(["row", c.VALID_FROM, c.RECEIVED_AT]), place)


def taken(profiles: pa.Table, place: npt.NDArray[np.int64]) -> pa.Table:
    """Return the rows at some places; a row of nulls where the place is -1."""
    return profiles.take(pa.array(place, mask=place < 0)).combine_chunks()
