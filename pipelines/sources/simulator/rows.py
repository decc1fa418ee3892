"""The simulated world as canonical tables: numbers become ids, indices words, microseconds times."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines import tables
from pipelines.sources.simulator.arrays import DAY_MICROS, Longs, Numbers
from pipelines.sources.simulator.catalogue import COLOURS, MATERIALS, Catalogue
from pipelines.sources.simulator.people import AGE_BANDS, COUNTRIES, DEVICES, People
from pipelines.sources.simulator.visits import KINDS, START, Visits
from pipelines.window import micros, utc

EPOCH_MICROS: Final = micros(utc(START))
_FOUR_DIGITS: Final = np.array([f"{n:04d}".encode() for n in range(10_000)]).view(np.uint8).reshape(-1, 4)


def _strings(n: int, prefix: str, *parts: tuple[Numbers, int]) -> pa.Array:
    """Return n strings of one length: the prefix, then each part's number in its width of digits (a multiple of four).

    They are assembled as bytes: formatting one by one would take most of the simulator's time.
    """
    length = len(prefix) + sum(width for _, width in parts)
    text = np.empty((n, length), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    end = len(prefix)
    for numbers, width in parts:
        rest = numbers.astype(np.uint32)
        for at in range(end + width - 4, end - 1, -4):
            higher = rest // np.uint32(10_000)
            text[:, at : at + 4] = _FOUR_DIGITS[rest - higher * np.uint32(10_000)]
            rest = higher
        end += width
    offsets = np.arange(0, (n + 1) * length, length, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text)).cast(pa.string())


def user_ids(numbers: Numbers) -> pa.Array:
    """Return the ids of users: u00000000, u00000001, ..."""
    return _strings(len(numbers), "u", (numbers, 8))


def item_ids(numbers: Numbers) -> pa.Array:
    """Return the ids of items: i00000000, i00000001, ..."""
    return _strings(len(numbers), "i", (numbers, 8))


def event_ids(visits: Visits) -> pa.Array:
    """Return the ids of events: the day in four digits, then the event's number within it in twelve."""
    return _strings(len(visits), "e", (visits.day, 4), (visits.number, 12))


def times(since_start: Numbers) -> pa.Array:
    """Return microseconds since the world's first midnight as timestamps."""
    return pa.array(since_start.astype(np.int64) + EPOCH_MICROS).cast(tables.TIMESTAMP)


def _words(words: tuple[str, ...], indices: npt.NDArray[np.integer]) -> pa.Array:
    return pa.array(words).take(pa.array(indices))


def _attributes(**columns: pa.Array) -> pa.Array:
    """Return a map column with one entry for each keyword in every row."""
    n = len(next(iter(columns.values())))
    offsets = np.arange(0, n * len(columns) + 1, len(columns), dtype=np.int32)
    values = pa.concat_arrays(columns.values()).take(pa.array(np.arange(n * len(columns)).reshape(len(columns), n).T.ravel()))
    return pa.MapArray.from_arrays(offsets, pa.array(list(columns) * n), values)


def events(visits: Visits) -> pa.Table:
    """Return events as `tables.EVENTS`, in their order."""
    return pa.Table.from_pydict(
        {
            c.EVENT_ID: event_ids(visits),
            c.USER_ID: user_ids(visits.user),
            c.ITEM_ID: item_ids(visits.item),
            c.EVENT_TYPE: _words(KINDS, visits.kind),
            c.VALUE: pa.array(visits.value, from_pandas=True),
            c.QUANTITY: pa.array(visits.quantity, from_pandas=True),
            c.EVENT_AT: times(visits.at),
            c.RECEIVED_AT: times(visits.received),
            c.SESSION_ID: _strings(len(visits), "s", (visits.day, 4), (visits.session, 8)),
            c.DEVICE: _words(DEVICES, visits.device),
            c.REQUEST_ID: pa.nulls(len(visits), pa.string()),
        },
        schema=tables.EVENTS,
    )


def item_versions(catalogue: Catalogue, day: int) -> pa.Table:
    """Return as `tables.ITEMS` the items that are launched, retired or priced anew at the midnight a day begins with."""
    number = np.arange(catalogue.count(day))
    stock, prices = catalogue.stock, catalogue.price(day, number)
    launched, retired = stock.launched[number], stock.retired[number]
    fresh = (launched == day) | ((launched < 0) & (day == 0))
    repriced = ~fresh & (retired > day) & (prices != catalogue.price(day - 1, number))
    rows = np.flatnonzero(fresh | repriced | (retired == day))
    colours = _words(COLOURS, np.floor(len(COLOURS) * stock.style[rows]).astype(np.int64))
    names, brands = catalogue.taxonomy.names[stock.category[rows]], catalogue.taxonomy.brand_names[stock.brand[rows]]
    return pa.Table.from_pydict(
        {
            c.ITEM_ID: item_ids(rows),
            c.TITLE: [f"{b} {x} {n} no. {r}" for b, x, n, r in zip(brands, colours.to_pylist(), names, rows, strict=True)],
            c.CATEGORY: pa.array(names),
            c.BRAND: pa.array(brands),
            c.PRICE: prices[rows],
            c.ATTRIBUTES: _attributes(colour=colours, material=_words(MATERIALS, rows % len(MATERIALS))),
            c.AVAILABLE: retired[rows] > day,
            c.CREATED_AT: times(stock.created_at[rows]),
            c.VALID_FROM: times(np.full(len(rows), day * DAY_MICROS)),
            c.RECEIVED_AT: times(np.full(len(rows), day * DAY_MICROS)),
        },
        schema=tables.ITEMS,
    )


def user_versions(people: People, day: int) -> tuple[pa.Table, Longs]:
    """Return as `tables.USERS` those who sign up on a day or grow into an age band at its midnight, and each valid_from.

    Ordered by valid_from (microseconds since day 0), then user_id.
    """
    number = np.arange(people.count(day))
    crowd, joined = people.crowd, people.crowd.joined[number]
    new = (joined == day) | ((joined < 0) & (day == 0))
    older = ~new & (people.band(number, day) != people.band(number, day - 1))
    rows = np.flatnonzero(new | older)
    valid_from = np.where(joined[rows] == day, crowd.signed_up_at[rows], day * DAY_MICROS)
    order = np.argsort(valid_from, kind="stable")
    rows, valid_from = rows[order], valid_from[order]
    table = pa.Table.from_pydict(
        {
            c.USER_ID: user_ids(rows),
            c.SIGNED_UP_AT: times(crowd.signed_up_at[rows]),
            c.COUNTRY: _words(COUNTRIES, crowd.country[rows]),
            c.AGE_BAND: _words(AGE_BANDS, people.band(rows, day)),
            c.ATTRIBUTES: _attributes(device=_words(DEVICES, crowd.device[rows])),
            c.VALID_FROM: times(valid_from),
            c.RECEIVED_AT: times(valid_from),
        },
        schema=tables.USERS,
    )
    return table, valid_from
