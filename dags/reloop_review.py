"""The task that asks a person: Airflow's human-in-the-loop operator, shown what the gate measured."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, Final

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from reloop_defaults import REASON_LENGTH, proceed

PROMOTE: Final = "Promote"
KEEP: Final = "Keep"
ASKED: Final = "asked"  # XCom: the key of the ledger entry that was shown
FORM: Final = {
    "why": Param(
        None,
        type=["null", "string"],
        maxLength=REASON_LENGTH,
        title="Why",
        description_md="In words; goes into the ledger, beside your name.",
    )
}


class Review(HITLOperator):
    """Ask whether a challenger that waits may serve; skipped where none waits, or where nobody can be asked.

    Args:
        as_of: the cycle that was decided on, ISO 8601.
    """

    template_fields = (*HITLOperator.template_fields, "as_of")

    def __init__(self, *, as_of: Any, **named: Any) -> None:
        options = [PROMOTE, KEEP]
        super().__init__(subject="Shall the challenger serve?", options=options, defaults=KEEP, response_timeout=timedelta(days=1), **named)
        self.as_of = as_of

    def execute(self, context: Any) -> Any:
        """Show the evidence and wait, for `release.review_hours`; the executor is free meanwhile."""
        from pipelines import config
        from pipelines.config import Home
        from pipelines.registry import review

        home = Home.from_environment()
        waiting = [entry for entry in review.waiting(home) if entry["as_of"] == self.as_of]
        proceed(bool(waiting), ["nothing waits for a person"])
        nobody = f"nobody is asked in a headless run: `reloop review approve {waiting[-1]['challenger']}`, or the champion stays"
        proceed("RELOOP_HEADLESS" not in os.environ, [nobody])
        self.subject, self.body = review.subject(waiting[-1]), review.page(home, waiting[-1])
        context["ti"].xcom_push(key=ASKED, value=waiting[-1]["key"])  # the answer is to this entry and to no later one
        self.response_timeout = timedelta(hours=config.load(home).release.review_hours)
        super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Take the answer, and whose it is; none came if Airflow answered with the default."""
        from pipelines.config import Home
        from pipelines.registry import promotion

        said = super().execute_complete(context, event)
        user = said["responded_by_user"]
        heard = promotion.heard(
            Home.from_environment(),
            context["ti"].xcom_pull(task_ids=self.task_id, key=ASKED),
            approved=PROMOTE in said["chosen_options"],
            author=user["name"] if user else None,
            words=said["params_input"].get("why") or "no words",
        )
        if not heard:
            print("this review was closed before: what was decided since stands; where another is open, clear this task to be asked that")  # noqa: T201 - into the task's log
        return said["chosen_options"]
