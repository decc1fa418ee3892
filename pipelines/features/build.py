"""Feature marts: which days to build, one `dbt build` for all of them, each day published as Parquet."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import cycle, lake, publish
from pipelines.config import REPOSITORY, Home, load
from pipelines.errors import ReloopError, StateError
from pipelines.tables import MARTS, TIMESTAMP
from pipelines.window import DAY, floor_day

PROJECT: Final = REPOSITORY / "dbt"
RECENT: Final = {"item_pairs_daily": 8}  # marts of which only the last days keep their rows: `ttl_days` of dbt_project.yml
DEFINITION: Final = ("models/**/*.sql", "macros/*.sql", "dbt_project.yml")
MANIFEST: Final = "_manifest.json"
ENGINE: Final = {"threads": "2", "memory_limit": "2GB"}
BATCH: Final = 1 << 17
log = logging.getLogger(__name__)


def build(home: Home, as_of: datetime) -> dict[str, Any]:
    """Build and publish every feature row that is missing or has become stale up to `as_of`.

    Days are built from the one after the last built, or from the first on which something shows
    that has landed since: a late event changes rows from the day after its receipt. A gap of any
    length is caught up in one run, and a run that has nothing to do does nothing. Killed anywhere
    and run again, it ends in the same bytes; a second build at the same time waits for the first. dbt goes on from the state of the day before and reads
    the lake's new days alone; where there is none, or the models have changed, it reads everything.

    Returns and records `features` {mart: rows of the day as_of} and `days`, the days built.

    Raises:
        StateError: the lake knows nothing before `as_of`.
        ReloopError: dbt failed; the message has the node and dbt's own words.
    """
    with publish.locked(home.features / ".build.lock"), cycle.stage(home, as_of, "features") as record:
        manifest = _manifest(home)
        sequence = lake.head(home)
        days = touched(home, as_of, manifest)
        if days:
            log.info("features: building %d days, %s to %s", len(days), days[0], days[-1])
            run_dbt(home, days[0], days[-1], *(["--full-refresh"] if manifest["definition"] not in (None, definition()) else []))
            rows = publish_days(home, days)
            for mart, by_day in rows.items():
                manifest["rows"][mart] = {**manifest["rows"].get(mart, {}), **{str(day): count for day, count in by_day.items()}}
            manifest["first_day"] = min(filter(None, [manifest["first_day"], str(days[0])]))
            manifest["last_day"] = max(filter(None, [manifest["last_day"], str(days[-1])]))
            manifest["definition"] = definition()
            _forget(home, manifest)
        manifest["sequence"] = sequence
        publish.write_json(home.features / MANIFEST, manifest)
        day = str(floor_day(as_of).date())
        record["features"] = {mart: manifest["rows"].get(mart, {}).get(day, 0) for mart in MARTS}
        record["days"] = [str(day) for day in days]
        return record


def _manifest(home: Home) -> dict[str, Any]:
    file = home.features / MANIFEST
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"sequence": 0, "first_day": None, "last_day": None, "definition": "" if found else None, "rows": {}, **found}


def definition() -> str:
    """Return the digest of what the features are computed by; days built by another are built again."""
    files = sorted(file for pattern in DEFINITION for file in PROJECT.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _forget(home: Home, manifest: dict[str, Any]) -> None:
    """Empty the days of marts of which only the last are kept, whatever road led past them."""
    last = date.fromisoformat(manifest["last_day"])
    for mart, kept in RECENT.items():
        for day, rows in manifest["rows"][mart].items():
            if rows and date.fromisoformat(day) <= last - kept * DAY:
                file = _file(home, mart, date.fromisoformat(day))
                publish.write_parquet(file, pq.read_schema(file).empty_table())
                manifest["rows"][mart][day] = 0


def touched(home: Home, as_of: datetime, manifest: dict[str, Any]) -> list[date]:
    """Return the days to build, ascending: everything after what was built, and what new landings made stale.

    A day is the midnight on which its rows begin to hold. A rebuild runs to the last day ever
    built, also where `as_of` is before it; the first build reaches back `history_days` at most.
    Changed models make every day stale.
    """
    last = floor_day(as_of).date()
    news = lake.landings(home, manifest["sequence"])
    if manifest["last_day"] is None:
        known = lake.days(home)
        if not known or known[0] >= last:
            raise StateError(
                f"lake at {home.lake}", found="no event before " + str(last), allowed="at least one day of events", hint="ingest first"
            )
        first = max(known[0] + DAY, last - timedelta(days=load(home).features.history_days - 1))
    else:
        built = date.fromisoformat(manifest["last_day"])
        first = min([built + DAY, *(day + DAY for landing in news for day in landing.shown.values())])
        first = max(first, date.fromisoformat(manifest["first_day"]))
        if manifest["definition"] != definition():
            first = date.fromisoformat(manifest["first_day"])
        last = max(last, built)
    return [first + n * DAY for n in range((last - first).days + 1)]


def run_dbt(home: Home, first: date, last: date, *arguments: str) -> None:
    """Run `dbt build` for the days first..last in a process of its own: when it ends, the warehouse is free.

    Raises:
        ReloopError: with the failing nodes and what dbt said about them.
    """
    work = home.warehouse.parent / "dbt"
    work.mkdir(parents=True, exist_ok=True)
    (work / "run_results.json").unlink(missing_ok=True)
    command = [
        sys.executable,
        "-c",
        "from dbt.cli.main import cli; cli()",
        "build",
        "--exclude-resource-type",
        "unit_test",
        "--no-version-check",
        "--log-level-file",
        "info",
        *arguments,
    ]
    # Events of the day before `first` show first at `first`; of older days, those received since.
    late = lake.received_since(home, first - DAY)
    environment = {
        **os.environ,
        "RELOOP_HOME": str(home.root),
        "RELOOP_AS_OF_FROM": str(first),
        "RELOOP_AS_OF_TO": str(last),
        "RELOOP_LATE_DAYS": json.dumps([str(day) for day in late]),
        "DBT_PROJECT_DIR": str(PROJECT),
        "DBT_PROFILES_DIR": str(PROJECT),
        "DBT_TARGET_PATH": str(work),
        "DBT_LOG_PATH": str(work / "logs"),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "1",
    }
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        log.debug("dbt: %s", line)
    if done.returncode:
        raise ReloopError(
            "features (dbt build)",
            found=_failures(work / "run_results.json") or (done.stdout + done.stderr)[-2000:],
            hint=f"the whole log is {work / 'logs' / 'dbt.log'}; once repaired, the same run resumes",
        )


def _failures(results: Path) -> str:
    """Return the nodes that failed with dbt's words about each, or "" if dbt did not get that far."""
    if not results.is_file():
        return ""
    nodes = json.loads(results.read_text(encoding="utf-8"))["results"]
    return "; ".join(f"{node['unique_id']}: {node['message']}" for node in nodes if node["status"] in {"error", "fail", "runtime error"})


