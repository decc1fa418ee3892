"""What all networks that rank share: lists as batches, early stopping on the newest window, and scores that do not depend on the batch.

Trained by `retrieval.neural.training`, which keeps the budget (epochs or seconds) and the best epoch. No
parameter belongs to a user or an item: a network sees the feature matrix alone, as every other ranker does.
"""

from __future__ import annotations

import io
import zipfile
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Ints, Longs
from pipelines.errors import StateError
from pipelines.evaluation import metrics
from pipelines.knobs import Range
from pipelines.ranking.logistic import packed
from pipelines.ranking.neural import inputs
from pipelines.ranking.protocol import RankingRows, check_width
from pipelines.retrieval.neural import backend, layers
from pipelines.retrieval.neural.backend import Array, Params
from pipelines.retrieval.neural.training import Batch, Material, train

STATE_FILE: Final = "network.npz"
ROWS_AT_ONCE: Final = 256  # scored together, always so many: a matrix product rounds by the height of the matrix
SHUFFLED: Final = 1000  # rows that importance is measured on

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Learnt:
    """What a network learnt.

    Attributes:
        names: the features, in the order of the matrix.
        arrays: parameters, the statistics of `inputs` as `in.NAME`, and `importance` float32 [n_features].
    """

    names: tuple[str, ...]
    arrays: Params


