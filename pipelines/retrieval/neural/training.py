"""The trainer: Adam over seeded batches, within a stated budget, stopped early, resumed after a kill.

Epochs are reproducible: the batches are a function of (seed, epoch), the dropout of (seed, step), so
the same data and knobs give the same bytes, killed or not. A budget in seconds is kept, but where it
strikes depends on the machine, so it is not reproducible; that is why it is off unless asked for.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines import publish
from pipelines.datasets.interactions import Interactions
from pipelines.errors import ReloopError, StateError
from pipelines.knobs import Range
from pipelines.retrieval.neural import backend
from pipelines.retrieval.neural.backend import Array, Params

log = logging.getLogger(__name__)

Batch: TypeAlias = dict[str, npt.NDArray[Any]]
CHECKPOINT_SECONDS: Final = 60.0  # how much work a kill may cost within an epoch; does not change the result


class Learner(Protocol):
    """What can be trained: a frozen dataclass of which equals share a compiled step; `Training` says more of its knobs."""

    def __hash__(self) -> int:
        """Equal knobs, equal hash."""
        ...

    @property
    def n_epochs(self) -> int:
        """Passes over the data, at most."""
        ...

    @property
    def seconds(self) -> float:
        """Another budget; 0 for none."""
        ...

    @property
    def patience(self) -> int:
        """Epochs without a better validation."""
        ...

    @property
    def learning_rate(self) -> float:
        """Of Adam."""
        ...

    @property
    def warmup(self) -> int:
        """Steps of its rise."""
        ...

    @property
    def decay(self) -> float:
        """Share of it that is left at the end."""
        ...

    @property
    def weight_decay(self) -> float:
        """Decoupled."""
        ...

    @property
    def final_epochs(self) -> int:
        """Passes over everything, after early stopping."""
        ...

    @property
    def seed(self) -> int:
        """Of all that is drawn."""
        ...

    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:
        """Return the loss of a batch."""
        ...


@dataclass(frozen=True)
class Training:
    """The knobs that every neural source has, and the loss it must bring; equal knobs share a compiled step.

    Attributes:
        n_epochs: the budget: passes over the data, at most.
        seconds: another budget, also over a resumed training; 0 for none. The pass that would exceed it is cut short.
        patience: epochs without a better validation after which training stops; the best epoch's parameters are kept.
        learning_rate: of Adam (Kingma and Ba, 2015), after a linear rise over the first `warmup` steps.
        warmup: steps of that rise.
        decay: share of `learning_rate` that is left at the end of the budget, of epochs or of seconds, falling
            epoch by epoch along a line; 1 for none. The epochs over everything keep the rate of the best one.
        weight_decay: decoupled (Loshchilov and Hutter, 2019).
        batch_size: rows a step.
        validation: `time` withholds the last `validation_share` of the events, as a shop lives; `last`
            withholds the last event of the validation users, for data whose times mean nothing.
        validation_share: see there.
        n_validation: users judged after each epoch, at most, drawn with `seed`.
        final_epochs: passes over everything, the withheld events included, after early stopping.
        seed: of the first parameters, the batches and the dropout.
    """

    n_epochs: Annotated[int, Range(0, 2**31 - 1)] = 20
    seconds: float = 0.0
    patience: int = 5
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.1
    weight_decay: float = 0.0
    batch_size: int = 128
    validation: Literal["time", "last"] = "time"
    validation_share: float = 0.05
    n_validation: int = 1000
    final_epochs: int = 1
    seed: int = 7

    def require(self) -> None:
        """Check that there is something to train with.

        Raises:
            ReloopError: JAX or optax is not installed.
            StateError: the budget or the batches are no numbers of theirs.
        """
        least = {"seconds": 0.0, "n_epochs": 0, "batch_size": 1}
        if wrong := {name: getattr(self, name) for name, least_of in least.items() if not getattr(self, name) >= least_of}:
            raise StateError(type(self).__name__, found=str(wrong), allowed=f"at least {least}", hint="see retrieval.parameters")
        backend.require(type(self).__name__)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy.

        Raises:
            ReloopError: JAX is missing, a knob has no such value, or the loss is no longer a number.
        """
        return self.resume(interactions, None)

    @abstractmethod
    def resume(self, interactions: Interactions, checkpoint: Path | None) -> Self:
        """Return a fitted copy, going on from a checkpoint where there is one of this very training."""
        ...

    @abstractmethod
    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:
        """Return the loss of a batch, a scalar that JAX can differentiate.

        Args:
            data: what is the same at every step.
            key: of what is drawn at this step.
        """
        ...


