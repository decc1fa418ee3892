"""What people with a like profile like: every value that a profile holds shifts everybody's order a little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from pipelines import columns as c
from pipelines.datasets.interactions import Floats, Histories, Ids, Interactions, positions
from pipelines.retrieval import popular, topk
from pipelines.retrieval.protocol import Candidates

COLUMNS: Final = (c.COUNTRY, c.AGE_BAND)


@dataclass(frozen=True)
class PopularByProfile:
    """Score of item j for a profile of n known values V: p_j * prod over v of lift_vj^(n^-dilution), scaled to be at most 1.

    p_j is j's share of all event weight, and lift_vj = (n_vj / p_j + prior) / (n_v + prior), with n_vj the weight of v's
    users on j, n_v on all: how much more often they meet it, shrunk towards 1 where little is known of v. At a
    dilution of 0 this is naive Bayes; at 1 the values' geometric mean, for values that say the same twice. Values are the
    country, the age band and every attribute. A profile with no known value gets everybody's order.
    State: values, sorted "field=value"; item int32 [n_kept], the most popular; share float32 [n_kept]; lift float32
    [n_values, n_kept], logarithms.

    Attributes:
        prior: event weight with which every value is taken to be like everybody.
        dilution: of each value among many.
        window_days: events older than this before the fit's as_of do not count; None counts all.
        half_life_days: after this long an event counts half; None never fades.
        n_kept: most popular items, of which alone a list is made.
        max_values: of one field; one with more (a postcode, a name) is left out.
    """

    prior: float = 1000.0
    dilution: float = 0.5
    window_days: float | None = None
    half_life_days: float | None = None
    n_kept: int = 2000
    max_values: int = 200
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy."""
        n_users, n_items = len(interactions.user_ids), len(interactions.item_ids)
        weight = popular.faded(interactions, self.window_days, self.half_life_days)
        count = np.bincount(interactions.item, weight, n_items)
        kept = np.argsort(-count, kind="stable")[: self.n_kept]
        kept = kept[count[kept] > 0]
        share = count[kept] / max(count.sum(), np.finfo(float).tiny)
        values = _vocabulary(interactions.users, self.max_values)
        member = _members(interactions.users, n_users, values)
        pairs = sparse.csr_matrix((weight, (interactions.user, interactions.item)), shape=(n_users, n_items))
        of_value = np.asarray((member.T @ pairs[:, kept]).toarray(), dtype=np.float64)
        n_v = member.T @ np.asarray(pairs.sum(axis=1)).ravel()
        lift = (of_value / share + self.prior) / (n_v[:, None] + self.prior) if len(kept) else of_value
        state = {
            "n_items": np.array([n_items]),
            "values": values,
            "item": kept.astype(np.int32),
            "share": share.astype(np.float32),
            "lift": np.log(lift).astype(np.float32),
        }
        return replace(self, state=state)

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return what is popular among those alike, less what the user has seen if so asked."""
        state = topk.checked("popular_by_profile", self.state, histories)
        item, share, lift = state["item"].astype(np.int64), state["share"].astype(np.float32), state["lift"].astype(np.float32)
        member = _members(histories.users, histories.n_users, state["values"].astype(np.str_))
        known = np.maximum(np.diff(member.indptr), 1)
        member.data *= np.repeat((known**-self.dilution).astype(np.float32), np.diff(member.indptr))
        by_item = np.argsort(item)
        parts = []
        for first, last, rows in topk.blocks(histories, len(item)):
            log_score: Floats = np.asarray(member[first:last] @ lift + np.log(share), dtype=np.float32)
            scores = np.full((last - first, len(item)), -np.inf, dtype=np.float32)
            if len(item):
                scores = np.exp(log_score - log_score.max(axis=1, keepdims=True))
                if exclude_seen:
                    place = _place(rows.item, item, by_item)
                    scores[rows.row_of_event()[place >= 0], place[place >= 0]] = -np.inf
            parts.append(_named(scores[:, by_item], item[by_item], k))
        return topk.stack(parts, k)


def told(users: pa.Table | None, n_users: int, values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Return bool [n_users], whose profile holds one of the values of a fitted state."""
    return np.asarray(np.diff(_members(users, n_users, values.astype(np.str_)).indptr) > 0)


def _place(wanted: npt.NDArray[np.integer], item: npt.NDArray[np.integer], by_item: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return int64 [n], where each wanted item stands in `item`; -1 where it does not.

    Args:
        by_item: the order that sorts `item`, which is not empty.
    """
    place = by_item[np.minimum(np.searchsorted(item, wanted, sorter=by_item), len(item) - 1)]
    return np.where(item[place] == wanted, place, -1)


def _named(scores: Floats, item: npt.NDArray[np.int64], k: int) -> Candidates:
    """Return the best of some columns, which stand for ascending items."""
    ranked = topk.best(scores, k)
    named = item[np.maximum(ranked.item, 0)] if len(item) else ranked.item
    return Candidates(np.where(ranked.item < 0, -1, named).astype(np.int32), ranked.score)


def _fields(users: pa.Table) -> Iterator[tuple[str, npt.NDArray[np.int64], list[str]]]:
    """Yield (field, row, value) of everything that profiles hold."""
    for name in COLUMNS:
        column = users[name].to_pylist()
        told = [row for row, value in enumerate(column) if value]
        yield name, np.array(told, dtype=np.int64), [column[row] for row in told]
    pairs: dict[str, tuple[list[int], list[str]]] = {}
    for row, attributes in enumerate(users[c.ATTRIBUTES].to_pylist()):
        for name, value in attributes or ():
            if value:
                rows, values = pairs.setdefault(name, ([], []))
                rows.append(row)
                values.append(value)
    for name in sorted(pairs):
        yield name, np.array(pairs[name][0], dtype=np.int64), pairs[name][1]


def _vocabulary(users: pa.Table | None, max_values: int) -> Ids:
    named = [{f"{name}={value}" for value in values} for name, _, values in _fields(users)] if users is not None else []
    kept = sorted(value for values in named if len(values) <= max_values for value in values)
    return np.array(kept, dtype=np.str_) if kept else np.empty(0, dtype="U1")


def _members(users: pa.Table | None, n_users: int, values: Ids) -> sparse.csr_matrix:
    """Return float32 [n_users, n_values], 1 where the profile holds the value."""
    rows, places = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    if users is not None and len(values):
        for name, row, held in _fields(users):
            place = positions(np.array([f"{name}={value}" for value in held], dtype=np.str_), values)
            rows.append(row[place >= 0])
            places.append(place[place >= 0])
    row, place = np.concatenate(rows), np.concatenate(places)
    return sparse.csr_matrix((np.ones(len(row), dtype=np.float32), (row, place)), shape=(n_users, len(values)))
