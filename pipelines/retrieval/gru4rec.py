"""GRU4Rec: a recurrent network reads a user's last steps and predicts the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.retrieval.neural import backend, layers
from pipelines.retrieval.neural.backend import Array, Params
from pipelines.retrieval.neural.sequence_model import SequenceModel


@dataclass(frozen=True)
class Gru4Rec(SequenceModel):
    """A gated recurrent unit over item vectors (Hidasi et al., ICLR 2016), learnt by a sampled softmax.

    Item vectors are shared between input and output (their "constrained embedding"), with a linear
    layer from the hidden state to the items' space. A position without an item leaves the state as it is.

    Attributes:
        n_hidden: length of the state.
    """

    n_hidden: int = 128

    def first(self, rng: np.random.Generator) -> Params:
        """Return the parameters of the unit and of the layer behind it."""
        h, d = self.n_hidden, self.n_factors
        return {
            "gates.in": layers.dense(rng, d, 3 * h),
            "gates.state": layers.dense(rng, h, 3 * h),
            "gates.shift": np.zeros(3 * h, dtype=np.float32),
            "out": layers.dense(rng, h, d),
            "end.scale": np.ones(d, dtype=np.float32),
            "end.shift": np.zeros(d, dtype=np.float32),
        }

    def encode(self, xp: Any, params: Params, item: Array, pad: int, key: Array, *, last: bool = False) -> Array:
        """Return what the state after each position predicts."""
        drop = layers.keep if key is None else layers.dropout(key, self.dropout)
        x = drop(params["item"][item] * np.float32(np.sqrt(self.n_factors)))
        inputs = xp.swapaxes(x @ params["gates.in"] + params["gates.shift"], 0, 1)  # all positions at once, time first
        there = xp.swapaxes(item != pad, 0, 1)[:, :, None]
        state = xp.zeros((item.shape[0], self.n_hidden), dtype=np.float32)

        def unit(state: Array, step: Array) -> Array:
            given, here = step
            state = xp.where(here, _unit(xp, given, state, params["gates.state"]), state)
            return state, state

        if xp is np:
            states = []
            for step in zip(inputs, there, strict=True):
                state, _ = unit(state, step)
                states.append(state)
            states = xp.stack(states[-1:] if last else states)
        else:
            _, states = backend.jax().lax.scan(unit, state, (inputs, there))
        return layers.norm(xp, params, "end", drop(xp.swapaxes(states, 0, 1)) @ params["out"])


def _unit(xp: Any, given: Array, state: Array, weights: Array) -> Array:
    """Return the next state of a gated recurrent unit (Cho et al., 2014), reset after the product as cuDNN does.

    z = sigmoid(Wz x + Uz h), r = sigmoid(Wr x + Ur h), n = tanh(Wn x + r * Un h), h' = (1 - z) n + z h.

    Args:
        given: [n, 3 n_hidden], W x for update, reset and new, shifts included.
        weights: [n_hidden, 3 n_hidden], U for the same.
    """
    h = state.shape[1]
    own = state @ weights
    both = layers.sigmoid(xp, given[:, : 2 * h] + own[:, : 2 * h])
    update, reset = both[:, :h], both[:, h:]
    new = xp.tanh(given[:, 2 * h :] + reset * own[:, 2 * h :])
    return (1 - update) * new + update * state
