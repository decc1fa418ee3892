"""May this data enter? Judge every row of a staged batch, then the batch; and the features before they are used."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Final

import pandas as pd

from pipelines import config, cycle, lake, publish, tables
from pipelines.config import Home
from pipelines.errors import StateError, ValidationBlocked
from pipelines.lake.engine import disk_errors
from pipelines.lake.landing import judged_folder
from pipelines.validation import feature_profile, judging, profile, suites
from pipelines.validation.data_docs import SEVERITIES, Verdict, evaluate
from pipelines.validation.row_rules import table_rules
from pipelines.window import Window, floor_day, stamp, utc

DRY_RUN: Final = "_dry_run"
SUITES: Final = {"events": suites.events, "items": suites.items, "users": suites.users}
NUMBERS: Final = (
    "row_count", "quarantined_share", "conflicting_share", "null_share_above_usual", "reason_share_above_usual",
    "unknown_type_share_above_usual", "volume_share", "off_scale_share", "price_factor",
)  # fmt: skip
FEATURE_NUMBERS: Final = (
    "not_built", "row_count", "null_keys", "repeated_keys", "wrong_as_of", "early_rows", "not_finite", "negative", "outside_unit", "null_share",
)  # fmt: skip


def validate_batch(home: Home, as_of: datetime, batch_id: str, *, dry_run: bool = False) -> None:
    """Part a staged batch into accepted rows, quarantine and duplicates, and hold it against its suites.

    Writes `landing/<batch_id>.judged/` (what `lake.land` takes) and `quarantine/<batch_id>/`. A
    blocked batch leaves only its quarantine and its Data Docs: it cannot be landed. A dry run keeps
    apart from all that a real one leaves: the rows it refuses go to `quarantine/_dry_run/<batch_id>/`,
    which the next one replaces, its figures to the record `dry_run`, its page is called `dry-run-<batch_id>`,
    and nothing is judged for landing.

    Raises:
        ValidationBlocked: a critical expectation failed; the message names column and count.
        StateError: the batch was not staged.
    """
    stage, page = ("dry_run", f"dry-run-{batch_id}") if dry_run else ("validation", batch_id)
    refused = home.quarantine / DRY_RUN / batch_id if dry_run else home.quarantine / batch_id
    with cycle.stage(home, as_of, stage, batch_id) as record, disk_errors(f"validation of batch {batch_id}", home):
        staged = home.landing / batch_id
        facts = publish.manifest(staged).facts
        settings = config.resolve(home, facts["source"], facts.get("settings", {}))
        rules = table_rules(settings.validation)
        window = Window.parse(*facts["window"]) if facts.get("window") else None
        if not dry_run:
            shutil.rmtree(judged_folder(home, batch_id), ignore_errors=True)
        record["batch_id"], record["source"] = batch_id, facts["source"]
        engine = lake.connect(home)
        try:
            known = profile.Usual() if window is None else profile.usual(engine, window, batch_id, lake.reports(home))
            present = [table for table in SUITES if (staged / f"{table}.parquet").is_file()]
            if "events" not in present:
                raise StateError(
                    f"batch {batch_id}", found=f"no events at {staged}", allowed="a staged batch", hint="read the source again"
                )
            accounts: dict[str, judging.Accounts] = {}
            held = []
            with publish.folder(refused, {"batch_id": batch_id, "source": facts["source"]}) as quarantine:
                for table in present:
                    judging.define(engine, table, staged / f"{table}.parquet", rules[table])
                    judging.write_quarantine(engine, table, quarantine / f"{table}.parquet")
                    accounts[table] = judging.accounts(engine, table)
                    odd = facts.get("columns", {}).get(table, {})
                    lines = profile.measure(engine, table, window=window, accounts=accounts[table], odd_columns=odd, known=known)
                    held.append((SUITES[table](settings.validation), frame(lines, NUMBERS)))
            common = next(iter(accounts["events"].reasons), "none")
            verdict = evaluate(home.reports / "gx", page, as_of, held, {"common": common})
            record.update(figures(verdict, accounts))
            gate(verdict, f"batch {batch_id}", f"see {verdict.page} and {refused}; nothing was landed")
            if dry_run:
                return
            judgement = {
                **{fact: facts[fact] for fact in ("source", "window", "settings") if fact in facts},
                "rows": accounts["events"].rows,
                "reasons": accounts["events"].reasons,
                "value": {fate: str(amount) for fate, amount in accounts["events"].value.items()},
            }
            with publish.folder(judged_folder(home, batch_id), judgement) as judged:
                for table in present:
                    judging.write_accepted(engine, table, judged / f"{table}.parquet")
        finally:
            engine.close()


def validate_features(home: Home, as_of: datetime) -> None:
    """Hold the marts of the day `as_of`, and of every day that this cycle built, against their suites.

    Raises:
        ValidationBlocked: a critical expectation failed; the message names mart, column and count.
    """
    with cycle.stage(home, as_of, "feature_validation") as record:
        today = floor_day(as_of).date()
        built = {date.fromisoformat(day) for done in cycle.records(home, as_of, "features") for day in done.get("days", ())}
        engine = lake.open_engine(home)
        try:
            held = []
            for mart in tables.MARTS:
                files = {day: home.features / mart / f"as_of={day}.parquet" for day in {today, *built}}
                held.append((suites.features(mart), frame(feature_profile.measure(engine, mart, files, today), FEATURE_NUMBERS)))
        finally:
            engine.close()
        verdict = evaluate(home.reports / "gx", f"features-{stamp(as_of)}", as_of, held)
        record.update(figures(verdict, {}))
        gate(verdict, f"features of {utc(as_of):%Y-%m-%d}", f"see {verdict.page}; the online store and the champion are as they were")


def frame(lines: list[profile.Line], numbers: tuple[str, ...]) -> pd.DataFrame:
    """Return measurements as a frame that has a column for every check, NaN or None where a line has none."""
    frame = pd.DataFrame(lines)
    for name in (*numbers, "usual"):
        frame[name] = frame[name].astype(float) if name in frame else float("nan")
    for name in ("column", "beside"):
        words: list[object] = [None] * len(frame) if name not in frame else [None if pd.isna(word) else word for word in frame[name]]
        frame[name] = pd.Series(words, dtype=object)
    return frame


def figures(verdict: Verdict, accounts: Mapping[str, judging.Accounts]) -> dict[str, Any]:
    """Return what a record tells of a verdict."""
    critical = verdict.of("critical")
    return {
        "verdict": "blocked" if critical else ("passed with warnings" if verdict.of("warning") else "passed"),
        "expectations": verdict.evaluated,
        "failed": {severity: verdict.of(severity) for severity in SEVERITIES},
        "tables": {table: {"rows": account.rows, "reasons": account.reasons} for table, account in accounts.items()},
        "data_docs": str(verdict.page),
    }


def gate(verdict: Verdict, thing: str, hint: str) -> None:
    """Stop what failed a critical expectation.

    Raises:
        ValidationBlocked: one did.
    """
    if critical := verdict.of("critical"):
        raise ValidationBlocked(thing, found="; ".join(critical), hint=hint)
