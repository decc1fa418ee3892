"""NeuMF, and its halves GMF and MLP: a network scores pairs of a user's history and an item."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Floats, Histories, Interactions, Ints
from pipelines.errors import StateError
from pipelines.retrieval import topk
from pipelines.retrieval.bpr import Bpr
from pipelines.retrieval.neural import layers, sequences
from pipelines.retrieval.neural.backend import Array, Params
from pipelines.retrieval.neural.sequences import Sequences, Split
from pipelines.retrieval.neural.training import Batch, Material, Training, train
from pipelines.retrieval.protocol import Candidates

ARMS: Final = {"neumf": ("gmf", "mlp"), "gmf": ("gmf",), "mlp": ("mlp",)}


@dataclass(frozen=True)
class NeuMf(Training):
    """A learnt product of factors beside a network over them (He et al., WWW 2017, eqs. 9 to 12), for users never seen.

    In place of a vector per user stands the sum of vectors of its items over the root of their number,
    less the item that is asked for (Kabbur et al., KDD 2013): p = (sum over j in H, j != i, of q_j) / sqrt(|H - i|).
    GMF scores w' (p * e_i) + b_i, MLP a tower over (p, e_i) whose layers halve; NeuMF adds the two. As in the
    paper (section 3.4.1) the GMF half begins from factors learnt alone, here by `bpr`, and the tower from no say at all.

    It scores candidates (`score`). Asked for candidates of its own, it scores the whole catalogue up
    to `n_shortlist` items, and above that what its GMF half, a plain inner product, puts highest;
    MLP alone has no such half and always scores everything. State: the parameters by name.

    Attributes:
        architecture: `neumf`, `gmf` or `mlp`.
        n_factors: length of a vector; each half has its own.
        max_history: newest steps that a user is made of.
        loss: `bce`, as in the paper, or `softmax` of the item against those drawn with it.
        n_negatives: items drawn uniformly for each step that is learnt.
        pretrain_epochs: passes of `bpr` over what is learnt from, from which the GMF half begins; 0 for random factors.
        n_shortlist: items that are scored a user, at most.
        dropout: share of values dropped in the tower while training.
    """

    batch_size: int = 32
    architecture: Literal["neumf", "gmf", "mlp"] = "neumf"
    n_factors: int = 32
    max_history: int = 200
    loss: Literal["softmax", "bce"] = "softmax"
    n_negatives: int = 8
    pretrain_epochs: int = 20
    n_shortlist: int = 1000
    dropout: float = 0.1
    state: Params | None = field(default=None, repr=False, compare=False)

    def resume(self, interactions: Interactions, checkpoint: Path | None) -> Self:
        """Return a fitted copy, going on from a checkpoint where there is one of this very training."""
        if self.architecture not in ARMS or self.loss not in {"bce", "softmax"}:
            found, allowed = f"architecture {self.architecture!r} with loss {self.loss!r}", f"one of {list(ARMS)} with 'bce' or 'softmax'"
            raise StateError("neumf", found=found, allowed=allowed, hint="see the source's knobs")
        steps = sequences.learnt_from(interactions)
        known = np.bincount(steps.item, minlength=steps.n_items) > 0
        params = self._first(np.random.default_rng([self.seed, 0]), sequences.table_rows(steps.n_items))
        if (steps.lengths() > 1).any():
            judged = sequences.split(steps, self)
            if "gmf" in ARMS[self.architecture] and self.pretrain_epochs:
                self._pretrain(params, steps if judged is None else judged.fit, known)
            params = self._train(params, steps, judged, known, checkpoint)
        return replace(self, state={"n_items": np.array([steps.n_items]), "known": known, **params})

    def _first(self, rng: np.random.Generator, rows: int) -> Params:
        d, params = self.n_factors, {}
        for arm in ARMS[self.architecture]:
            for side in ("history", "item"):
                params[f"{arm}.{side}"] = (0.2 * rng.standard_normal((rows, d))).astype(np.float32)
        if "gmf" in ARMS[self.architecture]:
            params |= {"gmf.out": np.ones(d, dtype=np.float32), "gmf.bias": np.zeros(rows, dtype=np.float32)}
        if "mlp" in ARMS[self.architecture]:
            params |= {"mlp.of_user": layers.dense(rng, d, d), "mlp.of_item": layers.dense(rng, d, d)}
            params |= {"mlp.shift0": np.zeros(d, np.float32), "mlp.shift1": np.zeros(d // 2, np.float32)}
            params |= {"mlp.deep": layers.dense(rng, d, d // 2), "mlp.out": layers.dense(rng, d // 2, 1)}
        return params

    def _pretrain(self, params: Params, steps: Sequences, known: npt.NDArray[np.bool_]) -> None:
        """Put the factors that `bpr` learns into the GMF half, and silence the tower beside it."""
        users = sparse.csr_matrix(
            (np.ones(len(steps.item), dtype=np.float32), steps.item, steps.indptr), (len(steps.lengths()), steps.n_items)
        )
        users.sum_duplicates()
        users.data[:] = 1
        alone = Bpr(n_factors=self.n_factors, n_epochs=self.pretrain_epochs, seed=self.seed, num_threads=1).learnt(users, known)
        for name, learnt in (("history", "history"), ("item", "factor"), ("bias", "bias")):
            params[f"gmf.{name}"][: steps.n_items] = alone[learnt]
        if "mlp.out" in params:
            params["mlp.out"][:] = 0

    def _train(
        self, params: Params, steps: Sequences, judged: Split | None, known: npt.NDArray[np.bool_], checkpoint: Path | None
    ) -> Params:
        some = np.flatnonzero(known)

        def batches(rng: np.random.Generator, everything: bool) -> Iterable[Batch]:
            learnt = steps if everything or judged is None else judged.fit
            for batch in sequences.shuffled({"item": learnt.wholes(self.max_history, rng)}, self.batch_size, rng):
                shape = (*batch["item"].shape, self.n_negatives)
                yield batch | {"negative": some[rng.integers(0, len(some), shape)].astype(np.int32)}

        def quality(learnt: Params) -> float:
            def scored(part: Split) -> Floats:
                found = np.full((len(part.target), steps.n_items), -np.inf, dtype=np.float32)
                found[:, some] = self._score(learnt, part.history, np.broadcast_to(some, (len(part.target), len(some))))
                return found

            return sequences.validated(scored, cast("Split", judged))

        made_of = (steps.indptr, steps.item, steps.at)
        material = Material(batches, None if judged is None else quality, {}, made_of)
        return train(replace(self, state=None), params, material, checkpoint)

    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:  # noqa: ARG002 - the trainer's signature
        """Return the mean loss of the steps of a batch, each left out of its own history."""
        from jax import numpy as jnp

        item = batch["item"]
        there = item != next(iter(params.values())).shape[0] - 1
        asked = jnp.concatenate([item[:, :, None], batch["negative"]], axis=2)
        users = {}
        for arm in ARMS[self.architecture]:
            own = params[f"{arm}.history"][item] * there[:, :, None]
            others = (there.sum(axis=1) - 1).clip(1)[:, None, None]
            users[arm] = ((own.sum(axis=1, keepdims=True) - own) / jnp.sqrt(others))[:, :, None, :]
        logits = self._logits(jnp, params, users, asked, layers.dropout(key, self.dropout))
        # A drawn item that the window holds is no negative.
        met = (batch["negative"][:, :, :, None] == item[:, None, None, :]).any(axis=3)
        others = jnp.where(met, layers.MASKED, logits[:, :, 1:])
        if self.loss == "bce":
            loss = jnp.logaddexp(0, -logits[:, :, 0]) + jnp.logaddexp(0, others).sum(axis=2)
        else:
            loss = jnp.logaddexp(logits[:, :, 0], layers.log_sum_exp(jnp, others)) - logits[:, :, 0]
        counted = there & (there.sum(axis=1) > 1)[:, None]
        return (loss * counted).sum() / counted.sum().clip(1)

    def _logits(self, xp: Any, params: Params, users: dict[str, Array], item: Array, drop: layers.Drop) -> Array:
        """Return [...], the scores of some items.

        Args:
            users: for each half [..., n_factors].
            item: int [...].
        """
        total = xp.zeros((), dtype=np.float32)
        if "gmf" in users:
            total = total + ((users["gmf"] * params["gmf.out"]) * params["gmf.item"][item]).sum(axis=-1) + params["gmf.bias"][item]
        if "mlp" in users:
            # The first layer over (p, e) is a sum of one over each, so neither is computed twice.
            of_item = (params["mlp.item"] @ params["mlp.of_item"])[item]
            x = drop(xp.maximum(users["mlp"] @ params["mlp.of_user"] + of_item + params["mlp.shift0"], 0))
            x = drop(xp.maximum(x @ params["mlp.deep"] + params["mlp.shift1"], 0))
            total = total + (x @ params["mlp.out"])[..., 0]
        return total

    def score(self, histories: Histories, item: Ints) -> Floats:
        """Return float32 [n_users, n], the scores of candidates; -inf where an item is -1 or unknown, or nothing is known of the user.

        An item of the history is scored as if it had not been met.

        Args:
            item: int32 [n_users, n].

        Raises:
            StateError: the model was not fitted, or the histories index another catalogue.
        """
        state = cast("Params", topk.checked("neumf", self.state, histories))
        known = np.append(state["known"].astype(bool), False)  # -1 reads the last
        steps = sequences.asked_with(histories, known[:-1])
        scores = self._score(state, steps, np.maximum(item, 0))
        return np.where(known[item] & (steps.lengths() > 0)[:, None], scores, np.float32(-np.inf))

    def _score(self, params: Params, steps: Sequences, item: npt.NDArray[np.integer]) -> Floats:
        """Return float32 [n_users, n], scores of items for users made of some steps, blocks of users at a time."""
        asked = steps.newest(self.max_history)
        scores = np.zeros(item.shape, dtype=np.float32)
        step = max(1, topk.BLOCK // max(4 * self.n_factors * item.shape[1], self.n_factors * self.max_history))
        for first in range(0, len(asked), step):
            block, wanted = asked[first : first + step], item[first : first + step]
            there = block != steps.pad
            # How often the history holds the item that is asked for: that part is taken off again.
            met = np.zeros((len(block), steps.n_items + 1), dtype=np.float32)
            np.add.at(met, (np.arange(len(block))[:, None], np.where(there, block, steps.n_items)), 1)
            own = np.take_along_axis(met, wanted, axis=1)[:, :, None]
            root = np.sqrt(np.maximum(there.sum(axis=1)[:, None, None] - own, 1))
            users = {
                arm: ((params[f"{arm}.history"][block] * there[:, :, None]).sum(axis=1)[:, None] - own * params[f"{arm}.history"][wanted])
                / root
                for arm in ARMS[self.architecture]
            }
            scores[first : first + step] = self._logits(np, params, users, wanted, layers.keep)
        return scores

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the highest scored items of the catalogue, or of the shortlist."""
        state = cast("Params", topk.checked("neumf", self.state, histories))
        known = state["known"].astype(bool)
        parts = []
        for _, _, rows in topk.blocks(histories, max(histories.n_items, self.n_factors * self.max_history)):
            item = self._shortlist(state, sequences.asked_with(rows, known), np.flatnonzero(known), max(k, self.n_shortlist))
            scores = np.full((rows.n_users, rows.n_items), -np.inf, dtype=np.float32)
            np.put_along_axis(scores, item, self.score(rows, item.astype(np.int32)), axis=1)
            if exclude_seen:
                topk.hide_seen(scores, rows)
            parts.append(topk.best(scores, k))
        return topk.stack(parts, k)

    def _shortlist(self, params: Params, steps: Sequences, some: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
        """Return int64 [n_users, n], the known items to score: all, or those that the GMF half puts highest."""
        asked = steps.newest(self.max_history)
        if len(some) <= size or "gmf" not in ARMS[self.architecture]:
            return np.broadcast_to(some, (len(asked), len(some)))
        there = asked != steps.pad
        users = (params["gmf.history"][asked] * there[:, :, None]).sum(axis=1) * params["gmf.out"]
        users = users / np.sqrt(np.maximum(there.sum(axis=1, keepdims=True), 1))
        # As the score itself, but for the item's own part of the history, which is seldom there.
        scores = users @ params["gmf.item"][some].T + params["gmf.bias"][some]
        return some[np.argpartition(-scores, size - 1, axis=1)[:, :size]]
