"""Catalogues of vectors whose exact answers a product of two matrices gives, behind a real model."""

from __future__ import annotations

import numpy as np
from retriever_contract import world

from pipelines.datasets.interactions import Floats, Interactions
from pipelines.model_settings import IndexSettings
from pipelines.retrieval.bpr import Bpr

# Small layouts are no gain over comparing with everything, so a kind is named where one is wanted.
LAYOUTS = ("flat", "ivf", "hnsw", "scan")


def settings(kind: str = "ivf", **knobs) -> IndexSettings:
    return IndexSettings(kind=kind, n_queries=60, **knobs)


def clustered(n_items: int, seed: int = 0, n_factors: int = 8) -> Floats:
    """Return float32 [n_items, n_factors], Gaussian clusters of about 20 items whose lengths differ."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((max(n_items // 20, 1), n_factors))
    vector = centre[rng.integers(0, len(centre), n_items)] + 0.4 * rng.standard_normal((n_items, n_factors))
    return (vector * rng.gamma(4, 0.25, (n_items, 1))).astype(np.float32)


def model(vector: Floats) -> Bpr:
    """Return a fitted model whose item vectors these are; a user's is what its history adds up to of healthy vectors, and a 1."""
    n_items = len(vector)
    history = clustered(n_items, seed=9, n_factors=vector.shape[1] - 1) if n_items else vector[:, :-1]
    state = {"n_items": np.array([n_items]), "factor": vector, "history": history, "known": np.ones(n_items, dtype=bool)}
    return Bpr(n_factors=vector.shape[1] - 1, state=state)


def visitors(n_items: int, n_users: int = 80, seed: int = 0, per_user: int = 6) -> Interactions:
    """Return users who met some items each, so that no two items have the same users."""
    rng = np.random.default_rng(seed)
    events = [
        (user, int(item), 1.0, 1.0) for user in range(n_users) for item in rng.integers(0, max(n_items, 1), per_user if n_items else 0)
    ]
    # Binary digits of an item's number tell it apart from every other.
    events += [(n_users + bit, item, 1.0, 1.0) for item in range(n_items) for bit in range(20) if item >> bit & 1]
    return world(events, n_users + 20, n_items)
