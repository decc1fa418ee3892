"""What the best list of the simulated shop would be: that of someone who has lived the judged week a thousand times.

The shop's people act by chance around what they like, so no recommender can foresee a week. The oracle knows the
process itself: it draws the week of every judged user again and again, by the simulator's own code with other
dice, and ranks the items by the mean gain they brought. Its NDCG on the week that happened is what can be reached,
up to the error of its draws, which only lowers it.
"""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Ids
from pipelines.sources.request import World
from pipelines.sources.simulator.choice import Chain, Scene
from pipelines.sources.simulator.shop import Shop
from pipelines.sources.simulator.visits import MAX_VIEWS, START

SESSIONS_AT_ONCE = 1 << 16


def expected_gains(
    world: World, user_ids: Ids, item_ids: Ids, *, first: date, days: int, gains: dict[str, float], copies: int, seed: int = 1
) -> sparse.csr_matrix:
    """Return float32 [n_users, n_items], the mean gain of a session's items over `copies` drawn sessions a user and day.

    Args:
        user_ids, item_ids: the users to draw for, and the catalogue to rank; both may hold ids the shop does not know.
        gains: of an event by its type, as the labels are graded; an item counts with its highest of a session.
    """
    shop = Shop(world)
    total = sparse.csr_matrix((len(user_ids), len(item_ids)), dtype=np.float32)
    for day in range(days):
        number = (first - START).days + day
        truth = shop.truth(first + timedelta(days=day))
        known = {str(name): at for at, name in enumerate(truth.user_ids.to_pylist())}
        rows = np.array([at for at, name in enumerate(user_ids) if str(name) in known], dtype=np.int64)
        people = np.array([known[str(user_ids[at])] for at in rows], dtype=np.int32)
        column = {str(name): at for at, name in enumerate(item_ids)}
        column_of = np.array([column.get(str(name), -1) for name in truth.item_ids.to_pylist()], dtype=np.int64)
        shelf = shop.catalogue.shelf(number, (START + timedelta(days=number)).timetuple().tm_yday)
        scene = Scene(world.seed, shop.catalogue.taxonomy, shop.people, shelf, number)
        everyone = np.repeat(np.arange(len(people)), copies)
        for begin in range(0, len(everyone), SESSIONS_AT_ONCE):
            drawn = everyone[begin : begin + SESSIONS_AT_ONCE]
            rng = np.random.default_rng([seed, number, begin])
            at = (rows[drawn], column_of, total.shape)
            total = total + _day(scene, people[drawn], at, gains, rng)
    return total


def _day(
    scene: Scene,
    visitors: npt.NDArray[np.int32],
    at: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], tuple[int, int]],
    gains: dict[str, float],
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    """Return the gains of a session of each visitor on one day, summed by user and item.

    Args:
        at: the row of each visitor, the column of each item of the shop (-1 for none), and the shape of the answer.
    """
    row, column_of, shape = at
    length = np.minimum(rng.geometric(0.32, len(visitors)), MAX_VIEWS)  # as `visits` draws it
    order = np.argsort(-length, kind="stable")
    chain = Chain(scene, visitors[order], rng)
    row, length = row[order], length[order]
    parts = []
    for step in range(int(length[0])):
        n = int((length > step).sum())
        views = chain.view(step, n)
        gain = np.where(views.carted, gains["add_to_cart"], gains["view"])
        gain = np.where(views.carted & views.bought, gains["purchase"], gain)
        item = column_of[scene.shelf.item[views.position]]
        there = item >= 0
        parts.append((gain[there], row[:n][there], item[there]))
    gain, who, what = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return sparse.csr_matrix((gain.astype(np.float32), (who, what)), shape=shape)


def ranked(expected: sparse.csr_matrix, k: int) -> npt.NDArray[np.int32]:
    """Return int32 [n_users, k], the items of the highest expected gain, -1 where fewer were ever drawn."""
    found = np.full((expected.shape[0], k), -1, dtype=np.int32)
    for row in range(expected.shape[0]):
        items, gain = (array[expected.indptr[row] : expected.indptr[row + 1]] for array in (expected.indices, expected.data))
        best = items[np.lexsort((items, -gain))][:k]
        found[row, : len(best)] = best
    return found
