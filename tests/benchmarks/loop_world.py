"""A small simulated shop in which the loop's decisions are asked day by day, without Airflow, and their true worth is known.

What is asked is what the Dags ask: validation of a batch, drift, quality, churn and faults of a day, triage, trigger. Only the release
is left out: what a policy trains serves, so that triggers are compared with each other and not with the gate.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipelines import config, lake, publish
from pipelines.config import Home
from pipelines.decision_policies import RetrainPolicy
from pipelines.errors import StateError, ValidationBlocked
from pipelines.features import build, store
from pipelines.monitoring import churn, drift, faults, quality, triage, triggers
from pipelines.ranking import judging, training, training_set, two_stage
from pipelines.registry import assembling, bundle
from pipelines.retrieval import blend, fitting
from pipelines.sources import reading
from pipelines.sources.request import Request, World
from pipelines.sources.simulator import Shop
from pipelines.sources.simulator.truth import Truth
from pipelines.validation import checkpoint
from pipelines.window import Window, floor_day, utc

START = utc("2025-01-06")
SEED = 7
JUDGED_USERS = 250  # whose lists are held against the truth on a day
SETTINGS = """
[retrieval]
sources = ["popular", "popular_7d", "item_knn", "sequence_rules", "repeat"]
[ranking]
n_rounds = 30
num_threads = 1
[gate]
min_users = 200
min_slice_users = 50
[drift]
output_users = 300
[triage]
quality_users = 600
"""


def day(number: int) -> datetime:
    """Return the midnight that begins a day of the world, the first being 0."""
    return START + timedelta(days=number)


def world(shifts: tuple[str, ...] = (), faulty: tuple[str, ...] = ()) -> World:
    """Return the shop: 1,500 users, 400 items, 2,500 events a day."""
    return World(seed=SEED, users=1500, items=400, events_per_day=2500, shifts=shifts, faults=faulty)


@contextmanager
def living_in(home: Home) -> Iterator[None]:
    """Let code that asks the environment find this state folder."""
    before = os.environ.get("RELOOP_HOME")
    os.environ["RELOOP_HOME"] = str(home.root)
    try:
        yield
    finally:
        os.environ.pop("RELOOP_HOME") if before is None else os.environ.update(RELOOP_HOME=before)


@dataclass
class Life:
    """A state folder and the world behind it.

    Attributes:
        bundles: day trained for -> digest.
    """

    home: Home
    shop: Shop
    bundles: dict[int, str] = field(default_factory=dict)

    def land(self, first: int, end: int) -> None:
        """Land some days as they happened."""
        window = Window(day(first), day(end))
        tables = {"events": self.shop.events(window), "items": self.shop.items(window), "users": self.shop.users(window)}
        lake.land_tables(self.home, source="simulated", **tables)

    def features(self, until: int) -> None:
        """Build the marts of every day up to the one that begins `until`."""
        build.build(self.home, day(until))
        store.apply(self.home)

    def train(self, number: int) -> str:
        """Train for a day, if that was not done, and return the bundle's digest."""
        if number not in self.bundles:
            kept = self.home.root / "trained" / f"{number}.json"
            if not kept.is_file():
                moment = day(number)
                with living_in(self.home):
                    for source in config.load(self.home).retrieval.sources:
                        fitting.fit(self.home, moment, source)
                    blend.blend(self.home, moment)
                    training_set.build(self.home, moment)
                    training.train(self.home, moment)
                    judging.evaluate(self.home, moment)
                    publish.write_json(kept, assembling.assemble(self.home, moment).name)
                shutil.rmtree(self.home.training / f"{moment:%Y-%m-%dT%H%M%S}")
            self.bundles[number] = json.loads(kept.read_text(encoding="utf-8"))
        return self.bundles[number]

    def look(self, number: int, champion: int) -> dict[str, Any]:
        """Return what triage says of a day and a champion: {"cause", "action", "causes", "reasons", "alerts", "faults"}."""
        kept = self.home.root / "looks" / f"{number}-{champion}.json"
        if not kept.is_file():
            with living_in(self.home):
                publish.write_json(kept, self._look(number, champion))
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found

    def _look(self, number: int, champion: int) -> dict[str, Any]:
        home, moment, digest, settings = self.home, day(number), self.train(champion), config.load(self.home)
        measured = drift.measure(home, digest, floor_day(moment), settings.drift)
        fall = None
        if number > champion:
            before, now = (quality.measure(home, day(when), digest) for when in (champion, number))
            fall = quality.compare(before, now, settings.triage.quality_confidence)
        replaced = churn.measure(home, utc(bundle.facts(home, digest)["cutoff"]), moment)
        found = triage.judge(triage.Evidence(faults.found(home, moment), measured, fall, replaced), settings.triage)
        return {**found.to_json(), "reasons": list(found.reasons)[:4], "faults": [one.to_json() for one in faults.found(home, moment)]}

    def enters(self, number: int, fault: str | None = None, *, days: int = 1) -> str | None:
        """Let days come in through validation as the shop sends them, under a fault; return why they were blocked, None if they landed."""
        window = Window(day(number), day(number + days))
        request = Request(world=world(faulty=(f"{fault}@{day(number):%Y-%m-%d}",) if fault else ()))
        batch = reading.stage_batch(self.home, request, window)
        try:
            checkpoint.validate_batch(self.home, window.end, batch)
        except ValidationBlocked as blocked:
            return str(blocked)
        lake.land(self.home, window.end, batch)
        return None

    def worth(self, number: int, champion: int) -> float:
        """Return how much of the taste that could be met the lists of a day meet: 0 is a random shelf, 1 the best ten for each user.

        Truth.utility is what taste alone does to a user's choice; an item that is not for sale is worth a random one.
        """
        kept = self.home.root / "worth" / f"{number}-{champion}.json"
        if not kept.is_file():
            with living_in(self.home):
                publish.write_json(kept, self._worth(number, champion))
        return float(json.loads(kept.read_text(encoding="utf-8")))

    def _worth(self, number: int, champion: int) -> float:
        truth = self.shop.truth(day(number).date())
        known = truth.user_ids.to_pylist()
        came = set(pc.unique(self.shop.events(Window(day(number), day(number + 1)))["user_id"]).to_pylist())
        rows = np.array([row for row, user in enumerate(known) if user in came])
        rows = np.sort(np.random.default_rng(number).permutation(rows)[:JUDGED_USERS])
        model = bundle.load(self.home, self.train(champion))
        lists = two_stage.rank_users(self.home, model, np.array([known[row] for row in rows]), day(number), 10)
        return taste_met(truth, rows, lists.item_ids)


