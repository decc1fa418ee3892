"""How good ranked lists are: one documented function a metric, one number a user.

Every function returns float64 [n_users]. A user without a single relevant item is unmeasured: NaN,
never zero, and `mean` leaves it out. Lists shorter than `k` count as padded with irrelevant items.
Gains are linear: `config.TrainingSettings.gains` already are utilities, so a purchase that is worth
three views counts three; 2^gain - 1 would make it seven. This is also the form of trec_eval.
Names in tables and MLflow are `ndcg_at_10`: MLflow refuses "@".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.errors import ReloopError

Doubles: TypeAlias = npt.NDArray[np.float64]
Array: TypeAlias = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Judged:
    """Ranked lists laid beside the truth.

    Attributes:
        gain: float64 [n_users, width], gain of the item at each rank, 0 where it is not relevant.
        ideal_indptr, ideal: the user's gains, largest first, as a ragged array; all > 0.
    """

    gain: Doubles
    ideal_indptr: npt.NDArray[np.int64]
    ideal: Doubles

    @property
    def n_relevant(self) -> npt.NDArray[np.int64]:
        """Return int64 [n_users], the relevant items of each user."""
        return np.diff(self.ideal_indptr)


def judge(item: npt.NDArray[np.integer], indptr: Array, label_item: Array, label_gain: Array) -> Judged:
    """Lay ranked lists beside the truth.

    Args:
        item: [n_users, width], best first; -1 pads.
        indptr, label_item, label_gain: the truth as a ragged array, a row a user; each item once a
            row. Gains of zero or less are no truth.

    Raises:
        ReloopError: the rows do not match, or a list names an item twice (it would count twice).
    """
    indptr = np.asarray(indptr, dtype=np.int64)
    if len(indptr) != len(item) + 1:
        raise ReloopError("ranked lists", found=f"{len(item)} rows", allowed=f"{len(indptr) - 1}, one for each user with labels")
    n_items = 1 + max(int(item.max(initial=-1)), int(np.max(label_item, initial=-1)))
    user = np.repeat(np.arange(len(item)), np.diff(indptr))
    gain = np.asarray(label_gain, dtype=np.float64)
    user, label, gain = user[gain > 0], np.asarray(label_item, dtype=np.int64)[gain > 0], gain[gain > 0]

    listed = np.where(item < 0, -1, np.arange(len(item))[:, None] * n_items + item)
    in_order = np.sort(listed, axis=1)
    if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any():
        raise ReloopError("ranked lists", found="an item twice in one list", allowed="each item at most once a list")

    by_key = np.argsort(user * n_items + label)
    keys = (user * n_items + label)[by_key]
    if len(keys):
        place = np.minimum(np.searchsorted(keys, listed), len(keys) - 1)
        at_rank = np.where(keys[place] == listed, gain[by_key][place], 0.0)
    else:
        at_rank = np.zeros(listed.shape)
    by_gain = np.lexsort((-gain, user))
    ideal_indptr = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(item)))]).astype(np.int64)
    return Judged(at_rank, ideal_indptr, gain[by_gain])


def _measured(values: Doubles, judged: Judged) -> Doubles:
    return np.where(judged.n_relevant > 0, values, np.nan)


def _share(part: Doubles, whole: Doubles | npt.NDArray[np.int64]) -> Doubles:
    """Return part / whole, NaN where whole is zero."""
    share: Doubles = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return share


def _hits(judged: Judged, k: int) -> npt.NDArray[np.bool_]:
    hits: npt.NDArray[np.bool_] = judged.gain[:, :k] > 0
    return hits


def precision(judged: Judged, k: int) -> Doubles:
    """Relevant items among the first k, divided by k."""
    return _measured(np.asarray(_hits(judged, k).sum(axis=1), dtype=np.float64) / k, judged)


def recall(judged: Judged, k: int) -> Doubles:
    """Relevant items among the first k, divided by the user's relevant items."""
    return _share(_hits(judged, k).sum(axis=1).astype(np.float64), judged.n_relevant)


