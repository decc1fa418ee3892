"""A small simulated shop that was trained twice, a week apart, by the real stages: two bundles, nothing released yet."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import shared_folder

from pipelines import config, lake
from pipelines.config import Home
from pipelines.features import build, store
from pipelines.ranking import judging, training, training_set
from pipelines.registry import bundle
from pipelines.retrieval import blend, fitting
from pipelines.sources.request import World
from pipelines.sources.simulator import Shop
from pipelines.window import Window, utc

START: Final = utc("2025-01-06")
FIRST: Final = START + timedelta(days=35)
SECOND: Final = START + timedelta(days=42)
SETTINGS: Final = """
[retrieval]
sources = ["popular", "popular_7d", "item_knn", "sequence_rules", "repeat"]
[ranking]
n_rounds = 20
[gate]
min_users = 100
min_slice_users = 20
[drift]
min_rows = 60
"""


def shop(shifts: tuple[str, ...] = ()) -> Shop:
    """Return the shop: 800 users, 150 items, 1,200 events a day."""
    return Shop(World(seed=7, users=800, items=150, events_per_day=1200, shifts=shifts))


def land(home: Home, window: Window, shifts: tuple[str, ...] = ()) -> None:
    """Land some days of the shop."""
    world = shop(shifts)
    lake.land_tables(home, events=world.events(window), items=world.items(window), users=world.users(window), source="simulated")


def train(home: Home, as_of: object) -> int:
    """Run every stage from features to bundle for a moment; return the model version."""
    moment = utc(as_of)  # type: ignore[arg-type]
    build.build(home, moment)
    store.apply(home)
    for source in config.load(home).retrieval.sources:
        fitting.fit(home, moment, source)
    blend.blend(home, moment)
    training_set.build(home, moment)
    training.train(home, moment)
    judging.evaluate(home, moment)
    return bundle.build(home, moment)


@contextmanager
def _environment(home: Home) -> Iterator[None]:
    before = os.environ.get("RELOOP_HOME")
    os.environ["RELOOP_HOME"] = str(home.root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["RELOOP_HOME"]
        else:
            os.environ["RELOOP_HOME"] = before


def twice(folder: Path) -> Home:
    """Return the shop's state folder, made once however many processes ask for it."""
    return Home(shared_folder.once(folder, _train_twice, "versions.json"))


def _train_twice(folder: Path) -> None:
    home = Home(folder)
    folder.mkdir()
    (folder / "reloop.toml").write_text(SETTINGS, encoding="utf-8")
    with _environment(home):
        land(home, Window(START, SECOND))
        versions = [train(home, FIRST), train(home, SECOND)]
    (folder / "versions.json").write_text(json.dumps(versions), encoding="utf-8")


def copied(home: Home, root: Path) -> Home:
    """Return a copy of a state folder to break; registered artifacts stay where they were logged."""
    shutil.copytree(home.root, root, ignore=shutil.ignore_patterns("tmp", "artifacts"))
    return Home(root)
