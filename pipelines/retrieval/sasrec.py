"""SASRec: self-attention over a user's last steps predicts the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.retrieval.neural import layers
from pipelines.retrieval.neural.backend import Array, Params
from pipelines.retrieval.neural.sequence_model import SequenceModel


@dataclass(frozen=True)
class SasRec(SequenceModel):
    """A causal transformer over items (Kang and McAuley, ICDM 2018), learnt by softmax or gBCE instead of one negative.

    With `loss="gbce"` and `n_negatives=256` it is gSASRec (Petrov and Macdonald, RecSys 2023). Item
    vectors are shared between input and output; distances have a bias instead of position vectors.

    Attributes:
        n_layers: transformer blocks.
        n_heads: attention heads; a divisor of `n_factors`.
    """

    n_layers: int = 2
    n_heads: int = 2

    def first(self, rng: np.random.Generator) -> Params:
        """Return the blocks' parameters."""
        return layers.blocks_params(rng, self.n_layers, self.n_factors, self.n_heads, self.max_history)

    def encode(self, xp: Any, params: Params, item: Array, pad: int, key: Array, *, last: bool = False) -> Array:
        """Return what each position predicts from itself and the positions before it."""
        length = item.shape[1]
        back = np.arange(length)[:, None] - np.arange(length)  # how far a key lies behind its query
        hidden = (item == pad)[:, None, None, :] | (back < 0)
        x = params["item"][item] * np.float32(np.sqrt(self.n_factors))
        return layers.blocks(xp, params, x, hidden=hidden, distance=np.maximum(back, 0), key=key, rate=self.dropout, last=last)
