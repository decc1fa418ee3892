"""What the shop sells: items that come and go, their prices and popularity, and the shelf of one day."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from pipelines.sources.request import World
from pipelines.sources.simulator.arrays import DAY_MICROS, Bools, Doubles, Floats, Ints, Longs, Numbers, concat
from pipelines.sources.simulator.draws import categorical, hashed, stream
from pipelines.sources.simulator.taxonomy import N_TASTES, Taxonomy, unit

PRICE_SLOT: Final = N_TASTES
QUALITY_SLOT: Final = N_TASTES + 1
N_SLOTS: Final = N_TASTES + 2
WIDTH: Final = 8  # items a list shows

FOUNDING_SHARE: Final = 0.85  # the rest arrives within GROWTH_DAYS
GROWTH_DAYS: Final = 63
LIFETIME_DAYS: Final = 400.0
CHURN_FACTOR: Final = 4
CHURN_SHARE: Final = 0.25
PRICE_DAYS: Final = 28
PRICE_FACTORS: Final = np.array([1.0, 1.0, 1.0, 0.9, 0.8, 1.1])
FEEDBACK: Final = 0.3  # exponent of recent attention in today's exposure; 0 switches the feedback off
MEMORY: Final = 0.93  # share of yesterday's attention that is remembered
BURN_IN_DAYS: Final = 40
GROWN_DAYS: Final = 28
EVERGREEN: Final = np.iinfo(np.int32).max

COLOURS: Final = ("amber", "blue", "cream", "green", "ivory", "red", "slate", "white")
MATERIALS: Final = ("brass", "ceramic", "cotton", "glass", "metal", "paper", "wood", "wool")


@dataclass(frozen=True)
class Shelf:
    """What is for sale on one day, in the order (category, style): a position is an index into these arrays.

    Attributes:
        item: int32 [positions], item numbers.
        key: float64 [positions], category + style, ascending.
        vector: float32 [positions, N_SLOTS]; its dot product with a taste vector is the appeal within a category.
        log_weight: float32 [positions], how much the shop exposes the item.
        price: float64 [positions].
        first, size: int64 [categories], where a category starts and how many positions it has.
        best: int32 [categories, cells], positions in the order of exposure, each as often as its exposure
            deserves: a uniform cell is a draw by exposure, and a lower cell is shown higher.
        ring: int32 [positions, WIDTH], the position and its next of kin on the circle of styles.
        follow: int32 [positions, WIDTH], what people look at after it: the next five of its style, three that go with it.
        interest: float64 [categories], log of the public's interest today.
    """

    item: Ints
    key: Doubles
    vector: Floats
    log_weight: Floats
    price: Doubles
    first: Longs
    size: Longs
    best: Ints
    ring: Ints
    follow: Ints
    interest: Doubles

    def at(self, key: Doubles) -> Longs:
        """Return the position at or after each key within its category (around the circle)."""
        category = np.floor(key).astype(np.int64)
        offset = np.searchsorted(self.key, key) - self.first[category]
        position: Longs = self.first[category] + offset % self.size[category]
        return position


@dataclass(frozen=True)
class Stock:
    """Items in the order of their launch; a row number is the item's number for good.

    Attributes:
        category, brand: int32. style: float64 in [0, 1), the place on the category's circle.
        vector: float32 [items, N_SLOTS]: N_TASTES of latent, then dearness (log of the price within the
            category) and quality.
        log_appeal: float32, what exposure rests on besides attention. base_price: float64.
        launched: int32, day; -1 for the founding catalogue. retired: int32, the first day without the item.
        created_at: int64, microseconds since day 0.
        by_churn: bool, launched by a catalogue churn. churned_on: int32, the day a churn retired it, else -1.
    """

    category: Ints
    brand: Ints
    style: Doubles
    vector: Floats
    log_appeal: Floats
    base_price: Doubles
    launched: Ints
    retired: Ints
    created_at: Longs
    by_churn: Bools
    churned_on: Ints


class Catalogue:
    """Every item that is ever launched; grows by itself as later days are asked for."""

    def __init__(self, world: World, churns: tuple[int, ...]) -> None:
        self.world, self.churns, self.taxonomy = world, churns, Taxonomy(world)
        self.launches: list[int] = []  # items launched up to and including day d
        self.stock = self._launch(round(FOUNDING_SHARE * world.items) or 1, -1, churned=0)
        self._attention: dict[int, Doubles] = {}
        self.shelf = lru_cache(maxsize=4)(self._shelf)

    def count(self, day: int) -> int:
        """Return how many items have been launched up to and including `day` (>= 0)."""
        while len(self.launches) <= day:
            self._grow()
        return self.launches[day]

    def _grow(self) -> None:
        """Launch the items of the next GROWN_DAYS days at once: each day draws from its own stream, so it may."""
        launched = [self.stock]
        start = len(self.launches)
        for day in range(start, start + GROWN_DAYS):
            regular = arrivals(self.world.items, day)
            churned = (CHURN_FACTOR - 1) * regular * sum(day >= churn for churn in self.churns)
            if day in self.churns:
                launched = [concat(launched)]
                churned += self._churn(launched[0], day)
            launched.append(self._launch(regular + churned, day, churned=churned))
            self.launches.append((self.launches[-1] if self.launches else len(self.stock.style)) + regular + churned)
        self.stock = concat(launched)

    def _churn(self, stock: Stock, day: int) -> int:
        """Retire a quarter of what is for sale, shorten the life of the rest, and return how many items replace it."""
        alive = (stock.retired > day) & (stock.retired != EVERGREEN)
        gone = alive & (hashed(self.world.seed, "churn", np.arange(len(alive)), day) < CHURN_SHARE)
        stock.churned_on[gone] = day
        stock.retired[gone] = day
        rest = alive & ~gone
        stock.retired[rest] = day + 1 + (stock.retired[rest] - day) // CHURN_FACTOR
        return int(gone.sum())

    def _launch(self, n: int, day: int, *, churned: int) -> Stock:
        """Draw n items that are launched on a day, the last `churned` of them because of a churn."""
        taxonomy, rng = self.taxonomy, stream(self.world.seed, "items", day + 1)
        category = categorical(taxonomy.share**0.7, rng.random(n))
        brand = taxonomy.brands[category, categorical(1.0 / np.arange(1, 9), rng.random(n))]
        life = rng.exponential(LIFETIME_DAYS / (CHURN_FACTOR if any(day >= churn for churn in self.churns) else 1), n)
        retired = (max(day, 0) + 1 + life).astype(np.int32)
        if day == -1:  # the first item of every category stays for good, so that none is ever empty
            category[: taxonomy.n] = np.arange(taxonomy.n)
            retired[: taxonomy.n] = EVERGREEN
        style, quality = rng.random(n), rng.standard_normal(n)
        angle = 2 * np.pi * style
        latent = 0.7 * taxonomy.brand_vector[brand] + 0.5 * unit(rng.standard_normal((n, N_TASTES)))
        latent += 0.8 * (np.cos(angle)[:, None] * taxonomy.style[category, 0] + np.sin(angle)[:, None] * taxonomy.style[category, 1])
        dearness = 0.5 * rng.standard_normal(n) + taxonomy.brand_level[brand]
        return Stock(
            category=category,
            brand=brand,
            style=style,
            vector=np.column_stack([1.6 * latent, dearness, quality]).astype(np.float32),
            log_appeal=(0.9 * rng.standard_normal(n) + 0.6 * quality).astype(np.float32),
            base_price=np.exp(taxonomy.log_price[category] + dearness),
            launched=np.full(n, day, np.int32),
            retired=retired,
            created_at=np.full(n, day * DAY_MICROS) if day >= 0 else -(rng.integers(1, 730, n) * DAY_MICROS),
            by_churn=np.arange(n) >= n - churned,
            churned_on=np.full(n, -1, np.int32),
        )

    def for_sale(self, day: int) -> Bools:
        """Return which of the items launched up to `day` can be bought on it; changes take effect at midnight."""
        available: Bools = self.stock.retired[: self.count(day)] > day
        return available

    def discount(self, day: int, items: Numbers) -> Doubles:
        """Return the factor on the base price; it may change every PRICE_DAYS, on a weekday of the item's own."""
        seed = self.world.seed
        epoch = (day + PRICE_DAYS + np.floor(hashed(seed, "price day", items) * PRICE_DAYS)).astype(np.int64) // PRICE_DAYS
        return PRICE_FACTORS[np.floor(hashed(seed, "price", items, epoch) * len(PRICE_FACTORS)).astype(np.int64)]

    def price(self, day: int, items: Numbers) -> Doubles:
        """Return the price of items on a day, to the cent."""
        cents: Doubles = np.round(self.stock.base_price[items] * self.discount(day, items), 2)
        return np.maximum(cents, 0.01)

    def _exposure(self, day: int, attention: Doubles) -> Doubles:
        """Return how strongly the shop exposes each item launched up to `day`; 0 for what is not for sale."""
        n = len(attention)
        age = np.where(self.stock.launched[:n] < 0, np.inf, day - self.stock.launched[:n])
        fresh = 1.0 + 1.5 * np.exp(-np.maximum(age, 0) / 7.0)
        weight = np.exp(self.stock.log_appeal[:n]) * np.maximum(attention, 0.05) ** (FEEDBACK * self.world.feedback) * fresh
        return np.where(self.stock.retired[:n] > day, weight, 0.0)

    def attention(self, day: int) -> Doubles:
        """Return the remembered attention of each item at the dawn of `day`, 1 on average: the popularity feedback.

        m[d + 1] = MEMORY m[d] + (1 - MEMORY) Poisson(20 s[d]) / 20, where s[d], the exposure on day d
        relative to its mean, itself grows with m[d] ** (FEEDBACK * world.feedback): who was seen is shown, by luck too.
        The recurrence runs over items alone, with the expected share of a day in place of its events,
        so that no day needs the events of another.
        """
        if not self._attention:
            self._attention[-BURN_IN_DAYS] = np.ones(self.count(0))
        now = max(d for d in self._attention if d <= day)
        memory = self._attention[now]
        while now < day:
            weight = self._exposure(max(now, 0), memory)
            share = weight / weight.mean()
            seen = stream(self.world.seed, "attention", now + BURN_IN_DAYS).poisson(20.0 * share) / 20.0
            now += 1
            memory = MEMORY * memory + (1.0 - MEMORY) * seen
            memory = np.concatenate([memory, np.ones(self.count(max(now, 0)) - len(memory))])
            if now % 16 == 0:
                self._attention[now] = memory
        self._attention[now] = memory
        if len(self._attention) > 64:  # what is dropped can be worked out again
            del self._attention[min(d for d in self._attention if d > -BURN_IN_DAYS)]
        return memory

    def _shelf(self, day: int, day_of_year: int) -> Shelf:
        taxonomy = self.taxonomy
        exposure = self._exposure(day, self.attention(day))
        item = np.flatnonzero(exposure > 0).astype(np.int32)
        item = item[np.lexsort((self.stock.style[item], self.stock.category[item]))]
        category = self.stock.category[item]
        exposure = exposure[item]
        size = np.bincount(category, minlength=taxonomy.n)
        first = np.concatenate([[0], np.cumsum(size)[:-1]])
        discount = self.discount(day, item)
        vector = self.stock.vector[item].copy()
        vector[:, PRICE_SLOT] += offer(discount)
        key = category + self.stock.style[item]
        place = np.arange(len(item))
        ring = _around(place, np.arange(WIDTH), first[category], size[category])
        partner = taxonomy.partner[category]
        beside = np.searchsorted(key, partner + self.stock.style[item])
        follow = np.hstack(
            [
                _around(place, np.arange(1, 6), first[category], size[category]),
                _around(beside, np.arange(3), first[partner], size[partner]),
            ]
        )
        return Shelf(
            item=item,
            key=key,
            vector=vector,
            log_weight=np.log(exposure).astype(np.float32),
            price=self.price(day, item),
            first=first,
            size=size,
            best=_cells(exposure, first, size, stream(self.world.seed, "cells", day)),
            ring=ring,
            follow=follow.astype(np.int32),
            interest=np.log(taxonomy.share * taxonomy.season(day_of_year)),
        )