@dataclass(frozen=True)
class Network:
    """The knobs of every network that ranks, and the forward pass it must bring.

    Attributes:
        n_hidden, n_layers: of the deep part, ReLU.
        dropout: share of values dropped in it while training.
        scaling: see `inputs`.
        batch_size: lists a step.
        max_list: candidates of a list that a step sees: those taken first, the others drawn anew each time.
        n_epochs, seconds, patience, learning_rate, warmup, decay, weight_decay, final_epochs: see `retrieval.neural.training.Training`.
        n_validation: lists of the newest window judged after each epoch, at most, drawn with `seed`.
        seed: of the first parameters, the batches and the dropout.
    """

    n_hidden: int = 64
    n_layers: int = 2
    dropout: float = 0.1
    scaling: Literal["standard", "quantile"] = "standard"
    batch_size: int = 32
    max_list: Annotated[int, Range(2, 10_000)] = 64
    n_epochs: int = 20
    seconds: float = 0.0
    patience: int = 3
    learning_rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.1
    weight_decay: float = 1e-4
    final_epochs: int = 1
    n_validation: int = 2000
    seed: int = 7
    state: Learnt | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str]

    @abstractmethod
    def first(self, rng: np.random.Generator, n_inputs: int, rows: RankingRows) -> Params:
        """Return the parameters to begin with."""
        ...

    @abstractmethod
    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:
        """Return the loss of a batch; `x` [n, max_list, n_inputs], `gain` and `there` [n, max_list], and what `targets` adds."""
        ...

    @abstractmethod
    def ranked(self, xp: Any, params: Array, x: Array) -> Array:
        """Return [n], what candidates are ordered by, for inputs [n, n_inputs]."""
        ...

    def targets(self, rows: RankingRows) -> dict[str, npt.NDArray[Any]]:  # noqa: ARG002 - what others need
        """Return arrays by row that the objective needs beside the gain."""
        return {}

    def fit(self, rows: RankingRows) -> Self:
        """Return a fitted copy.

        Raises:
            StateError: no list has both a taken and an ignored candidate.
            ReloopError: JAX is not installed, a budget allows no step, or the loss is no longer a number.
        """
        backend.require(f"ranker {self.name}")
        lists = _Lists(rows, self.targets(rows), self.max_list, self.batch_size)
        held = rows.newest() & lists.telling
        if not (lists.telling & ~held).any():
            held = np.zeros(len(rows.group), dtype=bool)
        if not lists.telling.any():
            raise StateError("training rows of the ranker", found="no list with a taken and an ignored candidate", allowed="at least one")
        rng = np.random.default_rng([self.seed, 0])
        scale = inputs.learn(rows.features, rng)
        drawn = np.random.default_rng([self.seed, 1]).permutation(np.flatnonzero(held))
        judged = _Judged(rows, np.sort(drawn[: self.n_validation]))

        def batches(rng: np.random.Generator, everything: bool) -> Iterable[Batch]:
            for batch in lists.batches(lists.telling if everything else lists.telling & ~held, rng):
                yield batch | {"x": self._made(scale, batch.pop("features"))}

        def quality(params: Params) -> float:
            return judged.ndcg(self._scores(scale, params, judged.features))

        material = Material(batches, quality if len(judged.lists) else None, {}, (rows.gain, rows.group))
        params = train(replace(self, state=None), self.first(rng, inputs.width(scale), rows), material, None)
        sample = np.sort(rng.choice(len(rows.features), min(SHUFFLED, len(rows.features)), replace=False))
        importance = self._importance(scale, params, rows.features[sample], rng)
        return replace(
            self, state=Learnt(rows.names, {**params, **{f"in.{name}": array for name, array in scale.items()}, "importance": importance})
        )

    def _made(self, scale: Params, features: Floats) -> Floats:
        """Return inputs [..., n_inputs] of features [..., n_features]."""
        flat = inputs.made(scale, features.reshape(-1, features.shape[-1]), self.scaling)
        return flat.reshape(*features.shape[:-1], flat.shape[1])

    def score(self, features: Floats, group: Ints | None = None) -> Doubles:
        """Return float64 [n], what candidates are ordered by; see `Ranker.score`.

        Raises:
            StateError: not fitted, or another number of features.
        """
        del group
        state = self._fitted()
        check_width(features, state.names)
        scale = {name.removeprefix("in."): array for name, array in state.arrays.items() if name.startswith("in.")}
        return self._scores(scale, state.arrays, features)

    def _scores(self, scale: Params, params: Params, features: Floats) -> Doubles:
        """Return float64 [n], computed in doubles in blocks of one height and rounded to float32: the same in any company."""
        doubles = {name: array.astype(np.float64) for name, array in params.items() if not name.startswith("in.")}
        found = np.empty(len(features), dtype=np.float32)
        for first in range(0, len(features), ROWS_AT_ONCE):
            block = self._made(scale, np.asarray(features[first : first + ROWS_AT_ONCE]))
            x = np.zeros((ROWS_AT_ONCE, block.shape[1]))
            x[: len(block)] = block
            found[first : first + len(block)] = self.ranked(np, doubles, x)[: len(block)]
        return found.astype(np.float64)

    def _importance(self, scale: Params, params: Params, features: Floats, rng: np.random.Generator) -> Floats:
        """Return float32 [n_features], the mean change of the score where a feature is shuffled among rows (after Breiman, 2001)."""
        usual, found = self._scores(scale, params, features), np.zeros(features.shape[1], dtype=np.float32)
        for column in range(features.shape[1]):
            mixed = features.copy()
            mixed[:, column] = rng.permutation(mixed[:, column])
            found[column] = np.abs(self._scores(scale, params, mixed) - usual).mean()
        return found

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features it reads, in the order of the matrix."""
        return self._fitted().names

    @property
    def importance(self) -> dict[str, float]:
        """Return the share of each feature in how much shuffling changes the scores, largest first."""
        state = self._fitted()
        value = state.arrays["importance"].astype(np.float64)
        shares = value / (value.sum() or 1.0)
        return {state.names[at]: float(shares[at]) for at in np.argsort(-shares, kind="stable")} if value.sum() else {}

    @property
    def size(self) -> dict[str, int]:
        """Return the number of parameters."""
        arrays = self._fitted().arrays.items()
        return {"weights": sum(array.size for name, array in arrays if not name.startswith("in.") and name != "importance")}

    def dump(self) -> dict[str, bytes]:
        """Return parameters and statistics as npz."""
        return {STATE_FILE: packed(self._fitted().arrays)}

    def restore(self, files: Mapping[str, bytes], names: tuple[str, ...]) -> Self:
        """Return a copy with what `dump` wrote.

        Raises:
            StateError: a file is missing, or holds something else.
        """
        try:
            with np.load(io.BytesIO(files[STATE_FILE]), allow_pickle=False) as saved:
                made = replace(self, state=Learnt(names, {name: saved[name] for name in saved.files}))
            score = made.score(np.zeros((1, len(names)), dtype=np.float32))
            told = made.importance
        except (KeyError, ValueError, IndexError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StateError(self.name, found=f"{type(error).__name__}: {error}", allowed=f"{STATE_FILE} of a {self.name}") from error
        if not np.isfinite(score).all() or not np.isfinite(list(told.values())).all():
            raise StateError(self.name, found="NaN or infinity", allowed="finite numbers", hint="run the rank stage again")
        return made

    def _fitted(self) -> Learnt:
        if self.state is None:
            raise StateError(self.name, found="not fitted", allowed="a fitted ranker", hint="call fit first")
        return self.state


class _Lists:
    """Training rows as batches of lists, all of one shape."""

    def __init__(self, rows: RankingRows, extra: Mapping[str, npt.NDArray[Any]], width: int, size: int) -> None:
        self.rows, self.extra, self.width, self.size = rows, extra, width, size
        self.starts: Longs = np.concatenate([[0], np.cumsum(rows.group, dtype=np.int64)])
        taken = np.concatenate([[0], np.cumsum(rows.gain > 0)])
        n_taken = taken[self.starts[1:]] - taken[self.starts[:-1]]
        self.telling = (n_taken > 0) & (n_taken < rows.group)

    def batches(self, chosen: npt.NDArray[np.bool_], rng: np.random.Generator) -> Iterable[dict[str, Any]]:
        """Yield the chosen lists in random order; the last batch is filled up with lists that count nothing."""
        lists = rng.permutation(np.flatnonzero(chosen))
        for first in range(0, len(lists), self.size):
            some = lists[first : first + self.size]
            length = self.rows.group[some]
            at = self.starts[some][:, None] + np.arange(max(int(length.max()), self.width))
            there = np.arange(at.shape[1]) < length[:, None]
            at = np.where(there, at, self.starts[some][:, None])
            if at.shape[1] > self.width:
                order = rng.random(at.shape) - (self.rows.gain[at] > 0) + 2.0 * ~there
                kept = np.argsort(order, axis=1, kind="stable")[:, : self.width]
                at, there = np.take_along_axis(at, kept, axis=1), np.take_along_axis(there, kept, axis=1)
            full = np.zeros((self.size, self.width), dtype=np.int64)
            counted = np.zeros(full.shape, dtype=bool)
            full[: len(some)], counted[: len(some)] = at, there
            yield {
                "features": self.rows.features[full],
                "gain": self.rows.gain[full] * counted,
                "there": counted,
                **{name: array[full] for name, array in self.extra.items()},
            }


class _Judged:
    """Some lists and what they are worth in an order."""

    def __init__(self, rows: RankingRows, lists: Longs) -> None:
        chosen = np.zeros(len(rows.group), dtype=bool)
        chosen[lists] = True
        part = rows.of_windows(chosen)
        self.lists, self.features = lists, part.features
        self.row = np.repeat(np.arange(len(lists)), part.group)
        self.column = np.arange(len(part.gain)) - np.repeat(np.cumsum(part.group) - part.group, part.group)
        taken = part.gain > 0
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(self.row[taken], minlength=len(lists)))])
        self.item, self.gain = self.column[taken].astype(np.int32), part.gain[taken]

    def ndcg(self, score: Doubles) -> float:
        """Return the mean NDCG@10 of the lists in the order of a score."""
        dense = np.full((len(self.lists), int(self.column.max()) + 1), -np.inf)
        dense[self.row, self.column] = score
        order = np.argsort(-dense, axis=1, kind="stable")[:, :10].astype(np.int32)
        return metrics.mean(metrics.ndcg(metrics.judge(order, self.indptr, self.item, self.gain), 10)) or 0.0


def deep_first(rng: np.random.Generator, name: str, n_in: int, n_hidden: int, n_layers: int) -> Params:
    """Return the parameters of a stack of dense layers, each of one width."""
    made: Params = {}
    for layer in range(n_layers):
        made[f"{name}{layer}.weight"] = layers.dense(rng, n_in if layer == 0 else n_hidden, n_hidden) * np.float32(
            np.sqrt(2)
        )  # He et al., 2015
        made[f"{name}{layer}.shift"] = np.zeros(n_hidden, dtype=np.float32)
    return made


def deep(xp: Any, params: Array, name: str, x: Array, drop: layers.Drop) -> Array:
    """Return what the stack of dense ReLU layers of a name makes of x."""
    layer = 0
    while f"{name}{layer}.weight" in params:
        x = drop(xp.maximum(x @ params[f"{name}{layer}.weight"] + params[f"{name}{layer}.shift"], 0))
        layer += 1
    return x


def listwise(xp: Any, logits: Array, batch: Array) -> Array:
    """Return the softmax loss (ListNet's top-one form; Cao et al., ICML 2007): the cross entropy of gains and scores, mean over lists."""
    masked = xp.where(batch["there"], logits, layers.MASKED)
    total = batch["gain"].sum(axis=1)
    share = batch["gain"] / xp.maximum(total, 1e-9)[:, None]
    loss = layers.log_sum_exp(xp, masked) - (share * xp.where(batch["there"], logits, 0)).sum(axis=1)
    return (loss * (total > 0)).sum() / xp.maximum((total > 0).sum(), 1)


def pointwise(xp: Any, logits: Array, target: Array, weight: Array) -> Array:
    """Return the weighted mean log-loss of targets in [0, 1]."""
    loss = xp.logaddexp(0, logits) - target * logits
    return (loss * weight).sum() / xp.maximum(weight.sum(), 1e-9)


def taken(xp: Any, loss: str, logits: Array, batch: Array) -> Array:
    """Return the loss by which a network learns one order: `softmax`, or `pointwise` of whether a candidate is taken."""
    if loss == "softmax":
        return listwise(xp, logits, batch)
    return pointwise(xp, logits, (batch["gain"] > 0) * 1.0, batch["there"] * 1.0)
