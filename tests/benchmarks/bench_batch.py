"""Lists for everybody made beforehand: users a processor second and peak memory, at several numbers of users; then what it takes to load and to read them.

The shop is `serving_world`'s with 10,000 items: seven sources, 150 candidates a user, a ranker of 100 trees over 40 features; lists of 50.
A run is a process of its own; what is measured is the making alone, lake to Parquet. The peer does the same users one at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import serving_world as world
from one_run import in_process, publish_page, row

from pipelines import config, publish
from pipelines.config import Home
from pipelines.datasets.interactions import load
from pipelines.features import store
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry.choosing import Serving
from pipelines.serving import batch, batch_lists
from pipelines.serving.engine import bound
from pipelines.serving.knowledge import Knowledge
from pipelines.serving.request import Ask

ITEMS, K, FEW, ALONE = 10_000, 50, 2_000, 40
MAX_MB = 4096.0


def size(users: int) -> world.Size:
    """Return a shop of some users."""
    return world.Size(items=ITEMS, users=users, candidates=150, per_source=100, features=40, trees=100, leaves=15)


def make(folder: Path, users: int) -> None:
    """Publish a shop of some users and a model, whose ranker learnt in a small one."""
    small, home = Home(folder / "small"), Home(folder / "var")
    world.land(small, size(FEW))
    model = world.sources(small, size(FEW))
    knowledge = Knowledge(small, config.load(small).serving)
    engine = bound(knowledge, Serving(1, "0" * 64, model, {}))
    ranker = world.ranked(engine, size(FEW), knowledge.known.requests.histories.users.to_pylist()).ranker
    materialize, store.materialize = store.materialize, lambda *_: {}  # a batch reads the marts, not the online store
    try:
        world.land(home, size(users))
    finally:
        store.materialize = materialize
    replace(world.sources(home, size(users)), ranker=ranker, serves="ranked").save(folder / "model")


def run(folder: Path, users: int, *, only: str = "") -> dict[str, float]:
    """Make the lists of some of the users, or those of a few one at a time."""
    home, model = Home(folder / "var"), TwoStage.load(folder / "model")
    serving, policy = Serving(1, "0" * 64, model, {}), config.load(home).serving.batch.model_copy(update={"k": K, "active_days": users})
    known = load(home, world.NOW, config.load(home).training, item_ids=model.item_ids)
    chosen = known.user_ids[: users if not only else ALONE]
    del known
    batch.active = lambda *_: chosen
    if only:
        policy = policy.model_copy(update={"users_at_once": 1})
    before, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time()
    made = batch.publish_lists(home, serving, world.NOW, policy)
    cpu = time.process_time() - cpu
    figures = {
        "cpu": cpu,
        "users": float(len(chosen)),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mb": before,
    }
    if not only:
        begun = time.process_time()
        batch_lists.load(home, made.folder, made.facts)
        figures["load_cpu"] = time.process_time() - begun
        lists = batch_lists.BatchLists(home, config.load(home).serving)
        asks = [Ask("home", "r", world.NOW, 10, user) for user in np.random.default_rng(0).choice(chosen, 2000).tolist()]
        begun = time.process_time()
        found = [lists.answer(ask) for ask in asks]
        figures["read_us"] = (time.process_time() - begun) / len(asks) * 1e6
        assert all(answer is not None and len(answer.items) == K for answer in found)
        figures["bytes"] = float(sum(file.stat().st_size for file in batch_lists.folder(home).glob("*.db")))
        figures["digest"] = float(int(publish.manifest(made.folder).digest[:8], 16))
    return figures


def main() -> None:
    """Run all sizes, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[25_000, 100_000], help="users whose lists are made")
    parser.add_argument("--step", nargs=3, metavar=("FOLDER", "USERS", "ONLY"))
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(run(Path(asked.step[0]), int(asked.step[1]), only=asked.step[2])))
        return
    lines = []
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), max(asked.users))
        alone = in_process(__file__, "--step", name, str(ALONE), "alone")
        one_by_one = alone["users"] / alone["cpu"]
        for users in asked.users:
            found = in_process(__file__, "--step", name, str(users), "")
            label, rate = f"{users:,} users", found["users"] / found["cpu"]
            figures = row(f"{label}, made", rate, one_by_one, "users/CPU s", "", met=True)
            lines.append({**figures, "ratio": round(rate / one_by_one, 2)})
            fits = found["peak_mb"] <= MAX_MB
            lines.append(row(f"{label}, peak memory", found["peak_mb"], MAX_MB, "MB", f"<= {MAX_MB:g} MB", met=fits))
            lines.append(row(f"{label}, loaded", found["users"] / found["load_cpu"], rate, "users/CPU s", "", met=True))
            lines.append(row(f"{label}, one read", found["read_us"], 1e6 / rate, "us CPU", "", met=True))
            print(f"{label}: {found['before_mb']:.0f} MB before the first block, {found['bytes'] / 1e6:.1f} MB on disk", flush=True)
    publish_page("batch", lines, f"Lists of {K}; {ITEMS:,} items; peers: one user at a time, a bound, the rate of making, making one list.")


if __name__ == "__main__":
    main()
