"""Public data sets in the exact split that published tables were computed on, as interactions and what was held out."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Interactions

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """What a model may learn from, and what it is asked for.

    Attributes:
        known: the training events; every user of the data set has a row, in order.
        indptr, item: the held-out items of each user as a ragged array; a user may have none.
        negatives: int64 [n_users, 99], the items that the NCF protocol ranks the held-out one among, -1 for none; None ranks all.
    """

    known: Interactions
    indptr: Longs
    item: Longs
    negatives: Longs | None = None


def interactions(user: Longs, item: Longs, n_users: int, n_items: int, value: npt.NDArray[np.float32] | None = None) -> Interactions:
    """Return events in the order given (sorted by user), a microsecond apart, so that no decay by age tells them apart."""
    return Interactions(
        user_ids=np.array([f"{number:06}" for number in range(n_users)]),
        item_ids=np.array([f"{number:06}" for number in range(n_items)]),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        at=np.arange(len(user)),
        weight=np.ones(len(user), dtype=np.float32),
        event_type=np.zeros(len(user), dtype=np.int8),
        value=np.full(len(user), np.nan, dtype=np.float32) if value is None else value,
        as_of=len(user) + 1,
    )


def drawn_order(user: npt.NDArray[np.generic]) -> Longs:
    """Return an order of events by user, and drawn within a user.

    Where a published file bears no time it is sorted by item, rare ones last; whoever withholds the last events
    to validate on would be judged on those alone.
    """
    return np.lexsort((np.random.default_rng(2).random(len(user)), user)).astype(np.int64)


def ragged(user: Longs, n_users: int) -> Longs:
    """Return the row pointers of events sorted by user."""
    return np.searchsorted(user, np.arange(n_users + 1)).astype(np.int64)


def leave_last_out(user: Longs, item: Longs, n_users: int, n_items: int) -> Split:
    """Return each sequence but its last item, and that item."""
    last = np.append(user[1:] != user[:-1], True)
    return Split(interactions(user[~last], item[~last], n_users, n_items), ragged(user[last], n_users), item[last])


def leave_share_out(split: Split, share: float, seed: int) -> Split:
    """Return the training events less a random share of each user's, which are asked for: a validation split."""
    known = split.known
    out = np.random.default_rng(seed).random(len(known.user)) < share
    kept = interactions(
        known.user[~out].astype(np.int64), known.item[~out].astype(np.int64), len(known.user_ids), len(known.item_ids), known.value[~out]
    )
    return Split(kept, ragged(known.user[out].astype(np.int64), len(known.user_ids)), known.item[out].astype(np.int64))


def leave_one_known_out(split: Split) -> Split:
    """Return the training events less one of each user's, drawn, with 99 drawn negatives: a validation split of the NCF protocol.

    The training file bears no time, so the newest event is not known. Negatives are items that the user met in neither part.
    """
    known, rng = split.known, np.random.default_rng(1)
    n_users, n_items = len(known.user_ids), len(known.item_ids)
    bounds = ragged(known.user.astype(np.int64), n_users)
    drawn = bounds[:-1] + (rng.random(n_users) * np.diff(bounds)).astype(np.int64)
    out = np.zeros(len(known.user), dtype=bool)
    out[drawn] = True
    kept = interactions(known.user[~out].astype(np.int64), known.item[~out].astype(np.int64), n_users, n_items, known.value[~out])
    met = np.zeros((n_users, n_items), dtype=bool)
    met[known.user, known.item] = True
    order = np.argsort(rng.random((n_users, n_items), dtype=np.float32) + met, axis=1)
    return Split(kept, np.arange(n_users + 1), known.item[drawn].astype(np.int64), order[:, :99])


def leave_last_known_out(split: Split) -> Split:
    """Return the training sequences less their last items, which are asked for: a validation split."""
    known = split.known
    return leave_last_out(known.user.astype(np.int64), known.item.astype(np.int64), len(known.user_ids), len(known.item_ids))


def ml_1m_sequences(folder: Path) -> Split:
    """Return MovieLens-1M as SASRec cut it: 6,040 sequences over 3,416 items, the last item held out."""
    with gzip.open(folder / "sasrec-ml-1m" / "ml-1m.txt.gz", "rt") as file:
        user, item = np.loadtxt(file, dtype=np.int64).T - 1
    return leave_last_out(user, item, int(user.max()) + 1, int(item.max()) + 1)


def beauty(folder: Path) -> Split:
    """Return Amazon Beauty as S3-Rec cut it: 22,363 sequences over 12,101 items, the last item held out."""
    with gzip.open(folder / "s3rec-beauty" / "Beauty.txt.gz", "rt") as file:
        user, item = _lists(file)
    return leave_last_out(user - 1, item - 1, int(user.max()), int(item.max()))


def gowalla(folder: Path) -> Split:
    """Return Gowalla as LightGCN cut it: 29,858 users, 40,981 items, a fifth of each user's held out."""
    parts = []
    for name in ("train", "test"):
        with gzip.open(folder / "gowalla" / f"{name}.txt.gz", "rt") as file:
            parts.append(_lists(file))
    (user, item), (held_user, held_item) = parts
    n_users, n_items = (int(max(first.max(), second.max())) + 1 for first, second in ((user, held_user), (item, held_item)))
    order = drawn_order(user)
    return Split(interactions(user, item[order], n_users, n_items), ragged(held_user, n_users), held_item)


def ncf_ml_1m(folder: Path) -> Split:
    """Return MovieLens-1M as NCF cut it, with 99 sampled negatives a user.

    156 users have their held-out item among their own negatives, a defect of the published file. The paper's evaluation
    ranks a set of items, so theirs is ranked among the other 98; here the double is -1.
    """
    place = folder / "ncf-ml-1m"
    with gzip.open(place / "ml-1m.train.pairs.tsv.gz", "rt") as file:
        pairs = np.loadtxt(file, dtype=np.float64)
    pairs = pairs[drawn_order(pairs[:, 0])]
    held = np.loadtxt(place / "ml-1m.test.rating", dtype=np.int64)
    with gzip.open(place / "ml-1m.test.negative.gz", "rt") as file:
        negatives = np.array([line.split("\t")[1:] for line in file], dtype=np.int64)
    user, item = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    n_users, n_items = len(held), int(max(item.max(), negatives.max(), held[:, 1].max())) + 1
    negatives = np.where(negatives == held[:, 1:2], -1, negatives)
    known = interactions(user, item, n_users, n_items, pairs[:, 2].astype(np.float32))
    return Split(known, np.arange(n_users + 1), held[:, 1], negatives)


def _lists(lines: Iterable[str]) -> tuple[Longs, Longs]:
    """Return the pairs of a file with a line `user item item ...` a user, users ascending."""
    rows = [np.array(line.split(), dtype=np.int64) for line in lines]
    return np.repeat([row[0] for row in rows], [len(row) - 1 for row in rows]), np.concatenate([row[1:] for row in rows])
