"""Implicit matrix factorisation by alternating least squares; users are folded in from their history."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Final, Self

import numpy as np
import numpy.typing as npt
from implicit.cpu.als import AlternatingLeastSquares
from scipy import sparse

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions, Longs
from pipelines.knobs import Range
from pipelines.retrieval import factors, neighbours, topk
from pipelines.retrieval.protocol import Candidates
from pipelines.retrieval.threads import limited

STEP: Final = 1.25  # of regularization, between rows that are solved together


@dataclass(frozen=True)
class Als:
    """Weighted factorisation of who met what (Hu, Koren, Volinsky, ICDM 2008), solved by `implicit`.

    The confidence of a pair is 1 + alpha * the summed weight of its events, each fading with age. No
    user is kept: a request solves for the user's factors from the history it brings.

    A row of n pairs, out of m columns, is regularised by regularization * (n + m / alpha)^frequency_exponent over
    the mean of that power (Rendle et al., RecSys 2022, eq. 5): with an exponent above 0, those of whom more is
    known are regularised more. The power is rounded to steps of a quarter, and rows of a step solved together.
    State: factor float32 [n_items, n_factors]; known bool [n_items], whether the item had an event;
    mean_power float64 [1], of the users' powers.

    Attributes:
        n_factors: length of an item's vector.
        regularization: of the factors, the mean over users and over items.
        frequency_exponent: 0 regularises all rows alike.
        alpha: how much an event adds to the confidence of its pair.
        n_epochs: rounds of solving for users, then items.
        half_life_days: after this long an event counts half, in the fit.
        recency_half_life_days: likewise, in the history that asks.
        seed: of the first factors.
        num_threads: rows are solved independently, so it changes no result.
    """

    n_factors: int = 64
    regularization: Annotated[float, Range(0, above=True)] = 10.0
    frequency_exponent: float = 0.0
    alpha: float = 4.0
    n_epochs: int = 15
    half_life_days: float = 90.0
    recency_half_life_days: float = 30.0
    seed: int = 7
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        age_days = (interactions.as_of - interactions.at) / 86_400e6
        strength = (interactions.weight * 0.5 ** (age_days / self.half_life_days)).astype(np.float32)
        users = neighbours.user_item(interactions, strength, newest=len(strength))
        n_items = users.shape[1]
        known = np.bincount(users.indices, minlength=n_items) > 0
        factor = np.zeros((n_items, self.n_factors), dtype=np.float32)
        power = self._power(np.diff(users.indptr), n_items)
        if known.any():
            users.data = 1 + np.float32(self.alpha) * users.data
            with limited(1, "blas"):  # implicit runs its own threads over rows
                solver = self._solver()
                if self.frequency_exponent:
                    self._alternate(solver, users, power)
                else:
                    solver.fit(users, show_progress=False)
            factor = np.where(known[:, None], solver.item_factors, np.float32(0))
        mean = power.mean() if len(power) else 1.0
        return replace(self, state={"n_items": np.array([n_items]), "factor": factor, "known": known, "mean_power": np.array([mean])})

    def _alternate(self, solver: AlternatingLeastSquares, users: sparse.csr_matrix, power: npt.NDArray[np.float64]) -> None:
        """Fit the solver as its own `fit` does, but with a regularization for each step of the power."""
        rng = np.random.default_rng(self.seed)
        items = users.T.tocsr()
        item_power = self._power(np.diff(items.indptr), users.shape[0])
        solver.user_factors = rng.random((users.shape[0], self.n_factors), dtype=np.float32) * np.float32(0.01)
        solver.item_factors = rng.random((users.shape[1], self.n_factors), dtype=np.float32) * np.float32(0.01)
        sides = [
            (users, _steps(power / power.mean()), solver.user_factors, solver.item_factors),
            (items, _steps(item_power / item_power.mean()), solver.item_factors, solver.user_factors),
        ]
        for _ in range(self.n_epochs):
            for pairs, steps, solved, given in sides:
                for share, rows in steps:
                    part = solved[rows]
                    solver.solver(pairs[rows], part, given, self.regularization * share, num_threads=self.num_threads)
                    solved[rows] = part

    def _power(self, n_pairs: npt.NDArray[np.integer], n_columns: int) -> npt.NDArray[np.float64]:
        """Return float64 [n_rows], (n + m / alpha)^frequency_exponent of each row."""
        return np.asarray((n_pairs + n_columns / self.alpha) ** float(self.frequency_exponent), dtype=np.float64)

    def _solver(self) -> AlternatingLeastSquares:
        return AlternatingLeastSquares(
            factors=self.n_factors,
            regularization=self.regularization,
            alpha=1.0,
            iterations=self.n_epochs,
            num_threads=self.num_threads,
            random_state=self.seed,
        )

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items nearest to the user's folded-in factors."""
        users, told = self.query_vectors(histories)
        factor, known = self.item_vectors()
        return factors.retrieve(users, factor, known, histories, k, exclude_seen=exclude_seen, num_threads=self.num_threads, told=told)

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return the items' factors, and which items may be proposed."""
        return factors.placed("als", self.state)

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return the users' folded-in factors, and who liked an item that the model knows."""
        state = topk.checked("als", self.state, histories)
        known = self.item_vectors()[1]
        users = self._fold_in(histories, known, float(state["mean_power"].astype(np.float64)[0]))
        return users, factors.told_of(histories, known)

    @cached_property
    def _folding(self) -> AlternatingLeastSquares:
        """The solver over the fitted items, which takes their products with each other once."""
        solver = self._solver()
        solver.item_factors = np.require(self.item_vectors()[0], requirements="W")  # implicit asks for an array it might write to
        _ = solver.YtY
        return solver

    def _fold_in(self, histories: Histories, known: npt.NDArray[np.bool_], mean_power: float) -> Floats:
        """Return float32 [n_users, n_factors]; a user without a known item has zeros."""
        pairs = histories.weighted(factors.faded(histories, self.recency_half_life_days, known))
        pairs.data = 1 + np.float32(self.alpha) * pairs.data
        users: Floats = np.zeros((histories.n_users, self.n_factors), dtype=np.float32)
        with limited(1, "blas"):
            solver = copy(self._folding)  # its regularization is this call's own
            solver.num_threads = self.num_threads if histories.n_users > factors.ALONE else 1
            for share, rows in _steps(self._power(np.diff(pairs.indptr), histories.n_items) / mean_power):
                solver.regularization = self.regularization * share
                users[rows] = solver.recalculate_user(rows, pairs if len(rows) == pairs.shape[0] else pairs[rows])
        return users


def _steps(share: npt.NDArray[np.float64]) -> list[tuple[float, Longs]]:
    """Return the rows of each share, rounded to powers of 5/4."""
    step = np.rint(np.log(share) / np.log(STEP)).astype(np.int64)
    return [(STEP ** int(one), np.flatnonzero(step == one)) for one in np.unique(step)]
