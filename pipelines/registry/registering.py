"""A bundle in MLflow's registry: one model version for each digest, and the alias `challenger` on it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pipelines import publish
from pipelines.config import Home
from pipelines.registry import bundle_folder, tracking, version_page
from pipelines.registry.bundle_folder import FACTS_FILE
from pipelines.window import utc


def register(home: Home, as_of: datetime, digest: str) -> int:
    """Return the model version of a bundle, logging and registering it if there is none; `challenger` points to it.

    Killed anywhere and run again, it ends in one version: a version is made in one statement, and a model that was logged and
    not registered is found again by its digest, or dropped where it was not finished.
    """
    books = tracking.client(home)
    tracking.ensure_model(home)
    known = books.search_model_versions(f"name = '{tracking.MODEL}' and tags.digest = '{digest}'")
    version = min((int(one.version) for one in known), default=None)
    if version is None:
        from pipelines.registry import runs

        run_id, uri = runs.log_bundle(home, as_of, digest)
        model_id = uri.removeprefix("models:/")  # a tracking server refuses a source that is not said to be this model
        made = books.create_model_version(tracking.MODEL, uri, run_id=run_id, tags=tags(home, as_of, digest), model_id=model_id)
        version = int(made.version)
    version_page.write(home, version, digest)
    books.set_registered_model_alias(tracking.MODEL, tracking.CHALLENGER, str(version))
    return version


def tags(home: Home, as_of: datetime, digest: str) -> dict[str, str]:
    """Return what a version is found by, and where it comes from."""
    said = bundle_folder.document(home, digest, FACTS_FILE)
    outside: dict[str, Any] = publish.manifest(bundle_folder.folder(home, digest)).facts
    found = {"digest": digest, "as_of": utc(as_of).isoformat(), "git_commit": outside["git_commit"], "serves": said["serves"]}
    if run := outside.get("airflow"):
        found["airflow_run"] = f"{run.get('dag', '')}/{run.get('run', '')}"
        found |= {"airflow_url": run["url"]} if "url" in run else {}
    return found | {f"trained_on.{name.replace('/', '.')}": content[:12] for name, content in said["trained_on"].items()}
