"""What every Dag shares: owner, retries, pools, tags, the Params of time, the failure record, how a run finds its as_of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from airflow.sdk import ExceptionRetryPolicy, Param, RetryAction, RetryRule, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

START: Final = datetime(2025, 1, 1, tzinfo=UTC)

DUCKDB: Final = "duckdb"
TRAINING: Final = "training"
POOLS: Final = {
    DUCKDB: (1, "Writers of the lake and of the warehouse: DuckDB has one writing process."),
    TRAINING: (2, "Model fitting: as many at once as the machine has cores to spare."),
}

TAGS: Final = frozenset({"reloop", "data", "features", "models", "release", "monitoring", "manual"})


def record_failure(context: Any) -> None:
    """Write what failed, and what to do about it, to `reports/failures/`; set as every task's failure callback."""
    from pipelines import publish
    from pipelines.config import Home

    ti, error = context["task_instance"], context.get("exception")
    task = ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]"
    record = {
        "dag": ti.dag_id,
        "task": task,
        "run": ti.run_id,
        "try": ti.try_number,
        "error": f"{type(error).__name__}: {error}",
        "hint": getattr(error, "hint", "") or "clear the failed task once the cause is gone: a rerun is safe",
    }
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{ti.run_id}-{task}")
    publish.write_json(Home.from_environment().reports / "failures" / ti.dag_id / f"{name}.json", record)


DEFAULTS: Final[dict[str, Any]] = {
    "owner": "reloop",
    # Headless runs set RELOOP_RETRIES=0: there the person who waits is the retry.
    "retries": int(os.environ.get("RELOOP_RETRIES", "2")),
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=5),
    # Whoever was overtaken decides anew. Any other ReloopError says what a person must do, and waiting changes
    # nothing. Everything else may be the machine's fault.
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule(exception="pipelines.errors.StaleFence", action=RetryAction.RETRY, reason="another process was faster"),
            RetryRule(exception="pipelines.errors.ReloopError", action=RetryAction.FAIL, reason="a person must act; see the message"),
        ]
    ),
    "execution_timeout": timedelta(hours=2),
    "on_failure_callback": record_failure,
}

REASON_LENGTH: Final = 2000
MOMENT: Final = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?)?$"


def moment(title: str, description: str) -> Param:
    """Return a Param that takes an ISO 8601 date or time, or nothing."""
    return Param(None, type=["null", "string"], pattern=MOMENT, maxLength=40, title=title, description_md=description)


def as_of_param() -> Param:
    """Return the Param `as_of`, the same in every Dag."""
    return moment(
        "As of",
        "The first instant that is not yet known: `2025-03-03` means all of 2 March is in. "
        "Empty: what the triggering Asset event says, else where the lake ends.",
    )


def current_as_of() -> datetime:
    """Return the as_of of the running task: its Param, else the latest of the events that triggered it, else the lake's end.

    Several Asset events may collapse into one run, which then answers for all of them.
    """
    from pipelines.window import utc

    context: Any = get_current_context()
    if asked := context["params"].get("as_of"):
        return utc(asked)
    carried = [utc(extra["as_of"]) for extra in _extras(context) if "as_of" in extra]
    return max(carried) if carried else _end_of_lake(context)


def _extras(context: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [event.extra for events in context["triggering_asset_events"].values() for event in events]


def _end_of_lake(context: Mapping[str, Any]) -> datetime:
    from pipelines import lake
    from pipelines.config import Home
    from pipelines.window import DAY, utc

    days = lake.days(Home.from_environment())
    return utc(days[-1]) + DAY if days else utc(context["data_interval_end"])


def proceed(yes: bool, reasons: Iterable[str]) -> None:
    """Skip the running task, and with it what follows, unless `yes`; the reasons are the message."""
    if not yes:
        raise AirflowSkipException("; ".join(reasons))
