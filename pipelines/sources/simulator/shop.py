"""The simulated shop: its canonical tables, the same as it sends them, and the truth behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines import tables
from pipelines.sources.request import World
from pipelines.sources.simulator.catalogue import COLOURS, N_TASTES, Catalogue
from pipelines.sources.simulator.choice import CATEGORY_TASTE
from pipelines.sources.simulator.draws import DAY_MICROS, Floats, Ints, hashed
from pipelines.sources.simulator.faults import Touched, apply
from pipelines.sources.simulator.incidents import Fault, Incident, Shift, parse
from pipelines.sources.simulator.people import AGE_BANDS, COUNTRIES, DEVICES, People
from pipelines.sources.simulator.visits import KINDS, START, Visits, happen
from pipelines.window import Window, micros, utc

EPOCH_MICROS: Final = micros(utc(START))


@dataclass(frozen=True)
class Truth:
    """What is behind one day of the shop.

    Attributes:
        user_ids, tastes: users who have signed up by the day's end; float32 [users, N_TASTES + 2], the
            last two weigh dearness and quality.
        item_ids, latents, categories, brands, available: items launched by the day; latents float32
            [items, N_TASTES + 2] with the day's offers, categories and brands by name.
        faults: what each fault of the day touched (the rows of `raw_events`).
        shifts: what each shift in force touched (the rows of `events`).
    """

    day: date
    user_ids: pa.Array
    tastes: Floats
    item_ids: pa.Array
    latents: Floats
    categories: npt.NDArray[np.str_]
    brands: npt.NDArray[np.str_]
    available: npt.NDArray[np.bool_]
    category_vectors: Floats = field(repr=False)
    category_numbers: Ints = field(repr=False)
    faults: dict[Fault, Touched]
    shifts: dict[Shift, Touched]

    def utility(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> Floats:
        """Return how much users like items (positions in `user_ids` and `item_ids`), pair by pair, before exposure and luck.

        Category by category and then item by item: CATEGORY_TASTE taste . category + taste . item.
        """
        taste = self.tastes[users]
        category = self.category_vectors[self.category_numbers[items]]
        utility: Floats = np.einsum("nk,nk->n", taste, self.latents[items])
        return utility + np.float32(CATEGORY_TASTE) * np.einsum("nk,nk->n", taste[:, :N_TASTES], category)


class Shop:
    """The shop of one world. Cheap to make: what it needs is drawn on first use, and memory holds no day's events.

    Raises:
        SourceError: a fault or shift of the world is not `name@YYYY-MM-DD`.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults: tuple[Incident[Fault], ...] = parse(Fault, world.faults)
        self.shifts: tuple[Incident[Shift], ...] = parse(Shift, world.shifts)
        self.catalogue = Catalogue(world, self._from(Shift.CATALOGUE_CHURN))
        self.people = People(world, self._from(Shift.TASTE_SHIFT), self._from(Shift.TRAFFIC_MIX))
        self._day = lru_cache(maxsize=2)(self._happen)

    def _from(self, name: Shift) -> tuple[int, ...]:
        """Return the days on which a shift sets in."""
        return tuple((shift.day - START).days for shift in self.shifts if shift.name is name)

    def _happen(self, day: int) -> Visits:
        return happen(self.world, self.catalogue, self.people, day)

    def events(self, window: Window) -> pa.Table:
        """Return what happened in a window as `tables.EVENTS`, ordered by received_at, then event_id: clean, faults left out.

        Any tiling of a range gives the same rows. Nothing happens before the world starts.
        """
        parts = [self._day(day) for day in _days(window)]
        if not parts:
            return tables.EVENTS.empty_table()
        visits = Visits.concat(parts)
        low, high = _bounds(window)
        visits = visits.take(np.flatnonzero((visits.at >= low) & (visits.at < high)))
        return _event_table(visits.take(np.argsort(visits.received, kind="stable")))

    def raw(self, window: Window) -> Iterator[pa.Table]:
        """Yield, for each day the window touches, its events as the shop sends them, faults and all.

        A day without a fault is as `events` has it. Under a fault the columns, types, order and
        number of rows are what the fault makes of them; a row belongs to the moment it truly happened.
        """
        low, high = _bounds(window)
        for day in _days(window):
            table, at, _ = self._sent(day)
            inside = (at >= low) & (at < high)
            yield table if inside.all() else table.filter(pa.array(inside))

    def raw_events(self, window: Window) -> pa.Table:
        """Return `raw` as one table: columns by name, null where a day lacks one."""
        parts = list(self.raw(window))
        return pa.concat_tables(parts, promote_options="default") if parts else tables.EVENTS.empty_table()

    def _sent(self, day: int) -> tuple[pa.Table, npt.NDArray[np.int64], dict[Fault, Touched]]:
        visits = self._day(day)
        visits = visits.take(np.argsort(visits.received, kind="stable"))
        today = [fault.name for fault in self.faults if (fault.day - START).days == day]
        if not today:
            return _event_table(visits), visits.at, {}
        on_sale = np.flatnonzero(self.catalogue.for_sale(day))
        return apply(today, self.world, day, visits, _event_table, on_sale, self.people.count(day - 1))

    def items(self, window: Window) -> pa.Table:
        """Return the item versions with valid_from in a window as `tables.ITEMS`, by valid_from, then item_id.

        The founding catalogue is valid from the day the world starts. Launches, retirements and
        prices take effect at midnight.
        """
        parts = [self._item_versions(day) for day in _midnights(window)]
        return pa.concat_tables(parts) if parts else tables.ITEMS.empty_table()

    def _item_versions(self, day: int) -> pa.Table:
        shop, n = self.catalogue, self.catalogue.count(day)
        number, launched, retired = np.arange(n), self.catalogue.launched[:n], self.catalogue.retired[:n]
        fresh = (launched == day) | ((launched < 0) & (day == 0))
        price = shop.price(day, number)
        repriced = ~fresh & (retired > day) & (price != shop.price(day - 1, number))
        rows = np.flatnonzero(fresh | repriced | (retired == day))
        category, brand = shop.category[rows], shop.brand[rows]
        names, brands = shop.taxonomy.names[category], shop.taxonomy.brand_names[brand]
        colour = np.array(COLOURS)[np.floor(8 * shop.style[rows]).astype(np.int64)]
        material = np.char.add("m", (np.floor(12 * hashed(self.world.seed, "material", rows))).astype(np.int64).astype(str))
        keys = np.tile(np.array(["colour", "material"]), len(rows))
        words = np.column_stack([colour, material]).ravel()
        return pa.Table.from_pydict(
            {
                c.ITEM_ID: identifiers("i", rows, 8),
                c.TITLE: [f"{b} {w} {n} no. {r}" for b, w, n, r in zip(brands, colour, names, rows, strict=True)],
                c.CATEGORY: names,
                c.BRAND: brands,
                c.PRICE: price[rows],
                c.ATTRIBUTES: pa.MapArray.from_arrays(np.arange(0, 2 * len(rows) + 1, 2, dtype=np.int32), pa.array(keys), pa.array(words)),
                c.AVAILABLE: retired[rows] > day,
                c.CREATED_AT: _times(shop.created_at[rows]),
                c.VALID_FROM: _times(np.full(len(rows), day * DAY_MICROS)),
            },
            schema=tables.ITEMS,
        )

    def users(self, window: Window) -> pa.Table:
        """Return the user versions with valid_from in a window as `tables.USERS`, by valid_from, then user_id.

        Founding users are valid from the day the world starts, others from their sign-up. A new
        version appears at the midnight on which somebody grows into the next age band.
        """
        low, high = _bounds(window)
        parts = []
        for day in _days(window):
            versions, valid_from = self._user_versions(day)
            inside = (valid_from >= low) & (valid_from < high)
            parts.append(versions.filter(pa.array(inside)))
        return pa.concat_tables(parts) if parts else tables.USERS.empty_table()

    def _user_versions(self, day: int) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        people, n = self.people, self.people.count(day)
        number, joined = np.arange(n), self.people.joined[:n]
        new = (joined == day) | ((joined < 0) & (day == 0))
        older = ~new & (people.band(number, day) != people.band(number, day - 1))
        rows = np.flatnonzero(new | older)
        valid_from = np.where(joined[rows] == day, people.signed_up_at[rows], day * DAY_MICROS)
        rows = rows[np.argsort(valid_from, kind="stable")]
        valid_from = np.sort(valid_from)
        home = np.array(DEVICES)[people.device[rows]]
        table = pa.Table.from_pydict(
            {
                c.USER_ID: identifiers("u", rows, 8),
                c.SIGNED_UP_AT: _times(people.signed_up_at[rows]),
                c.COUNTRY: np.array(COUNTRIES)[people.country[rows]],
                c.AGE_BAND: np.array(AGE_BANDS)[people.band(rows, day)],
                c.ATTRIBUTES: pa.MapArray.from_arrays(
                    np.arange(len(rows) + 1, dtype=np.int32), pa.array(np.full(len(rows), "device")), pa.array(home)
                ),
                c.VALID_FROM: _times(valid_from),
            },
            schema=tables.USERS,
        )
        return table, valid_from

    def truth(self, day: date) -> Truth:
        """Return what is behind a day (>= the first): who likes what, and which rows each fault and shift touched."""
        number = (day - START).days
        n_users, n_items = self.people.count(number), self.catalogue.count(number)
        users, items, shop = np.arange(n_users), np.arange(n_items), self.catalogue
        latents = shop.vector[:n_items].copy()
        latents[:, N_TASTES] += 2.0 * np.log(shop.discount(number, items))
        return Truth(
            day=day,
            user_ids=identifiers("u", users, 8),
            tastes=self.people.taste(users, number),
            item_ids=identifiers("i", items, 8),
            latents=latents,
            categories=shop.taxonomy.names[shop.category[:n_items]],
            brands=shop.taxonomy.brand_names[shop.brand[:n_items]],
            available=shop.for_sale(number),
            category_vectors=shop.taxonomy.vector,
            category_numbers=shop.category[:n_items],
            faults=self._sent(number)[2],
            shifts=self._shifted(number),
        )

    def _shifted(self, day: int) -> dict[Shift, Touched]:
        """Return which events of a day happened under each shift in force."""
        visits, shop = self._day(day), self.catalogue
        rows = {
            Shift.TASTE_SHIFT: np.ones(len(visits), np.bool_),
            Shift.CATALOGUE_CHURN: shop.by_churn[visits.item],
            Shift.TRAFFIC_MIX: visits.mixed,
        }
        touched = {}
        for shift in Shift:
            if any(day >= start for start in self._from(shift)):
                hit = visits.take(np.flatnonzero(rows[shift]))
                items = np.flatnonzero((shop.churned_on == day) | (shop.by_churn & (shop.launched == day)))
                users = np.flatnonzero(self.people.by_mix & (self.people.joined == day))
                touched[shift] = Touched(
                    len(hit),
                    event_ids(hit.day, hit.number),
                    items=identifiers("i", items if shift is Shift.CATALOGUE_CHURN else items[:0], 8),
                    users=identifiers("u", users if shift is Shift.TRAFFIC_MIX else users[:0], 8),
                )
        return touched


