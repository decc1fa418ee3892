"""May these impressions enter? Every row of a staged batch of the impression log is judged, then the batch; as events are."""

from __future__ import annotations

import shutil
from datetime import datetime
from typing import Final

from pipelines import config, cycle, lake, publish
from pipelines.config import Home
from pipelines.lake.engine import disk_errors
from pipelines.lake.landing import judged_folder
from pipelines.validation import judging, profile, suites
from pipelines.validation.checkpoint import NUMBERS, figures, frame, gate
from pipelines.validation.data_docs import evaluate
from pipelines.validation.row_rules import table_rules

TABLE: Final = "impressions"


def validate(home: Home, as_of: datetime, batch_id: str) -> None:
    """Part a staged batch into accepted rows, quarantine and duplicates, and hold it against its suite.

    Raises:
        ValidationBlocked: a critical expectation failed; the message names column and count, and nothing of it can be landed.
        StateError: the batch was not staged.
    """
    with cycle.stage(home, as_of, "validation", batch_id) as record, disk_errors(f"validation of batch {batch_id}", home):
        staged, settings = home.landing / batch_id, config.load(home).validation
        facts = publish.manifest(staged).facts
        shutil.rmtree(judged_folder(home, batch_id), ignore_errors=True)
        record["batch_id"], record["source"] = batch_id, facts["source"]
        with lake.open_engine(home) as engine:
            judging.define(engine, TABLE, staged / f"{TABLE}.parquet", table_rules(settings)[TABLE])
            refused = home.quarantine / batch_id
            with publish.folder(refused, {"batch_id": batch_id, "source": facts["source"]}) as quarantine:
                judging.write_quarantine(engine, TABLE, quarantine / f"{TABLE}.parquet")
                accounts = judging.accounts(engine, TABLE)
                lines = profile.measure(engine, TABLE, window=None, accounts=accounts, odd_columns={}, known=profile.Usual())
            common = next(iter(accounts.reasons), "none")
            held = [(suites.impressions(settings), frame(lines, NUMBERS))]
            verdict = evaluate(home.reports / "gx", batch_id, as_of, held, {"common": common})
            record.update(figures(verdict, {TABLE: accounts}))
            gate(verdict, f"batch {batch_id}", f"see {verdict.page} and {refused}; nothing was landed")
            judgement = {"source": facts["source"], "rows": accounts.rows, "reasons": accounts.reasons, "torn": facts["torn"]}
            with publish.folder(judged_folder(home, batch_id), judgement) as judged:
                judging.write_accepted(engine, TABLE, judged / f"{TABLE}.parquet")
