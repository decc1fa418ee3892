"""The simulated shop: its canonical tables, the same as it sends them, and the truth behind them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa

from pipelines import tables
from pipelines.errors import SourceError
from pipelines.sources.request import WORLD_STARTS, World
from pipelines.sources.simulator import rows
from pipelines.sources.simulator.arrays import DAY_MICROS, Longs, concat, take
from pipelines.sources.simulator.catalogue import PRICE_SLOT, Catalogue, offer
from pipelines.sources.simulator.faults import Touched, apply, bots
from pipelines.sources.simulator.incidents import Fault, Incident, Shift, parse
from pipelines.sources.simulator.people import People
from pipelines.sources.simulator.truth import Truth
from pipelines.sources.simulator.visits import START, Visits, happen
from pipelines.window import Window, micros

LAST_DAY: Final = 9999  # event ids hold four digits of it


class Shop:
    """The shop of one world. Cheap to make: it draws its truth as days are asked for and keeps the events of two days.

    Raises:
        SourceError: a fault or shift of the world is not `name@YYYY-MM-DD`, or lies before the world.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults: tuple[Incident[Fault], ...] = parse(Fault, world.faults)
        self.shifts: tuple[Incident[Shift], ...] = parse(Shift, world.shifts)
        for day, name in [(fault.day, fault.name) for fault in self.faults] + [(shift.day, shift.name) for shift in self.shifts]:
            _number(day, name)
        self.catalogue = Catalogue(world, self._onsets(Shift.CATALOGUE_CHURN))
        self.people = People(world, self._onsets(Shift.TASTE_SHIFT), self._onsets(Shift.TRAFFIC_MIX))
        self._day = lru_cache(maxsize=2)(self._happen)

    def _onsets(self, name: Shift) -> tuple[int, ...]:
        """Return the days on which a shift sets in."""
        return tuple(_number(shift.day, name) for shift in self.shifts if shift.name is name)

    def _happen(self, day: int) -> Visits:
        return happen(self.world, self.catalogue, self.people, day)

    def visits(self, window: Window) -> Visits:
        """Return what happened on the whole days of a window, before it becomes a table."""
        return concat([self._day(day) for day in _days(window)])

    def events(self, window: Window) -> pa.Table:
        """Return what happened in a window as `tables.EVENTS`, ordered by received_at, then event_id: clean, faults left out.

        Any tiling of a range gives the same rows. Nothing happens before the world starts.
        """
        low, high = _bounds(window)
        parts = [self._day(day) for day in _days(window)]
        if not parts:
            return tables.EVENTS.empty_table()
        visits = concat(parts)
        del parts
        if not ((visits.at >= low) & (visits.at < high)).all():
            visits = take(visits, (visits.at >= low) & (visits.at < high))
        return rows.events(take(visits, np.argsort(visits.received, kind="stable")))

    def raw(self, window: Window) -> Iterator[pa.Table]:
        """Yield, for each day the window touches, its events as the shop sends them, faults and all.

        A day without a fault is as `events` has it. Under a fault the columns, types, order and
        number of rows are what the fault makes of them. A row belongs to the moment it truly
        happened, whatever its event_at says.
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

    def _sent(self, day: int) -> tuple[pa.Table, Longs, dict[Fault, Touched]]:
        """Return a day as it is sent, when each row truly happened, and what each fault touched."""
        happened = self._day(day)
        received = take(happened, np.argsort(happened.received, kind="stable"))
        today = [fault.name for fault in self.faults if _number(fault.day, fault.name) == day]
        burst = None
        if Fault.BOT_BURST in today:
            burst = bots(self.world, day, happened, np.flatnonzero(self.catalogue.for_sale(day)), self.people.count(day - 1))
        return apply(today, self.world.seed, day, received, burst)

    def items(self, window: Window) -> pa.Table:
        """Return the item versions with valid_from in a window as `tables.ITEMS`, by valid_from, then item_id.

        The founding catalogue is valid from the day the world starts. Launches, retirements and
        prices take effect at midnight.
        """
        low, high = _bounds(window)
        parts = [rows.item_versions(self.catalogue, day) for day in _days(window) if low <= day * DAY_MICROS < high]
        return pa.concat_tables(parts) if parts else tables.ITEMS.empty_table()

    def users(self, window: Window) -> pa.Table:
        """Return the user versions with valid_from in a window as `tables.USERS`, by valid_from, then user_id.

        Founding users are valid from the day the world starts, others from their sign-up. A new
        version appears at the midnight on which somebody grows into the next age band.
        """
        low, high = _bounds(window)
        parts = [tables.USERS.empty_table()]
        for day in _days(window):
            versions, valid_from = rows.user_versions(self.people, day)
            parts.append(versions.filter(pa.array((valid_from >= low) & (valid_from < high))))
        return pa.concat_tables(parts)

    def truth(self, day: date) -> Truth:
        """Return what is behind a day.

        Raises:
            SourceError: the day is before the world's first or beyond its last.
        """
        number = _number(day, "truth")
        users, items = np.arange(self.people.count(number)), np.arange(self.catalogue.count(number))
        stock, taxonomy = self.catalogue.stock, self.catalogue.taxonomy
        latents = stock.vector[items]
        latents[:, PRICE_SLOT] += offer(self.catalogue.discount(number, items))
        return Truth(
            day=day,
            user_ids=rows.user_ids(users),
            tastes=self.people.taste(users, number),
            item_ids=rows.item_ids(items),
            latents=latents,
            available=self.catalogue.for_sale(number),
            categories=taxonomy.names[stock.category[items]],
            brands=taxonomy.brand_names[stock.brand[items]],
            category_vectors=taxonomy.vector,
            category_numbers=stock.category[items],
            faults=self._sent(number)[2],
            shifts={shift: self._shifted(shift, number) for shift in Shift if any(since <= number for since in self._onsets(shift))},
        )

    def _shifted(self, shift: Shift, day: int) -> Touched:
        """Return which events of a day happened under a shift in force, and whom or what it moved on this very day."""
        visits, stock, crowd = self._day(day), self.catalogue.stock, self.people.crowd
        hit, items, users = np.ones(len(visits), np.bool_), np.empty(0, np.int64), np.empty(0, np.int64)
        if shift is Shift.CATALOGUE_CHURN:
            hit = stock.by_churn[visits.item]
            items = np.flatnonzero((stock.churned_on == day) | (stock.by_churn & (stock.launched == day)))
        elif shift is Shift.TRAFFIC_MIX:
            hit = visits.mixed
            users = np.flatnonzero(crowd.by_mix & (crowd.joined == day))
        ids = rows.event_ids(take(visits, hit))
        return Touched(len(ids), ids, items=rows.item_ids(items), users=rows.user_ids(users))


def _number(day: date, thing: str) -> int:
    """Return the number of a day, the first being 0."""
    number = (day - START).days
    if not 0 <= number <= LAST_DAY:
        raise SourceError(
            thing, found=f"the day {day}", allowed=f"a day of the simulated world, {WORLD_STARTS} or later, within {LAST_DAY} days"
        )
    return number


def _bounds(window: Window) -> tuple[int, int]:
    """Return a window in microseconds since the world's first midnight."""
    return micros(window.start) - rows.EPOCH_MICROS, micros(window.end) - rows.EPOCH_MICROS


def _days(window: Window) -> range:
    """Return the numbers of the world's days that a window touches.

    Raises:
        SourceError: the window reaches beyond the world's last day.
    """
    low, high = _bounds(window)
    days = range(max(low // DAY_MICROS, 0), max(-(-high // DAY_MICROS), 0))
    if days:
        _number(window.days()[-1], f"window {window}")
    return days
