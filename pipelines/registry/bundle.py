"""A release: everything that answers a request, in one content-addressed folder and one MLflow model version.

    bundles/<digest>/
        manifest.json       every file with its sha256; its digest is the folder's name
        bundle.json         as_of, what it was trained on, settings, what was measured
        reference.json      the population it learnt from, for drift
        model/              the two-stage model, as `ranking.two_stage` saves it

Parquet, npz, LightGBM text and JSON only: nothing here can execute. Every byte is checked against the
manifest before any parser sees it. What is not content (git commit, versions of libraries) stands in
the manifest's facts and the model version's tags, so that the same input gives the same digest.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pipelines import config, cycle, publish
from pipelines.config import REPOSITORY, Home
from pipelines.datasets import universe
from pipelines.datasets.split import JUDGE
from pipelines.errors import StateError
from pipelines.ranking import judging, rankers, two_stage
from pipelines.ranking.ensemble import Ensemble
from pipelines.ranking.protocol import Ranker
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import population, releases, tracking
from pipelines.window import utc

FACTS_FILE: Final = "bundle.json"
REFERENCE_FILE: Final = "reference.json"
MODEL_FOLDER: Final = "model"
SERVED: Final = Path(__file__).with_name("served_model.py")
LIBRARIES: Final = ("lightgbm", "numpy", "pyarrow", "scipy", "duckdb", "feast")


def folder(home: Home, digest: str) -> Path:
    """Return the folder of a bundle.

    Raises:
        StateError: the digest is no sha256 in hexadecimal, so it names no folder of ours.
    """
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise StateError("bundle", found=repr(digest), allowed="a sha256 in hexadecimal")
    return home.bundles / digest


def checked(home: Home, digest: str) -> Path:
    """Return the folder of a bundle after checking every byte of it.

    Raises:
        StateError: a file is missing or was changed, or the folder holds another bundle.
    """
    path = folder(home, digest)
    return checked_folder(path, digest)


def checked_folder(path: Path, digest: str | None = None) -> Path:
    """Check every byte of a bundle wherever it lies, and that it is the bundle asked for; return its path."""
    found = publish.manifest(path, verify=True)
    if digest is not None and found.digest != digest:
        raise StateError(
            str(path), found=f"the content of bundle {found.digest[:12]}", allowed=digest[:12], hint="restore the folder or train again"
        )
    strangers = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - set(found.files) - {publish.MANIFEST}
    if strangers:
        raise StateError(
            str(path), found=f"files that no manifest names: {sorted(strangers)[:3]}", allowed="what was published, nothing else"
        )
    return path


def load(home: Home, digest: str) -> TwoStage:
    """Return the model of a bundle, whole or not at all.

    Raises:
        StateError: any byte differs from what was published.
    """
    return TwoStage.load(checked(home, digest) / MODEL_FOLDER)


def facts(home: Home, digest: str) -> dict[str, Any]:
    """Return what a bundle says of itself, checked."""
    found: dict[str, Any] = json.loads((checked(home, digest) / FACTS_FILE).read_text(encoding="utf-8"))
    return found


def reference(home: Home, digest: str) -> population.Profile:
    """Return the population that a bundle learnt from, checked."""
    return population.Profile.from_json(json.loads((checked(home, digest) / REFERENCE_FILE).read_text(encoding="utf-8")))


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
    """Assemble the bundle of a training run and register it as `challenger`; return its model version.

    The same run gives the same digest, and the same digest the same version, however often it runs.

    Raises:
        StateError: a stage of the run is missing or was changed.
    """
    with cycle.stage(home, as_of, "bundle") as record:
        path = _assemble(home, as_of)
        version = _register(home, as_of, path.name)
        record |= {"version": version, "digest": path.name, "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file())}
    return version


def _assemble(home: Home, as_of: datetime) -> Path:
    run = universe.run_folder(home, as_of)
    world = universe.load(home, as_of)
    settings = config.load(home)
    model = two_stage.of_run(home, as_of, serves=judging.served(home, as_of))
    judging.check(home, as_of, model)
    metrics = json.loads((judging.folder(home, as_of) / "metrics.json").read_text(encoding="utf-8"))
    learnt = [fold for fold in world.folds if fold.name != JUDGE]
    importance = model.ranker.importance if model.ranker else {}
    profile = population.profile(home, learnt[-1].cutoff, importance, settings.drift)
    described = {
        "as_of": utc(as_of).isoformat(),
        "cutoff": world.fold(JUDGE).cutoff.isoformat(),
        "serves": model.serves,
        "settings": settings.model_dump(mode="json"),
        "trained_on": _lineage(run),
        "metrics": metrics,
    }
    building = home.bundles / "building" / run.name
    outside = {"git_commit": git_commit(), "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES}}
    with publish.folder(building, outside) as out:
        model.save(out / MODEL_FOLDER)
        publish.write_json(out / FACTS_FILE, described)
        publish.write_json(out / REFERENCE_FILE, profile.to_json())
    path = home.bundles / publish.manifest(building).digest
    if (path / publish.MANIFEST).is_file():
        shutil.rmtree(building)  # built before; the digest is the content
        return checked(home, path.name)
    building.rename(path)
    return path


def _lineage(run: Path) -> dict[str, str]:
    """Return the digest of every published folder of a training run, by its path inside the run."""
    manifests = sorted(run.rglob(publish.MANIFEST))
    return {
        str(file.parent.relative_to(run)): publish.manifest(file.parent).digest
        for file in manifests
        if not file.parent.name.startswith(".")
    }


def git_commit() -> str:
    """Return the commit of the code that runs, with `-dirty` if files differ from it; "unknown" outside a checkout."""
    if found := os.environ.get("RELOOP_GIT_COMMIT"):
        return found
    git = shutil.which("git")
    if git is None or not (REPOSITORY / ".git").exists():
        return "unknown"
    asked = [git, "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def _register(home: Home, as_of: datetime, digest: str) -> int:
    """Return the model version of a bundle, logging and registering it if there is none; `challenger` points to it."""
    books = tracking.client(home)
    tracking.ensure_model(home)
    known = books.search_model_versions(f"name = '{tracking.MODEL}' and tags.digest = '{digest}'")
    version = min((int(one.version) for one in known), default=None)
    if version is None:
        from pipelines.registry import runs

        run_id, uri = runs.log_bundle(home, as_of, digest)
        model_id = uri.removeprefix("models:/")  # a tracking server refuses a source that is not said to be this model
        made = books.create_model_version(tracking.MODEL, uri, run_id=run_id, tags=_tags(home, as_of, digest), model_id=model_id)
        version = int(made.version)
    books.set_registered_model_alias(tracking.MODEL, tracking.CHALLENGER, str(version))
    return version


def _tags(home: Home, as_of: datetime, digest: str) -> dict[str, str]:
    path = folder(home, digest)
    said = json.loads((path / FACTS_FILE).read_text(encoding="utf-8"))
    outside = publish.manifest(path).facts
    tags = {"digest": digest, "as_of": utc(as_of).isoformat(), "git_commit": outside["git_commit"], "serves": said["serves"]}
    if run := os.environ.get("AIRFLOW_CTX_DAG_RUN_ID"):
        tags["airflow_run"] = f"{os.environ.get('AIRFLOW_CTX_DAG_ID', '')}/{run}"
    return tags | {f"trained_on.{name.replace('/', '.')}": content[:12] for name, content in said["trained_on"].items()}
