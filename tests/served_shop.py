"""The trained shop with a release that serves: its newest bundle as champion, features online, snapshots published."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import shared_folder
import swap_lab
from trained_shop import SECOND, _environment

from pipelines import cycle
from pipelines.config import Home
from pipelines.features import store
from pipelines.registry import releases

LEFT_OUT = ("tmp", "mlflow", "warehouse", "landing", "training", "evidence", "airflow", "docs")


def released(trained: Home, root: Path) -> Home:
    """Return a state folder that serves from SQLite, made once however many processes ask for it; not to be changed."""

    def serve(folder: Path) -> None:
        home = Home(folder)
        shutil.copytree(trained.root, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        with _environment(home):
            online(home)
            promote(home)

    return Home(shared_folder.once(root, serve, "served"))


def online(home: Home) -> None:
    """Load the features of the newest day into the online store that the environment names, and publish the snapshots."""
    shutil.rmtree(home.feast, ignore_errors=True)
    store.apply(home)
    store.materialize(home, SECOND)


def promote(home: Home) -> releases.Pointer:
    """Make the newest bundle the champion, as the gate does."""
    (built,) = cycle.records(home, SECOND, "bundle")
    swap_lab.remembered(home, built["digest"])
    now = releases.pointer(home)
    body: dict[str, Any] = {"as_of": "2025-02-17", "champion_before": None, "champion_after": 1, "challenger": 1, "reasons": ["the first"]}
    return releases.flip(home, now, version=1, digest=built["digest"], as_of="2025-02-17", key="1/0", body=body)


def copied(home: Home, root: Path) -> Home:
    """Return a copy to change; features and bundles, which nobody changes in place, are links to the same files."""
    shutil.copytree(home.root, root, ignore=shutil.ignore_patterns("features", "bundles", "lake"))
    for part in ("features", "bundles", "lake"):
        shutil.copytree(home.root / part, root / part, copy_function=os.link)
    return Home(root)


def environment(home: Home) -> Any:
    """Return a context in which RELOOP_HOME names a state folder."""
    return _environment(home)
