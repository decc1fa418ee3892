"""Which new items get a place that their score would not give them, and with what probability they got it.

A share of the requests gives the places named in the policy (its slots) to new items. The pool of a
request, new items best first, is dealt out to the slots like cards: slot t of m draws among the items at pool
ranks t, t + m, t + 2m, ..., so slots draw independently, no item comes twice, and every probability is exact:

    epsilon_greedy  the best of the slot's cards with 1 - e, else one of its n cards by lot: 1 - e + e / n, or e / n
    thompson        the card with the largest click rate drawn from its Beta posterior (Thompson, 1933; Chapelle,
                    Li, NIPS 2011); mixed with the lot by as much as `min_propensity` needs

A propensity is the probability, before the request came, that this item stands at this place for this user:
`share` times the above for a new item, 1 - share for the item that it replaced, 1 where no draw takes place. Draws
are functions of (salt, user, request) alone: the same request is answered the same, in any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special

from pipelines.datasets.interactions import Bools, Ints, Longs
from pipelines.errors import ReloopError
from pipelines.evaluation.metrics import Doubles
from pipelines.model_settings import ExplorationPolicy

CELLS: Final = 128  # of the table of click rates
POOLS_AT_ONCE: Final = 256
GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Explored:
    """Lists with their explored places.

    Attributes:
        item: int32 [n, k]; -1 pads.
        propensity: float64 [n, k], in (0, 1]; NaN where `item` is -1.
        explored: bool [n, k], where a new item stands because of a draw.
    """

    item: Ints
    propensity: Doubles
    explored: Bools


@dataclass(frozen=True)
class ClickRates:
    """What is believed of each item's clicks an impression: Beta(clicked, ignored).

    Attributes:
        clicked, ignored: float64 [n_items], > 0.
    """

    clicked: Doubles
    ignored: Doubles

    @classmethod
    def learnt(cls, impressions: Doubles, clicks: Doubles, prior: Doubles, strength: float) -> ClickRates:
        """Return the posterior of impressions and clicks under a prior that is worth `strength` impressions.

        Args:
            impressions, clicks: float64 [n_items].
            prior: float64 [n_items], expected click rates; an item's neighbours by content give it.

        Raises:
            ReloopError: more clicks than impressions, or a prior outside (0, 1).
        """
        if (clicks > impressions).any() or (clicks < 0).any():
            raise ReloopError("click rates", found=f"{int((clicks > impressions).sum())} items clicked more than shown", allowed="0 to all")
        if not ((prior > 0) & (prior < 1)).all() or not strength > 0:
            raise ReloopError("click rates", found="a prior outside (0, 1), or no strength", allowed="rates between, strength above 0")
        return cls(strength * prior + clicks, strength * (1 - prior) + impressions - clicks)


def explore(
    listed: Ints, pool: Ints, policy: ExplorationPolicy, *, user_ids: Sequence[str], request_ids: Sequence[str], rates: ClickRates | None
) -> Explored:
    """Return the lists with new items at the slots of those requests that explore, and every item's propensity.

    A place is drawn for only if the list reaches it and there is a card for it.

    Args:
        listed: int32 [n, k], the lists as they would be without exploration.
        pool: int32 [n, m], new items for each request, best first, none of its list; -1 pads at the end.
        user_ids, request_ids: [n]; a request that comes again is answered the same.
        rates: of all items that pools name; needed by `thompson` alone.

    Raises:
        ReloopError: `thompson` without rates.
    """
    explored = Explored(listed.copy(), np.where(listed >= 0, 1.0, np.nan), np.zeros(listed.shape, dtype=bool))
    slots = [slot - 1 for slot in policy.slots if slot <= listed.shape[1]]
    if policy.method == "off" or not slots or not len(listed):
        return explored
    if policy.method == "thompson" and rates is None:
        raise ReloopError("exploration", found="thompson without click rates", allowed="ClickRates of all items")
    seeds = _seeds(policy.salt, user_ids, request_ids)
    exploring = uniform(seeds, 1)[:, 0] < policy.share
    limit = policy.cards()
    for number, slot in enumerate(slots):
        cards = pool[:, number :: len(slots)][:, :limit]
        size = (cards >= 0).sum(axis=1)
        drawn = (listed[:, slot] >= 0) & (size > 0)
        explored.propensity[drawn, slot] = 1 - policy.share
        rows = np.flatnonzero(drawn & exploring)
        chosen, probability = _draw(cards[rows], size[rows], _mixed(seeds[rows] ^ np.uint64(number + 1)), policy, rates)
        explored.item[rows, slot] = cards[rows, chosen]
        explored.propensity[rows, slot] = policy.share * probability
        explored.explored[rows, slot] = True
    return explored


def _draw(
    cards: Ints, size: Longs, seeds: npt.NDArray[np.uint64], policy: ExplorationPolicy, rates: ClickRates | None
) -> tuple[Longs, Doubles]:
    """Return which card each row draws, and with what probability.

    Args:
        cards: int32 [n, m], -1 pads; size: int64 [n], cards of each row, at least 1.
    """
    rows, width = np.arange(len(cards)), cards.shape[1]
    lots = uniform(seeds, 2 + width)
    floor = np.minimum(1.0, size * policy.min_propensity / policy.share)
    by_lot = np.maximum(floor, policy.epsilon) if policy.method == "epsilon_greedy" else floor
    if policy.method == "epsilon_greedy":
        best, favoured = np.zeros(len(cards), dtype=np.int64), np.tile(np.arange(width) == 0, (len(cards), 1)).astype(np.float64)
    else:
        assert rates is not None  # noqa: S101 - `explore` refused it
        best, favoured = _thompson(cards, lots[:, 2:], rates)
    lot = np.minimum((lots[:, 1] * size).astype(np.int64), size - 1)
    chosen = np.where(lots[:, 0] < by_lot, lot, best)
    return chosen, (1 - by_lot) * favoured[rows, chosen] + by_lot / size


def _thompson(cards: Ints, lots: Doubles, rates: ClickRates) -> tuple[Longs, Doubles]:
    """Return the winner of each row's draw, and float64 [n, m], with what probability each card wins.

    Each Beta is tabulated at common quantiles and drawn from the table, linear within a cell, so that
    the probability, a sum over cells of polynomials, is exact for the draw that is made.
    """
    if not len(cards):
        return np.empty(0, dtype=np.int64), np.empty(cards.shape)
    items, place = np.unique(cards[cards >= 0], return_inverse=True)
    below = _table(rates.clicked[items], rates.ignored[items])
    at = np.full(cards.shape, -1, dtype=np.int64)
    at[cards >= 0] = place
    drawn = np.full(cards.shape, -1.0)
    drawn[at >= 0] = _located(below, at[at >= 0], lots[at >= 0])
    pools, pool_of_row = np.unique(at, axis=0, return_inverse=True)
    parts = [_chances(below, pools[first : first + POOLS_AT_ONCE]) for first in range(0, len(pools), POOLS_AT_ONCE)]
    return np.argmax(drawn, axis=1), np.concatenate(parts)[pool_of_row.ravel()]


def _table(clicked: Doubles, ignored: Doubles) -> Doubles:
    """Return float64 [n_items, CELLS + 1], each Beta's mass below the edges of the cells: 0 at the first, 1 at the last.

    The edges are spread over what the items' own quantiles cover, so that no posterior is lost within a cell.
    """
    quantiles = special.betaincinv(clicked[:, None], ignored[:, None], (np.arange(16) + 0.5) / 16)
    edges = np.quantile(quantiles, np.linspace(0, 1, CELLS - 1))
    inner = special.betainc(clicked[:, None], ignored[:, None], edges)
    return np.concatenate([np.zeros((len(clicked), 1)), inner, np.ones((len(clicked), 1))], axis=1)


def _located(below: Doubles, item: Longs, lot: Doubles) -> Doubles:
    """Return float64 [n], where on the scale of cells a uniform number falls by the inverse of an item's table."""
    lifted = (below + 2 * np.arange(len(below))[:, None]).ravel()  # one sorted array of all tables
    cell = np.searchsorted(lifted, lot + 2 * item, side="right") - 1 - item * below.shape[1]
    cell = np.clip(cell, 0, below.shape[1] - 2)
    start = below[item, cell]
    mass = np.maximum(below[item, cell + 1] - start, np.finfo(float).tiny)
    return np.asarray(cell + np.clip((lot - start) / mass, 0, 1))


