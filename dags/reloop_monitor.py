"""Ask whether the world still looks as it did when the champion learnt.

**Does**: compares features, labels, scores and lists of the day with the champion's reference (PSI), its quality on fresh
labels with what it was judged on, the catalogue with the one it knows; looks for faults of the data; says what to do. A fault
blocks trainings and leaves an alert, anything else that calls for a training asks for one. Makes a sample of the requests that
were served again, and says where they saw other values than training would have (skew). Runs when new features are
there, and again when the gate has spoken.

**Writes**: `reports/{drift,quality,triage,skew}/<as_of>.json`, the Evidently page, `reports/alerts/<as_of>.json` if a person should look,
and what people read: `reports/index.html`, `reports/runs/<as_of>.html`, `reports/metrics.prom`.
Asset `retrain_request`, only when a training is asked for; otherwise `request_training` is skipped and its log says what was measured.

**When it fails**: nothing else waits for it. The message names the feature or file; clear the task.

**Rerun** is safe: it reads, and writes its reports again; those of a past day by what served then. A request within the cool-down is answered once that is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow.sdk import AssetAny, Metadata, dag, task
from reloop_assets import champion_decision, features, retrain_request
from reloop_defaults import DEFAULTS, REASON_LENGTH, START, as_of_param, current_as_of, proceed


@dag(
    schedule=AssetAny(features, champion_decision),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"as_of": as_of_param()},
    tags=["reloop", "monitoring"],
    doc_md=__doc__,
)
def reloop_monitor() -> None:
    @task
    def check_drift() -> dict[str, Any]:
        from pipelines.config import Home
        from pipelines.monitoring import triage
        from pipelines.registry import reconcile

        as_of = current_as_of()
        for done in reconcile.reconcile(Home.from_environment()):  # what people set by hand in MLflow
            print(done)  # noqa: T201 - into the task's log
        found = triage.check(Home.from_environment(), as_of)
        return {"as_of": as_of.isoformat(), "trains": found.trains, "action": found.action, "cause": found.cause, "reasons": found.reasons}

    @task(outlets=[retrain_request])
    def request_training(found: dict[str, Any]) -> Iterator[Metadata]:
        proceed(found["trains"], found["reasons"])
        said = {name: found[name] for name in ("as_of", "action", "cause")}
        yield Metadata(retrain_request, {**said, "reason": "; ".join(found["reasons"])[:REASON_LENGTH]})

    @task
    def check_skew(found: dict[str, Any]) -> None:
        from pipelines.config import Home
        from pipelines.monitoring import skew
        from pipelines.window import utc

        for reason in skew.check(Home.from_environment(), utc(found["as_of"]))["reasons"]:
            print(reason)  # noqa: T201 - into the task's log

    @task
    def report(found: dict[str, Any]) -> None:
        from pipelines.config import Home
        from pipelines.monitoring import report as reports
        from pipelines.window import utc

        reports.write(Home.from_environment(), utc(found["as_of"]))

    found = check_drift()
    request_training(found)
    check_skew(found) >> report(found)


reloop_monitor()
