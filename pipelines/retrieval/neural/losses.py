"""Losses of a next-item prediction against a sample of the catalogue."""

from __future__ import annotations

import numpy as np

from pipelines.errors import StateError
from pipelines.retrieval.neural import layers
from pipelines.retrieval.neural.backend import Array


def loss(vector: Array, target: Array, *, table: Array, allowed: Array, negative: Array, kind: str, calibration: float) -> Array:
    """Return [n], the loss of each prediction.

    `softmax` is cross-entropy over the catalogue, or over the target and the sampled items with their
    logits raised by log(n_known / n_negatives), so that they stand for the whole (Jean et al., 2015).
    `gbce` is gSASRec's (Petrov and Macdonald, RecSys 2023, eqs. 9 and 14): binary cross-entropy whose
    positive probability is raised to beta = alpha (t (1 - 1/alpha) + 1/alpha), alpha the share of
    items sampled, t the calibration. A sampled item that is the target does not count against it.

    Args:
        vector: [n, n_factors].
        target: int32 [n].
        table: [rows, n_factors], item vectors.
        allowed: [rows], 0 for items that may be proposed, a large negative number for other rows.
        negative: int32 [n_negatives], shared by the batch; empty for all items.
        kind: `softmax` or `gbce`.

    Raises:
        StateError: it is neither, or `gbce` without a sample.
    """
    from jax import numpy as jnp

    n_negatives = len(negative)
    if kind not in {"softmax", "gbce"} or (kind == "gbce" and not n_negatives):
        raise StateError("loss", found=f"{kind!r} with n_negatives {n_negatives}", allowed="'softmax', or 'gbce' with negatives")
    own = (vector * table[target]).sum(axis=1)
    if not n_negatives:
        return layers.log_sum_exp(jnp, vector @ table.T + allowed) - own
    n_known = (allowed == 0).sum()
    others = jnp.where(target[:, None] == negative, layers.MASKED, vector @ table[negative].T)
    if kind == "softmax":
        raised = others + jnp.log(n_known / np.float32(n_negatives))
        return jnp.logaddexp(own, layers.log_sum_exp(jnp, raised)) - own
    share = jnp.minimum(n_negatives / (n_known - 1).clip(1), 1)
    beta = share * (calibration * (1 - 1 / share) + 1 / share)
    return beta * jnp.logaddexp(0, -own) + jnp.logaddexp(0, others).sum(axis=1)
