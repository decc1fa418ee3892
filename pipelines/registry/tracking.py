"""Where MLflow keeps its books, spoken to without a word home."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from pipelines.config import Home

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL: Final = "reloop"
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous_champion"

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


def uri(home: Home) -> str:
    """Return the tracking and registry URI: RELOOP_MLFLOW_URI, or SQLite in the state folder (`file:` stores are refused)."""
    if found := os.environ.get("RELOOP_MLFLOW_URI"):
        return found
    home.mlflow.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{home.mlflow / 'mlflow.db'}"


def client(home: Home) -> MlflowClient:
    """Return a client of this state folder's MLflow; also makes it MLflow's default, for its fluent functions."""
    import logging

    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)  # else a first start prints one line a migration
    mlflow.set_tracking_uri(uri(home))
    mlflow.set_registry_uri(uri(home))
    return mlflow.MlflowClient(uri(home), uri(home))


def experiment(home: Home, name: str) -> str:
    """Return the id of an experiment, made on first use with its artifacts in the state folder."""
    from mlflow.exceptions import MlflowException

    books = client(home)
    if (found := books.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    local = None if os.environ.get("RELOOP_MLFLOW_URI") else (home.mlflow / "artifacts" / name).as_uri()
    try:
        return str(books.create_experiment(name, artifact_location=local))
    except MlflowException:  # another process was faster
        if (found := books.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)


def tag(value: Any) -> str:
    """Return a value as MLflow keeps a tag: text of at most 5,000 characters."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= 5000 else f"{text[:4997]}..."


def ensure_model(home: Home) -> None:
    """Make the registered model if it is not there; two first starts at once are both right."""
    from mlflow.exceptions import MlflowException

    try:
        client(home).create_registered_model(
            MODEL, description="Two-stage recommender: sources propose, the blend merges, the ranker orders."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