def taste_met(truth: Truth, users: np.ndarray[Any, Any], item_ids: np.ndarray[Any, Any]) -> float:
    """Return the mean over users of (list - random) / (best - random), each the mean utility of ten items for sale."""
    n_items = len(truth.item_ids)
    pairs = truth.utility(np.repeat(users, n_items), np.tile(np.arange(n_items), len(users))).reshape(len(users), n_items)
    on_sale = pairs[:, truth.available]
    random, best = on_sale.mean(axis=1), np.sort(on_sale, axis=1)[:, -10:].mean(axis=1)
    place = {item: at for at, item in enumerate(truth.item_ids.to_pylist())}
    at = np.array([[place.get(item, -1) for item in row] for row in item_ids.tolist()])
    there = (at >= 0) & truth.available[np.maximum(at, 0)]
    shown = np.where(there, np.take_along_axis(pairs, np.maximum(at, 0), axis=1), random[:, None])
    return float(((shown.mean(axis=1) - random) / (best - random)).mean())


def begun(root: Path, until: int) -> Life:
    """Return the shop before anything befalls it, its days up to `until` landed and built; made once.

    The last four weeks came in through validation: what is usual is told from what it let in before.
    """
    home = Home(root)
    life = Life(home, Shop(world()))
    if not (root / "ready").is_file():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        (root / "reloop.toml").write_text(SETTINGS, encoding="utf-8")
        life.land(0, until - 28)
        for first in range(until - 28, until, 7):
            if blocked := life.enters(first, days=7):
                raise StateError("the quiet weeks", found=blocked, allowed="nothing to block")
        life.features(until)
        (root / "ready").write_text("")
    return life


def forked(life: Life, root: Path, shifts: tuple[str, ...] = ()) -> Life:
    """Return a copy of a life that may go another way from here on; an older copy goes."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(life.home.root, root, ignore=shutil.ignore_patterns("tmp", "artifacts"))
    copy = Life(Home(root), Shop(world(shifts)), dict(life.bundles))
    store.apply(copy.home)
    return copy


def loop(life: Life, days: range, first: int, policy: RetrainPolicy, *, budget: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Walk the loop: triage every day, train where the trigger says so, while there is budget; return what was seen and done each day."""
    trained, seen = [first], []
    for number in days:
        said = life.look(number, trained[-1])
        asked = (
            ()
            if said["cause"] not in triggers.OF_CAUSE
            else (triggers.Request(triggers.OF_CAUSE[said["cause"]], said["reasons"][0], priority=said["action"] == "retrain first"),)
        )
        blocking = tuple(faults.Fault(**{**one, "day": None}) for one in said["faults"])
        answered = {kind: day(one["day"]) for one in seen if one["trains"] for kind in one["kinds"] if kind in triggers.OF_CAUSE.values()}
        past = tuple(day(one) for one in trained)
        situation = triggers.Situation(day(number), past, requests=asked, faults=blocking, answered=answered)
        due = triggers.judge(situation, policy)
        trains = due.due and len(trained) <= budget
        seen.append(
            {
                "day": number,
                "champion": trained[-1],
                "cause": said["cause"],
                "action": said["action"],
                "reasons": said["reasons"],
                "kinds": list(due.kinds),
                "trains": trains,
            }
        )
        if said["cause"] != triage.NOTHING or trains:
            tell(f"day {number}: {said['action']} ({said['cause']}){', trains' if trains else ''}")
        if trains:
            life.train(number)
            trained.append(number)
    return seen


def champions(trained: list[int], days: list[int]) -> list[int]:
    """Return which model serves on each of some days."""
    return [max(one for one in trained if one <= number) for number in days]
