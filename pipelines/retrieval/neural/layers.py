"""Layers over an array module: `xp` is `jax.numpy` while training and `numpy` while serving.

Arrays are float32 [..., n_factors]; parameters are looked up in a flat dict by prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np

from pipelines.retrieval.neural import backend
from pipelines.retrieval.neural.backend import Array, Params

Drop: TypeAlias = Callable[[Array], Array]
MASKED: Final = np.float32(-1e9)  # a logit that softmax turns into zero; infinity would make NaN of a fully masked row


def keep(x: Array) -> Array:
    """Return what came in: dropout while serving."""
    return x


def dropout(key: Array, rate: float) -> Drop:
    """Return a dropout that draws anew at every call (Srivastava et al., 2014), for one training step."""
    jax = backend.jax()
    calls = iter(range(1 << 30))

    def drop(x: Array) -> Array:
        if rate <= 0:
            return x
        # Sixteen bits are half the work of a float drawn for each value.
        kept = jax.random.bits(jax.random.fold_in(key, next(calls)), x.shape, "uint16") >= round(rate * 0x10000)
        return jax.numpy.where(kept, x / (1 - rate), 0.0)

    return drop


def dense(rng: np.random.Generator, n_in: int, n_out: int) -> Array:
    """Return float32 [n_in, n_out], normal with variance 1 / n_in."""
    return (rng.standard_normal((n_in, n_out)) / np.sqrt(n_in)).astype(np.float32)


def norm(xp: Any, params: Params, name: str, x: Array) -> Array:
    """Return layer normalisation with scale and shift (Ba, Kiros, Hinton, 2016)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-6)
    return centred / spread * params[f"{name}.scale"] + params[f"{name}.shift"]


def softmax(xp: Any, x: Array) -> Array:
    """Return exp(x) over its sum along the last axis."""
    power = xp.exp(x - _top(xp, x))
    return power / power.sum(axis=-1, keepdims=True)


def log_sum_exp(xp: Any, x: Array) -> Array:
    """Return log(sum(exp(x))) along the last axis."""
    top = _top(xp, x)
    return xp.log(xp.exp(x - top).sum(axis=-1)) + top[..., 0]


def _top(xp: Any, x: Array) -> Array:
    """Return the maximum along the last axis, kept; what it is subtracted for cancels it, so no gradient passes through."""
    top = x.max(axis=-1, keepdims=True)
    return top if xp is np else backend.jax().lax.stop_gradient(top)


def unit(x: Array) -> Array:
    """Return vectors of length 1; a zero vector stays one."""
    return x / ((x * x).sum(axis=-1, keepdims=True) + np.float32(1e-12)) ** np.float32(0.5)


def gelu(xp: Any, x: Array) -> Array:
    """Return the Gaussian error linear unit, by its tanh approximation (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + xp.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def sigmoid(xp: Any, x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), by tanh, which does not overflow."""
    return 0.5 * (xp.tanh(0.5 * x) + 1)


def blocks_params(rng: np.random.Generator, n_layers: int, n_factors: int, n_heads: int, reach: int) -> Params:
    """Return the parameters of a stack of transformer blocks, each [n_layers, ...], and of the normalisation after it.

    Args:
        reach: how many distances between two positions have a bias of their own.
    """
    d = n_factors
    one, zero = np.ones((n_layers, d), dtype=np.float32), np.zeros((n_layers, d), dtype=np.float32)

    def stacked(n_in: int, n_out: int, scale: float) -> Array:
        return np.stack([dense(rng, n_in, n_out) * np.float32(scale) for _ in range(n_layers)])

    return {
        "block.at.scale": one,
        "block.at.shift": zero,
        "block.qkv": stacked(d, 3 * d, 1.0),
        "block.out": stacked(d, d, 0.5),
        "block.distance": np.zeros((n_layers, n_heads, reach), dtype=np.float32),
        "block.ff.scale": one,
        "block.ff.shift": zero,
        "block.up": stacked(d, 2 * d, 1.0),
        "block.up_shift": np.zeros((n_layers, 2 * d), dtype=np.float32),
        "block.down": stacked(2 * d, d, 0.5),
        "end.scale": one[0],
        "end.shift": zero[0],
    }


def blocks(xp: Any, params: Params, x: Array, *, hidden: Array, distance: Array, key: Array, rate: float, last: bool = False) -> Array:
    """Return a stack of pre-norm transformer blocks and a normalisation.

    A bias for each head and distance between positions stands in for position vectors (Raffel et al.,
    2020): what it learns about "one step back" holds wherever the sequence begins, so short and long
    histories share it.

    Args:
        x: [n, length, n_factors].
        hidden: bool [n, 1, 1 or length, length], the keys that a query must not see.
        distance: int [length, length], the bias to use from query to key.
        key, rate: of dropout; a key of None means serving.
        last: compute the last position alone; the result is [n, 1, n_factors].
    """
    own = {name: value for name, value in params.items() if name.startswith("block.")}
    n_layers = len(own["block.qkv"])
    drop = keep if key is None else dropout(key, rate)
    for n in range(n_layers):
        layer = {name: value[n] for name, value in own.items()}
        x = _block(xp, layer, x, hidden=hidden, distance=distance, drop=drop, last=last and n == n_layers - 1)
    return norm(xp, params, "end", x)


def _block(xp: Any, params: Params, x: Array, *, hidden: Array, distance: Array, drop: Drop, last: bool = False) -> Array:
    """Return one block: attention, then a feed-forward layer, each added to its input."""
    n, _, d = x.shape
    heads = params["block.distance"].shape[0]
    normed = norm(xp, params, "block.at", x)
    weights = params["block.qkv"]
    own = normed[:, -1:] if last else normed

    def split(y: Array) -> Array:
        return xp.swapaxes(y.reshape(n, y.shape[1], heads, d // heads), 1, 2)

    query = split(own @ weights[:, :d])
    key, value = (split(normed @ weights[:, d * part : d * (part + 1)]) for part in (1, 2))
    bias = params["block.distance"][:, distance[-1:] if last else distance]
    logits = query @ xp.swapaxes(key, 2, 3) * np.float32((d // heads) ** -0.5) + bias
    logits = xp.where(hidden[:, :, -1:] if last else hidden, MASKED, logits)
    mixed = xp.swapaxes(softmax(xp, logits) @ value, 1, 2).reshape(n, own.shape[1], d)
    x = (x[:, -1:] if last else x) + drop(mixed @ params["block.out"])
    wide = gelu(xp, norm(xp, params, "block.ff", x) @ params["block.up"] + params["block.up_shift"])
    return x + drop(wide @ params["block.down"])
