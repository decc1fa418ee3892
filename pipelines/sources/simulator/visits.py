"""What people do on one day: sessions of views, some of which end in the cart, some of those in a purchase."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.sources.request import WORLD_STARTS, World
from pipelines.sources.simulator.arrays import DAY_MICROS, MICROS, Bools, Doubles, Ints, Longs, concat, take
from pipelines.sources.simulator.catalogue import Catalogue
from pipelines.sources.simulator.choice import Chain, Scene
from pipelines.sources.simulator.draws import categorical, hashed, stream
from pipelines.sources.simulator.people import DEVICE_WEIGHTS, NEW_DEVICE_WEIGHTS, People

START: Final = date.fromisoformat(WORLD_STARTS)
KINDS: Final = ("view", "add_to_cart", "purchase")
WEEKDAY: Final = (1.00, 0.94, 0.95, 0.98, 1.10, 0.92, 1.11)  # Monday first; mean 1
_NIGHT_TO_EVENING: Final = (8, 5, 3, 2, 2, 4, 10, 20, 32, 40, 45, 48, 52, 48, 46, 46, 48, 54, 62, 72, 78, 66, 40, 18)
HOURS: Final = np.array([_NIGHT_TO_EVENING, np.roll(_NIGHT_TO_EVENING, 1)], np.float64)  # weekends run an hour late
EVENTS_PER_SESSION: Final = 3.85  # measured
MAX_VIEWS: Final = 30
_BLOCK: Final = 1 << 15  # sessions worked on at once


@dataclass(frozen=True)
class Visits:
    """The events of one or more days in columns of equal length, in the order of event_id: by day, then time.

    Attributes:
        day, number: int32; the day, and the position of the event within its day.
        user, item: int32 numbers; kind: int8 index into KINDS; device: int8.
        value: float64, amount of a purchase, else NaN; quantity: float64, NaN for views.
        at, received: int64 microseconds since day 0.
        session: int32, counted within the day.
        mixed: bool, in a session whose device a traffic mix chose, or of a user it brought.
    """

    day: Ints
    number: Ints
    user: Ints
    item: Ints
    kind: npt.NDArray[np.int8]
    device: npt.NDArray[np.int8]
    value: Doubles
    quantity: Doubles
    at: Longs
    received: Longs
    session: Ints
    mixed: Bools

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.at)


def rhythm(day: int) -> float:
    """Return the traffic of a day relative to the mean: weekday times season (a mild peak in November)."""
    at = START + timedelta(days=day)
    return WEEKDAY[at.weekday()] * (1.0 + 0.1 * float(np.cos(2 * np.pi * (at.timetuple().tm_yday - 320) / 365.25)))


def happen(world: World, catalogue: Catalogue, people: People, day: int) -> Visits:
    """Return everything that is done on a day (>= 0); a function of the world and the day alone."""
    shelf = catalogue.shelf(day, (START + timedelta(days=day)).timetuple().tm_yday)
    scene = Scene(world.seed, catalogue.taxonomy, people, shelf, day)
    before, now = people.count(day - 1), people.count(day)
    rng = stream(world.seed, "visitors", day)
    n_sessions = max(1, round(world.events_per_day * rhythm(day) / EVENTS_PER_SESSION)) - (now - before)
    edges = np.cumsum(_readiness(world, people, before, day))
    regulars = np.searchsorted(edges, np.sort(rng.random(max(n_sessions, 0))) * edges[-1], side="right").astype(np.int32)
    visitors = np.concatenate([np.minimum(regulars, before - 1), np.arange(before, now, dtype=np.int32)])
    parts = [_sessions(scene, visitors[first : first + _BLOCK], first) for first in range(0, len(visitors), _BLOCK)]
    visits = concat(parts)
    visits = take(visits, np.argsort(visits.at, kind="stable"))
    lag = _lag(stream(world.seed, "lag", day), len(visits))
    return replace(visits, number=np.arange(len(visits), dtype=np.int32), received=visits.at + lag)


def _readiness(world: World, people: People, n: int, day: int) -> Doubles:
    """Return how likely each of the first n users is to visit: own activity, spells of more and less, the first two weeks."""
    user = np.arange(n)
    spell = (day + np.floor(10 * hashed(world.seed, "spell day", user))).astype(np.int64) // 10
    lively = np.where(hashed(world.seed, "spell", user, spell) < 0.5, 0.4, 1.6)
    young = np.where(people.crowd.joined[:n] >= max(day - 14, 0), 1.6, 1.0)
    weight: Doubles = people.crowd.activity[:n] * lively * young
    return weight


def _lag(rng: np.random.Generator, n: int) -> Longs:
    """Return microseconds until receipt: about two seconds, and for four in a thousand a minute to twelve hours."""
    seconds = np.exp(0.7 + 0.8 * rng.standard_normal(n))
    slow = np.flatnonzero(rng.random(n) < 0.004)
    seconds[slow] = 60.0 * 720.0 ** rng.random(len(slow))
    lag: Longs = (np.minimum(seconds, 86_400.0) * MICROS).astype(np.int64)
    return lag


def _sessions(scene: Scene, visitors: Ints, first: int) -> Visits:
    """Return the events of one block of sessions, unsorted; `first` is the number of the first."""
    people, shelf, day = scene.people, scene.shelf, scene.day
    rng = stream(scene.seed, "sessions", day, first)
    length = np.minimum(rng.geometric(0.32, len(visitors)), MAX_VIEWS)
    by_length = np.argsort(-length, kind="stable")  # so that those still there form a prefix
    visitors, length = visitors[by_length], length[by_length]
    chain = Chain(scene, visitors, rng)
    views = [chain.view(step, int((length > step).sum())) for step in range(int(length[0]))]
    session = np.concatenate([np.arange(len(view.position)) for view in views])
    position = np.concatenate([view.position for view in views])
    carted = np.concatenate([view.carted for view in views])
    bought = carted & np.concatenate([view.bought for view in views])
    elapsed, total = _elapsed(rng, [len(view.position) for view in views], len(visitors))

    checkout = total + rng.uniform(20.0, 90.0, len(visitors))
    began = _starts(rng, people, visitors, checkout, day)
    seen_at = began[session] + (elapsed * MICROS).astype(np.int64)
    in_cart, paid = np.flatnonzero(carted), np.flatnonzero(bought)
    quantity = 1.0 + rng.poisson(0.35, len(position))
    rows = np.concatenate([np.arange(len(position)), in_cart, paid])
    kind = np.repeat(np.arange(3, dtype=np.int8), [len(position), len(in_cart), len(paid)])
    at = np.concatenate(
        [
            seen_at,
            seen_at[in_cart] + (rng.uniform(1.0, 7.0, len(in_cart)) * MICROS).astype(np.int64),
            began[session[paid]] + (checkout[session[paid]] * MICROS).astype(np.int64),
        ]
    )
    device, mixed = _devices(rng, people, visitors, day)
    who = session[rows]
    n = len(rows)
    return Visits(
        day=np.full(n, day, np.int32),
        number=np.zeros(n, np.int32),
        user=visitors[who],
        item=shelf.item[position[rows]],
        kind=kind,
        device=device[who],
        value=np.where(kind == 2, np.round(shelf.price[position[rows]] * quantity[rows], 2), np.nan),
        quantity=np.where(kind > 0, quantity[rows], np.nan),
        at=at,
        received=at,
        session=(first + who).astype(np.int32),
        mixed=mixed[who],
    )


def _elapsed(rng: np.random.Generator, counts: list[int], n: int) -> tuple[Doubles, Doubles]:
    """Return the seconds from a session's start to each view (step by step), and to its last view."""
    clock, steps = np.zeros(n), []
    for step, count in enumerate(counts):
        if step:
            clock[:count] += 8.0 + np.minimum(np.exp(3.3 + 0.8 * rng.standard_normal(count)), 600.0)
        steps.append(clock[:count].copy())
    return np.concatenate(steps), clock


