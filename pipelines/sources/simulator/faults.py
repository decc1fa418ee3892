"""What goes wrong between the shop and us: each fault as an operation on the table of one day, with a note of the rows it hit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import columns as c
from pipelines.sources.request import World
from pipelines.sources.simulator import rows as as_rows
from pipelines.sources.simulator.arrays import DAY_MICROS, MICROS, Longs, Numbers, concat, take
from pipelines.sources.simulator.draws import stream
from pipelines.sources.simulator.incidents import Fault
from pipelines.sources.simulator.visits import Visits

RENAMED: Final = {c.ITEM_ID: "product_id"}
DROPPED: Final = (c.DEVICE,)
UNKNOWN_TYPE: Final = "wishlist"
N_BOTS: Final = 3
_NO_IDS: Final = pa.array([], pa.string())


@dataclass(frozen=True)
class Touched:
    """What a fault or shift touched.

    Attributes:
        rows: how many rows; for duplicates those sent once too often, for a volume drop those missing.
        event_ids: which, one a row, ascending.
        items, users: the items a shift retired or launched, the users it brought, on this day.
    """

    rows: int
    event_ids: pa.Array
    items: pa.Array = field(default_factory=lambda: _NO_IDS)
    users: pa.Array = field(default_factory=lambda: _NO_IDS)


def apply(
    faults: Iterable[Fault], seed: int, day: int, visits: Visits, bots: Visits | None
) -> tuple[pa.Table, Longs, dict[Fault, Touched]]:
    """Return a day as it is sent under some faults, when each row truly happened, and what each fault touched.

    `visits` is in the order of receipt; `bots` is what a bot burst adds to it. The faults act in the
    order of `_ORDER`, whatever the order they were asked for.
    """
    asked = set(faults)
    touched: dict[Fault, Touched] = {}
    if bots is not None:
        touched[Fault.BOT_BURST] = Touched(len(bots), as_rows.event_ids(bots))
        visits = concat([visits, bots])
        visits = take(visits, np.argsort(visits.received, kind="stable"))
    sent = _Sent(as_rows.events(visits), visits.at, visits.received)
    for fault, act in _ORDER.items():
        if fault in asked:
            ids = act(sent, stream(seed, fault, day))
            touched[fault] = Touched(len(ids), ids.take(pc.sort_indices(ids)))
    return sent.table, sent.at, touched


def bots(world: World, day: int, visits: Visits, on_sale: Numbers, n_users: int) -> Visits:
    """Return views of random items by three of the first `n_users` users, two a second each, from noon on.

    A fifth of a day's events, 3,000 at least; numbered after those of `visits`.
    """
    rng = stream(world.seed, Fault.BOT_BURST, day)
    each = min(max(1000, round(0.2 * world.events_per_day / N_BOTS)), 80_000)
    users = rng.choice(n_users, min(N_BOTS, n_users), replace=False).astype(np.int32)
    n = each * len(users)
    at = day * DAY_MICROS + DAY_MICROS // 2 + np.tile(np.arange(each), len(users)) * (MICROS // 2) + rng.integers(0, 1000, n)
    return Visits(
        day=np.full(n, day, np.int32),
        number=(len(visits) + np.arange(n)).astype(np.int32),
        user=np.repeat(users, each),
        item=rng.choice(on_sale, n).astype(np.int32),
        kind=np.zeros(n, np.int8),
        device=np.ones(n, np.int8),
        value=np.full(n, np.nan),
        quantity=np.full(n, np.nan),
        at=at,
        received=at + MICROS,
        session=(int(visits.session.max(initial=-1)) + 1 + np.repeat(np.arange(len(users)), each)).astype(np.int32),
        mixed=np.zeros(n, np.bool_),
    )


@dataclass
class _Sent:
    """A day on its way: the table, and beside each row when it truly happened and is received (microseconds since day 0)."""

    table: pa.Table
    at: Longs
    received: Longs

    def ids(self, rows: Numbers) -> pa.Array:
        return self.table[c.EVENT_ID].combine_chunks().take(pa.array(rows))

    def take(self, rows: Numbers) -> None:
        self.table, self.at, self.received = self.table.take(pa.array(rows)), self.at[rows], self.received[rows]

    def put(self, column: str, values: pa.Array | pa.ChunkedArray) -> None:
        at = self.table.schema.get_field_index(column)
        # a broken column keeps its type but may hold nulls
        self.table = self.table.set_column(at, pa.field(column, values.type), values)

    def where(self, column: str, rows: Numbers, value: pa.Scalar) -> None:
        mask = np.zeros(len(self.table), np.bool_)
        mask[rows] = True
        self.put(column, pc.if_else(pa.array(mask), value, self.table[column]))

    def delay(self, rows: Numbers, micros: Numbers) -> None:
        self.received = self.received.copy()
        self.received[rows] += micros
        added = np.zeros(len(self.table), np.int64)
        added[rows] = micros
        self.put(c.RECEIVED_AT, pc.add(self.table[c.RECEIVED_AT], pa.array(added, pa.duration("us"))))


def _some(rng: np.random.Generator, rows: Numbers | int, share: float) -> Longs:
    """Return a share of some rows, to the nearest whole one, in ascending order."""
    pool = np.arange(rows) if isinstance(rows, int) else rows
    chosen: Longs = np.sort(rng.choice(pool, round(share * len(pool)), replace=False, shuffle=False))
    return chosen


def _volume_drop(sent: _Sent, rng: np.random.Generator) -> pa.Array:
    gone = _some(rng, len(sent.table), 0.5)
    ids = sent.ids(gone)
    sent.take(np.delete(np.arange(len(sent.table)), gone))
    return ids


def _price_in_cents(sent: _Sent, rng: np.random.Generator) -> pa.Array:  # noqa: ARG001 - every fault is called alike
    rows = np.flatnonzero(pc.equal(sent.table[c.EVENT_TYPE], c.PURCHASE).to_numpy())
    sent.put(c.VALUE, pc.multiply(sent.table[c.VALUE], 100.0))
    return sent.ids(rows)


def _enum_add(sent: _Sent, rng: np.random.Generator) -> pa.Array:
    rows = _some(rng, np.flatnonzero(pc.equal(sent.table[c.EVENT_TYPE], c.VIEW).to_numpy()), 0.05)
    sent.where(c.EVENT_TYPE, rows, pa.scalar(UNKNOWN_TYPE))
    return sent.ids(rows)


def _future_clock(sent: _Sent, rng: np.random.Generator) -> pa.Array:
    rows = _some(rng, len(sent.table), 0.02)
    at = sent.at.copy()
    at[rows] = sent.received[rows] + (rng.uniform(1.0, 30.0, len(rows)) * DAY_MICROS).astype(np.int64)
    shift = pa.array(at - sent.at, pa.duration("us"))
    sent.put(c.EVENT_AT, pc.add(sent.table[c.EVENT_AT], shift))
    return sent.ids(rows)


def _late(sent: _Sent, rng: np.random.Generator) -> pa.Array:
    rows = _some(rng, len(sent.table), 0.2)
    sent.delay(rows, (rng.uniform(2.0, 6.0, len(rows)) * DAY_MICROS).astype(np.int64))
    ids = sent.ids(rows)
    sent.take(np.argsort(sent.received, kind="stable"))
    return ids


def _nulls(sent: _Sent, rng: np.random.Generator) -> pa.Array:
    rows = _some(rng, len(sent.table), 0.3)
    user = rng.random(len(rows)) < 0.5
    sent.where(c.USER_ID, rows[user], pa.scalar(None, pa.string()))
    sent.where(c.ITEM_ID, rows[~user], pa.scalar(None, pa.string()))
    return sent.ids(rows)


def _duplicates(sent: _Sent, rng: np.random.Generator) -> pa.Array:
    rows = _some(rng, len(sent.table), 0.1)
    ids = sent.ids(rows)
    sent.take(np.sort(np.concatenate([np.arange(len(sent.table)), rows])))
    return ids


def _out_of_order(sent: _Sent, rng: np.random.Generator) -> pa.Array:
    rows = _some(rng, len(sent.table), 0.5)
    sent.delay(rows, (rng.uniform(0.0, 3 / 24, len(rows)) * DAY_MICROS).astype(np.int64))
    ids = sent.ids(rows)
    sent.take(rng.permutation(len(sent.table)))
    return ids


def _schema_change(sent: _Sent, rng: np.random.Generator) -> pa.Array:  # noqa: ARG001 - every fault is called alike
    names = [RENAMED.get(name, name) for name in sent.table.column_names]
    sent.table = sent.table.rename_columns(names).drop_columns(list(DROPPED))
    return sent.ids(np.arange(len(sent.table)))


_ORDER: Final[dict[Fault, Callable[[_Sent, np.random.Generator], pa.Array]]] = {
    Fault.VOLUME_DROP: _volume_drop,
    Fault.PRICE_IN_CENTS: _price_in_cents,
    Fault.ENUM_ADD: _enum_add,
    Fault.FUTURE_CLOCK: _future_clock,
    Fault.LATE: _late,
    Fault.NULLS: _nulls,
    Fault.DUPLICATES: _duplicates,
    Fault.OUT_OF_ORDER: _out_of_order,
    Fault.SCHEMA_CHANGE: _schema_change,
}
