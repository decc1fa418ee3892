"""Who comes to the shop: users, their lasting and drifting tastes, their activity, and the days they arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipelines.sources.request import World
from pipelines.sources.simulator.arrays import DAY_MICROS, MICROS, Bools, Doubles, Floats, Ints, Longs, Numbers, concat
from pipelines.sources.simulator.catalogue import FOUNDING_SHARE, GROWN_DAYS, N_SLOTS, PRICE_SLOT, QUALITY_SLOT, arrivals
from pipelines.sources.simulator.draws import categorical, stream
from pipelines.sources.simulator.taxonomy import N_TASTES

COUNTRIES: Final = ("DE", "FR", "GB", "NL", "ES", "IT", "PL", "SE", "US", "BR", "IN", "MX")
COUNTRY_WEIGHTS: Final = np.array([0.30, 0.18, 0.14, 0.10, 0.08, 0.07, 0.06, 0.04, 0.03, 0.0, 0.0, 0.0])
NEW_COUNTRY_WEIGHTS: Final = np.array([0.05, 0.03, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.05, 0.35, 0.25, 0.15])
AGE_BANDS: Final = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
AGE_EDGES: Final = np.array([25, 35, 45, 55, 65])
DEVICES: Final = ("mobile", "desktop", "tablet", "app")
DEVICE_WEIGHTS: Final = np.array([0.48, 0.34, 0.08, 0.10])
NEW_DEVICE_WEIGHTS: Final = np.array([0.20, 0.05, 0.02, 0.73])
TRAFFIC_FACTOR: Final = 4


@dataclass(frozen=True)
class Crowd:
    """Users in the order of their day of sign-up; a row number is the user's number for good.

    Attributes:
        core: float32 [users, N_TASTES], the lasting taste. swing: float32 [users, 2, N_TASTES], the axes
            of the ellipse it drifts on. period: float32, days of one round.
        thrift: float32, weight against dearness. activity: float64, heavy-tailed.
        country, device: int32 indices into COUNTRIES and DEVICES. age: float64, years on day 0.
        joined: int32, day; -1 for founding users. signed_up_at: int64 microseconds since day 0.
        by_mix: bool, brought by a traffic mix.
    """

    core: Floats
    swing: Floats
    period: Floats
    thrift: Floats
    activity: Doubles
    country: Ints
    device: Ints
    age: Doubles
    joined: Ints
    signed_up_at: Longs
    by_mix: Bools


class People:
    """Everybody who ever signs up; grows by itself as later days are asked for."""

    def __init__(self, world: World, taste_shifts: tuple[int, ...], traffic_mixes: tuple[int, ...]) -> None:
        self.world, self.taste_shifts, self.traffic_mixes = world, taste_shifts, traffic_mixes
        self.founders = round(FOUNDING_SHARE * world.users) or 1
        self.arrivals: list[int] = []  # users signed up to and including day d
        self.crowd = self._join(self.founders, -1, mixed=0)

    def count(self, day: int) -> int:
        """Return how many users have signed up to and including `day`; before day 0 those are the founding ones."""
        while len(self.arrivals) <= day:
            self._grow()
        return self.arrivals[day] if day >= 0 else self.founders

    def _grow(self) -> None:
        """Let those of the next GROWN_DAYS days sign up at once: each day draws from its own stream, so they may."""
        joined = [self.crowd]
        start = len(self.arrivals)
        for day in range(start, start + GROWN_DAYS):
            regular = arrivals(self.world.users, day)
            mixed = (TRAFFIC_FACTOR - 1) * regular * sum(day >= since for since in self.traffic_mixes)
            joined.append(self._join(regular + mixed, day, mixed=mixed))
            self.arrivals.append((self.arrivals[-1] if self.arrivals else self.founders) + regular + mixed)
        self.crowd = concat(joined)

    def _join(self, n: int, day: int, *, mixed: int) -> Crowd:
        """Draw n users who sign up on a day, the last `mixed` of them brought by a traffic mix."""
        rng = stream(self.world.seed, "users", day + 1)
        demography = stream(self.world.seed, "demography").standard_normal((len(COUNTRIES) + len(AGE_BANDS), N_TASTES))
        by_mix = np.arange(n) >= n - mixed
        draw = rng.random(n)
        country = np.where(by_mix, categorical(NEW_COUNTRY_WEIGHTS, draw), categorical(COUNTRY_WEIGHTS, draw))
        age = np.clip(rng.normal(40.0, 13.0, n), 18.0, 85.0)
        band = np.searchsorted(AGE_EDGES, age, side="right")
        core = 0.8 * rng.standard_normal((n, N_TASTES)) + 0.35 * demography[country] + 0.35 * demography[len(COUNTRIES) + band]
        draw = rng.random(n)
        # founding users joined in the two years before; later ones do so by six in the evening, so that a first visit fits the day
        at = (day + rng.uniform(0.0, 0.75, n)) * DAY_MICROS if day >= 0 else -rng.uniform(0.0, 730.0, n) * DAY_MICROS
        return Crowd(
            core=core.astype(np.float32),
            swing=0.35 * rng.standard_normal((n, 2, N_TASTES), dtype=np.float32),
            period=rng.uniform(60.0, 240.0, n).astype(np.float32),
            thrift=rng.gamma(2.0, 0.35, n).astype(np.float32),
            activity=np.exp(1.1 * rng.standard_normal(n)),
            country=country,
            device=np.where(by_mix, categorical(NEW_DEVICE_WEIGHTS, draw), categorical(DEVICE_WEIGHTS, draw)),
            age=age,
            joined=np.full(n, day, np.int32),
            signed_up_at=at.astype(np.int64) // MICROS * MICROS,
            by_mix=by_mix,
        )

    def band(self, users: Numbers, day: int) -> Ints:
        """Return the age band of users on a day, an index into AGE_BANDS."""
        band: Ints = np.searchsorted(AGE_EDGES, self.crowd.age[users] + day / 365.25, side="right").astype(np.int32)
        return band

    def lasting(self, users: Numbers, day: int) -> Floats:
        """Return the part of taste that no drift moves, as `taste`: constant between taste shifts."""
        return self._turned(self.crowd.core[users], users, day)

    def taste(self, users: Numbers, day: int) -> Floats:
        """Return what users like on a day: float32 [users, N_SLOTS].

        The core, plus a slow ellipse around it (60 to 240 days a round), turned by every taste shift
        up to the day; all of it times the world's `taste`. The last two slots weigh dearness (negative: thrift) and quality.
        """
        angle = (2 * np.pi * day) / self.crowd.period[users]
        swing = self.crowd.swing[users]
        taste = self.crowd.core[users] + np.cos(angle)[:, None] * swing[:, 0] + np.sin(angle)[:, None] * swing[:, 1]
        return self._turned(taste.astype(np.float32), users, day)

    def _turned(self, taste: Floats, users: Numbers, day: int) -> Floats:
        """Return tastes after the taste shifts up to a day, with thrift and the love of quality beside them."""
        vector = np.empty((len(taste), N_SLOTS), np.float32)
        vector[:, PRICE_SLOT] = -self.crowd.thrift[users]
        vector[:, QUALITY_SLOT] = 0.4
        for since in self.taste_shifts:
            if day >= since:
                rng = stream(self.world.seed, "taste shift", since)
                turn, sign = rng.permutation(N_TASTES), rng.choice(np.array([-1.0, 1.0], np.float32), N_TASTES)
                fashion = rng.standard_normal(N_TASTES).astype(np.float32)
                taste = np.float32(0.5) * taste + np.float32(0.8) * taste[:, turn] * sign + np.float32(0.6) * fashion
                vector[:, PRICE_SLOT] -= np.float32(0.8)
        vector[:, :N_TASTES] = np.float32(self.world.taste) * taste
        return vector
