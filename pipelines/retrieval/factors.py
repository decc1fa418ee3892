"""Candidates of models that place users and items in one space and score by inner product."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Interactions
from pipelines.retrieval import neighbours, topk
from pipelines.retrieval.protocol import Candidates
from pipelines.retrieval.threads import limited

ALONE: Final = 8  # users up to whom one thread multiplies


def known_items(interactions: Interactions) -> npt.NDArray[np.bool_]:
    """Return bool [n_items], whether somebody liked the item: only such items may be proposed."""
    liked = interactions.item[interactions.weight > 0]
    known: npt.NDArray[np.bool_] = np.bincount(liked, minlength=len(interactions.item_ids)) > 0
    return known


def rank_within(n_factors: int, shape: tuple[int, int]) -> int:
    """Return the factors that a matrix of this shape can bear: at most a quarter of its smaller side.

    A projection of nearly full rank gives back what it is handed, and nothing else.
    """
    return max(1, min(n_factors, min(shape) // 4))


def faded(histories: Histories, half_life_days: float, known: npt.NDArray[np.bool_]) -> Floats:
    """Return float32 [n_events], weights that fade with age; 0 on items that the model does not know."""
    strength = histories.weight * 0.5 ** (topk.age_days(histories) / half_life_days)
    return np.where(known[histories.item], strength, 0).astype(np.float32)


def told_of(histories: Histories, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return bool [n_users], who liked an item that the model knows."""
    told = np.zeros(histories.n_users, dtype=bool)
    told[histories.row_of_event()[(histories.weight > 0) & known[histories.item]]] = True
    return told


def placed(name: str, state: dict[str, npt.NDArray[np.generic]] | None) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return `factor` and `known` of a fitted model's state: its items' vectors, and which may be proposed.

    Raises:
        StateError: it was not fitted.
    """
    state = topk.fitted(name, state)
    return np.asarray(state["factor"], dtype=np.float32), np.asarray(state["known"], dtype=bool)


def learnt(name: str, state: dict[str, npt.NDArray[np.generic]] | None) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the same for a factorisation that leaves an item out of all its directions: of it nothing was learnt."""
    factor, known = placed(name, state)
    return factor, known & factor.any(axis=1)


def retrieve(
    users: Floats,
    items: Floats,
    known: npt.NDArray[np.bool_],
    histories: Histories,
    k: int,
    *,
    exclude_seen: bool,
    num_threads: int,
    told: npt.NDArray[np.bool_] | None = None,
) -> Candidates:
    """Return the known items with the largest inner products; none for a user of whom nothing is known.

    Args:
        users: float32 [n_users, n_factors], of the rows of `histories`.
        items: float32 [n_items, n_factors].
        known: bool [n_items], what may be proposed.
        told: bool [n_users], of whom something is known; without it, those who liked a known item.
    """
    if told is None:
        told = told_of(histories, known)
    parts = []
    for first, last, rows in topk.blocks(histories, histories.n_items):
        # A request's one row is done before a second thread has woken up; waiting for it on a busy machine took 15 ms.
        with limited(num_threads if last - first > ALONE else 1):
            scores = users[first:last] @ items.T
        scores[~told[first:last]] = -np.inf
        scores[:, ~known] = -np.inf
        if exclude_seen:
            topk.hide_seen(scores, rows)
        parts.append(topk.best(scores, k))
    return topk.stack(parts, k)


def square_rooted(interactions: Interactions, half_life_days: float, max_history: int) -> sparse.csr_matrix:
    """Return float32 [n_users, n_items], roots of summed weights that fade with age, so that ten views do not count ten times."""
    age_days = (interactions.as_of - interactions.at) / 86_400e6
    strength = (interactions.weight * 0.5 ** (age_days / half_life_days)).astype(np.float32)
    users = neighbours.user_item(interactions, strength, max_history)
    users.data = np.sqrt(users.data)
    return users