def _bounds(window: Window) -> tuple[int, int]:
    """Return a window in microseconds since the world's first midnight."""
    return micros(window.start) - EPOCH_MICROS, micros(window.end) - EPOCH_MICROS


def _days(window: Window) -> range:
    """Return the numbers of the world's days that a window touches."""
    low, high = _bounds(window)
    return range(max(low // DAY_MICROS, 0), max(-(-high // DAY_MICROS), 0))


def _midnights(window: Window) -> range:
    """Return the numbers of the world's days whose midnight lies in a window."""
    low, high = _bounds(window)
    return range(max(-(-low // DAY_MICROS), 0), max(-(-high // DAY_MICROS), 0))


def _times(since_start: npt.NDArray[Any]) -> pa.Array:
    """Return microseconds since the world's first midnight as timestamps."""
    return pa.array(since_start.astype(np.int64) + EPOCH_MICROS).cast(tables.TIMESTAMP)


_FOUR_DIGITS: Final = np.array([f"{n:04d}".encode() for n in range(10_000)]).view(np.uint8).reshape(-1, 4)


def identifiers(prefix: str, numbers: npt.NDArray[Any], width: int) -> pa.Array:
    """Return strings of one length: the prefix and each number in `width` digits (a multiple of four), zeros in front."""
    return _strings(len(numbers), prefix, (numbers, width))


def event_ids(days: npt.NDArray[Any], numbers: npt.NDArray[Any]) -> pa.Array:
    """Return event ids: the day in four digits, the position of the event within it in twelve."""
    return _strings(len(numbers), "e", (days, 4), (numbers, 12))


def _strings(n: int, prefix: str, *parts: tuple[npt.NDArray[Any], int]) -> pa.Array:
    """Return n strings assembled as bytes: formatting them one by one would take most of the simulator's time."""
    length = len(prefix) + sum(width for _, width in parts)
    text = np.empty((n, length), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    end = len(prefix)
    for numbers, width in parts:
        rest = numbers.astype(np.int64)
        for at in range(end + width - 4, end - 1, -4):
            rest, digits = np.divmod(rest, 10_000)
            text[:, at : at + 4] = _FOUR_DIGITS[digits]
        end += width
    offsets = np.arange(0, (n + 1) * length, length, dtype=np.int64)
    large = pa.LargeStringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))
    return large.cast(pa.string())


def _words(words: tuple[str, ...], numbers: npt.NDArray[np.int8]) -> pa.Array:
    return pa.array(words).take(pa.array(numbers))


def _event_table(visits: Visits) -> pa.Table:
    n = len(visits)
    return pa.Table.from_pydict(
        {
            c.EVENT_ID: event_ids(visits.day, visits.number),
            c.USER_ID: identifiers("u", visits.user, 8),
            c.ITEM_ID: identifiers("i", visits.item, 8),
            c.EVENT_TYPE: _words(KINDS, visits.kind),
            c.VALUE: pa.array(visits.value, from_pandas=True),
            c.QUANTITY: pa.array(visits.quantity, from_pandas=True),
            c.EVENT_AT: _times(visits.at),
            c.RECEIVED_AT: _times(visits.received),
            c.SESSION_ID: _strings(n, "s", (visits.day, 4), (visits.session, 8)),
            c.DEVICE: _words(DEVICES, visits.device),
            c.REQUEST_ID: pa.nulls(n, pa.string()),
        },
        schema=tables.EVENTS,
    )
