"""`reloop impressions` and `reloop skew`: what was shown goes into the lake, and is held against what training sees."""

from __future__ import annotations

from pipelines.cli.answers import answer
from pipelines.cli.options import AsOfOption, HomeOption, JsonOption, home_at
from pipelines.window import utc


def impressions(as_of: AsOfOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Land what the service has logged: closed segments through the validation of every table into lake/impressions/."""
    from pipelines.lake.ledger import FATES
    from pipelines.serving import collecting

    done = collecting.collect(home_at(home), utc(as_of))
    rows = {fate: sum(batch["rows"][fate] for batch in done) for fate in FATES}
    days = sorted({day for batch in done for day in batch["days"]})
    answer(as_json, "Impressions", {"batches": len(done), "rows": rows, "days": days, "torn": sum(batch["torn"] for batch in done)})


def skew(as_of: AsOfOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Make a sample of the last week's requests again, as training would see them; exit code 1 where values or scores differ."""
    from pipelines.monitoring import skew as monitor

    found = monitor.check(home_at(home), utc(as_of))
    answer(as_json, "Skew", found, yes=found["verdict"] != monitor.SKEWED)
