"""A release: everything that answers a request, in one content-addressed folder and one MLflow model version.

`bundle_folder` says what lies where and checks every byte before any parser sees it; here a bundle is
built, loaded, rehearsed, and chosen for serving. Parquet, npz, LightGBM text, FAISS files and JSON only:
nothing in it can execute. What is not content (git commit, versions of libraries, the Airflow run)
stands in the manifest's facts and the model version's tags, so that the same input gives the same digest.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.ranking import rankers
from pipelines.ranking.ensemble import Ensemble
from pipelines.ranking.protocol import Ranker
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import assembling, bundle_folder, compatibility, libraries, population, registering, releases
from pipelines.registry.assembling import git_commit
from pipelines.registry.bundle_folder import FACTS_FILE, MODEL_FOLDER, REFERENCE_FILE, checked, checked_folder, folder
from pipelines.registry.rehearsal import rehearse
from pipelines.retrieval import lineup
from pipelines.window import utc

__all__ = [
    "FACTS_FILE", "MODEL_FOLDER", "REFERENCE_FILE", "build", "checked", "checked_folder", "facts", "folder", "git_commit", "load",
    "load_folder", "reference", "rehearse", "to_join",
]  # fmt: skip


def load(home: Home, digest: str, arrays: Callable[[Path], dict[str, Any]] = lineup.unpacked) -> TwoStage:
    """Return the model of a bundle, whole or not at all.

    Args:
        arrays: reads the npz of a source, its bytes checked.

    Raises:
        StateError: a byte differs from what was published, it is not signed here, it was built for other libraries or features, or
            its parts do not fit each other.
    """
    return load_folder(home, folder(home, digest), digest, arrays)


def load_folder(home: Home, path: Path, digest: str | None = None, arrays: Callable[[Path], dict[str, Any]] = lineup.unpacked) -> TwoStage:
    """Return the model of a bundle wherever it lies; as `load`."""
    checked_folder(home, path, digest)
    libraries.check(home, path, digest)
    compatibility.check_weights(path / MODEL_FOLDER / "ranker")
    model = TwoStage.load(path / MODEL_FOLDER, arrays)
    said = bundle_folder.read(path)
    if "parts" in said:  # bundles of before were held to less
        compatibility.check_parts(model)
        compatibility.check_features(home, said["features"], model)
    return model


def facts(home: Home, digest: str) -> dict[str, Any]:
    """Return what a bundle says of itself, checked."""
    return bundle_folder.document(home, digest, FACTS_FILE)


def reference(home: Home, digest: str) -> population.Profile:
    """Return the population that a bundle learnt from, checked."""
    return population.Profile.from_json(bundle_folder.document(home, digest, REFERENCE_FILE))


def to_join(home: Home, as_of: datetime) -> Ranker | None:
    """Return the champion's ranker for this training's to be joined with; None unless the settings ask for `ensemble`.

    It is that of the newest release of an earlier cycle, so that a rerun after its own promotion joins what it joined before.

    Raises:
        StateError: the bundle was changed.
    """
    if config.load(home).ranking.ranker != Ensemble.name:
        return None
    now = releases.pointer(home)
    for digest in (now.digest, now.previous_digest):
        if digest is not None and utc(facts(home, digest)["as_of"]) < utc(as_of):
            path = checked(home, digest) / MODEL_FOLDER / "ranker"
            return rankers.load(path) if path.is_dir() else None
    return None


def build(home: Home, as_of: datetime) -> int:
    """Assemble the bundle of a training run, rehearse it, and register it as `challenger`; return its model version.

    The same run gives the same digest, and the same digest the same version, however often it runs.

    Raises:
        StateError: a stage of the run is missing or was changed, or what it made cannot be loaded again.
    """
    with cycle.stage(home, as_of, "bundle") as record, publish.locked(home.bundles / ".lock", shared=True):
        path = assembling.assemble(home, as_of)
        rehearse(home, path.name)
        version = registering.register(home, as_of, path.name)
        record |= {"version": version, "digest": path.name, "bytes": bundle_folder.size(path)}
    return version
