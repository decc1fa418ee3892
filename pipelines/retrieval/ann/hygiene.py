"""Which item vectors may enter an index: none that is NaN, infinite, zero, or a copy that the data does not explain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Bools, Floats, Interactions, Longs
from pipelines.errors import StateError

HUGE: Final = 1e15  # beyond it an inner product of float32 may overflow; below 1 / HUGE its square underflows
SHOWN: Final = 5  # items named in an error or a manifest
KINDS: Final = ("nan", "infinite", "zero", "duplicate")

Evidence = Callable[[], npt.NDArray[np.uint64]]


@dataclass(frozen=True)
class Findings:
    """What is wrong with some item vectors.

    Attributes:
        of_kind: the items of each kind of `KINDS`, ascending; an item is of one kind, the first that fits.
        n_checked: items that may be proposed, of which these are some.
    """

    of_kind: dict[str, Longs]
    n_checked: int

    @property
    def items(self) -> Longs:
        """Return int64, every bad item, ascending."""
        return np.sort(np.concatenate(list(self.of_kind.values())))

    def refused_above(self, max_share: float, name: str) -> None:
        """Refuse a catalogue with too many bad vectors.

        Raises:
            StateError: the share of bad vectors exceeds `max_share`.
        """
        n_bad = len(self.items)
        if n_bad > max_share * self.n_checked:
            said = "; ".join(f"{len(of)} {kind}: items {of[:SHOWN].tolist()}" for kind, of in self.of_kind.items() if len(of))
            raise StateError(
                f"item vectors of {name}",
                found=f"{n_bad} of {self.n_checked} are bad ({said})",
                allowed=f"at most {max_share:.2%}",
                hint="look at the model's training data and loss; retrieval.index.max_bad_share moves the limit",
            )

    def facts(self) -> dict[str, dict[str, object]]:
        """Return what a manifest says of them."""
        return {kind: {"items": len(of), "first": of[:SHOWN].tolist()} for kind, of in self.of_kind.items() if len(of)}


def inspect(vector: Floats, live: Bools, evidence: Evidence | None = None, *, exact: bool = False) -> Findings:
    """Return the bad ones among the vectors of items that may be proposed.

    Of items that share a vector bit for bit the lowest counts as the original. The others are copies, unless
    they have the same evidence as the original: a model that is handed the same data twice rightly answers twice.
    To an exact search copies are ties and do no harm, and in a small catalogue a model of few directions makes some.

    Args:
        vector: float32 [n_items, d].
        live: bool [n_items], what may be proposed.
        evidence: returns uint64 [n_items], equal where a model could not tell two items apart; asked only if there are copies.
        exact: whether every vector will be compared with, so that copies are let in.
    """
    items = np.flatnonzero(live)
    some = vector[items]
    with np.errstate(invalid="ignore"):
        size = np.abs(some).max(axis=1, initial=0)
    nan = np.isnan(some).any(axis=1)
    infinite = ~nan & ~(size <= HUGE)
    zero = ~nan & (size < 1 / HUGE)
    left = items[~(nan | infinite | zero)]
    copies = np.empty((0, 2), dtype=np.int64) if exact else _copies(vector[left])
    if len(copies) and evidence is not None:
        data = evidence()
        copies = copies[data[left[copies[:, 0]]] != data[left[copies[:, 1]]]]
    return Findings(
        {"nan": items[nan], "infinite": items[infinite], "zero": items[zero], "duplicate": np.sort(left[copies[:, 0]])}, len(items)
    )


def _copies(vector: Floats) -> Longs:
    """Return int64 [n, 2], each row that equals a lower one, and the lowest that it equals."""
    # Rows are told apart by a hash; those that share one are compared.
    bits = (vector + np.float32(0)).view(np.uint32)  # -0 equals 0
    odd = np.random.default_rng(0).integers(1, 1 << 63, max(bits.shape[1], 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    key = np.zeros(len(bits), dtype=np.uint64)
    for column in range(bits.shape[1]):
        key ^= (bits[:, column] + odd[column]) * odd[column] >> np.uint64(1)
        key *= odd[column]
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    original = first[group]
    row = np.flatnonzero(original != np.arange(len(bits)))
    row = row[(bits[row] == bits[original[row]]).all(axis=1)]
    return np.column_stack([row, original[row]]).astype(np.int64)


def liked_by(interactions: Interactions) -> npt.NDArray[np.uint64]:
    """Return uint64 [n_items], a sum that is equal for items liked by exactly the same users."""
    n_users = len(interactions.user_ids)
    liked = interactions.weight > 0
    pairs = np.unique(interactions.item[liked].astype(np.int64) * max(n_users, 1) + interactions.user[liked])
    drawn = np.random.default_rng(0).integers(0, 1 << 63, max(n_users, 1), dtype=np.uint64)
    summed = np.zeros(len(interactions.item_ids), dtype=np.uint64)
    np.add.at(summed, pairs // max(n_users, 1), drawn[pairs % max(n_users, 1)])
    return summed
