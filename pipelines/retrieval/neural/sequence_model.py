"""What SASRec, GRU4Rec and BERT4Rec share: a history is encoded into a vector, items are scored by inner product."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions, Ints
from pipelines.knobs import Range
from pipelines.retrieval import topk
from pipelines.retrieval.neural import backend, layers, losses, sequences
from pipelines.retrieval.neural.backend import Array, Params
from pipelines.retrieval.neural.sequences import Sequences, Split
from pipelines.retrieval.neural.training import Batch, Material, Training, train
from pipelines.retrieval.protocol import Candidates

Encoder: TypeAlias = Callable[[Params, Ints, int], Floats]  # parameters, items and PAD to vectors
AT_ONCE: Final = 64  # values a position and factor that an encoder holds at once, about: bounds the block of users


@dataclass(frozen=True)
class SequenceModel(Training):
    """The frame; a model adds `first`, `encode` and, where it learns otherwise, `epoch` and `objective`.

    State: the parameters by name, float32; n_items; known bool [n_items], whether the item had an
    event to learn from. `item` is the table of item vectors, float32 [table_rows, n_factors], whose
    last two rows are no items.

    Attributes:
        n_factors: length of an item's vector.
        max_history: newest steps of a history that are looked at, and length of a training window.
        dropout: share of values dropped while training.
        loss: `softmax` (over a sample of the items, or all) or `gbce`; see `losses`.
        n_negatives: items sampled uniformly for each batch; 0 for all of them.
        calibration: of `gbce`, from 0 (binary cross-entropy) to 1 (unbiased towards the sampling).
    """

    n_factors: int = 64
    max_history: int = 50
    dropout: float = 0.2
    loss: Literal["softmax", "gbce"] = "softmax"
    n_negatives: Annotated[int, Range(0, 2**31 - 1)] = 512
    calibration: float = 0.75
    state: Params | None = field(default=None, repr=False, compare=False)

    @abstractmethod
    def first(self, rng: np.random.Generator) -> Params:
        """Return the parameters to begin with, but for the item table."""
        ...

    @abstractmethod
    def encode(self, xp: Any, params: Params, item: Array, pad: int, key: Array, *, last: bool = False) -> Array:
        """Return [n, length, n_factors], what each position predicts of the next item; with `last`, [n, 1, n_factors].

        Args:
            item: int32 [n, length], `pad` where there is none.
            key: of dropout; None while serving.
        """
        ...

    def resume(self, interactions: Interactions, checkpoint: Path | None) -> Self:
        """Return a fitted copy, going on from a checkpoint where there is one of this very training."""
        steps = sequences.learnt_from(interactions)
        known = np.bincount(steps.item, minlength=steps.n_items) > 0
        rows = sequences.table_rows(steps.n_items)
        rng = np.random.default_rng([self.seed, 0])
        table = (rng.standard_normal((rows, self.n_factors)) / np.sqrt(self.n_factors)).astype(np.float32)
        params: Params = {"item": table, **self.first(rng)}
        if (steps.lengths() > 1).any():
            params = self._train(params, steps, known, checkpoint)
        return replace(self, state={"n_items": np.array([steps.n_items]), "known": known, **params})

    def _train(self, params: Params, steps: Sequences, known: npt.NDArray[np.bool_], checkpoint: Path | None) -> Params:
        judged = sequences.split(steps, self)
        allowed = np.full(len(params["item"]), layers.MASKED, dtype=np.float32)
        allowed[: steps.n_items][known] = 0
        learner = replace(self, state=None)

        def batches(rng: np.random.Generator, everything: bool) -> Iterable[Batch]:
            return learner.epoch(steps if everything or judged is None else judged.fit, np.flatnonzero(known), rng)

        encode = _on_accelerator(learner) if backend.accelerated() else self.newest

        def quality(learnt: Params) -> float:
            return sequences.validated(lambda some: self._scores(learnt, some.history, known, encode), cast("Split", judged))

        made_of = (steps.indptr, steps.item, steps.at)
        material = Material(batches, None if judged is None else quality, {"allowed": allowed}, made_of)
        return train(learner, params, material, checkpoint)

    def epoch(self, steps: Sequences, known: npt.NDArray[np.int64], rng: np.random.Generator) -> Iterable[Batch]:
        """Yield every step once as something to predict, from the window that holds it."""
        item, following = steps.windows(self.max_history, rng)
        for batch in sequences.shuffled({"item": item, "target": following}, self.batch_size, rng):
            yield batch | self.negatives(known, rng)

    def negatives(self, known: npt.NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return what a batch is told from: int32 [n_negatives] items, drawn with replacement; empty for all of them."""
        return {"negative": known[rng.integers(0, len(known), self.n_negatives)].astype(np.int32)}

    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:
        """Return the mean loss of the steps of a batch."""
        from jax import numpy as jnp

        pad = params["item"].shape[0] - 1
        vector = self.encode(jnp, params, batch["item"], pad, key)
        return self.compare(params, data, vector.reshape(-1, self.n_factors), batch["target"].reshape(-1), batch["negative"])

    def compare(self, params: Array, data: Array, vector: Array, target: Array, negative: Array) -> Array:
        """Return the mean loss of some predictions; those whose target is PAD do not count."""
        counted = target != params["item"].shape[0] - 1
        loss = losses.loss(
            vector, target, table=params["item"], allowed=data["allowed"], negative=negative, kind=self.loss, calibration=self.calibration
        )
        return (loss * counted).sum() / counted.sum().clip(1)

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items that the user's last steps predict."""
        state = cast("Params", topk.checked(type(self).__name__, self.state, histories))
        known = state["known"].astype(bool)
        parts = []
        for _, _, rows in topk.blocks(histories, max(histories.n_items, AT_ONCE * self.n_factors)):
            scores = self._scores(state, sequences.asked_with(rows, known), known, self.newest)
            if exclude_seen:
                topk.hide_seen(scores, rows)
            parts.append(topk.best(scores, k))
        return topk.stack(parts, k)

    def _scores(self, params: Params, steps: Sequences, known: npt.NDArray[np.bool_], encode: Encoder) -> Floats:
        """Return float32 [n_users, n_items], -inf for items and users that are not known."""
        vector, told = self._encoded(params, steps, encode)
        scores = np.full((len(told), steps.n_items), -np.inf, dtype=np.float32)
        scores[told] = np.where(known, vector[told] @ params["item"][: steps.n_items].T, np.float32(-np.inf))
        return scores

    def _encoded(self, params: Params, steps: Sequences, encode: Encoder) -> tuple[Floats, Bools]:
        """Return float32 [n_users, n_factors], what each user's newest step predicts, and who has a step."""
        asked = steps.newest(min(self.max_history, max(int(steps.lengths().max(initial=1)), 1)))
        told = steps.lengths() > 0
        vector = np.zeros((len(asked), self.n_factors), dtype=np.float32)
        if told.any():
            vector[told] = encode(params, self.asked(asked[told], steps.pad), steps.pad)
        return vector, told

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return the table of items, and which items may be proposed."""
        state = topk.fitted(type(self).__name__, self.state)
        known = np.asarray(state["known"], dtype=bool)
        return np.asarray(state["item"], dtype=np.float32)[: len(known)], known

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return what the users' newest steps predict, and who has a step that the model knows."""
        state = cast("Params", topk.checked(type(self).__name__, self.state, histories))
        known = np.asarray(state["known"], dtype=bool)
        blocks = topk.blocks(histories, AT_ONCE * self.n_factors)
        parts = [self._encoded(state, sequences.asked_with(rows, known), self.newest) for _, _, rows in blocks]
        empty = (np.zeros((0, self.n_factors), np.float32), np.zeros(0, dtype=bool))
        return np.concatenate([empty[0], *(part[0] for part in parts)]), np.concatenate([empty[1], *(part[1] for part in parts)])

    def asked(self, item: Ints, pad: int) -> Ints:  # noqa: ARG002 - what a model appends may need it
        """Return what the encoder reads so that its newest position predicts the next item: the steps themselves."""
        return item

    def newest(self, params: Params, item: Ints, pad: int) -> Floats:
        """Return float32 [n, n_factors], what the newest position predicts; computed with numpy."""
        vectors: Floats = self.encode(np, params, item, pad, None, last=True)[:, -1]
        return vectors


@functools.lru_cache(maxsize=8)
def _on_accelerator(learner: SequenceModel) -> Encoder:
    """Return `newest` by JAX, for blocks filled up to one shape, which is compiled once."""
    jax = backend.jax()
    encode = jax.jit(lambda params, item, pad: learner.encode(jax.numpy, params, item, pad, None, last=True)[:, -1])

    def newest(params: Params, item: Ints, pad: int) -> Floats:
        rows = -(-len(item) // sequences.JUDGED_AT_ONCE) * sequences.JUDGED_AT_ONCE
        filled = np.full((rows, learner.max_history), pad, dtype=np.int32)
        filled[: len(item), learner.max_history - item.shape[1] :] = item
        found: Floats = np.asarray(encode(params, filled, pad))[: len(item)]
        return found

    return newest
