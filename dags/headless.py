"""Run the Dags headless, in this one process, without a scheduler: the same files, the same Assets.

    python dags/headless.py --plan plan.json

The plan is a list of cycles, each the filled-in form of `reloop_ingest`. A cycle is a walk: the ingest
runs, then every Dag whose schedule waits for an Asset that got an event in this walk, in flow order. The
monitor runs once, after the decision; if it asks for a training, `reloop_train` and what follows from it
run once more. Each Dag run is one JSON line on stdout: dag_id, run_id, as_of, state, seconds, and for a
failed one failed_task, error, hint, log. Exit code 1 at the first failure, 2 if the plan is no plan.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from reloop_environment import environment

from pipelines.config import Home

FLOW: Final = ("reloop_ingest", "reloop_features", "reloop_train", "reloop_promote", "reloop_monitor")
FIRST: Final = FLOW[0]
LAST: Final = FLOW[-1]


@contextmanager
def _quiet(log: Path) -> Iterator[TextIO]:
    """Yield the real stdout; whatever else this process and its children print goes to the log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with log.open("ab") as file:
        sys.stdout.flush()
        os.dup2(file.fileno(), 1)
        try:
            yield answers
        finally:
            answers.flush()


def _load() -> dict[str, Any]:
    """Bring the metadata database up to date and return the Dags by id."""
    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.utils import db
    from reloop_environment import DAGS

    if not _is_current():
        db.initdb()
    bag = BundleDagBag(dag_folder=DAGS, bundle_path=DAGS, bundle_name="dags-folder")
    if bag.import_errors:
        raise RuntimeError(f"Dags that do not parse: {bag.import_errors}")
    return {dag_id: bag.dags[dag_id] for dag_id in FLOW}


def _is_current() -> bool:
    """Return whether the database has the newest schema already (asking takes less than migrating)."""
    from airflow.utils import db

    try:
        db.check_migrations(timeout=0)
    except Exception:  # noqa: BLE001 - Airflow raises a bare TimeoutError or the driver's own error
        return False
    return True


def _run(dag: Any, conf: dict[str, Any]) -> dict[str, Any]:
    """Run one Dag to its end and return its JSON line."""
    began = time.perf_counter()
    line = {"dag_id": dag.dag_id, "run_id": None, "as_of": conf.get("as_of"), "state": "failed"}
    try:
        run = dag.test(run_conf=conf)
    except ValueError as error:  # the form does not fit the Dag's Params: nothing ran
        line |= {"failed_task": None, "error": str(error), "hint": "the Dag's Params say what each field takes"}
    else:
        line |= {"run_id": run.run_id, "state": str(run.state)}
        line |= {} if line["state"] == "success" else _failure(dag.dag_id, run)
    return line | {"seconds": round(time.perf_counter() - began, 3)}


def _scheduler_runs(home: Home) -> bool:
    """Return whether `make up` is running on this state folder: it would run the tasks of our runs a second time."""
    file = home.root / "stack.json"
    if not file.is_file():
        return False
    leader = json.loads(file.read_text(encoding="utf-8"))["pid"]
    try:
        return os.getsid(leader) == leader
    except ProcessLookupError:
        return False


def _failure(dag_id: str, run: Any) -> dict[str, Any]:
    """Return which task of a run failed first, and why, from what the failure callback wrote."""
    failed = [ti for ti in run.get_task_instances() if str(ti.state) == "failed"]
    records = sorted(Home.from_environment().reports.glob(f"failures/{dag_id}/*.json"), key=lambda file: file.stat().st_mtime)
    for file in records:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["run"] == run.run_id:
            return {"failed_task": record["task"], "error": record["error"], "hint": record["hint"]}
    return {"failed_task": failed[0].task_id if failed else None, "error": "no task ran", "hint": "see the log"}


def _events(dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
    """Return what a run published: Asset name -> what its event carries."""
    from airflow.models.asset import AssetDagRunQueue, AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import delete, select

    query = (
        select(AssetModel.name, AssetEvent.extra)
        .join(AssetEvent, AssetEvent.asset_id == AssetModel.id)
        .where(AssetEvent.source_dag_id == dag_id, AssetEvent.source_run_id == run_id)
    )
    with create_session() as session:
        found = {name: dict(extra) for name, extra in session.execute(query)}
        # Followed here and now: a scheduler that starts later must not follow them again.
        session.execute(delete(AssetDagRunQueue).where(AssetDagRunQueue.target_dag_id.in_(FLOW)))
    return found


def _names(condition: Any) -> set[str]:
    """Return the names of the Assets in a schedule's condition: one Asset, or any or all of several; none without one."""
    if condition is None:
        return set()
    return set().union(*map(_names, condition.objects)) if hasattr(condition, "objects") else {condition.name}


def walk(dags: dict[str, Any], form: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run one cycle, yielding a line a Dag run, until nothing waits any more or one has failed."""
    waiting: dict[str, dict[str, Any]] = {FIRST: form}
    waits_for = {dag_id: _names(getattr(dag.timetable, "asset_condition", None)) for dag_id, dag in dags.items()}
    runs = dict.fromkeys(FLOW, 0)
    while due := [dag_id for dag_id in FLOW if dag_id in waiting]:
        dag_id = due[0]
        conf = waiting.pop(dag_id)
        line = _run(dags[dag_id], conf)
        runs[dag_id] += 1
        events = _events(dag_id, line["run_id"]) if line["state"] == "success" else {}
        line["as_of"] = line["as_of"] or next((extra["as_of"] for extra in events.values()), None)
        yield line
        if line["state"] != "success":
            return
        for name, extra in events.items():
            for follower in FLOW[1:]:
                # A monitor asks once a walk, and a training that it asked for is the walk's second and last.
                if name in waits_for[follower] and runs[follower] < (1 if follower == LAST else 2):
                    waiting[follower] = {"as_of": extra["as_of"]} if "as_of" in extra else {}


def main() -> int:
    """Run a plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True, help="JSON file: a list of filled-in forms of reloop_ingest")
    parser.add_argument("--log", type=Path, help="where Airflow's log goes; default: run/airflow.log in the state folder")
    arguments = parser.parse_args()
    forms = json.loads(arguments.plan.read_text(encoding="utf-8"))
    if not isinstance(forms, list) or not all(isinstance(form, dict) for form in forms):
        parser.error(f"{arguments.plan}: expected a JSON list of objects")
    home = Home.from_environment()
    if _scheduler_runs(home):
        parser.error(f"Airflow is up on {home.root} and would run these tasks too: trigger the Dags there, or `make down` first")
    os.environ.setdefault("RELOOP_RETRIES", "0")
    os.environ["RELOOP_HEADLESS"] = "1"  # nobody is there to be asked
    os.environ.update(environment(home))
    log = arguments.log or home.root / "run" / "airflow.log"
    with _quiet(log) as answers:
        dags = _load()
        for form in forms:
            for line in walk(dags, form):
                failed = line["state"] != "success"
                print(json.dumps(line | ({"log": str(log)} if failed else {})), file=answers, flush=True)
                if failed:
                    return 1
    return 0


if __name__ == "__main__":
    logging.captureWarnings(capture=True)
    sys.exit(main())
