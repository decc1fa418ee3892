"""Bring a past range in (again), and rebuild the features it touches.

**Does**: reads, judges and lands the range `from`..`to` like `reloop_ingest`, then builds every mart day that it
touches, checks and materializes, all in one run: who waits for features is told once, at the end.

**Writes**: what `reloop_ingest` and `reloop_features` write. Asset `features`.

**When to use**: events of the past arrived late and in bulk, a mapping was corrected, the marts were deleted.

**When it fails**: as for `reloop_ingest` and `reloop_features`; their notes hold.

**Rerun** is safe, also beside a scheduled ingest: the `duckdb` pool lets one writer in at a time, and a range that the
lake already holds changes nothing.
"""

from __future__ import annotations

from airflow.sdk import Param, chain, dag
from reloop_defaults import DEFAULTS, MOMENT, START
from reloop_stages import (
    build,
    check_parity,
    feast_apply,
    land_again,
    latest,
    materialize,
    plan,
    read,
    source_params,
    validate,
    validate_features,
)


def required(title: str, description: str) -> Param:
    return Param(type="string", pattern=MOMENT, maxLength=40, title=title, description_md=description)


@dag(
    schedule=None,
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={**source_params(), "from": required("From", "First moment of the range."), "to": required("To", "Moment to stop before.")},
    tags=["reloop", "data", "features", "manual"],
    doc_md=__doc__,
)
def reloop_backfill() -> None:
    windows = plan()
    as_of = latest(windows)
    batches = read.expand(window=windows)
    landed = land_again(validate.partial(as_of=as_of).expand(batch=batches), as_of)
    chain(landed, build(as_of), validate_features(as_of), feast_apply(), materialize(as_of), check_parity(as_of))


reloop_backfill()
