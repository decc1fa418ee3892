"""Ask whether the world still looks as it did when the champion learnt.

**Does**: compares the features of the day with the champion's training reference (PSI); if they have drifted, asks for
a training. Runs when new features are there, and again when the gate has spoken.

**Writes**: `reports/drift/<as_of>.json`, the Evidently page beside it. Asset `retrain_request`, only when drift is found;
otherwise `request_training` is skipped and its log says what was measured.

**When it fails**: nothing else waits for it. The message names the feature or file; clear the task.

**Rerun** is safe: it reads, and writes the same report again. A second request within the cool-down trains nothing.
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
        from pipelines.monitoring import drift

        as_of = current_as_of()
        found = drift.check(Home.from_environment(), as_of)
        return {
            "as_of": as_of.isoformat(),
            "drifted": found.verdict == drift.DRIFT,
            "verdict": found.verdict,
            "reasons": list(found.reasons),
        }

    @task(outlets=[retrain_request])
    def request_training(found: dict[str, Any]) -> Iterator[Metadata]:
        proceed(found["drifted"], found["reasons"])
        yield Metadata(retrain_request, {"as_of": found["as_of"], "reason": "; ".join(found["reasons"])[:REASON_LENGTH]})

    request_training(check_drift())


reloop_monitor()
