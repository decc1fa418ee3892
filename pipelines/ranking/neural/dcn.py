"""DCN-v2: products of features of every degree up to the number of layers, learnt beside a deep network."""

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
class Dcn(Network):
    """Deep & cross network, version 2, parallel structure (Wang et al., WWW 2021).

    x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (eq. 1), with W_l = U_l V_l where `rank` is above 0 (eq. 2); the score is linear in the
    last x and in the deep part's output (section 3.3).

    Attributes:
        n_cross: cross layers; so many factors, and one, a product can have.
        rank: of the cross layers' matrices; 0 for full ones.
        loss: `softmax` over a list, or `pointwise` log-loss of whether a candidate is taken.
    """

    n_cross: int = 2
    rank: Annotated[int, Range(0, 4096)] = 32
    loss: Literal["softmax", "pointwise"] = "softmax"

    name: ClassVar[str] = "dcn"

    def first(self, rng: np.random.Generator, n_inputs: int, rows: RankingRows) -> Params:  # noqa: ARG002 - what others need
        """Return the parameters to begin with."""
        made = network.deep_first(rng, "deep", n_inputs, self.n_hidden, self.n_layers)
        for layer in range(self.n_cross):
            if self.rank:
                made[f"cross{layer}.down"] = layers.dense(rng, n_inputs, self.rank)
                made[f"cross{layer}.up"] = layers.dense(rng, self.rank, n_inputs) * np.float32(0.1)
            else:
                made[f"cross{layer}.weight"] = layers.dense(rng, n_inputs, n_inputs) * np.float32(0.1)
            made[f"cross{layer}.shift"] = np.zeros(n_inputs, dtype=np.float32)
        # The score begins near zero, as the mean of all lists has it.
        return made | {
            "out.deep": layers.dense(rng, self.n_hidden, 1)[:, 0] * np.float32(0.1),
            "out.cross": np.zeros(n_inputs, np.float32),
            "out.shift": np.zeros(1, np.float32),
        }

    def ranked(self, xp: Any, params: Array, x: Array) -> Array:
        """Return [n], the score of inputs [n, n_inputs]."""
        return self._logits(xp, params, x, layers.keep)

    def _logits(self, xp: Any, params: Array, x: Array, drop: layers.Drop) -> Array:
        crossed = x
        for layer in range(self.n_cross):
            linear = (
                (crossed @ params[f"cross{layer}.down"]) @ params[f"cross{layer}.up"]
                if self.rank
                else crossed @ params[f"cross{layer}.weight"]
            )
            crossed = x * (linear + params[f"cross{layer}.shift"]) + crossed
        hidden = network.deep(xp, params, "deep", x, drop)
        return hidden @ params["out.deep"] + crossed @ params["out.cross"] + params["out.shift"]

    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:  # noqa: ARG002 - the trainer's signature
        """Return the loss of a batch."""
        from jax import numpy as jnp

        logits = self._logits(jnp, params, batch["x"], layers.dropout(key, self.dropout))
        return network.taken(jnp, self.loss, logits, batch)
