"""Logistic blend: one weight for what each source says of a candidate. A cheap baseline that a ranker must beat.

    model.npz     mean, scale, weight, intercept of each input
    A source says three things: whether it proposed the item, 1/(60 + its rank), and its score,
    standardised over what it proposed; the last two are 0 where it did not. The blend's own score joins them.

Fitted on whether the user took the candidate at all, by Newton's method on the penalised
likelihood (iteratively reweighted least squares), in blocks: memory does not follow the rows, and no
random number is drawn.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Ints
from pipelines.errors import StateError
from pipelines.knobs import Range
from pipelines.ranking.protocol import RankingRows, check_width, source_columns

STATE_FILE: Final = "model.npz"
ROWS_AT_ONCE: Final = 1 << 17
STEPS: Final = 100

Doubles = npt.NDArray[np.float64]
Block = tuple[Doubles, Doubles, Doubles]  # inputs [n, n_inputs], targets [n] in [0, 1], weights [n]


@dataclass(frozen=True)
class Blended:
    """What the blend learnt; arrays float64 [n_inputs]."""

    names: tuple[str, ...]
    mean: Doubles
    scale: Doubles
    weight: Doubles
    intercept: float


@dataclass(frozen=True)
class Logistic:
    """Logistic regression on the scores and ranks of the sources.

    Attributes:
        constant: of the reciprocal rank.
        regularization: L2, per row that counts once, on inputs of unit deviation.
    """

    constant: Annotated[float, Range(0, 1e6)] = 60.0
    regularization: float = 1.0
    state: Blended | None = None

    name: ClassVar[str] = "logistic"

    def fit(self, rows: RankingRows) -> Logistic:
        """Return a fitted copy.

        Raises:
            StateError: no row, only taken or only ignored ones, or no column of a source.
        """
        taken = rows.gain > 0
        if not taken.any() or taken.all():
            raise StateError(
                "training rows of the ranker", found=f"{int(taken.sum())} of {len(taken)} taken", allowed="both taken and ignored ones"
            )
        n_inputs = self._inputs(rows.features[:0], rows.names).shape[1]
        total, squares = np.zeros(n_inputs), np.zeros(n_inputs)
        for block in _blocks(len(taken)):
            inputs = self._inputs(rows.features[block], rows.names)
            total, squares = total + inputs.sum(axis=0), squares + (inputs**2).sum(axis=0)
        mean = total / len(taken)
        deviation = np.sqrt(np.maximum(squares / len(taken) - mean**2, 0))
        scale = np.where(deviation > 1e-9 * np.maximum(np.abs(mean), 1), deviation, 1.0)
        # What never varies gets no weight: its standardised column is zero but for rounding.
        varies = scale == deviation

        def read() -> Iterator[Block]:
            for block in _blocks(len(taken)):
                inputs = (self._inputs(rows.features[block], rows.names) - mean) / scale * varies
                weight = np.ones(len(inputs)) if rows.weight is None else rows.weight[block].astype(np.float64)
                yield inputs, taken[block].astype(np.float64), weight

        found = newton(read, n_inputs, self.regularization)
        return replace(self, state=Blended(rows.names, mean, scale, found[:-1] * varies, float(found[-1])))

    def _inputs(self, features: Floats, names: tuple[str, ...]) -> Doubles:
        """Return float64 [n, n_inputs], what the sources say of each candidate."""
        columns = []
        for score, rank in source_columns(names):
            rank_, score_ = features[:, rank].astype(np.float64), features[:, score].astype(np.float64)
            met = np.isfinite(rank_)
            columns += [
                met.astype(np.float64),
                np.where(met, 1 / (self.constant + rank_), 0),
                np.where(met & np.isfinite(score_), score_, 0),
            ]
        if not columns:
            raise StateError("logistic", found="no column of a source", allowed="SOURCE_score and SOURCE_rank", hint="train again")
        if "blend_score" in names:
            columns.append(np.nan_to_num(features[:, names.index("blend_score")].astype(np.float64), posinf=0, neginf=0))
        return np.column_stack(columns)

    def score(self, features: Floats, group: Ints | None = None) -> Doubles:
        """Return float64 [n], the log odds that a candidate is taken.

        Raises:
            StateError: not fitted, or another number of features.
        """
        del group
        state = self._fitted()
        check_width(features, state.names)
        inputs = self._inputs(features, state.names)
        found = np.full(len(inputs), state.intercept)
        # Column by column: a matrix product rounds by the height of the matrix, and a score must not depend on the batch.
        for column, mean, scale, weight in zip(inputs.T, state.mean, state.scale, state.weight, strict=True):
            found += (column - mean) / scale * weight
        return found

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features of its matrix; it reads those of the sources."""
        return self._fitted().names

    @property
    def importance(self) -> dict[str, float]:
        """Return nothing: its inputs are no features."""
        return {}

    @property
    def size(self) -> dict[str, int]:
        """Return the number of weights."""
        return {"weights": len(self._fitted().weight) + 1}

    def _fitted(self) -> Blended:
        if self.state is None:
            raise StateError(self.name, found="not fitted", allowed="a fitted ranker", hint="call fit first")
        return self.state

    def dump(self) -> dict[str, bytes]:
        """Return the weights as npz."""
        state = self._fitted()
        return {
            STATE_FILE: packed(
                {"mean": state.mean, "scale": state.scale, "weight": state.weight, "intercept": np.array([state.intercept], np.float64)}
            )
        }

    def restore(self, files: Mapping[str, bytes], names: tuple[str, ...]) -> Logistic:
        """Return a copy with the weights that `dump` wrote.

        Raises:
            StateError: a file is missing, or holds something else.
        """
        arrays = unpacked(self.name, files, ("mean", "scale", "weight", "intercept"))
        n_inputs = self._inputs(np.zeros((0, len(names)), np.float32), names).shape[1]
        found = [array.shape for array in arrays.values()]
        if found != [(n_inputs,)] * 3 + [(1,)]:
            raise StateError(self.name, found=f"arrays of {found}", allowed=f"three of {n_inputs} and one of 1")
        return replace(self, state=Blended(names, arrays["mean"], arrays["scale"], arrays["weight"], float(arrays["intercept"][0])))


