"""Which users and items a number is about: a model may gain on average and lose those who need it most."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

LIGHT: Final = 5  # events before the cutoff, up to which a user is light
HEAD: Final = 0.5  # share of all events that the head items make
TORSO: Final = 0.8  # and head and torso together
FEW: Final = 10  # events before the cutoff, below which an item is cold
YOUNG_DAYS: Final = 14.0  # and so is one that was first known this many days before it, or fewer


def users(n_events: npt.NDArray[np.integer]) -> dict[str, Mask]:
    """Return the users by how much is known of them: every user is in exactly one slice.

    Args:
        n_events: [n_users], events before the cutoff.
    """
    return {
        "cold_users": n_events == 0,
        "light_users": (n_events > 0) & (n_events <= LIGHT),
        "heavy_users": n_events > LIGHT,
    }


def items(popularity: npt.NDArray[Any]) -> dict[str, Mask]:
    """Return the items by popularity: head, torso and tail; every item is in exactly one slice.

    The head is the smallest set of most popular items with half of all events, head and torso the
    smallest with four fifths; the tail is the rest, items without events included. Equals go by index.

    Args:
        popularity: [n_items], events before the cutoff.
    """
    order = np.argsort(-popularity, kind="stable")
    before = np.concatenate([[0], np.cumsum(popularity[order])[:-1]]) if len(order) else np.empty(0)
    share = np.empty(len(order))
    share[order] = before / max(float(popularity.sum()), 1e-300)
    some = popularity > 0
    head, torso = some & (share < HEAD), some & (share >= HEAD) & (share < TORSO)
    return {"head_items": head, "torso_items": torso, "tail_items": ~head & ~torso}


def cold_items(n_events: npt.NDArray[np.integer], known_days: npt.NDArray[np.floating[Any]]) -> Mask:
    """Return the items of which little was known: fewer than `FEW` events, or known for `YOUNG_DAYS` at most.

    Args:
        n_events: [n_items], events before the cutoff.
        known_days: [n_items], days from the first event, or from the catalogue's date where that is earlier, to the cutoff; NaN
            for an item of which nothing was known, which is cold.
    """
    return np.asarray((n_events < FEW) | ~(known_days > YOUNG_DAYS))


def labels_on(items_wanted: Mask, label_item: npt.NDArray[np.integer], label_gain: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the gains with those of other items set to zero, for `metrics.judge`: users without any become unmeasured."""
    return np.where(items_wanted[label_item], label_gain, 0)
