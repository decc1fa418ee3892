"""What goes together in one basket or one visit: "frequently bought together", "because you viewed"."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines import columns as c
from pipelines.datasets.interactions import Floats, Histories, Interactions
from pipelines.errors import ReloopError
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class Together:
    """Weight from item i to item j: baskets(i, j) / (baskets(i)^from_exponent * baskets(j)^to_exponent + shrinkage).

    A basket is the set of items in a stretch of one user's events of one type, with no gap longer than
    `gap_minutes`. With exponents 1 and 0 this is the confidence of the rule "i, then also j", with 1 and
    1 its lift but for a constant, with 1/2 and 1/2 cosine. State: the weights as the arrays of a sparse matrix.

    Attributes:
        event_type: the events that make a basket, e.g. "purchase" or "view"; one of `columns.EVENT_TYPES`.
        gap_minutes: of silence that end a basket.
        min_baskets: pairs in fewer baskets are chance.
        shrinkage: pulls weights that few baskets carry towards zero.
        from_exponent, to_exponent: how much an item met often is discounted where it asks, and where it is proposed.
        n_neighbours: weights kept per item.
        max_basket: newest items of a basket that are paired; a reseller's order of a thousand says little.
        decay: of a step back in the history that asks.
        window: newest steps of a history that ask.
    """

    event_type: Literal["view", "click", "add_to_cart", "purchase", "rating"] = c.PURCHASE
    gap_minutes: float = 60.0
    min_baskets: int = 1
    shrinkage: float = 2.0
    from_exponent: float = 0.5
    to_exponent: float = 0.5
    n_neighbours: int = 200
    max_basket: int = 100
    decay: float = 0.9
    window: int = 20
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy.

        Raises:
            ReloopError: there is no such type of event.
        """
        if self.event_type not in c.EVENT_TYPES:
            raise ReloopError("together", found=f"event_type {self.event_type!r}", allowed=f"one of {list(c.EVENT_TYPES)}")
        n_items = len(interactions.item_ids)
        kept = (interactions.event_type == c.EVENT_TYPES.index(self.event_type)) & (interactions.weight > 0)
        user, item, at = interactions.user[kept], interactions.item[kept], interactions.at[kept]
        begins = np.ones(len(user), dtype=bool)
        begins[1:] = (user[1:] != user[:-1]) | (np.diff(at) > self.gap_minutes * 60e6)
        basket = np.cumsum(begins) - 1
        held = neighbours.newest_first(basket) < self.max_basket
        shape = (int(begins.sum()), n_items)
        baskets = sparse.coo_matrix((np.ones(int(held.sum()), dtype=np.float32), (basket[held], item[held])), shape=shape).tocsr()
        baskets.data[:] = 1
        frequency = np.maximum(np.bincount(baskets.indices, minlength=n_items), 1).astype(np.float32)
        asks, proposed = (frequency**exponent for exponent in (self.from_exponent, self.to_exponent))
        weights = neighbours.similar(
            baskets.T.tocsr(),
            baskets,
            self.n_neighbours,
            lambda n, i, j: np.where(n >= self.min_baskets, n / (asks[i] * proposed[j] + np.float32(self.shrinkage)), np.float32(0)),
        )
        weights.eliminate_zeros()
        return replace(self, state=neighbours.state(weights))

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return what goes with the user's last steps."""
        state = topk.checked("together", self.state, histories)
        return neighbours.retrieve(state, histories, self._strength(histories), k, exclude_seen=exclude_seen)

    def _strength(self, histories: Histories) -> Floats:
        """Return decay^(liked events back) for the last `window` liked events, else 0."""
        liked = histories.weight > 0
        back = neighbours.newest_first(histories.row_of_event()[liked])
        strength = np.zeros(len(histories.item), dtype=np.float32)
        strength[liked] = np.where(back < self.window, self.decay**back, 0)
        return strength
