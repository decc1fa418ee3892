"""Where a training step of each neural source spends its time.

Each source is set up by its own `fit` on a simulated shop, at its default shapes, up to the moment its trainer would
begin; then its parts are compiled and run alone:

    feed        drawing a batch (numpy)
    forward     the loss
    backward    its gradient, less the forward pass
    optimizer   clipping, Adam and the update of every parameter
    step        all of it as the trainer runs it

and the whole step again with one thing taken away: nine tenths of the catalogue, of the negatives, all dropout, half
of the history, half of the layers. What that saves is what the thing costs. Times are CPU milliseconds over all threads, medians over the steps; and
shares of the step, which a busy machine moves less.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import big_shop
import numpy as np
from one_run import publish_page, row

from pipelines.retrieval import lightgcn, lineup, neumf, two_tower
from pipelines.retrieval.neural import sequence_model, training
from pipelines.retrieval.neural.backend import jax

SOURCES = ("sasrec", "gru4rec", "bert4rec", "two_tower", "lightgcn", "neumf")
SEEDED = 7
LESS = {
    "negatives": ("n_negatives", lambda now: max(now // 10, 1)),
    "dropout": ("dropout", lambda _: 0.0),
    "history": ("max_history", lambda now: now // 2),
    "layers": ("n_layers", lambda now: now // 2),
}
EVERYTHING = True  # batches of the whole shop, nothing withheld for validation


class Begun(Exception):
    """Carries what a trainer was handed."""


def handed(source: str, n_users: int, n_items: int, knobs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return (learner, first parameters, material) of a source's training on a shop."""

    def stop(learner: Any, first: Any, material: Any, _: Any) -> None:
        raise Begun(learner, first, material)

    modules = (sequence_model, two_tower, lightgcn, neumf)
    kept = [module.train for module in modules]
    for module in modules:
        module.train = stop
    try:
        lineup.make(source, knobs).fit(big_shop.interactions(n_users, n_items, SEEDED, n_tastes=100))
    except Begun as begun:
        return begun.args
    finally:
        for module, train in zip(modules, kept, strict=True):
            module.train = train
    raise SystemExit(f"{source} did not train")


def milliseconds(action: Callable[[], Any], n: int) -> float:
    """Return the median CPU time of an action, after a first run that compiles."""
    jax().block_until_ready(action())
    times = []
    for _ in range(n):
        began = time.process_time()
        jax().block_until_ready(action())
        times.append(1000 * (time.process_time() - began))
    return float(np.median(times))


def step_of(given: tuple[Any, Any, Any], n: int) -> dict[str, float]:
    """Return the milliseconds of the whole step."""
    learner, first, material = given
    step, optimizer = training._compiled(learner)
    batch = next(iter(material.batches(np.random.default_rng(SEEDED), EVERYTHING)))
    key = jax().random.key(SEEDED, impl="unsafe_rbg")
    params, data = jax().device_put(first), jax().device_put(material.data)
    moments = optimizer.init(params)
    return {"step": milliseconds(lambda: step(params, moments, data, batch, (key, np.float32(1.0))), n)}


def parts_of(given: tuple[Any, Any, Any], n: int) -> dict[str, float]:
    """Return the milliseconds of each part."""
    learner, first, material = given
    _, optimizer = training._compiled(learner)
    feed = iter(material.batches(np.random.default_rng(SEEDED), EVERYTHING))
    batch = next(feed)
    began = time.process_time()
    drawn = sum(1 for _ in itertools.islice(feed, n))
    fed = 1000 * (time.process_time() - began) / max(drawn, 1)
    key = jax().random.key(SEEDED, impl="unsafe_rbg")
    params, data = jax().device_put(first), jax().device_put(material.data)
    moments = optimizer.init(params)
    forward, both = jax().jit(learner.objective), jax().jit(jax().value_and_grad(learner.objective))

    def update(gradient: Any, moments: Any, params: Any) -> Any:
        changes, moments = optimizer.update(gradient, moments, params)
        return jax().tree.map(lambda value, change: value + change, params, changes), moments

    _, gradient = both(params, data, batch, key)
    updated = jax().jit(update)
    ahead, whole = (milliseconds(lambda run=run: run(params, data, batch, key), n) for run in (forward, both))
    return {
        "feed": fed,
        "forward": ahead,
        "backward": max(whole - ahead, 0.0),
        "optimizer": milliseconds(lambda: updated(gradient, moments, params), n),
    }


def profile(source: str, n_users: int, n_items: int, n: int) -> dict[str, float]:
    """Return the milliseconds of a source's step, its parts, and what is saved where something is taken away."""
    given = handed(source, n_users, n_items, {})
    found = parts_of(given, n) | step_of(given, n)
    found["catalogue"] = found["step"] - step_of(handed(source, n_users, n_items // 10, {}), n)["step"]
    knobs = {knob.name: getattr(given[0], knob.name) for knob in fields(given[0])}
    for name, (knob, less) in LESS.items():
        if knobs.get(knob):
            found[name] = found["step"] - step_of(handed(source, n_users, n_items, {knob: less(knobs[knob])}), n)["step"]
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    """Profile the sources and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", nargs="*", default=list(SOURCES))
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for source in asked.source:
        found = profile(source, asked.users, asked.items, asked.steps)
        parts = {name: found[name] for name in ("feed", "forward", "backward", "optimizer")}
        top = max(parts, key=lambda name: parts[name])
        print(source, found, f"top: {top}", flush=True)
        for name, value in found.items():
            case = f"{source} {name}" if name in parts or name == "step" else f"{source} less {name}, saves"
            lines.append(
                row(case, value, found["step"], "ms CPU", f"top cost: {top}" if name == top else "", met=True)
                | {"ratio": round(value / found["step"], 3)}
            )
    shop = f"{asked.users} users, {asked.items} items, default knobs, {asked.steps} steps each; ratio is the share of the step"
    publish_page("neural_step", lines, shop)


if __name__ == "__main__":
    main()
