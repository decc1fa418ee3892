"""The people of the simulated shop in front of lists that somebody else makes: who comes when, and what they take of what they are shown.

The shop's own visits (`visits`) browse its shelves. Here a recommender fills the shelf, and the same people answer it by the
same tastes, so that what it learns from is what it caused:

- somebody looks at a place with a log-odds that falls with it (`PLACE_BIAS` of `choice`, carried on to any length);
- of what is there, and of leaving, they take what is worth most to them with luck added (Gumbel): the chance of an item is a
  softmax of its utility, its place and the wish to leave (McFadden 1974); they look at most at `looks` of the visit;
- what was looked at goes to the cart and is paid for with the odds that the shop's own visits have.

Everything is a function of the world, the day, the visit and the list: two recommenders that show a visitor the same list get the same
answer, and an arm's luck is not another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines import tables
from pipelines.sources.simulator import rows
from pipelines.sources.simulator.arrays import MICROS, Doubles, Floats, Ints, Longs
from pipelines.sources.simulator.choice import CART, PURCHASE
from pipelines.sources.simulator.draws import hashed
from pipelines.sources.simulator.people import DEVICES
from pipelines.sources.simulator.shop import Shop
from pipelines.sources.simulator.truth import Truth
from pipelines.sources.simulator.visits import START, Visits
from pipelines.window import Window, utc

LEAVE: Final = 6.0  # utility of doing something else: of ten random items about one in eight visits takes any
MAX_LOOKS: Final = 5
SECONDS_A_LOOK: Final = 40.0


@dataclass(frozen=True)
class Calls:
    """The visits of a day, in the order in which they begin.

    Attributes:
        user: int32, number of the user.
        at: int64, microseconds since the world's first midnight.
        session: int32, number of the visit within its day.
        device: int8, position in the shop's devices.
        looks: int32, items the visitor looks at, at most.
    """

    user: Ints
    at: Longs
    session: Ints
    device: npt.NDArray[np.int8]
    looks: Ints

    def __len__(self) -> int:
        """Return the number of visits."""
        return len(self.user)


def bias(k: int) -> Floats:
    """Return float32 [k], what each place takes off the log-odds of being looked at; 0 for the first."""
    return (0.9 * np.log2(1.0 + np.arange(k) / 2.0)).astype(np.float32)


class Shoppers:
    """The people of a shop on one day.

    Attributes:
        truth: who likes what, on this day.
        calls: who comes, and when.
    """

    def __init__(self, shop: Shop, day: int, *, share: float = 1.0) -> None:
        """Find out who comes.

        Args:
            day: of the world, the first is 0.
            share: of the shop's visits of the day that come to the recommender; the others are whatever the caller makes of them.
        """
        start = START + timedelta(days=day)
        self._day, self._seed = day, shop.world.seed
        self.truth: Truth = shop.truth(start)
        self.calls = _calls(shop.visits(Window(utc(start), utc(start + timedelta(days=1)))), self._seed, day, share)
        self._place = {item: at for at, item in enumerate(self.truth.item_ids.to_pylist())}
        self._price = shop.catalogue.price(day, np.arange(len(self.truth.item_ids)))

    def utility(self, user: int) -> Floats:
        """Return float32 [items], what a user likes, in the order of the truth's items."""
        everything = np.arange(len(self.truth.item_ids))
        return self.truth.utility(np.full(len(everything), user), everything)

    def answer(self, call: int, item_ids: list[str]) -> list[tuple[int, bool, bool]]:
        """Return what a visitor does with a list: (place, into the cart, bought), in the order of doing; places count from 0.

        Args:
            call: row of `calls`.
            item_ids: as shown; an item that is unknown or not for sale is passed over.
        """
        place = np.array([self._place.get(item, -1) for item in item_ids], np.int64)
        there = (place >= 0) & self.truth.available[np.maximum(place, 0)]
        if not there.any():
            return []
        user, k = int(self.calls.user[call]), len(place)
        worth = self.truth.utility(np.full(k, user), np.maximum(place, 0))
        luck = self._luck("look", call, place)
        wanted = np.where(there, worth - bias(k) - np.log(-np.log(luck)), -np.inf)
        leave = LEAVE - np.log(-np.log(self._luck("leave", call, np.array([-1]))[0]))
        order = np.argsort(-wanted, kind="stable")[: int(self.calls.looks[call])]
        taken = [int(at) for at in order if wanted[at] > leave]
        carted = self._luck("cart", call, place) < _odds(CART + 0.35 * worth)
        bought = self._luck("pay", call, place) < _odds(PURCHASE + 0.2 * worth)
        return [(at, bool(carted[at]), bool(carted[at] and bought[at])) for at in taken]

    def events(self, call: int, item_ids: list[str], request_id: str, done: list[tuple[int, bool, bool]]) -> pa.Table:
        """Return what a visitor did as `tables.EVENTS`, each event with the request that led to it."""
        who, number = self.calls, int(self.calls.session[call])
        made = []
        for step, (place, carted, bought) in enumerate(done):
            at = int(who.at[call]) + int((step + 1) * SECONDS_A_LOOK * MICROS)
            kinds = [c.VIEW, *([c.ADD_TO_CART] if carted else []), *([c.PURCHASE] if bought else [])]
            made += [
                (
                    kind,
                    item_ids[place],
                    at + 2 * MICROS * n,
                    float(self._price[self._place[item_ids[place]]]) if kind == c.PURCHASE else None,
                )
                for n, kind in enumerate(kinds)
            ]
        when = rows.times(np.array([at for _, _, at, _ in made], np.int64))
        return pa.Table.from_pydict(
            {
                c.EVENT_ID: [f"{request_id}-{n}" for n in range(len(made))],
                c.USER_ID: self.truth.user_ids.take(pa.array([int(who.user[call])] * len(made), pa.int64())),
                c.ITEM_ID: [item for _, item, _, _ in made],
                c.EVENT_TYPE: [kind for kind, *_ in made],
                c.VALUE: pa.array([value for *_, value in made], pa.float64()),
                c.QUANTITY: pa.array([None if kind == c.VIEW else 1.0 for kind, *_ in made], pa.float64()),
                c.EVENT_AT: when,
                c.RECEIVED_AT: when,
                c.SESSION_ID: [f"s{self._day:04d}{number:08d}"] * len(made),
                c.DEVICE: [DEVICES[int(who.device[call])]] * len(made),
                c.REQUEST_ID: [request_id] * len(made),
            },
            schema=tables.EVENTS,
        )

    def _luck(self, name: str, call: int, item: Longs) -> Doubles:
        """Return float64 in (0, 1), a visitor's luck with each item; the same for the same visit, whatever is shown beside it."""
        return np.maximum(hashed(self._seed, name, self._day, int(self.calls.session[call]), item + 1), 1e-12)


def _odds(log_odds: Floats) -> Doubles:
    probability: Doubles = 1.0 / (1.0 + np.exp(-log_odds.astype(np.float64)))
    return probability


def _calls(visits: Visits, seed: int, day: int, share: float) -> Calls:
    """Return one call for each visit of the shop, at the moment of its first event."""
    session, first = np.unique(visits.session, return_index=True)  # events lie in the order of time
    chosen = hashed(seed, "asks", day, session) < share
    session, first = session[chosen], first[chosen]
    order = np.argsort(visits.at[first], kind="stable")
    session, first = session[order], first[order]
    looks = np.minimum(1 + np.floor(np.log(np.maximum(hashed(seed, "looks", day, session), 1e-12)) / np.log(0.6)), MAX_LOOKS)
    return Calls(visits.user[first], visits.at[first], session, visits.device[first], looks.astype(np.int32))
