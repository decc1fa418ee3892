"""Let an earlier release serve again.

**Does**: moves the champion pointer back to the release before (that nobody has rolled back from), or to the version that
the form names, after checking its bundle byte by byte. Then tells MLflow.

**Writes**: the champion pointer and the ledger (`releases.db`), MLflow aliases and the tag `rolled_back`.

**When to use**: the champion harms, and waiting for the next training is too long. `reloop rollback` does the same from a
shell, with Airflow down.

**When it fails**: *roll_back*: the pointer has not moved. "no earlier champion": name a version; "gone" or "differ from its
manifest": that bundle cannot serve, name another. *tell*: the release has moved, MLflow has not heard of it: clear the task.

**Rerun** is safe: what this run did is in the ledger under its id, and a cleared task does not do it twice.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, chain, dag, get_current_context, task
from reloop_defaults import DEFAULTS, REASON_LENGTH, START

TO = Param(
    None,
    type=["null", "integer"],
    minimum=1,
    maximum=2**31 - 1,
    title="To version",
    description_md="Model version that shall serve again. Empty: the newest release before the champion that nobody rolled back from.",
)
REASON = Param(
    type="string",
    minLength=3,
    maxLength=REASON_LENGTH,
    title="Reason",
    description_md="What is wrong with the champion, in words; goes into the ledger and onto the version's page in MLflow.",
)


@dag(
    schedule=None,
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"to": TO, "reason": REASON},
    tags=["reloop", "release", "manual"],
    doc_md=__doc__,
)
def reloop_rollback() -> None:
    @task
    def roll_back() -> dict[str, Any]:
        from pipelines.config import Home
        from pipelines.registry import rollback

        context: Any = get_current_context()
        asked, run = context["params"], context["dag_run"]
        by, key = getattr(run, "triggering_user_name", None), f"rollback/{run.run_id}"[:200]
        return rollback.roll_back(Home.from_environment(), asked["to"], reason=asked["reason"], author=by, key=key)

    @task
    def tell() -> None:
        from pipelines.config import Home
        from pipelines.registry import projection

        projection.sync(Home.from_environment())

    chain(roll_back(), tell())


reloop_rollback()