def _chances(below: Doubles, pools: Longs) -> Doubles:
    """Return float64 [n_pools, m], the probability that each card's draw is the largest of its pool.

    Sum over cells g of mass_i(g) times the integral over v in [0, 1] of prod over j != i of
    (below_j(g) + v mass_j(g)); Gauss-Legendre of (m + 1) / 2 nodes is exact for it.
    """
    held = pools >= 0
    start = np.where(held[:, :, None], below[pools, :-1], 1.0)
    mass = np.where(held[:, :, None], np.diff(below, axis=1)[pools], 0.0)
    node, weight = np.polynomial.legendre.leggauss(pools.shape[1] // 2 + 1)
    found = np.zeros(pools.shape)
    for v, w in zip((node + 1) / 2, weight / 2, strict=True):
        each = start + v * mass
        left = np.cumprod(np.concatenate([np.ones_like(each[:, :1]), each[:, :-1]], axis=1), axis=1)
        right = np.cumprod(np.concatenate([np.ones_like(each[:, :1]), each[:, :0:-1]], axis=1), axis=1)[:, ::-1]
        found += w * (mass * left * right).sum(axis=2)  # left * right: the product of all others
    return found


def _seeds(salt: str, user_ids: Sequence[str], request_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    keys = (f"{len(salt)}:{salt}{len(user)}:{user}{request}" for user, request in zip(user_ids, request_ids, strict=True))
    return np.array([int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") for key in keys], dtype=np.uint64)


def uniform(seeds: npt.NDArray[np.uint64], n: int) -> Doubles:
    """Return float64 [len(seeds), n] in [0, 1), n numbers of the stream that each seed begins."""
    return np.asarray((_mixed(seeds[:, None] + GOLDEN * np.arange(1, n + 1, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
