"""A shop of any size as interactions: popularity is Zipf's, tastes are clusters of items, and some steps follow the last one.

The project's simulator makes rows with prices, sessions and faults; a million users of it are no shop but a day's
work. What a retriever's speed depends on is drawn here directly: how many events a user and an item have,
how much of two users' histories is shared, and what follows what.
"""

from __future__ import annotations

import numpy as np

from pipelines.datasets.interactions import Histories, Interactions

DAY_US = 86_400_000_000


def interactions(n_users: int, n_items: int, seed: int, *, mean_events: float = 20.0, n_tastes: int = 500, days: int = 90) -> Interactions:
    """Return the events of a shop, sorted by (user, at).

    A user has 1 + a lognormal number of events; half of them fall on the user's taste (a slice of the catalogue, Zipf
    within), a fifth on the item after the last one in that slice, the rest on the whole catalogue (Zipf).
    """
    rng = np.random.default_rng(seed)
    length = 1 + np.minimum(rng.lognormal(np.log(mean_events) - 0.5, 1.0, n_users), 40 * mean_events).astype(np.int64)
    user = np.repeat(np.arange(n_users, dtype=np.int32), length)
    n, width = len(user), n_items // n_tastes
    taste = np.minimum((n_tastes * rng.random(n_users, dtype=np.float32) ** 1.5).astype(np.int32), n_tastes - 1)[user]
    shelf = rng.permutation(n_items).astype(np.int32)  # where an item stands says nothing of how much it sells
    within = _zipf(rng, n, width)
    kind = rng.random(n, dtype=np.float32)
    follows = kind > 0.8
    first = np.concatenate([[True], user[1:] != user[:-1]])
    follows[first] = False
    run = np.arange(n) - np.maximum.accumulate(np.where(follows, 0, np.arange(n)))
    anchor = np.arange(n) - run
    place = taste * width + (within[anchor] + run) % width
    place = np.where(kind[anchor] < 0.3, _zipf(rng, n, n_items), place)  # steps that begin anywhere, and what follows them
    item = shelf[place]
    at = np.sort(rng.integers(0, days * DAY_US, n))
    order = np.argsort(rng.random(n, dtype=np.float32))  # times are drawn without regard to the user, then sorted within
    at = at[order]
    at = at[np.lexsort((at, user))]
    return Interactions(
        user_ids=np.char.mod("%07d", np.arange(n_users)),
        item_ids=np.char.mod("%06d", np.arange(n_items)),
        user=user,
        item=item,
        at=at,
        weight=np.ones(n, dtype=np.float32),
        event_type=np.zeros(n, dtype=np.int8),
        value=np.full(n, np.nan, dtype=np.float32),
        as_of=days * DAY_US,
    )


def _zipf(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Return int32 [n] in [0, size), the chance of rank r about 1 / (r + 10)."""
    drawn = 10 * ((size / 10 + 1) ** rng.random(n, dtype=np.float32) - 1)
    return np.minimum(drawn.astype(np.int32), size - 1)


def everyone(known: Interactions, first: int, last: int) -> Histories:
    """Return the histories of the users [first, last): views, no copy."""
    indptr = np.searchsorted(known.user, np.arange(first, last + 1))
    begin, end = int(indptr[0]), int(indptr[-1])
    return Histories(
        (indptr - begin).astype(np.int64),
        known.item[begin:end],
        known.at[begin:end],
        known.weight[begin:end],
        len(known.item_ids),
        known.as_of,
    )
