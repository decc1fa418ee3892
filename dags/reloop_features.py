"""Turn the lake into features: one row per entity and day, checked, and served online.

**Does**: builds the marts that new events touch (dbt on DuckDB), checks the day (Great Expectations), applies the
Feast declarations, materializes the day to the online store, compares it with the point-in-time join.

**Writes**: the warehouse, `features/`, Feast registry and online store. Asset `features`.

**When it fails**
- *build*: dbt's own log names the model or test; `dbt build` in `dbt/` reproduces it.
- *validate_features*: the marts look wrong; the online store still serves the day before. Look at Data Docs, correct
  the model or the events, clear the task.
- *feast_apply*, *materialize*: the message says which view; the stock `feast` command works in `feature_repo/`.
- *check_parity*: online and offline differ; `reports/parity/<as_of>.json` has every feature's rate, largest difference and
  examples. Models go on with the features of the day before; clear *materialize* if the online store is at fault.

**Rerun** is safe at any point: a mart row is a function of what was known at its `as_of`.
"""

from __future__ import annotations

from airflow.sdk import chain, dag, task
from reloop_assets import lake
from reloop_defaults import DEFAULTS, START, as_of_param, current_as_of
from reloop_stages import build, check_parity, feast_apply, materialize, validate_features


@dag(
    schedule=[lake],
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"as_of": as_of_param()},
    tags=["reloop", "features"],
    doc_md=__doc__,
)
def reloop_features() -> None:
    @task
    def settle() -> str:
        return current_as_of().isoformat()

    as_of = settle()
    chain(build(as_of), validate_features(as_of), feast_apply(), materialize(as_of), check_parity(as_of))


reloop_features()
