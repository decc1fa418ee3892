"""What people do next: counts of which item follows which, fading with the steps between them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Interactions, Ints, Longs
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates


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
        popularity = np.maximum(np.bincount(item, minlength=n_items), 1).astype(np.float32)
        proposed = popularity ** np.float32(self.popularity_exponent)
        n_after = np.minimum(neighbours.newest_first(user), self.window)
        by_item = np.argsort(item, kind="stable")
        begin = np.searchsorted(item[by_item], np.arange(n_items + 1))
        before = np.concatenate([[0], np.cumsum(n_after[by_item])])

        def build(first: int, last: int) -> sparse.csr_matrix:
            follows = self._count(item, by_item[begin[first] : begin[last]], n_after, begin[first : last + 1] - begin[first], n_items)
            source = np.repeat(np.arange(first, last), np.diff(follows.indptr))
            follows.data /= popularity[source] * proposed[follows.indices]
            follows.data[source == follows.indices] = 0  # an item is no news after itself
            return neighbours.strongest(follows, self.n_neighbours)

        # A pair of steps takes about twice the memory of a stored product while it is counted.
        weights = neighbours.by_rows(2 * np.diff(before[begin]), build)
        return replace(self, state=neighbours.state(weights))

    def _count(self, item: Ints, at: Longs, n_after: Longs, indptr: Longs, n_items: int) -> sparse.csr_matrix:
        """Return float32 [n_sources, n_items], decayed counts of what came after the steps `at`, which lie by source as `indptr` says."""
        length = n_after[at]
        ends = np.concatenate([[0], np.cumsum(length)])
        back = np.arange(1, ends[-1] + 1) - np.repeat(ends[:-1], length)  # steps from the one that asks
        decays = (self.decay ** np.arange(self.window)).astype(np.float32)
        after = sparse.csr_matrix((decays[back - 1], item[np.repeat(at, length) + back], ends), shape=(len(at), n_items))
        of_source = sparse.csr_matrix((np.ones(len(at), dtype=np.float32), np.arange(len(at)), indptr), shape=(len(indptr) - 1, len(at)))
        return (of_source @ after).tocsr()

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
