"""The levels above the item: categories on whose circles of style the items lie, and the brands that serve them."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipelines.sources.request import World
from pipelines.sources.simulator.arrays import Doubles
from pipelines.sources.simulator.draws import stream

N_TASTES: Final = 14  # dimensions of taste; with price and quality a vector fills one cache line
CATEGORY_NAMES: Final = (
    *("lighting", "kitchen", "bedding", "garden", "toys", "stationery", "bags", "jewellery", "candles", "clocks"),
    *("mirrors", "rugs", "baking", "tea", "coffee", "glassware", "ceramics", "frames", "storage", "sewing"),
    *("bathroom", "crafts", "party", "christmas", "books", "games", "outdoor", "pets", "travel", "tools"),
)
_SYLLABLES: Final = ("al", "bo", "cor", "da", "el", "fin", "gra", "hol", "is", "jor", "ka", "lum", "mor", "no", "or", "pel")


def unit(rows: Doubles) -> Doubles:
    """Return the rows scaled to length 1."""
    scaled: Doubles = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return scaled


class Taxonomy:
    """Categories and their brands; the levels above the item in the hierarchy of taste.

    Attributes:
        vector: float32 [categories, N_TASTES], unit length.
        style: float64 [categories, 2, N_TASTES]; a category is a circle of styles, and its items lie on it.
        share: float64 [categories], the interest of the public, before season.
        partner: int32 [categories], the category bought along.
        brands: int32 [categories, 8]; a brand serves up to a few categories.
        brand_vector: float64 [brands, N_TASTES], unit length.
        log_price: float64 [categories].
        phase, swing: float64 [categories], day of the year at its peak, and how strong the season is.
    """

    def __init__(self, world: World) -> None:
        rng = stream(world.seed, "taxonomy")
        n = self.n = int(np.clip(world.items // 10, 1, len(CATEGORY_NAMES)))
        n_brands = self.n_brands = 5 * n
        self.vector = unit(rng.standard_normal((n, N_TASTES))).astype(np.float32)
        self.style = unit(rng.standard_normal((n, 2, N_TASTES)))
        self.share = rng.permutation(1.0 / np.arange(2, n + 2) ** 0.7)
        ring = rng.permutation(n)
        self.partner = np.empty(n, np.int32)
        self.partner[ring] = np.roll(ring, 1)
        self.brands = rng.integers(0, n_brands, (n, 8)).astype(np.int32)
        self.brand_vector = unit(rng.standard_normal((n_brands, N_TASTES)))
        self.brand_level = rng.normal(0.0, 0.3, n_brands)
        self.log_price = rng.normal(2.8, 0.7, n)
        self.phase = rng.uniform(0.0, 365.0, n)
        self.swing = rng.uniform(0.0, 0.5, n)
        self.names = np.array(CATEGORY_NAMES[:n])
        self.brand_names = np.array(
            [f"{_SYLLABLES[i % 16]}{_SYLLABLES[(i // 16 + 5 * i) % 16]}".capitalize() + str(i) for i in range(n_brands)]
        )

    def season(self, day_of_year: int) -> Doubles:
        """Return the factor on each category's interest on a day of the year."""
        factor: Doubles = 1.0 + self.swing * np.cos(2 * np.pi * (day_of_year - self.phase) / 365.25)
        return factor
