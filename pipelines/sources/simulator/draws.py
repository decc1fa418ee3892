"""Randomness that depends on its key alone: a stream for a bulk draw, a hash where each entity needs its own lasting one."""

from __future__ import annotations

import zlib

import numpy as np

from pipelines.sources.simulator.arrays import Doubles, Ints, Numbers


def stream(seed: int, name: str, *keys: int) -> np.random.Generator:
    """Return the generator of one named draw; keys are >= 0. Streams of different names or keys are independent."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *keys])))


def hashed(seed: int, name: str, *keys: Numbers | int) -> Doubles:
    """Return uniforms in [0, 1), each a function of the seed, the name and its row of keys (broadcast).

    A SplitMix64 finaliser (Steele, Lea, Flood 2014) over the keys in turn: order of evaluation and
    batch size do not matter, so a user keeps the same draw in every process.
    """
    state = np.asarray((seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode())) % 2**64, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray((state >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def categorical(weights: Numbers, uniform: Numbers) -> Ints:
    """Return, for each uniform in [0, 1), the class it falls into; weights [classes] or one row of them for each."""
    edges = np.cumsum(weights, axis=-1)
    if weights.ndim == 1:
        edge: Ints = np.searchsorted(edges, uniform * edges[-1], side="right").astype(np.int32)
        return np.minimum(edge, np.int32(len(weights) - 1))
    below: Ints = (edges[:, :-1] <= (uniform * edges[:, -1])[:, None]).sum(axis=1, dtype=np.int32)
    return below
