"""Putting a bundle together from what a training run made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pipelines import config, publish
from pipelines.config import REPOSITORY, Home
from pipelines.datasets import universe
from pipelines.datasets.split import JUDGE
from pipelines.datasets.universe import Universe
from pipelines.errors import StateError
from pipelines.ranking import attribution, judging, training_set, two_stage
from pipelines.registry import bundle_folder, compatibility, golden, libraries, outputs, population, signing
from pipelines.registry.bundle_folder import FACTS_FILE, MODEL_FOLDER, REFERENCE_FILE
from pipelines.registry.rehearsal import GOLDEN_FOLDER
from pipelines.window import utc

# What is done with a bundle does not make it another one.
NOT_CONTENT: Final = {"bundle", "retention", "release"}


def assemble(home: Home, as_of: datetime) -> Path:
    """Return the folder of a run's bundle, built and signed; where it lies there already, sound and signed, it is left as it is.

    A damaged folder of the same content is replaced: the same run makes the same bytes.

    Raises:
        StateError: a stage of the run is missing or was changed.
    """
    run, world = universe.run_folder(home, as_of), universe.load(home, as_of)
    model = two_stage.of_run(home, as_of, serves=judging.served(home, as_of))
    judging.check(home, as_of, model)
    settings = config.load(home)
    learnt = [fold for fold in world.folds if fold.name != JUDGE]
    shown = outputs.with_week_before(home, model, world.fold(JUDGE).cutoff, settings.drift.output_users)
    importance = model.ranker.importance if model.ranker else {}
    profile = population.profile(home, learnt[-1].cutoff, importance, settings.drift, shown)
    described: dict[str, Any] = {
        "as_of": utc(as_of).isoformat(),
        "cutoff": world.fold(JUDGE).cutoff.isoformat(),
        "serves": model.serves,
        "settings": settings.model_dump(mode="json", exclude=NOT_CONTENT),
        "trained_on": trained_on(run),
        "features": compatibility.features_of(home, model.ranker),
        "metrics": json.loads((judging.folder(home, as_of) / "metrics.json").read_text(encoding="utf-8")),
        "attribution": [row for row in attribution.load(home, as_of) if row["slice"] == attribution.ALL],
    }
    building = home.bundles / "building" / run.name
    with publish.folder(building, outside(world)) as out:
        model.save(out / MODEL_FOLDER)
        publish.write_json(out / REFERENCE_FILE, profile.to_json())
        golden.write(out / GOLDEN_FOLDER, out / MODEL_FOLDER, world.fold(JUDGE).cutoff, training_set.folder(home, as_of) / "rank_1.parquet")
        files = {str(file.relative_to(out)): publish.digest(file) for file in out.rglob("*") if file.is_file()}
        publish.write_json(out / FACTS_FILE, {**described, "parts": bundle_folder.parts(files)})
    signing.sign(home, building)
    return _settle(home, building)


def _settle(home: Home, building: Path) -> Path:
    """Move a finished bundle to the place of its digest."""
    path = home.bundles / publish.manifest(building).digest
    if path.is_dir():
        try:
            bundle_folder.checked(home, path.name)
        except StateError:
            doomed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            path.rename(doomed)
            building.rename(path)
            shutil.rmtree(doomed)
        else:
            shutil.rmtree(building)
    else:
        building.rename(path)
    publish.fsync(home.bundles)
    bundle_folder.tombstone(home, path.name).unlink(missing_ok=True)  # it is back
    return path


def outside(world: Universe) -> dict[str, Any]:
    """Return what stands in a manifest and is not content: where, with what and from what a bundle was made."""
    read = publish.manifest(world.path).facts
    return {
        "git_commit": git_commit(),
        "libraries": libraries.installed(),
        "environment": signing.environment(),
        "data": {"lake": read["made_of"]["lake"], "partitions": read.get("partitions", {})},
        "airflow": airflow_run(),
    }


def trained_on(run: Path) -> dict[str, str]:
    """Return the digest of every published folder of a training run, by its path inside the run."""
    manifests = sorted(run.rglob(publish.MANIFEST))
    return {
        str(file.parent.relative_to(run)): publish.manifest(file.parent).digest
        for file in manifests
        if not file.parent.name.startswith(".")
    }


def airflow_run() -> dict[str, str]:
    """Return the Airflow run that this process is a task of: dag, run, task, and its page where Airflow says where it is."""
    told = {name: os.environ.get(f"AIRFLOW_CTX_{env}") for name, env in (("dag", "DAG_ID"), ("run", "DAG_RUN_ID"), ("task", "TASK_ID"))}
    found = {name: value for name, value in told.items() if value}
    if (base := os.environ.get("AIRFLOW__API__BASE_URL")) and {"dag", "run"} <= set(found):
        found["url"] = f"{base.rstrip('/')}/dags/{found['dag']}/runs/{found['run']}"
    return found


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
