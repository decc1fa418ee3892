"""The trainer keeps its budget, stops early, and resumes after a kill to the same bytes."""

import builtins
from dataclasses import dataclass

import numpy as np
import pytest

from pipelines.errors import ReloopError, StateError
from pipelines.retrieval.neural import training
from pipelines.retrieval.neural.training import Material, Training, train

pytest.importorskip("jax")


class Killed(BaseException):
    """As a signal would."""


@dataclass(frozen=True)
class Line(Training):
    """Learns y = 3 x, with noise drawn at every step, as dropout is."""

    learning_rate: float = 0.05
    warmup: int = 1

    def objective(self, params, data, batch, key):
        from jax import random

        return ((params["slope"] * batch["x"] - 3 * batch["x"]) ** 2).mean() * (1 + 0.1 * random.uniform(key)) + 0 * data["zero"]


FIRST = {"slope": np.zeros((), dtype=np.float32)}
X = np.linspace(-1, 1, 8, dtype=np.float32)


def material(quality=None, steps=5, die_at=None, epochs=None):
    drawn = iter(range(1 << 30))

    def batches(rng, everything):
        if epochs is not None:
            epochs.append(everything)
        for _ in range(steps):
            if next(drawn) == die_at:
                raise Killed
            yield {"x": rng.permutation(X)[:4]}

    return Material(batches, quality, {"zero": np.zeros((), dtype=np.float32)}, [X])


def test_it_learns():
    assert train(Line(n_epochs=60), FIRST, material(), None)["slope"] == pytest.approx(3, abs=0.05)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    first, second, other = (train(Line(n_epochs=3, seed=seed), FIRST, material(), None)["slope"] for seed in (1, 1, 2))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("die_at", [0, 3, 5, 12, 19, 22])
def test_killed_anywhere_it_resumes_to_the_same_bytes(die_at, tmp_path, monkeypatch):
    """Within an epoch, between epochs, and in the passes over everything; checkpoints are written at every step here."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    learner = Line(n_epochs=4, final_epochs=1)

    def quality(params):
        return -abs(float(params["slope"]) - 3)

    whole = train(learner, FIRST, material(quality), None)
    with pytest.raises(Killed):
        train(learner, FIRST, material(quality, die_at=die_at), tmp_path / "checkpoint.npz")
    epochs = []
    resumed = train(learner, FIRST, material(quality, epochs=epochs), tmp_path / "checkpoint.npz")
    assert resumed["slope"].tobytes() == whole["slope"].tobytes()
    assert len(epochs) == 5 - die_at // 5, "what was done is not done again"


def test_a_finished_training_is_read_not_repeated(tmp_path):
    done = train(Line(n_epochs=2), FIRST, material(), tmp_path / "checkpoint.npz")
    again = train(Line(n_epochs=2), FIRST, material(die_at=0), tmp_path / "checkpoint.npz")
    assert again["slope"].tobytes() == done["slope"].tobytes()


def test_a_checkpoint_of_other_knobs_or_data_is_not_gone_on_from(tmp_path):
    path = tmp_path / "checkpoint.npz"
    train(Line(n_epochs=2), FIRST, material(), path)
    other = train(Line(n_epochs=2, learning_rate=0.1), FIRST, material(), path)
    assert other["slope"].tobytes() == train(Line(n_epochs=2, learning_rate=0.1), FIRST, material(), None)["slope"].tobytes()


def test_it_stops_when_validation_no_longer_improves_keeps_the_best_and_ends_with_everything():
    epochs, judged = [], []

    def quality(params):
        judged.append(params["slope"])
        return -float(len(judged) != 3)  # after what it began with: the second epoch is the best

    learner = Line(n_epochs=50, patience=3, final_epochs=0)
    best = train(learner, FIRST, material(quality, epochs=epochs), None)
    assert epochs == [False] * 5, "two epochs and three without a better one"
    assert best["slope"] == judged[2]
    epochs.clear(), judged.clear()
    train(Line(n_epochs=50, patience=3, final_epochs=2), FIRST, material(quality, epochs=epochs), None)
    assert epochs == [False] * 5 + [True] * 2


def test_a_training_that_only_makes_things_worse_returns_what_it_began_with():
    best = train(
        Line(n_epochs=50, patience=2, final_epochs=0), FIRST, material(lambda params: -abs(float(params["slope"] - FIRST["slope"]))), None
    )
    assert best["slope"] == FIRST["slope"]


def test_a_budget_in_seconds_is_kept_also_over_a_resumed_training(tmp_path, monkeypatch):
    now = iter(range(1 << 30))
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(now)))
    epochs = []
    train(Line(n_epochs=1000, seconds=200.0), FIRST, material(epochs=epochs), tmp_path / "checkpoint.npz")
    assert 3 < len(epochs) < 40
    epochs.clear()
    train(Line(n_epochs=1000, seconds=200.0), FIRST, material(epochs=epochs), tmp_path / "checkpoint.npz")
    assert len(epochs) <= 1, "the seconds were spent"


def test_a_loss_that_is_no_number_stops_the_training():
    with pytest.raises(ReloopError, match="at step 0; expected a number"):
        train(Line(), {"slope": np.array(np.inf, dtype=np.float32)}, material(), None)


@pytest.mark.parametrize("missing", ["jax", "optax"])
def test_without_jax_the_error_names_the_extra(missing, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == missing:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    training._compiled.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ReloopError, match=r"pip install 'reloop\[neural\]'"):
        train(Line(), FIRST, material(), None)


@pytest.mark.parametrize("knobs", [{"seconds": -1.0}, {"seconds": float("nan")}, {"batch_size": 0}, {"n_epochs": -1}])
def test_a_budget_that_is_none_is_refused_before_anything_is_read(knobs):
    with pytest.raises(StateError, match="at least"):
        Line(**knobs).require()


def test_a_training_that_never_made_a_step_is_not_handed_out():
    with pytest.raises(ReloopError, match="no step done within seconds = 1e-09"):
        train(Line(seconds=1e-9), FIRST, material(), None)
