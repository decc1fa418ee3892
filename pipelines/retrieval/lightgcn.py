"""LightGCN: item vectors smoothed over the graph of who met what, without a vector per user."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions
from pipelines.retrieval import topk
from pipelines.retrieval.neural import backend, layers, sequences
from pipelines.retrieval.neural.backend import Array, Params
from pipelines.retrieval.neural.sequences import Sequences, Split
from pipelines.retrieval.neural.training import Batch, Material, Training, train
from pipelines.retrieval.protocol import Candidates

EDGES: Final = 1024  # stored values grow by so many, so that graphs of like size share a compiled step


@dataclass(frozen=True)
class LightGcn(Training):
    """Linear propagation over the normalised graph A, A_ui = 1 / sqrt(d_u d_i) (He et al., SIGIR 2020, eqs. 7 and 8).

    LightGCN's vectors of users at layer 0 are left out, so that a user is nothing but its items:
    I = mean over l of (A'A)^l E for the items, A I for the users, which a request computes for
    a user never seen from the items it met. Each round of A'A is two of the paper's layers. While
    learning, the pairs of a batch are taken out of the graph, else the model would learn to
    recognise what it was handed: a user reaches its own item along every path back to itself.

    The loss is a softmax of cosines against items drawn uniformly for the batch, or BPR on one of
    them a pair (Rendle et al., UAI 2009), as in the paper. State: vector float32 [n_items,
    n_factors], of length 1; spread float32 [n_items, n_factors], what an item adds to its users.

    Attributes:
        n_factors: length of a vector.
        n_rounds: of A'A; 0 is a plain factorisation of pairs.
        loss: `softmax` or `bpr`.
        temperature: of the softmax.
        n_negatives: items drawn for each batch.
        regularization: of the vectors, times their squared length, with `bpr`.
    """

    n_epochs: int = 30
    learning_rate: float = 5e-3
    batch_size: int = 4096
    n_factors: int = 64
    n_rounds: int = 1
    loss: str = "softmax"
    temperature: float = 0.08
    n_negatives: int = 1024
    regularization: float = 1e-4
    state: Params | None = field(default=None, repr=False, compare=False)

    def resume(self, interactions: Interactions, checkpoint: Path | None) -> Self:
        """Return a fitted copy, going on from a checkpoint where there is one of this very training."""
        steps = sequences.learnt_from(interactions)
        known = np.bincount(steps.item, minlength=steps.n_items) > 0
        rng = np.random.default_rng([self.seed, 0])
        shape = (sequences.table_rows(steps.n_items), self.n_factors)
        params: Params = {"item": 0.1 * rng.standard_normal(shape).astype(np.float32)}
        graph = _graph(steps)
        if graph.nnz and (graph.getnnz(axis=1) > 1).any():
            params = self._train(params, steps, graph, known, checkpoint)
        vector, spread = self._spread(params["item"][: steps.n_items], graph)
        return replace(self, state={"n_items": np.array([steps.n_items]), "known": known, "vector": vector, "spread": spread})

    def _train(
        self, params: Params, steps: Sequences, graph: sparse.csr_matrix, known: npt.NDArray[np.bool_], checkpoint: Path | None
    ) -> Params:
        judged = sequences.split(steps, self)
        fit = graph if judged is None else _graph(judged.fit)
        learner, some = replace(self, state=None), np.flatnonzero(known)
        data = _padded(graph, fit, len(params["item"]))
        place_of_fit = np.flatnonzero(data["user.fit"])

        def batches(rng: np.random.Generator, everything: bool) -> Iterable[Batch]:
            pairs = (graph if everything else fit).tocoo()
            lonely = np.bincount(pairs.row, minlength=pairs.shape[0]) < 2  # without its only item, nothing is known of a user
            kept = ~lonely[pairs.row]
            place = np.arange(graph.nnz) if everything else place_of_fit
            arrays = {"user": pairs.row[kept], "item": pairs.col[kept], "pair": place[kept].astype(np.int32)}
            for batch in sequences.shuffled(arrays, self.batch_size, rng):
                negative = some[rng.integers(0, len(some), self.n_negatives)].astype(np.int32)
                yield batch | {"negative": negative, "everything": np.array(everything)}

        def quality(learnt: Params) -> float:
            vector, spread = self._spread(learnt["item"][: steps.n_items], fit)
            return sequences.validated(
                lambda judging: np.where(known, _users(_pairs(judging.history), spread) @ vector.T, np.float32(-np.inf)),
                cast("Split", judged),
            )

        made_of = (steps.indptr, steps.item, steps.at)
        return train(learner, params, Material(batches, None if judged is None else quality, data, made_of), checkpoint)

    def _spread(self, item: Floats, graph: sparse.csr_matrix) -> tuple[Floats, Floats]:
        """Return (the items' vectors of length 1, what each adds to its users), float32 [n_items, n_factors]."""
        summed, layer = item, item
        for _ in range(self.n_rounds):
            layer = graph.T @ (graph @ layer)
            summed = summed + layer
        degree = np.maximum(graph.getnnz(axis=0), 1).astype(np.float32)
        return layers.unit(summed).astype(np.float32), (summed / np.sqrt(degree)[:, None]).astype(np.float32)

    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:
        """Return the mean loss of a batch of pairs."""
        from jax import numpy as jnp

        to_users, to_items = _products(data, batch, len(data["user.indptr"]) - 1, len(params["item"]))
        item, layer = params["item"], params["item"]
        for _ in range(self.n_rounds):
            layer = to_items(to_users(layer))
            item = item + layer
        chosen = item[batch["item"]]
        user = to_users(item)[batch["user"]]
        if self.loss == "bpr":
            other = item[batch["negative"][backend.jax().random.randint(key, batch["item"].shape, 0, self.n_negatives)]]
            size = (params["item"][batch["item"]] ** 2).sum(axis=1)
            return (jnp.logaddexp(0, (user * (other - chosen)).sum(axis=1)) + self.regularization * size).mean()
        user = layers.unit(user) / np.float32(self.temperature)
        own = (user * layers.unit(chosen)).sum(axis=1)
        others = user @ layers.unit(item[batch["negative"]]).T
        others = jnp.where(batch["item"][:, None] == batch["negative"], layers.MASKED, others)
        return (jnp.logaddexp(own, layers.log_sum_exp(jnp, others)) - own).mean()

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items nearest to what the user's items add up to."""
        state = cast("Params", topk.checked("lightgcn", self.state, histories))
        known = state["known"].astype(bool)
        parts = []
        for _, _, rows in topk.blocks(histories, max(histories.n_items, self.n_factors)):
            users, told = self.query_vectors(rows)
            scores = np.where(known & told[:, None], users @ state["vector"].T, np.float32(-np.inf))
            if exclude_seen:
                topk.hide_seen(scores, rows)
            parts.append(topk.best(scores, k))
        return topk.stack(parts, k)

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return the smoothed vectors of the items, of length 1, and which items may be proposed."""
        state = topk.fitted("lightgcn", self.state)
        return np.asarray(state["vector"], dtype=np.float32), np.asarray(state["known"], dtype=bool)

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return what the users' items add up to, of length 1, and who met an item that the model knows."""
        state = topk.checked("lightgcn", self.state, histories)
        met = _pairs(sequences.asked_with(histories, np.asarray(state["known"], dtype=bool)))
        return _users(met, np.asarray(state["spread"], dtype=np.float32)), met.getnnz(axis=1) > 0


def _users(met: sparse.csr_matrix, spread: Floats) -> Floats:
    """Return float32 [n_users, n_factors], vectors of length 1 from who met what."""
    users: Floats = layers.unit(np.asarray(met @ spread)).astype(np.float32)
    return users


def _pairs(steps: Sequences) -> sparse.csr_matrix:
    """Return float32 [n_users, n_items], 1 where a user met an item."""
    shape = (len(steps.indptr) - 1, steps.n_items)
    met = sparse.csr_matrix((np.ones(len(steps.item), dtype=np.float32), steps.item, steps.indptr), shape=shape, copy=True)
    met.sum_duplicates()
    met.data[:] = 1
    return met


def _graph(steps: Sequences) -> sparse.csr_matrix:
    """Return A, float32 [n_users, n_items]."""
    graph = _pairs(steps)
    by_user, by_item = (np.maximum(graph.getnnz(axis=axis), 1) for axis in (1, 0))
    row = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    graph.data = (1 / np.sqrt(by_user[row] * by_item[graph.indices])).astype(np.float32)
    return graph


def _padded(graph: sparse.csr_matrix, fit: sparse.csr_matrix, rows: int) -> Batch:
    """Return the arrays of A and of A', with the values of everything and of what is learnt from while validating.

    Rows grow to the size of the tables; stored values to a multiple of `EDGES`, zeros of the last row.
    """
    values = graph.copy()
    row = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    values.data = np.arange(1, graph.nnz + 1, dtype=np.int64)  # which pair, to find it again after transposing
    of_fit = np.asarray(fit[row, graph.indices], dtype=np.float32).ravel()
    data: Batch = {}
    for name, matrix, height in (("user", values, sequences.table_rows(graph.shape[0])), ("item", values.T.tocsr(), rows)):
        extra = -matrix.nnz % EDGES
        place = np.concatenate([matrix.data - 1, np.zeros(extra, dtype=np.int64)])
        there = np.arange(len(place)) < matrix.nnz
        indptr = np.full(height + 1, matrix.nnz, dtype=np.int32)
        indptr[: len(matrix.indptr)] = matrix.indptr
        indptr[-1] += extra
        data[f"{name}.indptr"] = indptr
        data[f"{name}.indices"] = np.concatenate([matrix.indices, np.zeros(extra, dtype=np.int32)]).astype(np.int32)
        data[f"{name}.all"] = np.where(there, graph.data[place], np.float32(0))
        data[f"{name}.fit"] = np.where(there, of_fit[place], np.float32(0))
        data[f"{name}.of"] = np.argsort(place[: graph.nnz]).astype(np.int32)
    return data


def _products(data: Array, batch: Array, n_users: int, n_items: int) -> tuple[Any, Any]:
    """Return the functions x -> A x and x -> A' x; the gradient of each is the other, so nothing is scattered."""
    jax = backend.jax()
    from jax.experimental import sparse as jsparse

    def stored(name: str, shape: tuple[int, int]) -> Any:
        value = jax.numpy.where(batch["everything"], data[f"{name}.all"], data[f"{name}.fit"])
        value = value.at[data[f"{name}.of"][batch["pair"]]].set(0)
        return jsparse.BCSR((value, data[f"{name}.indices"], data[f"{name}.indptr"]), shape=shape)

    graph, transposed = stored("user", (n_users, n_items)), stored("item", (n_items, n_users))

    def product(forward: Any, backward: Any) -> Any:
        apply = jax.custom_vjp(lambda x: forward @ x)
        apply.defvjp(lambda x: (forward @ x, None), lambda _, gradient: (backward @ gradient,))
        return apply

    return product(graph, transposed), product(transposed, graph)
