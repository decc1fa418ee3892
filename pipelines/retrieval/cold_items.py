"""New items for people with a history: placed among the others by their description, before anybody has met them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from scipy import sparse

from pipelines import columns as c
from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions, Ints, Longs
from pipelines.knobs import Range
from pipelines.retrieval import factors, neighbours, popular, topk
from pipelines.retrieval.als import Als
from pipelines.retrieval.content import tfidf
from pipelines.retrieval.protocol import Candidates


@dataclass(frozen=True)
class ColdItems:
    """Items with fewer than `max_events` liked events, by factors and a popularity that their neighbours in content lend them.

    Score of cold item j for user u: u'v_j / s_u + rate_weight * ln(r_j), with s_u the standard deviation of u'v over the cold items.

    - v_j is (n_j a_j + loan_events * l_j) / (n_j + loan_events): a_j the item's own ALS factor from its n_j liked events, and l_j the
      mean factor of the `n_neighbours` warm items described most like it, each weighing the cosine of their TF-IDF
      vectors to the power `sharpness` (attribute-to-factor mapping by neighbours; Gantner et al., ICDM 2010, eq. 3).
    - r_j is the item's own late weight and, as if shown that seldom, `loan_rate` times that of its neighbours.

    Users are folded in from their history as for ALS. What is not described, has no warm neighbour, or is not for sale is
    not proposed; nor is anything to a user without a known item.
    State: that of ALS; cold int32 [n_cold]; lent float32 [n_cold, n_factors], v; rate float32 [n_cold], ln r less its mean;
    spread float32 [n_factors, n_factors], the covariance of v; popularity float32 [n_cold], the neighbours' late weight.

    Attributes:
        max_events: liked events from which an item stands on its own.
        n_neighbours: warm items that lend.
        sharpness: how much more the nearest ones lend.
        loan_events: events that the loan is worth beside an item's own.
        loan_rate: share of the neighbours' popularity that is expected of a new item.
        rate_weight: of the popularity, own and lent, beside taste.
        half_life_days: after this long an event counts half, in the popularity.
        n_factors, regularization, alpha, n_epochs, seed, num_threads: of ALS.
    """

    max_events: int = 10
    n_neighbours: int = 50
    sharpness: float = 3.0
    loan_events: float = 10.0
    loan_rate: float = 0.01
    rate_weight: float = 1.5
    half_life_days: float = 14.0
    n_factors: int = 64
    regularization: Annotated[float, Range(0, above=True)] = 10.0
    alpha: float = 4.0
    n_epochs: int = 15
    seed: int = 7
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def _als(self) -> Als:
        return Als(
            n_factors=self.n_factors,
            regularization=self.regularization,
            alpha=self.alpha,
            n_epochs=self.n_epochs,
            seed=self.seed,
            num_threads=self.num_threads,
        )

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy; without a described catalogue it has nothing to propose."""
        n_items = len(interactions.item_ids)
        liked = np.bincount(interactions.item[interactions.weight > 0], minlength=n_items)
        als = self._als().fit(interactions)
        factor, known = als.item_vectors()
        cold = (liked < self.max_events) & for_sale(interactions)
        lending = lenders(interactions, cold, known & (liked >= self.max_events), self.n_neighbours, self.sharpness)
        cold_items = np.flatnonzero(np.diff(lending.indptr)).astype(np.int32)
        lending = lending[cold_items]
        own = (liked * known)[cold_items, None]
        lent = (own * factor[cold_items] + self.loan_events * (lending @ factor)) / (own + self.loan_events)
        weight = np.bincount(interactions.item, popular.faded(interactions, None, self.half_life_days), n_items)
        popularity = np.asarray(lending @ weight)
        usual = popularity.mean() if len(popularity) else 0.0
        # What nobody met lately at all, nor its neighbours, is expected a hundredth as often as the usual.
        rate = np.log(weight[cold_items] + self.loan_rate * (popularity + 0.01 * usual) + np.finfo(np.float32).tiny)
        state = {
            **(als.state or {}),
            "cold": cold_items,
            "lent": lent.astype(np.float32),
            "rate": (rate - (rate.mean() if len(rate) else 0.0)).astype(np.float32),
            "spread": np.atleast_2d(np.cov(lent.T, bias=True)).astype(np.float32) if len(lent) else np.zeros((1, 1), dtype=np.float32),
            "popularity": popularity.astype(np.float32),
        }
        return replace(self, state=state)

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the cold items whose lent factors are nearest to the user's."""
        users, told = self.query_vectors(histories)
        factor, cold = self.item_vectors()
        return factors.retrieve(users, factor, cold, histories, k, exclude_seen=exclude_seen, num_threads=self.num_threads, told=told)

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return the lent factors and the rate beside them, zeros elsewhere, and which items are cold: what may be proposed."""
        state = topk.fitted("cold_items", self.state)
        factor = np.zeros((int(state["n_items"][0]), self.n_factors + 1), dtype=np.float32)
        cold = np.zeros(len(factor), dtype=bool)
        cold[state["cold"]] = True
        factor[state["cold"]] = np.column_stack([state["lent"], state["rate"]])
        return factor, cold

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return the users' factors, as ALS folds them in, over s_u and beside the weight of the rate; and who liked an item that it knows."""
        state = topk.checked("cold_items", self.state, histories)
        users, told = replace(self._als(), state=self.state).query_vectors(histories)
        covariance = state["spread"].astype(np.float32)
        spread = np.zeros(len(users), dtype=np.float32)
        if len(state["cold"]):
            spread = np.sqrt(np.maximum(np.einsum("uf,uf->u", users @ covariance, users), 0))
        users = np.divide(users, spread[:, None], out=np.zeros_like(users), where=spread[:, None] > 0)
        return np.column_stack([users, np.full(len(users), self.rate_weight)]).astype(np.float32), told


def for_sale(interactions: Interactions) -> Bools:
    """Return bool [n_items], False where the catalogue says that an item cannot be had."""
    if interactions.items is None:
        return np.ones(len(interactions.item_ids), dtype=bool)
    return np.asarray(pc.fill_null(interactions.items[c.AVAILABLE], fill_value=True).to_numpy(zero_copy_only=False), dtype=bool)


def lenders(interactions: Interactions, to: Bools, of: Bools, n_neighbours: int, sharpness: float) -> sparse.csr_matrix:
    """Return float32 [n_items, n_items], the share that each item of the second kind has in each of the first; rows sum to 1 or are empty.

    Args:
        to, of: bool [n_items]; no item is of both kinds.
    """
    vectors = tfidf(interactions.items, len(to), max_items_per_term=5000)

    def sharpened(cosine: Floats, _: Longs, __: Ints) -> Floats:
        return np.asarray(cosine**sharpness, dtype=np.float32)

    rows, columns = (sparse.diags(kind.astype(np.float32)) @ vectors for kind in (to, of))
    near = neighbours.similar(rows.tocsr(), columns.T.tocsr(), n_neighbours, sharpened)
    near.eliminate_zeros()
    total = np.asarray(near.sum(axis=1)).ravel()
    near.data /= np.repeat(total, np.diff(near.indptr)).astype(np.float32)
    return near
