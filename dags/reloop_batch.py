"""Make everybody's list beforehand: what the service answers with when nothing better is to be had.

**Does**: the champion ranks for every user with an event in the last days (Param *Active days*), in blocks, so that memory does not
grow with the users; the lists are published and brought to where the service finds them. Runs when new features are there, and
again when the gate has spoken.

**Writes**: `recommendations/as_of=<moment>/lists.parquet`, the file under `serving/lists/` that the service maps and, where
`serving.cache.redis` is set, the same in Redis. Nothing shows before all of it was read back.

**When it fails**: the lists of before go on answering, until they are `serving.cache.precomputed_days` old. "no release": nothing was
promoted yet, so there is nothing to make lists with. "gone right after writing": Redis evicts; give it memory.

**Rerun** is safe: lists that are there are not made again; an older moment never takes the place of a newer one.
"""

from __future__ import annotations

from airflow.sdk import AssetAny, Param, dag, get_current_context, task
from reloop_assets import champion_decision, features
from reloop_defaults import DEFAULTS, START, TRAINING, as_of_param, current_as_of, proceed

K = Param(None, type=["null", "integer"], minimum=1, maximum=1000, title="k", description_md="Items a user. Empty: `serving.batch.k`.")
ACTIVE_DAYS = Param(
    None,
    type=["null", "integer"],
    minimum=0,
    maximum=3650,
    title="Active days",
    description_md="Users with an event in so many days before. 0: everybody. Empty: `serving.batch.active_days`.",
)


@dag(
    schedule=AssetAny(features, champion_decision),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"as_of": as_of_param(), "k": K, "active_days": ACTIVE_DAYS},
    tags=["reloop", "models"],
    doc_md=__doc__,
)
def reloop_batch() -> None:
    @task
    def champion() -> str:
        from pipelines.config import Home
        from pipelines.registry import releases

        proceed(releases.pointer(Home.from_environment()).version is not None, ["no release yet: nothing to make lists with"])
        return current_as_of().isoformat()

    @task(pool=TRAINING)
    def make_lists(as_of: str) -> None:
        from pipelines.config import Home
        from pipelines.serving import batch
        from pipelines.window import utc

        asked = get_current_context()["params"]
        print(batch.run(Home.from_environment(), utc(as_of), k=asked["k"], active_days=asked["active_days"]))  # noqa: T201 - into the task's log

    make_lists(champion())


reloop_batch()