def _starts(rng: np.random.Generator, people: People, visitors: Ints, seconds: Doubles, day: int) -> Longs:
    """Return when each session begins, by hour of day; every session is over by midnight, a first one follows the sign-up."""
    weekend = int((START + timedelta(days=day)).weekday() >= 5)
    hour = categorical(HOURS[weekend], rng.random(len(visitors)))
    within = (hour + rng.random(len(visitors))) / 24.0
    room = 1.0 - (seconds + 1.0) / 86_400.0
    within = np.where(within < room, within, room * rng.random(len(visitors)))
    start = day * DAY_MICROS + (within * DAY_MICROS).astype(np.int64)
    return np.where(people.crowd.joined[visitors] == day, people.crowd.signed_up_at[visitors] + 20 * MICROS, start)


def _devices(rng: np.random.Generator, people: People, visitors: Ints, day: int) -> tuple[npt.NDArray[np.int8], Bools]:
    """Return the device of each session, and whether a traffic mix had a hand in it."""
    own, other, mixed = rng.random((3, len(visitors)))
    device = np.where(own < 0.8, people.crowd.device[visitors], categorical(DEVICE_WEIGHTS, other))
    moved = (mixed < 0.6) & any(day >= start for start in people.traffic_mixes)
    device = np.where(moved, categorical(NEW_DEVICE_WEIGHTS, other), device)
    return device.astype(np.int8), moved | people.crowd.by_mix[visitors]
