"""What a test asks of a running Airflow, and a shop small enough to go through the loop in a minute or two."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines import publish
from pipelines.config import REPOSITORY, Home

WORLD = {"source": "simulated", "users": 300, "items": 120, "events_per_day": 500}
FIRST = {**WORLD, "from": "2025-01-06", "to": "2025-02-24", "batch_days": 49}
MINUTES = 60.0


def load_up() -> ModuleType:
    """Return infra/up.py as a module."""
    spec = importlib.util.spec_from_file_location("up", REPOSITORY / "infra" / "up.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Stack:
    """A running Airflow, and what a test asks of it."""

    home: Home
    url: str
    started: dict[str, Any]
    up: ModuleType

    def api(self) -> Any:
        return self.up.Api(self.url, self.home)

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Trigger a Dag as the REST API has it and return the run's id."""
        return self.api().call("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the runs of a Dag, oldest first."""
        return self.api().call("GET", f"/dags/{dag_id}/dagRuns?order_by=run_after&limit=100")["dag_runs"]

    def tasks(self, run: dict[str, Any]) -> dict[str, str]:
        """Return task -> state of a run; of a mapped task the state that comes first in the alphabet."""
        answer = self.api().call("GET", f"/dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}/taskInstances?limit=200")
        found: dict[str, str] = {}
        for ti in answer["task_instances"]:
            found[ti["task_id"]] = min(found.get(ti["task_id"], "~"), str(ti["state"]))
        return found

    def wait(self, dag_id: str, count: int, *, seconds: float) -> list[dict[str, Any]]:
        """Return the runs of a Dag once `count` of them have succeeded; fail as soon as any run of any Dag fails."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.fail_on_failure()
            done = [run for run in self.runs(dag_id) if run["state"] == "success"]
            if len(done) >= count:
                return done
            time.sleep(2)
        raise AssertionError(f"{dag_id}: fewer than {count} runs after {seconds} s; {self.everything()}")

    def asset_events(self) -> list[dict[str, Any]]:
        """Return the Asset events, oldest first.

        Airflow 3.3 answers 500 while a run that an event made is queued (apache/airflow#71360: `start_date` is null
        until the run starts), so ask again until it runs.
        """
        deadline = time.monotonic() + 2 * MINUTES
        while True:
            try:
                return self.api().call("GET", "/assets/events?order_by=timestamp&limit=100")["asset_events"]
            except urllib.error.HTTPError as error:
                if error.code != 500 or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def fail_on_failure(self) -> None:
        failed = sorted((self.home.reports / "failures").glob("*/*.json"))
        assert not failed, "\n".join(file.read_text() for file in failed)

    def everything(self) -> str:
        runs = [run for dag in ("ingest", "features", "train", "promote", "monitor") for run in self.runs(f"reloop_{dag}")]
        return json.dumps([(run["dag_id"], run["run_type"], run["state"], self.tasks(run)) for run in runs], indent=1)


def small_settings(home: Home) -> None:
    """Let a small shop train fast, and let its gate answer with few users."""
    home.root.mkdir(parents=True, exist_ok=True)
    settings = """
    [training]
    max_users_per_window = 300
    [retrieval]
    sources = ["popular", "popular_7d", "item_knn"]
    [ranking]
    n_rounds = 20
    [gate]
    min_users = 30
    min_slice_users = 10
    [drift]
    min_rows = 50
    """
    publish.write_text(home.root / "reloop.toml", "\n".join(line.strip() for line in settings.splitlines()))


@contextmanager
def running(home: Home, added: Mapping[str, str]) -> Iterator[Stack]:
    """Start everything as `make up` does, on free ports; in the end stop it as `make down` does, and leave no orphan."""
    small_settings(home)
    up = load_up()
    ports = ["--airflow-port", str(up.free_port(0)), "--mlflow-port", str(up.free_port(0))]
    environment = {**os.environ, "RELOOP_HOME": str(home.root), "OMP_NUM_THREADS": "1", "RELOOP_RETRIES": "0", **added}
    command = [sys.executable, str(REPOSITORY / "infra" / "up.py")]
    started = subprocess.run([*command, "up", *ports], env=environment, capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    stack = json.loads(up.stack_file(home).read_text())
    try:
        yield Stack(home, stack["airflow"], stack, up)
    finally:
        subprocess.run([*command, "down"], env=environment, check=True, capture_output=True)
        assert up.members(stack) == []


def reports(name: str) -> Path:
    """Return where a test leaves what a person may want to look at."""
    folder = Path(os.environ.get("RELOOP_TEST_REPORTS", REPOSITORY / "var" / "reports" / "tests"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
