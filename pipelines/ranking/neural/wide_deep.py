"""Wide & deep: what each value of a feature was worth is remembered beside a deep network that generalises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from pipelines.knobs import Range
from pipelines.ranking.neural import network
from pipelines.ranking.neural.network import Network
from pipelines.ranking.protocol import RankingRows
from pipelines.retrieval.neural import layers
from pipelines.retrieval.neural.backend import Array, Params


@dataclass(frozen=True)
class WideDeep(Network):
    """The sum of a wide and a deep part, learnt together (Cheng et al., DLRS 2016, eq. 3).

    The paper's wide part is linear in one-hot values and their cross products. Here it is linear in the inputs and in which of
    `n_bins` bins each of them falls into: no weight belongs to a user or an item, so the model keeps while ids come and go.

    Attributes:
        n_bins: of the wide part, of equal width over an input's scale; by `quantile` so of about equal numbers.
        loss: `softmax` over a list, or `pointwise` log-loss of whether a candidate is taken.
    """

    n_bins: Annotated[int, Range(2, 1024)] = 16
    scaling: Literal["standard", "quantile"] = "quantile"  # else the middle bins hold nearly all
    loss: Literal["softmax", "pointwise"] = "softmax"

    name: ClassVar[str] = "wide_deep"

    def first(self, rng: np.random.Generator, n_inputs: int, rows: RankingRows) -> Params:  # noqa: ARG002 - what others need
        """Return the parameters to begin with."""
        made = network.deep_first(rng, "deep", n_inputs, self.n_hidden, self.n_layers)
        return made | {
            "wide.bins": np.zeros((n_inputs, self.n_bins), dtype=np.float32),
            "wide.slope": np.zeros(n_inputs, dtype=np.float32),
            "out.deep": layers.dense(rng, self.n_hidden, 1)[:, 0] * np.float32(0.1),
            "out.shift": np.zeros(1, dtype=np.float32),
        }

    def ranked(self, xp: Any, params: Array, x: Array) -> Array:
        """Return [n], the score of inputs [n, n_inputs]."""
        return self._logits(xp, params, x, layers.keep)

    def _logits(self, xp: Any, params: Array, x: Array, drop: layers.Drop) -> Array:
        low, high = (-1.0, 1.0) if self.scaling == "quantile" else (-2.0, 2.0)
        bins = xp.clip((x - low) * (self.n_bins / (high - low)), 0, self.n_bins - 1).astype("int32")
        wide = params["wide.bins"][xp.arange(x.shape[-1]), bins].sum(axis=-1) + x @ params["wide.slope"]
        hidden = network.deep(xp, params, "deep", x, drop)
        return wide + hidden @ params["out.deep"] + params["out.shift"]

    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:  # noqa: ARG002 - the trainer's signature
        """Return the loss of a batch."""
        from jax import numpy as jnp

        logits = self._logits(jnp, params, batch["x"], layers.dropout(key, self.dropout))
        return network.taken(jnp, self.loss, logits, batch)
