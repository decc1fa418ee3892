"""Let the challenger become champion, if it has shown that it is better, and if nobody has to agree or somebody has.

**Does**: honours what people set by hand in MLflow; compares champion and challenger on the same users (paired NDCG@10)
and on every guardrail; a yes flips the champion pointer, a no keeps it. Both are answers, neither is a failure. With
`release.mode = "review"` (`reloop.toml`) a yes waits: *review* shows the evidence under **Required Actions** of this run,
and takes the answer of whoever gives it. No answer within `release.review_hours` keeps the champion. With
`release.mode = "off"` the gate speaks and nothing moves.

**Writes**: the champion pointer and the ledger (`releases.db`), MLflow aliases. Asset `champion_decision`. At the end *tidy*
takes away the bundles and training runs that `retention` (`reloop.toml`) does not keep; `reloop gc --dry-run` says which.

**When it fails**: the pointer has not moved. "stale fence" means that another promotion was faster: its result stands,
clear the task to decide again against the new champion. "an older backup was restored": `reloop releases recover`.

**Rerun** is safe: a decision that was taken is not taken twice, nor an answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from airflow.sdk import Metadata, Param, chain, dag, get_current_context, task
from reloop_assets import challenger, champion_decision
from reloop_defaults import DEFAULTS, START, as_of_param, current_as_of
from reloop_review import FORM, Review

AGAIN = Param(
    default=False,
    type="boolean",
    title="Judge again",
    description_md="Judge anew what was decided before: after a rollback, or when the policy has changed. Otherwise a decision stands.",
)


@dag(
    schedule=[challenger],
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"as_of": as_of_param(), "again": AGAIN},
    tags=["reloop", "release"],
    doc_md=__doc__,
)
def reloop_promote() -> None:
    @task
    def decide() -> str:
        from pipelines.config import Home
        from pipelines.registry import promotion, reconcile

        home, as_of, context = Home.from_environment(), current_as_of(), get_current_context()
        for done in reconcile.reconcile(home):
            print(done)  # noqa: T201 - into the task's log
        again = context["dag_run"].run_id if context["params"]["again"] else None
        promotion.decide(home, as_of, again=again)
        return as_of.isoformat()

    @task(outlets=[champion_decision], trigger_rule="none_failed")
    def announce(as_of: str) -> Iterator[Metadata]:
        from pipelines.config import Home
        from pipelines.registry import promotion
        from pipelines.window import utc

        decision = promotion.decide(Home.from_environment(), utc(as_of))
        said = {name: decision[name] for name in ("verdict", "outcome", "champion_before", "champion_after", "reasons")}
        yield Metadata(champion_decision, {"as_of": as_of, **said})

    @task
    def tidy() -> None:
        from pipelines.config import Home
        from pipelines.registry import retention

        print(retention.say(retention.collect(Home.from_environment())))  # noqa: T201 - into the task's log

    as_of = decide()
    chain(Review(task_id="review", as_of=as_of, params=FORM), announce(as_of), tidy())


reloop_promote()
