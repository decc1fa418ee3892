"""BERT4Rec: self-attention in both directions fills in steps that were hidden; the next step is one hidden at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Ints
from pipelines.retrieval.neural import layers, sequences
from pipelines.retrieval.neural.backend import Array, Params
from pipelines.retrieval.neural.sequence_model import SequenceModel
from pipelines.retrieval.neural.sequences import Sequences
from pipelines.retrieval.neural.training import Batch


@dataclass(frozen=True)
class Bert4Rec(SequenceModel):
    """A bidirectional transformer learnt by filling in masked items (Sun et al., CIKM 2019).

    Each epoch hides a share of every window's steps, drawn anew, and in one window of `1 / last_share`
    the newest step alone, which is what a request asks. Only hidden positions are compared with the
    catalogue, so the loss costs a fraction of SASRec's.

    Attributes:
        n_layers, n_heads: as in SASRec.
        masked_share: of a window's steps that are hidden, at least one.
        last_share: of the windows in which the newest step alone is hidden.
    """

    n_layers: int = 2
    n_heads: int = 2
    masked_share: float = 0.2
    last_share: float = 0.1

    def first(self, rng: np.random.Generator) -> Params:
        """Return the blocks' parameters; a distance may be to either side."""
        return layers.blocks_params(rng, self.n_layers, self.n_factors, self.n_heads, 2 * self.max_history + 1)

    def epoch(self, steps: Sequences, known: npt.NDArray[np.int64], rng: np.random.Generator) -> Iterable[Batch]:
        """Yield every window with some of its steps hidden, and which they were."""
        window = steps.wholes(self.max_history, rng)
        if not len(window):
            return
        there = window != steps.pad
        n_hidden = np.maximum(np.round(there.sum(axis=1) * self.masked_share), 1).astype(np.int64)
        draw = np.where(there, rng.random(window.shape), np.inf)
        only_last = rng.random(len(window)) < self.last_share
        newest = self.max_history - 1 - np.argmax(there[:, ::-1], axis=1)
        draw[only_last, newest[only_last]] = -1.0
        n_hidden[only_last] = 1
        # The hidden positions of a row stand first in `place`; what is too much points to PAD.
        place = np.argsort(draw, axis=1, kind="stable")[:, : max(1, round(self.max_history * self.masked_share))].astype(np.int32)
        counted = np.arange(place.shape[1]) < n_hidden[:, None]
        target = np.where(counted, np.take_along_axis(window, place, axis=1), steps.pad).astype(np.int32)
        hidden = window.copy()
        row, column = np.nonzero(counted)
        hidden[row, place[row, column]] = steps.pad - 1
        for batch in sequences.shuffled({"item": hidden, "place": place, "target": target}, self.batch_size, rng):
            yield batch | self.negatives(known, rng)

    def encode(self, xp: Any, params: Params, item: Array, pad: int, key: Array, *, last: bool = False) -> Array:
        """Return what each position is, judged by all the others."""
        length = item.shape[1]
        between = np.arange(length)[:, None] - np.arange(length) + self.max_history
        x = params["item"][item] * np.float32(np.sqrt(self.n_factors))
        hidden = (item == pad)[:, None, None, :]
        return layers.blocks(xp, params, x, hidden=hidden, distance=between, key=key, rate=self.dropout, last=last)

    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:
        """Return the mean loss of the hidden steps of a batch."""
        from jax import numpy as jnp

        vector = self.encode(jnp, params, batch["item"], params["item"].shape[0] - 1, key)
        vector = jnp.take_along_axis(vector, batch["place"][:, :, None], axis=1).reshape(-1, self.n_factors)
        return self.compare(params, data, vector, batch["target"].reshape(-1), batch["negative"])

    def asked(self, item: Ints, pad: int) -> Ints:
        """Return the steps with a hidden one behind them."""
        kept = item[:, 1:] if item.shape[1] == self.max_history else item
        return np.concatenate([kept, np.full((len(item), 1), pad - 1, dtype=np.int32)], axis=1)
