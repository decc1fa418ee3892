"""What candidates with a category, a brand or an item itself were worth in the window before: smoothed target encoding.

The encoding of a key is the mean gain of its candidates, drawn to the mean of all by `smoothing` candidates:

    (sum of gains + smoothing * prior) / (candidates + smoothing),  prior = all gains / all candidates

(Micci-Barreca, "A preprocessing scheme for high-cardinality categorical attributes", SIGKDD Explorations 3(1), 2001, eq. 3
with a weight of n / (n + smoothing).) Rows of a window are encoded by the window before it, as known at their own
cutoff, and requests by the newest window: no row has seen its own label, nor any other of its days. Encoding a
window by other users of the same window would tell it what will be in fashion, which no request can know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import publish
from pipelines.datasets.interactions import Floats, Ids, Ints, Longs, positions, strings
from pipelines.evaluation.metrics import Doubles

KINDS: Final = ("item", "category", "brand")


@dataclass(frozen=True)
class Encoding:
    """What some keys were worth.

    Attributes:
        keys: per kind, sorted; values: per kind float32 [n], in their order.
        prior: what a key that was never a candidate is worth; NaN where there was no window to learn from.
    """

    keys: Mapping[str, Ids] = field(default_factory=dict)
    values: Mapping[str, Floats] = field(default_factory=dict)
    prior: float = float("nan")

    def of(self, kind: str, key: Ids) -> Floats:
        """Return float32 [n], what each key is worth."""
        found = np.full(len(key), self.prior, np.float32)
        if kind in self.keys:
            place = positions(key, self.keys[kind])
            found[place >= 0] = self.values[kind][place[place >= 0]]
        return found

    def save(self, path: Path) -> None:
        """Write the table: kind, key, value; the first row, of kind `prior`, is the prior."""
        kinds = [kind for kind in KINDS if kind in self.keys]
        columns = {
            "kind": ["prior", *(kind for kind in kinds for _ in self.keys[kind])],
            "key": ["", *(key for kind in kinds for key in self.keys[kind].tolist())],
            "value": np.concatenate([np.array([self.prior], np.float32), *(self.values[kind] for kind in kinds)]),
        }
        publish.write_parquet(path, pa.table(columns))

    @classmethod
    def load(cls, path: Path) -> Encoding:
        """Read what `save` wrote."""
        table = pq.read_table(path)
        kind, key, value = strings(table["kind"]), strings(table["key"]), table["value"].to_numpy()
        there = [name for name in KINDS if (kind == name).any()]
        return cls({name: key[kind == name] for name in there}, {name: value[kind == name] for name in there}, float(value[0]))


class Tally:
    """Candidates and their gains by key, added up block by block in exact order."""

    def __init__(self, keys: Mapping[str, Ids]) -> None:
        """Begin with nothing counted; `keys` are the sorted keys of each kind, whose positions are their codes."""
        self.keys = keys
        self.rows: dict[str, Longs] = {kind: np.zeros(len(names), np.int64) for kind, names in keys.items()}
        self.gains: dict[str, Doubles] = {kind: np.zeros(len(names)) for kind, names in keys.items()}
        self.total_rows, self.total_gain = 0, 0.0

    def add(self, code: Mapping[str, Ints], gain: Floats) -> None:
        """Add candidates: `code` [n] is each one's key of every kind, -1 where it has none."""
        for kind, keys in code.items():
            known = keys >= 0
            self.rows[kind] += np.bincount(keys[known], minlength=len(self.rows[kind]))
            self.gains[kind] += np.bincount(keys[known], weights=gain[known], minlength=len(self.rows[kind]))
        self.total_rows += len(gain)
        self.total_gain += float(gain.sum(dtype=np.float64))

    def encoding(self, smoothing: float) -> Encoding:
        """Return what the keys that were candidates are worth."""
        if not self.total_rows:
            return Encoding()
        prior, keys, values = self.total_gain / self.total_rows, {}, {}
        for kind, rows in self.rows.items():
            met = rows > 0
            keys[kind] = self.keys[kind][met]
            values[kind] = ((self.gains[kind][met] + smoothing * prior) / (rows[met] + smoothing)).astype(np.float32)
        return Encoding(keys, values, float(np.float32(prior)))
