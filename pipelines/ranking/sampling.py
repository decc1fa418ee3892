"""Which candidate rows the ranker learns from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Longs


def keep(starts: Longs, gain: Floats, draw: npt.NDArray[np.uint64], negatives: int) -> npt.NDArray[np.bool_]:
    """Return bool [n], which rows to keep: of every list with a positive, all positives and `negatives` others.

    A list without a positive has no pair in the wrong order and hence no gradient. The others are
    those of the lowest `draw`, so a uniform sample of what the ranker will meet: negatives picked by
    rank would teach it another distribution than the one it serves.

    Args:
        starts: int64 [n_lists + 1], bounds of the lists.
        draw: uint64 [n], from `draws`.
    """
    sizes = np.diff(starts)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    positive = gain > 0
    useful = np.bincount(owner, weights=positive, minlength=len(sizes)) > 0
    order = np.lexsort((draw, positive, owner))  # within a list: negatives in the order of their draw, then positives
    place = np.empty(len(gain), dtype=np.int64)
    place[order] = np.arange(len(gain)) - np.repeat(starts[:-1], sizes)
    return useful[owner] & (positive | (place < negatives))


def stands_for(starts: Longs, by_lot: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_]) -> Floats:
    """Return float32 [n], how many of its list's rows that were drawn by lot a kept one stands for; 1 where none was kept."""
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    could = np.bincount(owner, weights=by_lot, minlength=len(starts) - 1)
    did = np.bincount(owner, weights=by_lot & kept, minlength=len(starts) - 1)
    return (np.where(did > 0, could, 1) / np.maximum(did, 1))[owner].astype(np.float32)


def draws(user: Longs, item: Longs, seed: int) -> npt.NDArray[np.uint64]:
    """Return uint64 [n], a number per (user, item, seed) that does not depend on what else is drawn.

    SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
    its finalizer applied to the seed, the user and the item in turn.
    """
    state = _mix(np.full(len(user), seed, dtype=np.uint64))
    return _mix(_mix(state ^ user.astype(np.uint64)) ^ item.astype(np.uint64))


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
