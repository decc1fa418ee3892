"""Who comes to the shop: users, their lasting and drifting tastes, their activity, and the days they arrive."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.sources.request import World
from pipelines.sources.simulator.catalogue import FOUNDING_SHARE, GROWTH_DAYS, N_SLOTS, N_TASTES, PRICE_SLOT, QUALITY_SLOT
from pipelines.sources.simulator.draws import DAY_MICROS, MICROS, Floats, Ints, categorical, stream

COUNTRIES: Final = ("DE", "FR", "GB", "NL", "ES", "IT", "PL", "SE", "US", "BR", "IN", "MX")
COUNTRY_WEIGHTS: Final = np.array([0.30, 0.18, 0.14, 0.10, 0.08, 0.07, 0.06, 0.04, 0.03, 0.0, 0.0, 0.0])
NEW_COUNTRY_WEIGHTS: Final = np.array([0.05, 0.03, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.05, 0.35, 0.25, 0.15])
AGE_BANDS: Final = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
AGE_EDGES: Final = np.array([25, 35, 45, 55, 65])
DEVICES: Final = ("mobile", "desktop", "tablet", "app")
DEVICE_WEIGHTS: Final = np.array([0.48, 0.34, 0.08, 0.10])
NEW_DEVICE_WEIGHTS: Final = np.array([0.20, 0.05, 0.02, 0.73])
TRAFFIC_FACTOR: Final = 4


class People:
    """Every user who signs up to a day; grows by the day, user numbers in order of sign-up day."""

    def __init__(self, world: World, taste_shifts: tuple[int, ...], traffic_mixes: tuple[int, ...]) -> None:
        self.world, self.taste_shifts, self.traffic_mixes = world, taste_shifts, traffic_mixes
        self.grown = -1
        self.arrivals: list[int] = []  # users signed up to and including day d
        self.core = np.empty((0, N_TASTES), np.float32)
        self.swing = np.empty((0, 2, N_TASTES), np.float32)
        self.period = np.empty(0, np.float32)  # days of one round of the swing
        self.thrift = np.empty(0, np.float32)
        self.activity = np.empty(0, np.float64)
        self.country = np.empty(0, np.int32)
        self.device = np.empty(0, np.int32)
        self.age = np.empty(0, np.float64)  # years on day 0
        self.joined = np.empty(0, np.int32)  # day; founding users -1
        self.signed_up_at = np.empty(0, np.int64)  # microseconds since day 0
        self.by_mix = np.empty(0, np.bool_)  # brought by a traffic mix

    def grow(self, day: int) -> None:
        """Let everybody sign up to and including `day`."""
        while self.grown < day:
            today = self.grown + 1
            if today == 0:
                self._join(round(FOUNDING_SHARE * self.world.users) or 1, -1, mixed=0)
            rate = (1.0 - FOUNDING_SHARE) * self.world.users / GROWTH_DAYS
            regular = int(rate * (today + 1)) - int(rate * today)
            mixed = (TRAFFIC_FACTOR - 1) * regular * sum(today >= start for start in self.traffic_mixes)
            self._join(regular + mixed, today, mixed=mixed)
            self.arrivals.append(len(self.period))
            self.grown = today

    def _join(self, n: int, day: int, *, mixed: int) -> None:
        rng = stream(self.world.seed, "users", day + 1)
        demography = stream(self.world.seed, "demography").standard_normal((len(COUNTRIES) + len(AGE_BANDS), N_TASTES))
        by_mix = np.arange(n) >= n - mixed
        draw = rng.random(n)
        country = np.where(by_mix, categorical(NEW_COUNTRY_WEIGHTS, draw), categorical(COUNTRY_WEIGHTS, draw)).astype(np.int32)
        age = np.clip(rng.normal(40.0, 13.0, n), 18.0, 85.0)
        group = np.searchsorted(AGE_EDGES, age, side="right")
        core = 0.8 * rng.standard_normal((n, N_TASTES)) + 0.35 * demography[country] + 0.35 * demography[len(COUNTRIES) + group]
        draw = rng.random(n)
        device = np.where(by_mix, categorical(NEW_DEVICE_WEIGHTS, draw), categorical(DEVICE_WEIGHTS, draw)).astype(np.int32)
        # a founding user joined in the two years before; later ones by six in the evening, so that a first visit fits the day
        at = (day + rng.uniform(0.0, 0.75, n)) * DAY_MICROS if day >= 0 else -rng.uniform(0.0, 730.0, n) * DAY_MICROS
        self.core = np.concatenate([self.core, core.astype(np.float32)])
        self.swing = np.concatenate([self.swing, 0.35 * rng.standard_normal((n, 2, N_TASTES), dtype=np.float32)])
        self.period = np.concatenate([self.period, rng.uniform(60.0, 240.0, n).astype(np.float32)])
        self.thrift = np.concatenate([self.thrift, rng.gamma(2.0, 0.35, n).astype(np.float32)])
        self.activity = np.concatenate([self.activity, np.exp(1.1 * rng.standard_normal(n))])
        self.country = np.concatenate([self.country, country])
        self.device = np.concatenate([self.device, device])
        self.age = np.concatenate([self.age, age])
        self.joined = np.concatenate([self.joined, np.full(n, day, np.int32)])
        self.signed_up_at = np.concatenate([self.signed_up_at, at.astype(np.int64) // MICROS * MICROS])
        self.by_mix = np.concatenate([self.by_mix, by_mix])

    def count(self, day: int) -> int:
        """Return how many users have signed up to and including `day`; 0 before the first."""
        if day < 0:
            self.grow(0)
            return int((self.joined[: self.arrivals[0]] < 0).sum())
        self.grow(day)
        return self.arrivals[day]

    def band(self, users: npt.NDArray[Any], day: int) -> Ints:
        """Return the age band of users on a day, an index into AGE_BANDS."""
        band: Ints = np.searchsorted(AGE_EDGES, self.age[users] + day / 365.25, side="right").astype(np.int32)
        return band

    def lasting(self, users: npt.NDArray[Any]) -> Floats:
        """Return the part of taste that never changes: float32 [users, N_SLOTS], as `taste`."""
        return self._with_slots(self.core[users], users)

    def taste(self, users: npt.NDArray[Any], day: int) -> Floats:
        """Return what users like on a day: float32 [users, N_SLOTS].

        The core, plus a slow ellipse around it (60 to 240 days a round), turned by every taste shift
        up to the day. The last two slots weigh dearness (negative: thrift) and quality.
        """
        angle = (2 * np.pi * day) / self.period[users]
        swing = self.swing[users]
        taste = self.core[users] + np.cos(angle)[:, None] * swing[:, 0] + np.sin(angle)[:, None] * swing[:, 1]
        extra = 0.0
        for start in self.taste_shifts:
            if day >= start:
                rng = stream(self.world.seed, "taste shift", start)
                turn, sign = rng.permutation(N_TASTES), rng.choice(np.array([-1.0, 1.0], np.float32), N_TASTES)
                fashion = rng.standard_normal(N_TASTES).astype(np.float32)
                taste = np.float32(0.5) * taste + np.float32(0.8) * taste[:, turn] * sign + np.float32(0.6) * fashion
                extra += 0.8
        vector = self._with_slots(taste.astype(np.float32), users)
        vector[:, PRICE_SLOT] -= np.float32(extra)
        return vector

    def _with_slots(self, taste: Floats, users: npt.NDArray[Any]) -> Floats:
        vector = np.empty((len(taste), N_SLOTS), np.float32)
        vector[:, :N_TASTES] = taste
        vector[:, PRICE_SLOT] = -self.thrift[users]
        vector[:, QUALITY_SLOT] = 0.4
        return vector
