"""Interactions: events as arrays with dense ids, sorted by user and time; and the histories of some users."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from pipelines import columns as c
from pipelines import lake
from pipelines.config import Home, TrainingSettings
from pipelines.datasets import profiles
from pipelines.errors import StateError
from pipelines.lake.codes import DEVICE_CODES, TYPE_CODES
from pipelines.window import Window, micros

Ids: TypeAlias = npt.NDArray[np.str_]
Ints: TypeAlias = npt.NDArray[np.int32]
Longs: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.int8]
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Histories:
    """What some users did before a moment, oldest first; a ragged array, row r is item[indptr[r]:indptr[r + 1]].

    This is all that a retriever may know of a user: the same object is built from the lake in
    training and from the session in serving, so no model needs a parameter per user.

    Attributes:
        indptr: int64 [n_users + 1].
        item: int32 [n_events], dense item indices of the model at hand, in [0, n_items).
        at: int64 [n_events], microseconds UTC, not decreasing within a row.
        weight: float32 [n_events], strength of the event (TrainingSettings.gains).
        n_items: size of the catalogue the indices run over.
        as_of: microseconds UTC; every `at` is before it.
        rating: float32 [n_events], NaN where the event is no rating; None where the caller has none.
        users: what is known of each user, a row each (`profiles.USERS`); None where nothing is.
        event_type: int8 [n_events], position in `columns.EVENT_TYPES`; None where the caller does not say.
        device: int8 [n_users], position in `DEVICES` of the device in hand: the request's, or else that of the last event; -1
            where unknown; None where the caller does not say.
    """

    indptr: Longs
    item: Ints
    at: Longs
    weight: Floats
    n_items: int
    as_of: int
    rating: Floats | None = None
    users: pa.Table | None = None
    event_type: Bytes | None = None
    device: Bytes | None = None

    @property
    def n_users(self) -> int:
        """Return the number of rows, also of those without any event."""
        return len(self.indptr) - 1

    def lengths(self) -> Longs:
        """Return int64 [n_users], the events of each row."""
        return np.diff(self.indptr)

    def rows(self, first: int, last: int) -> Histories:
        """Return the rows [first, last): views of the arrays, no copy."""
        begin, end = int(self.indptr[first]), int(self.indptr[last])
        return Histories(
            self.indptr[first : last + 1] - begin,
            self.item[begin:end],
            self.at[begin:end],
            self.weight[begin:end],
            self.n_items,
            self.as_of,
            None if self.rating is None else self.rating[begin:end],
            None if self.users is None else self.users.slice(first, last - first),
            None if self.event_type is None else self.event_type[begin:end],
            None if self.device is None else self.device[first:last],
        )

    def row_of_event(self) -> Longs:
        """Return int64 [n_events], the row that each event belongs to."""
        return np.repeat(np.arange(self.n_users), self.lengths())

    def matrix(self) -> sparse.csr_matrix:
        """Return float32 [n_users, n_items]: summed weights, pairs merged, indices sorted, zeros dropped."""
        return self.weighted(self.weight)

    def weighted(self, strength: Floats) -> sparse.csr_matrix:
        """Return the same with another strength for each event, float32 [n_events]; pairs of zero are dropped."""
        shape = (self.n_users, self.n_items)
        matrix = sparse.csr_matrix((strength, self.item, self.indptr), shape=shape, dtype=np.float32, copy=True)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix

    @cached_property
    def merged(self) -> tuple[Longs, Ints, Longs]:
        """Return, of a single row, the order in which `weighted` adds its events, its distinct items, and the place of each event among these.

        A request asks for it once, and every source reads it.
        """
        order = sparse.csr_matrix((np.arange(len(self.item)), self.item, self.indptr), shape=(1, self.n_items), copy=True)
        order.sort_indices()
        fresh = np.append(True, order.indices[1:] != order.indices[:-1])[: len(order.indices)]
        return order.data, order.indices[fresh].astype(np.int32), np.cumsum(fresh) - 1


@dataclass(frozen=True)
class Interactions:
    """Every event a model may learn from, in columns of equal length sorted by (user, at).

    Attributes:
        user_ids: sorted, unique; position is the dense user index.
        item_ids: sorted, unique; position is the dense item index. May hold items without events.
        user, item: int32 [n]; at: int64 [n] microseconds UTC; weight: float32 [n] gains.
        event_type: int8 [n], position in `columns.EVENT_TYPES`.
        value: float32 [n], NaN where the event has none.
        as_of: microseconds UTC; every event happened and was received before it.
        items, users: what is known of each besides its events as of then, a row an index with the
            columns `profiles.ITEMS` and `profiles.USERS`, null where unknown; None where nothing is.
        device: int8 [n], position in `DEVICES`, -1 where unknown; None where the caller does not say.
    """

    user_ids: Ids
    item_ids: Ids
    user: Ints
    item: Ints
    at: Longs
    weight: Floats
    event_type: Bytes
    value: Floats
    as_of: int
    items: pa.Table | None = None
    users: pa.Table | None = None
    device: Bytes | None = None


def gains(event_type: Bytes, value: Floats, settings: TrainingSettings) -> Floats:
    """Return float32 [n], how strongly each event speaks for its item.

    The one rule for weights of histories and gains of labels: the gain of the event's type, and for
    a rating below `positive_rating` zero. Such an event stays in the history (the item was met, so
    `exclude_seen` hides it) but says nothing for the item. An event type without a gain has zero.

    Args:
        event_type: positions in `columns.EVENT_TYPES`.
        value: the rating where the event is one; NaN counts as "not below".
    """
    by_type = np.array([settings.gains.get(name, 0.0) for name in c.EVENT_TYPES], dtype=np.float32)
    poor = (event_type == c.EVENT_TYPES.index(c.RATING)) & (value < settings.positive_rating)
    return np.where(poor, np.float32(0), by_type[event_type]).astype(np.float32)


def load(home: Home, before: datetime, settings: TrainingSettings, *, item_ids: Ids | None = None) -> Interactions:
    """Read from the lake every event that happened and was received before a moment.

    Sorted by (user, at, event_id), so that the same lake gives the same arrays. DuckDB sorts and
    joins out of memory; what comes back is about 30 bytes an event.

    Args:
        item_ids: sorted and unique; the catalogue to index by. Events on other items are left out.
            Without it, the catalogue is every item that has an event.
    """
    known = arrays(read(home, before, item_ids=item_ids), before, settings)
    with lake.connect(home, before=before) as db:
        items, users = profiles.versions(db, "items", known.item_ids), profiles.versions(db, "users", known.user_ids)
    return described(known, items, users)


@dataclass(frozen=True)
class Dense:
    """Events with dense ids as an Arrow table: user, item, event_type, value, device, at, received, prompted; sorted by (user, at, event_id).

    `prompted`: the event names the request whose list led to it.
    """

    events: pa.Table
    user_ids: Ids
    item_ids: Ids


def read(home: Home, before: datetime, *, item_ids: Ids | None = None, window: Window | None = None) -> Dense:
    """Read events from the lake with dense ids, numbered in the order of their code points.

    Args:
        before: only events that happened and were received before it.
        item_ids: as in `load`.
        window: only events that happened in it.
    """
    where = "true" if window is None else "epoch_us(event_at) >= ? AND epoch_us(event_at) < ?"
    bound = [] if window is None else [micros(window.start), micros(window.end)]
    with lake.connect(home, before=before) as db:
        wanted = """event_id, user_id, item_id, event_type, "value", device, epoch_us(event_at) AS "at", epoch_us(received_at) AS received,
            coalesce(request_id, '') <> '' AS prompted"""
        db.execute(f"CREATE TEMP TABLE wanted AS SELECT {wanted} FROM events WHERE {where}", bound)
        if item_ids is None:
            db.execute("CREATE TEMP TABLE known AS SELECT DISTINCT item_id FROM wanted")
        else:
            db.register("given_items", pa.table({c.ITEM_ID: pa.array(item_ids, pa.string())}))
            db.execute("CREATE TEMP TABLE known AS SELECT item_id FROM given_items")
        db.execute("CREATE TEMP TABLE item_index AS SELECT item_id, (row_number() OVER (ORDER BY item_id) - 1)::INT AS item FROM known")
        db.execute(
            """CREATE TEMP TABLE user_index AS
            SELECT user_id, (row_number() OVER (ORDER BY user_id) - 1)::INT AS "user"
            FROM (SELECT DISTINCT user_id FROM wanted SEMI JOIN item_index USING (item_id))"""
        )
        found = db.sql(
            f"""SELECT "user", item, (CASE event_type {TYPE_CODES} END)::TINYINT AS event_type, "value"::FLOAT AS "value",
                ({DEVICE_CODES})::TINYINT AS device, "at", received, prompted
            FROM wanted JOIN item_index USING (item_id) JOIN user_index USING (user_id)
            ORDER BY "user", "at", event_id"""
        ).to_arrow_table()
        return Dense(
            found,
            strings(db.sql('SELECT user_id FROM user_index ORDER BY "user"').to_arrow_table()["user_id"]),
            strings(db.sql("SELECT item_id FROM item_index ORDER BY item").to_arrow_table()["item_id"]),
        )


def arrays(dense: Dense, before: datetime, settings: TrainingSettings) -> Interactions:
    """Return the arrays of some events, all of which happened and were received before a moment."""
    event_type = dense.events["event_type"].to_numpy()
    value = dense.events["value"].to_numpy().astype(np.float32)  # also turns nulls into NaN
    return Interactions(
        user_ids=dense.user_ids,
        item_ids=dense.item_ids,
        user=dense.events["user"].to_numpy(),
        item=dense.events["item"].to_numpy(),
        at=dense.events["at"].to_numpy(),
        weight=gains(event_type, value, settings),
        event_type=event_type,
        value=value,
        as_of=micros(before),
        device=dense.events["device"].to_numpy(),
    )


def described(known: Interactions, items: pa.Table, users: pa.Table) -> Interactions:
    """Return interactions that also say what is known of their items and users, of whom these are the versions (`profiles.versions`)."""
    return replace(
        known,
        items=profiles.newest(items, len(known.item_ids), known.as_of),
        users=profiles.newest(users, len(known.user_ids), known.as_of),
    )


def strings(column: pa.ChunkedArray) -> Ids:
    """Return an Arrow column of strings as a numpy array of unicode."""
    return np.array(column.to_pylist(), dtype=np.str_) if len(column) else np.empty(0, dtype="U1")


def positions(wanted: Ids, ids: Ids) -> Longs:
    """Return int64 [n], where each wanted id stands in `ids` (sorted, unique); -1 where it is unknown."""
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[place] == wanted, place, -1).astype(np.int64)


def histories(interactions: Interactions, user_ids: Ids, as_of: datetime | None = None) -> Histories:
    """Return the histories of some users, in the order asked; an unknown user has an empty row.

    Args:
        as_of: leave out events at or after this moment; the interactions' own when None.

    Raises:
        StateError: `as_of` lies after the moment up to which the interactions are known.
    """
    until = interactions.as_of if as_of is None else micros(as_of)
    if until > interactions.as_of:
        raise StateError("histories", found=f"as_of {as_of}", allowed="a moment that the interactions reach", hint="load them again")
    # Rows are sorted by (user, at), so what lies before `until` is a prefix of each user's slice.
    known = positions(user_ids, interactions.user_ids)
    bounds = np.searchsorted(interactions.user, np.arange(len(interactions.user_ids) + 1))
    before = np.concatenate([[0], np.cumsum(interactions.at < until)])
    begin = np.where(known < 0, 0, bounds[known]) if len(bounds) > 1 else np.zeros(len(known), dtype=np.int64)
    end = np.where(known < 0, 0, bounds[known + 1]) if len(bounds) > 1 else begin
    length = before[end] - before[begin]
    indptr = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    take = np.arange(indptr[-1]) - np.repeat(indptr[:-1], length) + np.repeat(begin, length)
    return Histories(
        indptr,
        interactions.item[take],
        interactions.at[take],
        interactions.weight[take],
        n_items=len(interactions.item_ids),
        as_of=until,
        rating=np.where(interactions.event_type[take] == c.EVENT_TYPES.index(c.RATING), interactions.value[take], np.float32(np.nan)),
        users=None if interactions.users is None else profiles.taken(interactions.users, known),
        event_type=interactions.event_type[take],
        device=None if interactions.device is None else _last(interactions.device[take], indptr),
    )


def _last(device: Bytes, indptr: Longs) -> Bytes:
    """Return int8 [n_users], the device of each row's last event; -1 for a row without any."""
    found = np.full(len(indptr) - 1, -1, np.int8)
    filled = np.diff(indptr) > 0
    found[filled] = device[indptr[1:][filled] - 1]
    return found


def remap(known: Histories, from_ids: Ids, to_ids: Ids) -> Histories:
    """Return histories in another catalogue's indices; events on items it lacks are left out.

    A bundle carries its own item ids, so champion and challenger each read the same histories in
    their own indices.

    Args:
        from_ids, to_ids: sorted and unique.
    """
    return moved(known, positions(from_ids, to_ids) if len(from_ids) else np.empty(0, dtype=np.int64), len(to_ids))


def moved(known: Histories, place: Longs, n_items: int) -> Histories:
    """Return histories over a catalogue of `n_items` in which each item has another place; events on those at -1 are left out."""
    item = place[known.item]
    kept = item >= 0
    indptr = np.concatenate([[0], np.cumsum(kept)])[known.indptr].astype(np.int64)
    return Histories(
        indptr,
        item[kept].astype(np.int32),
        known.at[kept],
        known.weight[kept],
        n_items=n_items,
        as_of=known.as_of,
        rating=None if known.rating is None else known.rating[kept],
        users=known.users,
        event_type=None if known.event_type is None else known.event_type[kept],
        device=known.device,
    )
