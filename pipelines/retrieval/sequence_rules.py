"""What people do next: counts of which item follows which, fading with the steps between them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Interactions, Ints
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates

EVENTS_AT_ONCE: Final = 1_000_000


@dataclass(frozen=True)
class SequenceRules:
    """A decayed Markov chain over the last items, from counts alone.

    Weight from item a to item b: the sum, over every time b followed a within `window` steps of one
    user's sequence, of decay^(steps - 1); divided by the popularity of a (so that a rare item's
    followers count as much as a frequent one's) and by that of b to the power `popularity_exponent`. A run of events on one item is one step. State: the weights as the arrays
    of a sparse matrix.

    Attributes:
        window: steps that a rule may span, and newest steps of a history that ask.
        decay: of a step, in the rules and in the history that asks.
        popularity_exponent: 0 favours what is popular anyway, 1 what follows surprisingly often.
        n_neighbours: rules kept per item.
    """

    window: int = 20
    decay: float = 0.8
    popularity_exponent: float = 0.25
    n_neighbours: int = 300
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        n_items = len(interactions.item_ids)
        step = neighbours.first_of_run(interactions.user, interactions.item) & (interactions.weight > 0)
        user, item = interactions.user[step], interactions.item[step]
        follows = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
        for first in range(0, len(user), EVENTS_AT_ONCE):
            follows = follows + self._count(user, item, first, min(first + EVENTS_AT_ONCE, len(user)), n_items)
        follows = follows.tocsr()
        source = np.repeat(np.arange(n_items), np.diff(follows.indptr))
        popularity = np.maximum(np.bincount(item, minlength=n_items), 1).astype(np.float32)
        follows.data /= popularity[source] * popularity[follows.indices] ** np.float32(self.popularity_exponent)
        follows.data[source == follows.indices] = 0  # an item is no news after itself
        return replace(self, state=neighbours.state(neighbours.strongest(follows, self.n_neighbours)))

    def _count(self, user: Ints, item: Ints, first: int, last: int, n_items: int) -> sparse.csr_matrix:
        """Return float32 [n_items, n_items], decayed counts of what came before the events [first, last)."""
        back = np.arange(1, self.window + 1)
        at = np.arange(first, last)
        before = at[:, None] - back
        same = (before >= 0) & (user[np.maximum(before, 0)] == user[at, None])
        decays = np.broadcast_to((self.decay ** (back - 1)).astype(np.float32), before.shape)
        indptr = np.concatenate([[0], np.cumsum(same.sum(axis=1))])
        preceding = sparse.csr_matrix((decays[same], item[before[same]], indptr), shape=(last - first, n_items))
        events = sparse.csr_matrix(
            (np.ones(last - first, dtype=np.float32), item[at], np.arange(last - first + 1)), shape=(last - first, n_items)
        )
        return (preceding.T.tocsr() @ events).tocsr()

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return what followed the user's last steps."""
        state = topk.checked("sequence_rules", self.state, histories)
        return neighbours.retrieve(state, histories, self._strength(histories), k, exclude_seen=exclude_seen)

    def _strength(self, histories: Histories) -> Floats:
        """Return decay^(steps back) for the first event of each of the last `window` steps, else 0."""
        user = histories.row_of_event()
        step = neighbours.first_of_run(user, histories.item) & (histories.weight > 0)
        back = neighbours.newest_first(user[step])
        strength = np.zeros(len(user), dtype=np.float32)
        strength[step] = np.where(back < self.window, self.decay**back, 0)
        return strength