@dataclass(frozen=True)
class Material:
    """What a training is made of.

    Attributes:
        batches: one epoch of batches, all of the same shapes, given a generator and whether to include what is withheld.
        quality: higher is better, on what `batches(..., False)` withholds; None where nothing is.
        data: what every step sees.
        made_of: the arrays that the batches are made of; they tell whose training a checkpoint is.
    """

    batches: Callable[[np.random.Generator, bool], Iterable[Batch]]
    quality: Callable[[Params], float] | None
    data: Batch
    made_of: Sequence[npt.NDArray[np.generic]]


@dataclass
class _Progress:
    """Where a training stands: everything that a checkpoint holds."""

    params: Any
    moments: Any
    best: Any
    best_quality: float = -math.inf
    epoch: int = 0
    step_of_epoch: int = 0
    step: int = 0
    since_best: int = 0
    final: int = -1  # epochs done over everything after early stopping; -1 before
    best_epoch: int = 0
    seconds: float = 0.0


_TREES: Final = ("params", "moments", "best")
_COUNTERS: Final = ("epoch", "step_of_epoch", "step", "since_best", "final", "best_epoch")


def train(learner: Learner, first: Params, material: Material, checkpoint: Path | None) -> Params:
    """Return the learnt parameters as numpy arrays.

    Args:
        first: the parameters to begin with.
        checkpoint: where progress is kept. The training goes on from there if it is this training's.

    Raises:
        ReloopError: JAX is missing, or the loss is no longer a number.
    """
    return _Run(learner, first, material, checkpoint).learn()


class _Run:
    """One training, from wherever its checkpoint stands to the end of its budget."""

    def __init__(self, learner: Learner, first: Params, material: Material, checkpoint: Path | None) -> None:
        jax = backend.jax()
        self.began = self.saved = time.perf_counter()
        self.learner, self.material, self.checkpoint = learner, material, checkpoint
        self.step, optimizer = _compiled(learner)
        self.identity = _identity(learner, first, material.made_of)
        self.now = _Progress(first, optimizer.init(first), first)
        if checkpoint is not None and checkpoint.is_file():
            self.now = _read(checkpoint, self.identity, self.now)
        self.before = self.now.seconds
        self.data = jax.device_put(material.data)
        self.root = jax.random.key(learner.seed, impl="unsafe_rbg")  # threefry takes as long to compile as all the rest

    def learn(self) -> Params:
        """Run the epochs that are left and return the best parameters."""
        now, judge = self.now, self.material.quality
        in_time = True
        if judge is not None and not now.step:  # what a training began with, pretrained perhaps, may prove the best
            now.best_quality = judge(_numpy(now.params))
        while in_time and now.final < 0 and now.epoch < self.learner.n_epochs and now.since_best < self.learner.patience:
            in_time = self._epoch(everything=judge is None)
            if self.learner.seconds and not now.step:
                name, budget = type(self.learner).__name__, f"seconds = {self.learner.seconds:g}"
                raise ReloopError(name, found=f"no step done within {budget}", allowed="a budget for one step", hint="raise seconds")
            reached = None if judge is None else judge(_numpy(now.params))
            log.info("%s: epoch %d, %.0f s, validation %s", type(self.learner).__name__, now.epoch + 1, self._spent(), reached)
            if reached is None or reached > now.best_quality:
                now.best, now.best_quality, now.since_best = now.params, now.best_quality if reached is None else reached, 0
                now.best_epoch = now.epoch
            else:
                now.since_best += 1
            self._close()
        if judge is not None and now.final < 0:
            now.params, now.final = now.best, 0
        while in_time and judge is not None and now.final < self.learner.final_epochs:
            in_time = self._epoch(everything=True)
            now.best, now.final = now.params, now.final + 1
            self._close()
        return _numpy(now.best)

    def _epoch(self, *, everything: bool) -> bool:
        """Run what is left of an epoch; tell whether the seconds were enough."""
        now, fold_in = self.now, backend.jax().random.fold_in
        rate = self._rate()
        rng = np.random.default_rng([self.learner.seed, 2, now.epoch])
        for n, batch in enumerate(self.material.batches(rng, everything)):
            if n < now.step_of_epoch:
                continue
            if self.learner.seconds and self._spent() >= self.learner.seconds:
                return False
            now.params, now.moments, loss = self.step(now.params, now.moments, self.data, batch, (fold_in(self.root, now.step), rate))
            if not math.isfinite(float(loss)):
                name, at = type(self.learner).__name__, f"a loss of {float(loss)} at step {now.step}"
                raise ReloopError(name, found=at, allowed="a number", hint="lower learning_rate")
            now.step, now.step_of_epoch = now.step + 1, n + 1
            if time.perf_counter() - self.saved > CHECKPOINT_SECONDS:
                self._save()
        return True

    def _rate(self) -> npt.NDArray[np.float32]:
        """Return the share of the learning rate that this epoch has."""
        now, knobs = self.now, self.learner
        done = (now.epoch if now.final < 0 else now.best_epoch) / max(knobs.n_epochs, 1)
        if knobs.seconds:
            done = max(done, self._spent() / knobs.seconds)
        return np.array(1 - (1 - knobs.decay) * min(done, 1.0), dtype=np.float32)

    def _close(self) -> None:
        self.now.epoch, self.now.step_of_epoch = self.now.epoch + 1, 0
        self._save()

    def _save(self) -> None:
        self.now.seconds, self.saved = self._spent(), time.perf_counter()
        if self.checkpoint is not None:
            _write(self.checkpoint, self.identity, self.now)

    def _spent(self) -> float:
        return self.before + time.perf_counter() - self.began


