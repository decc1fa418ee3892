"""The ground truth behind a day: who likes what, and which rows each fault and shift touched."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.sources.simulator.arrays import Bools, Floats, Ints, Numbers
from pipelines.sources.simulator.choice import CATEGORY_TASTE
from pipelines.sources.simulator.faults import Touched
from pipelines.sources.simulator.incidents import Fault, Shift
from pipelines.sources.simulator.taxonomy import N_TASTES


@dataclass(frozen=True)
class Truth:
    """What is behind one day of the shop. Users and items are in the order of their ids.

    Attributes:
        user_ids: who has signed up by the end of the day.
        tastes: float32 [users, N_TASTES + 2], the day's tastes; the last two weigh dearness and quality.
        item_ids: what has been launched by the day, `available` or not any more.
        latents: float32 [items, N_TASTES + 2], with the day's offers in the dearness.
        categories, brands: names, one an item.
        category_vectors, category_numbers: float32 [categories, N_TASTES], and the row of each item.
        faults: the rows of `Shop.raw_events` of the day that each fault touched.
        shifts: the rows of `Shop.events` of the day that happened under each shift in force.
    """

    day: date
    user_ids: pa.Array
    tastes: Floats
    item_ids: pa.Array
    latents: Floats
    available: Bools
    categories: npt.NDArray[np.str_]
    brands: npt.NDArray[np.str_]
    category_vectors: Floats = field(repr=False)
    category_numbers: Ints = field(repr=False)
    faults: dict[Fault, Touched]
    shifts: dict[Shift, Touched]

    def utility(self, users: Numbers, items: Numbers) -> Floats:
        """Return how much users like items (positions in `user_ids` and `item_ids`), pair by pair, before exposure and luck.

        CATEGORY_TASTE taste . category + taste . item: the log-odds by which taste alone moves the
        choice of a category, then that of an item within it.
        """
        taste, category = self.tastes[users], self.category_vectors[self.category_numbers[items]]
        by_item: Floats = np.einsum("nk,nk->n", taste, self.latents[items])
        by_category: Floats = np.einsum("nk,nk->n", taste[:, :N_TASTES], category)
        return by_item + np.float32(CATEGORY_TASTE) * by_category
