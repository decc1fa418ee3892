"""Factors that put what a user liked above what it did not meet: Bayesian personalised ranking over histories."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import expit

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions
from pipelines.retrieval import factors, neighbours, topk
from pipelines.retrieval.protocol import Candidates
from pipelines.retrieval.threads import limited

PAIRS: Final = 10_000  # of user and item in one step, about


@dataclass(frozen=True)
class Bpr:
    """Score of item j for a user: b_j + q_j' x, with x the sum of p_i over the items i of its history, over |history|^(1/2).

    Learnt by Adam on -ln sigmoid(score_i - score_j) over pairs of an item i that the user liked and one j, drawn
    uniformly, that it never met (Rendle et al., UAI 2009); i is left out of x where it is the target, as in
    FISMauc (Kabbur et al., KDD 2013). So a user is its history, where matrix factorisation would have to
    keep a vector for each. State: factor float32 [n_items, n_factors + 1], q and b; history float32
    [n_items, n_factors], p; known bool [n_items], whether the item was liked.

    Attributes:
        n_factors: length of an item's vectors.
        n_epochs: passes over all pairs; the whole training budget.
        learning_rate: of Adam, falling linearly to zero.
        regularization: of the squares of what a pair touches, relative to its loss.
        n_negatives: items drawn against each liked one, in each pass.
        recency_half_life_days: in the history that asks, an event this old counts half.
        max_history: newest events of a user that are learnt from.
        seed: of the first vectors, the order and the draws.
        num_threads: of the matrix products.
    """

    n_factors: int = 64
    n_epochs: int = 20
    learning_rate: float = 0.01
    regularization: float = 0.0001
    n_negatives: int = 1
    recency_half_life_days: float = 30.0
    max_history: int = 400
    seed: int = 7
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        users = neighbours.user_item(interactions, interactions.weight, self.max_history)
        users.data[:] = 1
        known = factors.known_items(interactions)
        learnt = self.learnt(users, known)
        state = {
            "n_items": np.array([len(known)]),
            "factor": np.column_stack([learnt["factor"], learnt["bias"]]) * known[:, None],
            "history": learnt["history"] * known[:, None],
            "known": known,
        }
        return replace(self, state=state)

    def learnt(self, users: sparse.csr_matrix, known: Bools) -> dict[str, Floats]:
        """Return `history` p and `factor` q, float32 [n_items, n_factors], and `bias` b, float32 [n_items].

        Args:
            users: [n_users, n_items], 1 where a user liked an item.
            known: bool [n_items], the items to draw from.
        """
        users.sort_indices()
        rng = np.random.default_rng(self.seed)
        size = (users.shape[1], self.n_factors)
        learnt = {
            "history": (0.1 / self.n_factors**0.5 * rng.standard_normal(size)).astype(np.float32),
            "factor": (0.1 / self.n_factors**0.5 * rng.standard_normal(size)).astype(np.float32),
            "bias": np.zeros(users.shape[1], dtype=np.float32),
        }
        users = users[np.diff(users.indptr) > 1]  # who liked one item alone has no history but the target
        with limited(self.num_threads):
            if users.nnz:
                self._train(users, np.flatnonzero(known).astype(np.int32), learnt, rng)
        return learnt

    def _train(
        self, users: sparse.csr_matrix, drawn_from: npt.NDArray[np.int32], learnt: dict[str, Floats], rng: np.random.Generator
    ) -> None:
        """Take Adam's steps in place (Kingma, Ba, ICLR 2015), a batch of users with all their pairs at a time."""
        first = {name: np.zeros_like(table) for name, table in learnt.items()}
        second = {name: np.zeros_like(table) for name, table in learnt.items()}
        n_batches = max(1, min(round(users.nnz / PAIRS), users.shape[0]))
        n_steps = self.n_epochs * n_batches
        batches = (batch for _ in range(self.n_epochs) for batch in np.array_split(rng.permutation(users.shape[0]), n_batches))
        for step, batch in enumerate(batches):
            gradient = self._gradient(users[batch], drawn_from, learnt, rng)
            rate = self.learning_rate * (1 - step / n_steps)
            for name in learnt:
                first[name] += 0.1 * (gradient[name] - first[name])
                second[name] += 0.001 * (gradient[name] ** 2 - second[name])
                mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
                learnt[name] -= (rate * mean / (np.sqrt(square) + 1e-8)).astype(np.float32)

    def _gradient(
        self, rows: sparse.csr_matrix, drawn_from: npt.NDArray[np.int32], learnt: dict[str, Floats], rng: np.random.Generator
    ) -> dict[str, Floats]:
        """Return the gradient of the batch's mean loss for each table."""
        n_users, n_items = rows.shape
        history, factor, bias = learnt["history"], learnt["factor"], learnt["bias"]
        length = np.diff(rows.indptr)
        user, liked = np.repeat(np.arange(n_users), length), rows.indices
        met = user * n_items + liked  # sorted, as rows and their indices are
        norm = (1 / np.sqrt(np.maximum(length - 1, 1))).astype(np.float32)[user, None]
        x = ((rows @ history)[user] - history[liked]) * norm

        onto_x = np.zeros_like(x)
        pairs = sparse.csr_matrix((np.ones(len(liked), dtype=np.float32), liked, np.arange(len(liked) + 1)), shape=(len(liked), n_items))
        to_factor, to_bias = np.zeros_like(factor), np.zeros_like(bias)
        decay, share = np.float32(self.regularization), np.float32(1 / (len(liked) * self.n_negatives))
        for _ in range(self.n_negatives):
            other = rng.choice(drawn_from, len(liked))
            place = np.minimum(np.searchsorted(met, user * n_items + other), len(met) - 1)
            fresh = met[place] != user * n_items + other  # a drawn item that the user met tells nothing
            apart = factor[liked] - factor[other]
            slope = np.where(fresh, expit(-(np.einsum("pf,pf->p", x, apart) + bias[liked] - bias[other])), 0).astype(np.float32) * share
            onto_x -= slope[:, None] * apart
            against = sparse.csr_matrix((pairs.data, other, pairs.indptr), shape=pairs.shape)
            pull = slope[:, None] * x
            to_factor += against.T @ pull - pairs.T @ pull
            to_bias += np.bincount(other, slope, n_items).astype(np.float32) - np.bincount(liked, slope, n_items).astype(np.float32)
        onto_x *= norm
        together = sparse.csr_matrix((pairs.data, np.arange(len(liked)), rows.indptr), shape=(n_users, len(liked))) @ onto_x
        to_history = rows.T @ together - pairs.T @ onto_x
        touched = (np.bincount(liked, minlength=n_items) / len(liked)).astype(np.float32)[:, None] * decay
        return {"history": to_history + touched * history, "factor": to_factor + touched * factor, "bias": to_bias}

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items that score highest against the user's history."""
        users, told = self.query_vectors(histories)
        factor, known = self.item_vectors()
        return factors.retrieve(users, factor, known, histories, k, exclude_seen=exclude_seen, num_threads=self.num_threads, told=told)

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return the items' vectors with their biases behind, and which items may be proposed."""
        return factors.placed("bpr", self.state)

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return what the users' histories add up to with a 1 behind, and who liked an item that the model knows."""
        state = topk.checked("bpr", self.state, histories)
        known = state["known"].astype(bool)
        rows = histories.weighted(factors.faded(histories, self.recency_half_life_days, known))
        liked = rows.copy()
        # Of each item the newest event's fading alone: the model learnt from what was met, not how often.
        liked.data = np.minimum(rows.data, 1)
        size = np.maximum(np.asarray(liked.sum(axis=1)), 1e-6)
        x = (liked @ state["history"].astype(np.float32)) / np.sqrt(size).reshape(-1, 1)
        return np.column_stack([x, np.ones(len(x))]).astype(np.float32), factors.told_of(histories, known)