def _numpy(params: Any) -> Params:
    return {name: np.asarray(value) for name, value in backend.jax().device_get(params).items()}


@functools.lru_cache(maxsize=32)
def _compiled(learner: Learner) -> tuple[Any, Any]:
    """Return (step, optimizer) of a learner; compiled once for all trainings with its knobs and shapes."""
    jax, optax = backend.jax(), backend.optax()
    rate = optax.linear_schedule(learner.learning_rate / max(learner.warmup, 1), learner.learning_rate, max(learner.warmup, 1))
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(rate, b2=0.98, weight_decay=learner.weight_decay))

    def step(params: Any, moments: Any, data: Any, batch: Any, drawn: Any) -> Any:
        key, share = drawn
        loss, gradient = jax.value_and_grad(learner.objective)(params, data, batch, key)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, jax.tree.map(lambda update: share * update, updates)), moments, loss

    return jax.jit(step), optimizer


def _identity(learner: Learner, first: Params, made_of: Sequence[npt.NDArray[np.generic]]) -> str:
    """Return what a checkpoint must match: the knobs, the first parameters and the data."""
    digest = hashlib.sha256(repr(learner).encode())
    for name, array in [*sorted(first.items()), *((str(n), array) for n, array in enumerate(made_of))]:
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(path: Path, identity: str, now: _Progress) -> None:
    jax = backend.jax()
    arrays = {f"{tree}.{n}": leaf for tree in _TREES for n, leaf in enumerate(jax.tree.leaves(getattr(now, tree)))}
    arrays |= {"counters": np.array([getattr(now, name) for name in _COUNTERS]), "best_quality": np.array(now.best_quality)}
    with publish.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, identity=np.array(identity), seconds=np.array(now.seconds), **jax.device_get(arrays))


def _read(path: Path, identity: str, fresh: _Progress) -> _Progress:
    """Return the progress that was written, or `fresh` where the file belongs to another training."""
    jax = backend.jax()
    with np.load(path, allow_pickle=False) as saved:
        if str(saved["identity"]) != identity:
            log.info("%s belongs to another training; beginning anew", path)
            return fresh
        trees = {}
        for tree in _TREES:
            shape = jax.tree.structure(getattr(fresh, tree))
            trees[tree] = jax.tree.unflatten(shape, [saved[f"{tree}.{n}"] for n in range(shape.num_leaves)])
        counters = dict(zip(_COUNTERS, saved["counters"].tolist(), strict=True))
        return _Progress(**trees, **counters, best_quality=float(saved["best_quality"]), seconds=float(saved["seconds"]))
