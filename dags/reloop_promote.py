"""Let the challenger become champion, if it has shown that it is better.

**Does**: compares champion and challenger on the same users (paired NDCG@10) and on every guardrail; a yes flips the
champion pointer, a no keeps it. Both are answers, neither is a failure.

**Writes**: the champion pointer and the ledger (`releases.db`), MLflow aliases. Asset `champion_decision`.

**When it fails**: the pointer has not moved. "stale fence" means that another promotion was faster: its result stands,
clear the task to decide again against the new champion.

**Rerun** is safe: a decision that was taken is not taken twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from airflow.sdk import Metadata, dag, task
from reloop_assets import challenger, champion_decision
from reloop_defaults import DEFAULTS, START, as_of_param, current_as_of


@dag(
    schedule=[challenger],
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"as_of": as_of_param()},
    tags=["reloop", "release"],
    doc_md=__doc__,
)
def reloop_promote() -> None:
    @task(outlets=[champion_decision])
    def decide() -> Iterator[Metadata]:
        from pipelines.config import Home
        from pipelines.registry import promotion

        as_of = current_as_of()
        decision = promotion.decide(Home.from_environment(), as_of)
        said = {name: decision[name] for name in ("verdict", "champion_before", "champion_after", "reasons")}
        yield Metadata(champion_decision, {"as_of": as_of.isoformat(), **said})

    decide()


reloop_promote()