def hit_rate(judged: Judged, k: int) -> Doubles:
    """1 if any of the first k is relevant, else 0."""
    return _measured(np.asarray(_hits(judged, k).max(axis=1, initial=False), dtype=np.float64), judged)


def reciprocal_rank(judged: Judged, k: int) -> Doubles:
    """1 / rank of the first relevant item, 0 if none is among the first k; its mean is the MRR."""
    hits = _hits(judged, k)
    if not hits.shape[1]:
        return _measured(np.zeros(len(hits)), judged)
    return _measured(np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1), 0.0), judged)


def average_precision(judged: Judged, k: int) -> Doubles:
    """Sum of precision at the rank of each relevant item among the first k, divided by the user's relevant items."""
    hits = _hits(judged, k)
    at_rank = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return _share((at_rank * hits).sum(axis=1), judged.n_relevant)


def ndcg(judged: Judged, k: int) -> Doubles:
    """DCG / ideal DCG over the first k, with DCG = sum of gain / log2(rank + 1) (Jarvelin and Kekalainen, 2002).

    The ideal list holds the user's k largest gains, over the whole catalogue.
    """
    got = judged.gain[:, :k]
    dcg = got @ _discounts(got.shape[1])
    user = np.repeat(np.arange(len(got)), judged.n_relevant)
    rank = np.arange(len(judged.ideal)) - judged.ideal_indptr[user]
    first = rank < k
    best = np.bincount(user[first], judged.ideal[first] * _discounts(k)[rank[first]], minlength=len(got))
    return np.minimum(_share(dcg, best), 1.0)  # both sums round, each in its own order: a perfect list came out at 1 + 2e-16


def _discounts(k: int) -> Doubles:
    return 1 / np.log2(np.arange(2, k + 2))


def auc(indptr: Array, score: Array, relevant: Array) -> Doubles:
    """Chance that a relevant item scores above an irrelevant one, ties counting half (Mann-Whitney U).

    Args:
        indptr, score, relevant: the scored items of each user as a ragged array, in any order.
            Users without both kinds are unmeasured.
    """
    indptr = np.asarray(indptr, dtype=np.int64)
    n_users = len(indptr) - 1
    user = np.repeat(np.arange(n_users), np.diff(indptr))
    order = np.lexsort((np.asarray(score), user))
    user, value, hit = user[order], np.asarray(score)[order], np.asarray(relevant, dtype=bool)[order]
    # Mid-ranks: all members of a tie get the mean of the ranks they span.
    new = np.ones(len(user), dtype=bool)
    new[1:] = (user[1:] != user[:-1]) | (value[1:] != value[:-1])
    tie = np.cumsum(new) - 1
    size = np.bincount(tie)
    first = np.flatnonzero(new)
    rank = (first + (size - 1) / 2)[tie] - indptr[user] + 1
    n_hit = np.bincount(user, hit, minlength=n_users)
    n_miss = np.diff(indptr) - n_hit
    above = np.bincount(user, rank * hit, minlength=n_users) - n_hit * (n_hit + 1) / 2
    return _share(above, n_hit * n_miss)


def mean(per_user: Doubles) -> float | None:
    """Return the mean over measured users, None if there is none; say their number beside it."""
    measured = per_user[~np.isnan(per_user)]
    return float(measured.mean()) if len(measured) else None


RANKED: Final[dict[str, Callable[[Judged, int], Doubles]]] = {
    "ndcg": ndcg,
    "precision": precision,
    "recall": recall,
    "hit_rate": hit_rate,
    "mrr": reciprocal_rank,
    "map": average_precision,
}


def table(judged: Judged, cutoffs: tuple[int, ...] = (10,)) -> dict[str, Doubles]:
    """Return every list metric at every cutoff, as `ndcg_at_10` -> float64 [n_users]."""
    return {f"{name}_at_{k}": metric(judged, k) for name, metric in RANKED.items() for k in cutoffs}
