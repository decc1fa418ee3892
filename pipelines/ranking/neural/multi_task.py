"""Several outcomes at once: what is viewed, put into the cart, bought, and for how much, combined by declared weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from pipelines.ranking.neural import network
from pipelines.ranking.neural.network import Network
from pipelines.ranking.protocol import RankingRows
from pipelines.retrieval.neural import layers
from pipelines.retrieval.neural.backend import Array, Params

DEEDS: Final = ("view", "add_to_cart", "purchase")
TAKEN: Final = "taken"  # the only head where nothing but the gain is known
VALUE: Final = "value"
MAX_LOG: Final = 15.0  # of a predicted amount: three million


@dataclass(frozen=True)
class MultiTask(Network):
    """Heads over what they share: a log-loss each, and for the amount of a purchase the squared error of its log(1 + value).

    A candidate is worth the sum over deeds of weight x probability, and `value_weight` x probability of a purchase x its
    expected amount, exp of the prediction less 1. Heads that never or always happen in the training rows are left out; where
    rows know no outcomes there is one, whether the candidate is taken, which then has the weight 1.

    Attributes:
        view_weight, add_to_cart_weight, purchase_weight: what a deed is worth; those of the gain unless the shop says otherwise.
        value_weight: what a unit of shop currency is worth beside them.
        listwise_weight: of a softmax over the list beside each log-loss, on the same logits: order and probability together
            (Bai et al., KDD 2023).
    """

    view_weight: float = 1.0
    add_to_cart_weight: float = 2.0
    purchase_weight: float = 3.0
    value_weight: float = 0.0
    listwise_weight: float = 1.0

    def targets(self, rows: RankingRows) -> dict[str, npt.NDArray[Any]]:
        """Return what happened, by head, and how many rows each stands for."""
        found: dict[str, npt.NDArray[Any]] = {f"to.{deed}": rows.outcomes[deed] for deed in DEEDS if _varies(rows.outcomes.get(deed))}
        found = found or {f"to.{TAKEN}": (rows.gain > 0).astype(np.float32)}
        if f"to.{DEEDS[2]}" in found and _varies(rows.outcomes.get(VALUE)):
            found[f"to.{VALUE}"] = np.log1p(np.maximum(rows.outcomes[VALUE], 0)).astype(np.float32)
        return found | {"weight": np.ones(len(rows.gain), dtype=np.float32) if rows.weight is None else rows.weight}

    def first(self, rng: np.random.Generator, n_inputs: int, rows: RankingRows) -> Params:
        """Return the parameters to begin with; a head's bias is the log odds of its outcome."""
        made, n_shared = self.shared_first(rng, n_inputs)
        for name, target in self.targets(rows).items():
            if name == "weight":
                continue
            head = name.removeprefix("to.")
            made |= self.gate_first(rng, head, n_inputs)
            made |= network.deep_first(rng, f"{head}.tower", n_shared, max(self.n_hidden // 2, 1), 1)
            made[f"{head}.out"] = layers.dense(rng, max(self.n_hidden // 2, 1), 1)[:, 0] * np.float32(0.1)
            mean = float(target[target > 0].mean()) if head == VALUE else float(target.mean())
            made[f"{head}.shift"] = np.array([mean if head == VALUE else np.log(mean / (1 - mean))], dtype=np.float32)
        return made

    @abstractmethod
    def shared_first(self, rng: np.random.Generator, n_inputs: int) -> tuple[Params, int]:
        """Return the first parameters of what heads share, and how wide it is."""
        ...

    def gate_first(self, rng: np.random.Generator, head: str, n_inputs: int) -> Params:  # noqa: ARG002 - what others need
        """Return the first parameters of how a head looks at what is shared."""
        return {}

    @abstractmethod
    def shared(self, xp: Any, params: Array, x: Array, drop: layers.Drop) -> Any:
        """Return what is computed once for all heads."""
        ...

    @abstractmethod
    def seen(self, xp: Any, params: Array, head: str, x: Array, shared: Any) -> Array:
        """Return [..., n_shared], what a head sees."""
        ...

    def _heads(self, xp: Any, params: Array, x: Array, drop: layers.Drop) -> Iterator[tuple[str, Array]]:
        """Yield each head's logits; of the amount, the logarithm."""
        shared = self.shared(xp, params, x, drop)
        for head in (*DEEDS, TAKEN, VALUE):
            if f"{head}.out" in params:
                tower = network.deep(xp, params, f"{head}.tower", self.seen(xp, params, head, x, shared), layers.keep)
                yield head, tower @ params[f"{head}.out"] + params[f"{head}.shift"]

    def ranked(self, xp: Any, params: Array, x: Array) -> Array:
        """Return [n], what inputs [n, n_inputs] are worth."""
        told = dict(self._heads(xp, params, x, layers.keep))
        worth = {"view": self.view_weight, "add_to_cart": self.add_to_cart_weight, "purchase": self.purchase_weight, TAKEN: 1.0}
        total = sum(worth[head] * layers.sigmoid(xp, logit) for head, logit in told.items() if head != VALUE)
        if VALUE in told and self.value_weight:
            amount = xp.expm1(xp.clip(told[VALUE], 0, MAX_LOG))
            total = total + self.value_weight * layers.sigmoid(xp, told["purchase"]) * amount
        return total

    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:  # noqa: ARG002 - the trainer's signature
        """Return the sum of the heads' losses of a batch."""
        from jax import numpy as jnp

        weight, total = batch["weight"] * batch["there"], 0.0
        for head, told in self._heads(jnp, params, batch["x"], layers.dropout(key, self.dropout)):
            target = batch[f"to.{head}"] * batch["there"]
            if head == VALUE:
                bought = weight * (target > 0)
                total = total + (bought * (told - target) ** 2).sum() / jnp.maximum(bought.sum(), 1e-9)
                continue
            total = total + network.pointwise(jnp, told, target, weight)
            if self.listwise_weight:
                total = total + self.listwise_weight * network.listwise(jnp, told, {**batch, "gain": target})
        return total


@dataclass(frozen=True)
class SharedBottom(MultiTask):
    """One deep network under all heads (Caruana, 1997): `n_layers` shared, then a layer each."""

    name: ClassVar[str] = "shared_bottom"

    def shared_first(self, rng: np.random.Generator, n_inputs: int) -> tuple[Params, int]:
        """Return the first parameters of the bottom, and how wide it is."""
        return network.deep_first(rng, "deep", n_inputs, self.n_hidden, self.n_layers), self.n_hidden

    def shared(self, xp: Any, params: Array, x: Array, drop: layers.Drop) -> Array:
        """Return the bottom's output."""
        return network.deep(xp, params, "deep", x, drop)

    def seen(self, xp: Any, params: Array, head: str, x: Array, shared: Any) -> Array:  # noqa: ARG002 - all see the same
        """Return the bottom's output."""
        return shared


@dataclass(frozen=True)
class Mmoe(MultiTask):
    """Multi-gate mixture of experts (Ma et al., KDD 2018, eq. 6 and 7): each head mixes the experts by a softmax of its own over x.

    Attributes:
        n_experts: deep networks of `n_layers` that heads mix.
    """

    n_experts: int = 4

    name: ClassVar[str] = "mmoe"

    def shared_first(self, rng: np.random.Generator, n_inputs: int) -> tuple[Params, int]:
        """Return the first parameters of the experts, and how wide one is."""
        made: Params = {}
        for expert in range(self.n_experts):
            made |= network.deep_first(rng, f"expert{expert}.", n_inputs, self.n_hidden, self.n_layers)
        return made, self.n_hidden

    def gate_first(self, rng: np.random.Generator, head: str, n_inputs: int) -> Params:
        """Return the first parameters of a head's gate."""
        return {f"{head}.gate": layers.dense(rng, n_inputs, self.n_experts) * np.float32(0.1)}

    def shared(self, xp: Any, params: Array, x: Array, drop: layers.Drop) -> Array:
        """Return [..., n_experts, n_hidden], what each expert says."""
        experts = [network.deep(xp, params, f"expert{expert}.", x, drop) for expert in range(self.n_experts)]
        return xp.stack(experts, axis=-2)

    def seen(self, xp: Any, params: Array, head: str, x: Array, shared: Any) -> Array:
        """Return the experts as the head's gate mixes them."""
        return (layers.softmax(xp, x @ params[f"{head}.gate"])[..., None] * shared).sum(axis=-2)


def _varies(target: npt.NDArray[np.floating[Any]] | None) -> bool:
    return target is not None and bool((target > 0).any()) and not bool((target > 0).all())
