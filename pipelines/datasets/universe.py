"""The universe of one training run: its ids, folds and labels, fixed once so that every source counts alike.

    training/<as_of>/universe/
        items.parquet           item_id; its position is the item index of every file of the run
        users.parquet           user_id; its position is the user index
        events.parquet          user, item, event_type, value, device, at, received, prompted: every event known as of
                                the run, sorted by (user, at, event_id)
        item_versions.parquet   every version of the catalogue known as of the run (`profiles.versions`)
        user_versions.parquet   likewise of its users
        labels_<fold>.parquet   user, item, gain: the positives of the fold's users, sorted by (user, item)

The catalogue is every item with an event or a catalogue row, so a label on an item that no model
could know still counts against recall. The users of a fold are those with a positive in its window:
everyone for `judge` (who did something that no list led to, `labels.judging`), at most `max_users_per_window` (seeded) for a ranker's fold. A ranker's labels
were received before the judge fold's cutoff: nothing that came in later shapes what is judged.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import config, lake, publish
from pipelines.config import Home, TrainingSettings
from pipelines.datasets import interactions as events
from pipelines.datasets import labels as truth
from pipelines.datasets import profiles
from pipelines.datasets.interactions import Dense, Ids, Interactions
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE, Fold, planned
from pipelines.errors import StateError
from pipelines.window import Window, micros, stamp, utc


def run_folder(home: Home, as_of: datetime) -> Path:
    """Return the folder of everything one training run makes."""
    return home.training / stamp(as_of)


@dataclass(frozen=True)
class Universe:
    """What every stage of one training run agrees on.

    Attributes:
        folds: oldest first, `judge` last; possibly fewer ranker windows than the settings ask for.
        user_ids, item_ids: sorted, unique; positions are the indices in every file of the run.
        digest: of the files; candidates of another universe have other indices and are refused.
        judged_by: what the labels of `judge` leave out, in a sentence; "" where nothing.
    """

    path: Path
    folds: tuple[Fold, ...]
    user_ids: Ids
    item_ids: Ids
    digest: str
    judged_by: str = ""

    def fold(self, name: str) -> Fold:
        """Return a fold by name.

        Raises:
            StateError: the run has no such fold.
        """
        for fold in self.folds:
            if fold.name == name:
                return fold
        raise StateError(f"fold {name!r}", found="not in this run", allowed=str([fold.name for fold in self.folds]))

    def labels(self, fold: str) -> Labels:
        """Return the labels of a fold's users; row order is the row order of the fold's candidates."""
        table = pq.read_table(self.path / f"labels_{self.fold(fold).name}.parquet")
        users, first = np.unique(table["user"].to_numpy(), return_index=True)
        indptr = np.append(first, table.num_rows).astype(np.int64)
        return Labels(self.user_ids[users], self.item_ids, indptr, table["item"].to_numpy(), table["gain"].to_numpy())

    def interactions(self, before: datetime, settings: TrainingSettings) -> Interactions:
        """Return what happened and was received before a moment, and what was known of items and users, in the universe's indices."""
        known = (pc.field("at") < micros(before)) & (pc.field("received") < micros(before))
        table = pq.read_table(self.path / "events.parquet", filters=known)
        items, users = (pq.read_table(self.path / f"{name}_versions.parquet") for name in ("item", "user"))
        return events.described(events.arrays(Dense(table, self.user_ids, self.item_ids), before, settings), items, users)


def ensure(home: Home, as_of: datetime) -> Universe:
    """Return the universe of a run, built now if it is missing or older than the lake or the settings.

    Every source may call it at once: one builds, the others wait for it.

    Raises:
        NotEnoughData: history is too short for a ranker window and a judged one.
    """
    path = run_folder(home, as_of) / "universe"
    settings, enough = config.load(home).training, config.load(home).gate.min_users
    with _lock(path):
        made_of = {"lake": lake.head(home), "settings": settings.model_dump(mode="json"), "enough": enough, "as_of": utc(as_of).isoformat()}
        if not (path / publish.MANIFEST).is_file() or publish.manifest(path).facts["made_of"] != made_of:
            _build(home, as_of, settings, path, made_of)
    return load(home, as_of)