def publish_days(home: Home, days: list[date]) -> dict[str, dict[date, int]]:
    """Write `features/<mart>/as_of=D.parquet` for consecutive days of the warehouse; return rows by mart and day.

    Rows are sorted by key; a day on which a mart has no row is an empty file. Of some marts only the
    last days have rows (`RECENT`).
    """
    rows: dict[str, dict[date, int]] = {}
    with duckdb.connect(str(home.warehouse), read_only=True, config=ENGINE) as warehouse:
        for mart, keys in MARTS.items():
            wanted = days[-RECENT.get(mart, len(days)) :]
            rows[mart] = dict.fromkeys(days, 0)
            # One sort of all days is a third of the work of one scan and sort a day.
            query = f"select * from {mart} where as_of between cast($first as timestamp) and cast($last as timestamp) order by {', '.join(['as_of', *keys])}"
            reader = warehouse.sql(query, params={"first": wanted[0].isoformat(), "last": wanted[-1].isoformat()}).to_arrow_reader(BATCH)
            for day, table in _by_day(reader):
                publish.write_parquet(_file(home, mart, day), _in_utc(table))
                rows[mart][day] = len(table)
            for day in (day for day, count in rows[mart].items() if not count):
                publish.write_parquet(_file(home, mart, day), _in_utc(reader.schema.empty_table()))
    return rows


def _file(home: Home, mart: str, day: date) -> Path:
    return home.features / mart / f"as_of={day}.parquet"


def _by_day(reader: pa.RecordBatchReader) -> Iterator[tuple[date, pa.Table]]:
    """Yield the days of rows sorted by `as_of`, one table each, holding one day at a time."""
    waiting: list[pa.RecordBatch] = []
    for batch in reader:
        runs = pc.run_end_encode(batch.column(c.AS_OF)).run_ends.to_pylist()
        for start, end in pairwise([0, *runs]):
            piece = batch.slice(start, end - start)
            if waiting and waiting[0].column(c.AS_OF)[0] != piece.column(c.AS_OF)[0]:
                yield _dated(waiting)
                waiting = []
            waiting.append(piece)
    if waiting:
        yield _dated(waiting)


def _dated(batches: list[pa.RecordBatch]) -> tuple[date, pa.Table]:
    moment: datetime = batches[0].column(c.AS_OF)[0].as_py()
    return moment.date(), pa.Table.from_batches(batches)


def _in_utc(table: pa.Table) -> pa.Table:
    """Return the table with its times in UTC microseconds, in one chunk, so that bytes depend on the rows alone."""
    for name in (c.AS_OF, c.AVAILABLE_AT):
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.timestamp("us")).cast(TIMESTAMP))
    return table.combine_chunks()