def newton(read: Callable[[], Iterator[Block]], n_inputs: int, regularization: float) -> Doubles:
    """Return float64 [n_inputs + 1], the weights that minimise the penalised logistic loss; the last is the intercept, not penalised.

    The loss is the weighted sum of log-losses plus regularization/2 times the squared weights. Newton's
    method with halved steps where a whole one does not help (Hastie, Tibshirani, Friedman, "The Elements of
    Statistical Learning", 2009, section 4.4.1).

    Args:
        read: yields the rows, block by block, the same each time it is called.
    """
    penalty = np.append(np.full(n_inputs, regularization), 0.0)

    def loss(weights: Doubles) -> tuple[float, Doubles, Doubles]:
        """Return the loss, its gradient and its Hessian."""
        value, slope, bend = float(penalty @ weights**2) / 2, penalty * weights, np.diag(penalty)
        for inputs, target, weight in read():
            wide = np.column_stack([inputs, np.ones(len(inputs))])
            margin = wide @ weights
            chance = sigmoid(margin)
            value += float(weight @ (np.logaddexp(0, margin) - target * margin))
            slope = slope + wide.T @ (weight * (chance - target))
            bend = bend + (wide * (weight * chance * (1 - chance))[:, None]).T @ wide
        return value, slope, bend

    weights = np.zeros(n_inputs + 1)
    value, slope, bend = loss(weights)
    for _ in range(STEPS):
        step = np.linalg.lstsq(bend, slope, rcond=None)[0]
        if float(slope @ step) < 1e-10 * max(abs(value), 1e-300):
            break
        for _ in range(30):
            tried, further = weights - step, loss(weights - step)
            if further[0] <= value:
                break
            step = step / 2
        else:
            break
        weights, (value, slope, bend) = tried, further
    return weights


def sigmoid(margin: Doubles) -> Doubles:
    """Return the logistic function, exact in both tails."""
    return np.exp(-np.logaddexp(0, -margin))


def packed(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """Return arrays as the bytes of an npz file, without pickle; equal arrays give equal bytes."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
    return file.getvalue()


def unpacked(thing: str, files: Mapping[str, bytes], names: tuple[str, ...], file: str = STATE_FILE) -> dict[str, npt.NDArray[np.float64]]:
    """Return named arrays of an npz file, in the order asked.

    Raises:
        StateError: the file is missing or no npz, or an array is missing or holds NaN or infinity.
    """
    try:
        with np.load(io.BytesIO(files[file]), allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in names}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise StateError(thing, found=f"{type(error).__name__}: {error}", allowed=f"{file} with {', '.join(names)}") from error
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise StateError(f"{thing}: {name}", found="NaN or infinity", allowed="finite numbers", hint="run the rank stage again")
    return arrays


def _blocks(n: int) -> Iterator[slice]:
    for first in range(0, n, ROWS_AT_ONCE):
        yield slice(first, first + ROWS_AT_ONCE)