def load(home: Home, as_of: datetime) -> Universe:
    """Return the universe that the sources of a run were fitted on.

    Raises:
        StateError: no source was fitted for this moment.
    """
    path = run_folder(home, as_of) / "universe"
    manifest = publish.manifest(path)
    return Universe(
        path,
        tuple(Fold(f["name"], utc(f["cutoff"]), Window.parse(f["start"], f["end"])) for f in manifest.facts["folds"]),
        events.strings(pq.read_table(path / "users.parquet")["user_id"]),
        events.strings(pq.read_table(path / "items.parquet")["item_id"]),
        manifest.digest,
        manifest.facts.get("judged_by", ""),
    )


def _build(home: Home, as_of: datetime, settings: TrainingSettings, path: Path, made_of: dict[str, Any]) -> None:
    planned_folds = planned(home, as_of, settings)
    with lake.connect(home, before=as_of) as db:
        item_ids = events.strings(
            db.sql("SELECT item_id FROM (SELECT item_id FROM events UNION SELECT item_id FROM items) ORDER BY 1").to_arrow_table()[
                "item_id"
            ]
        )
    known = events.read(home, as_of, item_ids=item_ids)
    with lake.connect(home, before=as_of) as db:
        described = {"item": profiles.versions(db, "items", item_ids), "user": profiles.versions(db, "users", known.user_ids)}
    facts: dict[str, Any] = {
        "made_of": made_of,
        "partitions": lake.partitions(home, before=as_of),
        "folds": [],
        "users": len(known.user_ids),
        "items": len(item_ids),
        "events": len(known.events),
    }
    with publish.folder(path, facts) as folder:
        publish.write_parquet(folder / "items.parquet", pa.table({"item_id": pa.array(item_ids, pa.string())}))
        publish.write_parquet(folder / "users.parquet", pa.table({"user_id": pa.array(known.user_ids, pa.string())}))
        publish.write_parquet(folder / "events.parquet", known.events)
        for name, versions in described.items():
            publish.write_parquet(folder / f"{name}_versions.parquet", versions)
        learnt_by = planned_folds[-1].cutoff
        for number, fold in enumerate(planned_folds):
            inside = (pc.field("at") >= micros(fold.window.start)) & (pc.field("at") < micros(fold.window.end))
            if fold.name != JUDGE:
                inside &= pc.field("received") < micros(learnt_by)
            happened = Dense(known.events.filter(inside), known.user_ids, item_ids)
            if fold.name == JUDGE:
                in_window, facts["judged_by"] = truth.judging(happened, as_of, settings, made_of["enough"])
                sampled = in_window
            else:
                in_window = truth.of(events.arrays(happened, as_of, settings))
                sampled = _sample(in_window, settings.max_users_per_window, [settings.seed, number])
            users = events.positions(sampled.user_ids, known.user_ids).astype(np.int32)
            publish.write_parquet(
                folder / f"labels_{fold.name}.parquet",
                pa.table({"user": users[sampled.row_of_label()], "item": sampled.item, "gain": sampled.gain}),
            )
            facts["folds"].append(
                {
                    "name": fold.name,
                    "cutoff": fold.cutoff.isoformat(),
                    "start": fold.window.start.isoformat(),
                    "end": fold.window.end.isoformat(),
                    "users": sampled.n_users,
                    "users_with_a_positive": in_window.n_users,
                    "positives": len(sampled.item),
                }
            )


def _sample(everyone: Labels, n_users: int, seed: list[int]) -> Labels:
    """Return the labels of at most `n_users` users, drawn without replacement, in their old order."""
    if everyone.n_users <= n_users:
        return everyone
    drawn = np.random.default_rng(seed).choice(everyone.n_users, size=n_users, replace=False)
    return everyone.take(np.sort(drawn).astype(np.int64))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the run's build lock; the kernel drops it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent / f".{path.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
