"""How a visitor comes to look at an item, and whether they take it.

A session is a chain of views. A view is a list of eight items, of which one is chosen by appeal (the
dot product with the visitor's taste), by place in the list, and by luck. What differs is the list:

- *staple*: no list, the visitor goes straight to one of a few items of their own (repeat purchases);
- *errand*: items around one spot of one category that is on the visitor's mind for some days;
- *browse*: the best sellers of a category drawn by taste, most exposed first (popularity feedback);
- *follow*: what lies next to the item just seen, in its style and in the partner category (sequences, co-purchase).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipelines.sources.simulator.arrays import Bools, Doubles, Floats, Ints, Longs, Numbers
from pipelines.sources.simulator.catalogue import WIDTH, Shelf
from pipelines.sources.simulator.draws import categorical, hashed
from pipelines.sources.simulator.people import People
from pipelines.sources.simulator.taxonomy import N_TASTES, Taxonomy

CATEGORY_TASTE: Final = 2.0
PLACE_BIAS: Final = (0.9 * np.log2(1.0 + np.arange(WIDTH) / 2.0)).astype(np.float32)  # the last place of eight costs 2
N_STAPLES: Final = 6
STAPLE_DAYS: Final = 56  # how long a staple stays one
ERRAND_DAYS: Final = 6
STAPLE, ERRAND, BROWSE, FOLLOW, ELSEWHERE = range(5)  # elsewhere: browse another category
FIRST_VIEW: Final = np.array([0.25, 0.35, 0.40, 0.0, 0.0])
NEXT_VIEW: Final = np.array([0.08, 0.10, 0.27, 0.45, 0.10])
CART: Final = -3.1  # log-odds of the cart at appeal 0
CART_MODE: Final = np.array([1.5, 0.5, 0.0, 0.3, 0.0], np.float32)
PURCHASE: Final = -0.4  # log-odds of paying for what is in the cart, at appeal 0


@dataclass(frozen=True)
class Scene:
    """All that the visits of one day depend on."""

    seed: int
    taxonomy: Taxonomy
    people: People
    shelf: Shelf
    day: int


@dataclass(frozen=True)
class Views:
    """One step of a block of sessions: the shelf position each chose, and what became of it."""

    position: Longs
    carted: Bools
    bought: Bools


def _odds(log_odds: Numbers) -> Floats:
    probability: Floats = (1.0 / (1.0 + np.exp(-log_odds))).astype(np.float32)
    return probability


class Chain:
    """A block of sessions under way. Rows are sessions, the longest first, so that those still there form a prefix."""

    def __init__(self, scene: Scene, visitors: Ints, rng: np.random.Generator) -> None:
        self.scene, self.visitors, self.rng = scene, visitors, rng
        self.taste = scene.people.taste(visitors, scene.day)
        self.pull = category_pull(self.taste, scene)
        self.category = categorical(self.pull, rng.random(len(visitors)))
        self.position = np.zeros(len(visitors), np.int64)

    def view(self, step: int, n: int) -> Views:
        """Let the first n sessions look at their next item; they are those that have looked at `step` items."""
        rng, shelf = self.rng, self.scene.shelf
        mode = categorical(herded(NEXT_VIEW if step else FIRST_VIEW, self.scene.people.world.herd), rng.random(n))
        elsewhere = np.flatnonzero(mode == ELSEWHERE)
        self.category[elsewhere] = categorical(self.pull[elsewhere], rng.random(len(elsewhere)))
        shown = np.empty((n, WIDTH), np.int32)
        browse = np.flatnonzero((mode == BROWSE) | (mode == ELSEWHERE))
        cells = np.sort(rng.integers(0, shelf.best.shape[1], (len(browse), WIDTH), dtype=np.int32), axis=1)
        shown[browse] = shelf.best[self.category[browse][:, None], cells]
        follow = np.flatnonzero(mode == FOLLOW)
        shown[follow] = shelf.follow[self.position[follow]]
        errand = np.flatnonzero(mode == ERRAND)
        shown[errand] = shelf.ring[self._spot("errand", errand, np.zeros(len(errand), np.int64), ERRAND_DAYS)]
        staple = np.flatnonzero(mode == STAPLE)
        slot = np.floor(N_STAPLES * rng.random(len(staple)) ** 2).astype(np.int64)  # the first is used most
        shown[staple] = self._spot("staple", staple, slot, STAPLE_DAYS)[:, None]

        appeal = np.einsum("nk,nwk->nw", self.taste[:n], shelf.vector[shown])
        luck = -np.log(np.maximum(rng.standard_exponential((n, WIDTH), dtype=np.float32), np.float32(1e-30)))
        chosen = np.argmax(appeal - PLACE_BIAS + luck, axis=1)
        row = np.arange(n)
        position, liked = shown[row, chosen].astype(np.int64), appeal[row, chosen]
        self.position[:n] = position
        self.category[:n] = np.searchsorted(shelf.first, position, side="right") - 1
        carted = rng.random(n, dtype=np.float32) < _odds(CART + 0.35 * liked + CART_MODE[mode])
        bought = rng.random(n, dtype=np.float32) < _odds(PURCHASE + 0.2 * liked)
        return Views(position, carted, bought)

    def _spot(self, name: str, rows: Longs, slot: Longs, lasts_days: int) -> Longs:
        """Return the position a user keeps coming back to for some days: the most liked of four draws from lasting taste.

        It is a point on a category's circle of styles, so it outlives the item that lies there.
        """
        scene, user = self.scene, self.visitors[rows]
        offset = np.floor(lasts_days * hashed(scene.seed, name + " day", user, slot)).astype(np.int64)
        turn = (scene.day + offset) // lasts_days
        lasting = scene.people.lasting(user, scene.day)
        draw = hashed(scene.seed, name + " category", user, slot, turn)
        category = categorical(category_pull(lasting, scene), draw)
        style = hashed(scene.seed, name + " style", user[:, None], slot[:, None], turn[:, None], np.arange(4))
        position = scene.shelf.at(category[:, None] + style)
        liking = np.einsum("nk,nwk->nw", lasting, scene.shelf.vector[position]) + 1.5 * scene.shelf.log_weight[position]
        best: Longs = position[np.arange(len(rows)), np.argmax(liking, axis=1)]
        return best


def herded(modes: Doubles, herd: float) -> Doubles:
    """Return the chances of the modes when a share of all but `browse` and `elsewhere` browses instead."""
    moved: Doubles = modes.copy()
    habit = [STAPLE, ERRAND, FOLLOW]
    moved[habit] *= 1.0 - herd
    moved[BROWSE] += herd * modes[habit].sum()
    return moved


def category_pull(taste: Floats, scene: Scene) -> Doubles:
    """Return each row's weight on each category: taste and the public's interest: float64 [rows, categories]."""
    # einsum, not @: BLAS may round differently with another number of threads
    liking = np.einsum("nk,ck->nc", taste[:, :N_TASTES], scene.taxonomy.vector)
    pull: Doubles = np.exp(CATEGORY_TASTE * liking + scene.shelf.interest)
    return pull
