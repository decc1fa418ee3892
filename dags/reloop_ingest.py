"""Bring new events into the lake.

**Does**: cuts what was asked into windows, stages each from the source, judges it (Great Expectations), lands what
may enter; beside them what the service has shown (`impressions`). With an empty form: the next week of the simulated shop, or its first eight weeks on an empty lake.

**Writes**: `landing/`, `quarantine/`, `lake/`, Data Docs. Asset `lake` when everything has landed.

**When it fails**
- *validate*: the batch is blocked and nothing of this run has landed. The message names the check, Data Docs under
  `reports/` show the rows. Correct the source (or the mapping), clear the task.
- *read*: the path, the file or the mapping is wrong; the message names column and row. Trigger again with the right form.
- *impressions*: the log holds what the service does not write; the batch is named, and events have landed all the same.
- *land*: disk full, or the lake belongs to another source (one lake, one source: use another RELOOP_HOME).

**Rerun** is safe at any point: the same batch twice leaves the same bytes.
"""

from __future__ import annotations

import os

from airflow.sdk import dag
from reloop_defaults import DEFAULTS, START
from reloop_stages import impressions, land, plan, read, settle, source_params, validate


@dag(
    schedule=os.environ.get("RELOOP_INGEST_SCHEDULE") or None,
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params=source_params(),
    tags=["reloop", "data"],
    doc_md=__doc__,
)
def reloop_ingest() -> None:
    windows = plan()
    as_of = settle(windows)
    batches = read.expand(window=windows)
    land(validate.partial(as_of=as_of).expand(batch=batches), as_of)
    impressions(as_of)


reloop_ingest()