def offer(discount: Doubles) -> Doubles:
    """Return what a discount adds to dearness: twice its log, for people see the offer more than the price."""
    felt: Doubles = 2.0 * np.log(discount)
    return felt


def arrivals(size: int, day: int) -> int:
    """Return how many of `size` arrive on a day, after the founding ones."""
    rate = (1.0 - FOUNDING_SHARE) * size / GROWTH_DAYS
    return int(rate * (day + 1)) - int(rate * day)


def _around(place: Numbers, steps: Numbers, first: Numbers, size: Numbers) -> Ints:
    """Return the positions `steps` further on within each row's category, around its circle: int32 [rows, steps]."""
    turned: Ints = (first[:, None] + (place[:, None] - first[:, None] + steps) % size[:, None]).astype(np.int32)
    return turned


def _cells(exposure: Doubles, first: Longs, size: Longs, rng: np.random.Generator) -> Ints:
    """Return `Shelf.best`: per category equal cells over its cumulated exposure, most exposed first."""
    n_cells = 1 << int(np.clip(np.ceil(np.log2(16 * size.max())), 8, 16))
    cells = np.zeros((len(size), n_cells), np.int32)
    for row, (start, n) in enumerate(zip(first, size, strict=True)):
        order = start + np.argsort(-exposure[start : start + n], kind="stable")
        edges = np.cumsum(exposure[order])
        marks = (np.arange(n_cells) + rng.random(n_cells)) / n_cells * edges[-1]
        cells[row] = order[np.minimum(np.searchsorted(edges, marks, side="right"), n - 1)]
    return cells
