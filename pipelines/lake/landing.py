"""Landing a judged batch: merged into the lake as a set of rows, in one step, whatever was there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from pipelines import columns as c
from pipelines import cycle, publish, tables
from pipelines.config import Home, source_file
from pipelines.errors import StateError
from pipelines.lake import journal, reading
from pipelines.lake.day_files import write_days, write_table
from pipelines.lake.engine import disk_errors, open_engine, parquet
from pipelines.lake.ledger import FATES, HEAD, LandingReport, entry_name, read_entry

EVENT_COLUMNS: Final = ", ".join(tables.EVENTS.names)
# The same event twice: the one received first is the event, whichever batch brought it. The rest of
# the row breaks ties, so that the choice depends on the rows and never on their order.
FIRST: Final = ", ".join(f"{name} NULLS LAST" for name in (c.RECEIVED_AT, *(n for n in tables.EVENTS.names if n != c.RECEIVED_AT)))
DAY: Final = f"CAST({c.EVENT_AT} AS DATE)"
AMOUNT: Final = f"coalesce(sum(try_cast({c.VALUE} AS DECIMAL(38, 6))), 0)"


def judged_folder(home: Home, batch_id: str) -> Path:
    """Return the folder of a batch's accepted tables."""
    return home.landing / f"{batch_id}.judged"


def land(home: Home, as_of: datetime, batch_id: str) -> LandingReport:
    """Merge a judged batch into the lake and record its figures as the cycle's `ingest` record.

    The same batch again changes no byte and returns the report of the first time. Safe to kill and
    to repeat at any point; a second process waits.

    Raises:
        StateError: the batch was not judged, the lake belongs to another source, or the disk is full.
    """
    with cycle.stage(home, as_of, "ingest", batch_id) as record:
        folder = judged_folder(home, batch_id)
        if not (folder / publish.MANIFEST).is_file():
            raise StateError(
                f"batch {batch_id}",
                found=f"no judged tables at {folder}",
                allowed="a batch that passed validation",
                hint="validate it first",
            )
        manifest = publish.manifest(folder)
        with _landing(home, batch_id) as engine:
            for table in ("events", "items", "users"):
                reading.define(engine, f"new_{table}", tables.CANONICAL[table], [folder / f"{table}.parquet"])
            report = _land(home, engine, batch_id, manifest.digest, manifest.facts)
        record.update(report.record())
        return report


def land_tables(
    home: Home, *, events: pa.Table, items: pa.Table | None = None, users: pa.Table | None = None, source: str = "test", batch_id: str = ""
) -> LandingReport:
    """Land canonical tables as they are, without validation: for tests and programs that made them themselves.

    Args:
        batch_id: what the ledger calls it; by default a digest of the rows.
    """
    given = {"events": events, "items": items, "users": users}
    ready = {
        name: schema.empty_table() if (table := given[name]) is None else table.select(schema.names).cast(schema)
        for name, schema in tables.CANONICAL.items()
        if name in given
    }
    identity = _digest(ready)
    batch_id = batch_id or f"{source}-{identity[:12]}"
    with _landing(home, batch_id) as engine:
        engine.register("given_events", ready["events"])
        engine.execute(
            f"CREATE TEMP TABLE new_events AS SELECT {EVENT_COLUMNS} FROM given_events"
            f" QUALIFY row_number() OVER (PARTITION BY {c.EVENT_ID} ORDER BY {FIRST}) = 1"
        )
        for name in ("items", "users"):
            engine.register(f"new_{name}", ready[name])
        facts = {"source": source, "rows": {"read": len(events), "duplicates": len(events) - _count(engine, "new_events")}}
        return _land(home, engine, batch_id, identity, facts)


@contextmanager
def _landing(home: Home, batch_id: str) -> Iterator[duckdb.DuckDBPyConnection]:
    with disk_errors(f"landing of batch {batch_id}", home):
        engine = open_engine(home)
        try:
            yield engine
        finally:
            engine.close()


def _land(home: Home, engine: duckdb.DuckDBPyConnection, batch_id: str, digest: str, facts: Mapping[str, Any]) -> LandingReport:
    """Merge the views new_events (an event_id once), new_items and new_users of `engine` into the lake."""
    with journal.writing(home) as staging:
        earlier = read_entry(home, batch_id)
        if earlier is not None and earlier.digest == digest:
            return earlier
        check_source(home, facts["source"])
        before = _value_and_rows(engine, "new_events")
        removed, replaced, touched = _merge_events(home, engine, staging)
        after = _value_and_rows(engine, "fresh")
        versions = {table: _merge_versions(home, engine, staging, table) for table in reading.VERSIONS}
        shown = {table: first for table, (_, first) in versions.items() if first is not None}
        sequence = _sequence(home) + 1
        report = LandingReport(
            batch_id=batch_id,
            sequence=sequence,
            digest=digest,
            source=facts["source"],
            window=list(facts.get("window", [])),
            rows=_fates(facts.get("rows", {}), before[0], after[0]),
            reasons=dict(facts.get("reasons", {})),
            value={fate: float(amount) for fate, amount in _amounts(facts.get("value", {}), before[1], after[1]).items()},
            versions={table: count for table, (count, _) in versions.items()},
            replaced=replaced,
            touched=_union(touched, earlier),
            shown={
                table: min(filter(None, [shown.get(table), (earlier.shown if earlier else {}).get(table)]))
                for table in {*shown, *(earlier.shown if earlier else ())}
            },
        )
        publish.write_json(staging / entry_name(batch_id), report.__dict__)
        publish.write_json(staging / HEAD, {"sequence": sequence})
        publish.write_json(staging / source_file(home).name, {"source": facts["source"], "settings": facts.get("settings", {})})
        journal.commit(home, staging, removed=removed)
        return report


def _merge_events(home: Home, engine: duckdb.DuckDBPyConnection, staging: Path) -> tuple[list[str], int, tuple[str, str, str] | None]:
    """Stage the new files of every day that changes; leave what is new to the lake in the table `fresh`.

    Returns the day files that become empty, how many rows of the lake yielded, and what was touched.
    """
    known = {file.parent.name: file for file in reading.event_files(home)}
    reading.define(engine, "lake_events", tables.EVENTS, list(known.values()))
    engine.execute(f"CREATE TEMP TABLE clash AS SELECT DISTINCT {c.EVENT_ID} FROM lake_events SEMI JOIN new_events USING ({c.EVENT_ID})")
    engine.execute(
        f"CREATE TEMP TABLE contest AS SELECT *, row_number() OVER (PARTITION BY {c.EVENT_ID} ORDER BY {FIRST}, challenges) = 1 AS wins"
        f" FROM (SELECT {EVENT_COLUMNS}, false AS challenges FROM lake_events SEMI JOIN clash USING ({c.EVENT_ID})"
        f" UNION ALL BY NAME SELECT {EVENT_COLUMNS}, true AS challenges FROM new_events SEMI JOIN clash USING ({c.EVENT_ID}))"
    )
    engine.execute(
        f"CREATE TEMP VIEW fresh AS SELECT {EVENT_COLUMNS} FROM new_events"
        f" ANTI JOIN (SELECT {c.EVENT_ID} FROM contest WHERE challenges AND NOT wins) USING ({c.EVENT_ID})"
    )
    engine.execute("CREATE TEMP TABLE yielded AS SELECT * FROM contest WHERE NOT challenges AND NOT wins")
    changed = engine.execute(
        f"SELECT {DAY}, min({c.RECEIVED_AT}) FROM (SELECT {c.EVENT_AT}, {c.RECEIVED_AT} FROM fresh"
        f" UNION ALL SELECT {c.EVENT_AT}, {c.RECEIVED_AT} FROM yielded) GROUP BY 1 ORDER BY 1"
    ).fetchall()
    if not changed:
        return [], 0, None
    touched_days = [day for day, _ in changed]
    old = [known[name] for day in touched_days if (name := f"event_date={day}") in known]
    reading.define(engine, "old_days", tables.EVENTS, old)
    merged = engine.sql(
        f"SELECT {EVENT_COLUMNS} FROM fresh UNION ALL SELECT {EVENT_COLUMNS} FROM old_days ANTI JOIN yielded USING ({c.EVENT_ID})"
        f" ORDER BY {c.EVENT_AT}, {c.EVENT_ID}"
    )
    written = write_days(staging / "events", merged)
    emptied = [reading.EVENTS.format(day=day) for day in touched_days if day not in written]
    received: date = min(moment for _, moment in changed).date()
    return emptied, _count(engine, "yielded"), (received.isoformat(), str(touched_days[0]), str(touched_days[-1]))


def _merge_versions(home: Home, engine: duckdb.DuckDBPyConnection, staging: Path, table: str) -> tuple[int, str | None]:
    """Stage the new file of items or users, if the batch brings a version; return how many it brings, and the first day they show.

    A version shows once it is valid and received; another one of the same moments replaces none.
    """
    name, key = reading.VERSIONS[table]
    schema, file = tables.CANONICAL[table], home.lake / name
    reading.define(engine, f"lake_{table}", schema, [file])
    # Entries of a map have no order of their own; sorted, equal maps are equal bytes.
    told = {
        c.ATTRIBUTES: f"map_from_entries(list_sort(map_entries({c.ATTRIBUTES})))",
        c.RECEIVED_AT: f"coalesce({c.RECEIVED_AT}, {c.VALID_FROM})",
    }
    columns = ", ".join(f"{told[n]} AS {n}" if n in told else n for n in schema.names)
    order = ", ".join(f"{n} NULLS LAST" for n in schema.names)
    merged = (
        f"SELECT * FROM (SELECT {columns} FROM lake_{table} UNION ALL SELECT {columns} FROM new_{table})"
        f" QUALIFY row_number() OVER (PARTITION BY {key}, {c.VALID_FROM}, {c.RECEIVED_AT} ORDER BY {order}) = 1"
    )
    if not _count(engine, f"new_{table}"):
        return 0, None
    write_table(staging / name, schema, engine.sql(f"{merged} ORDER BY {key}, {c.VALID_FROM}, {c.RECEIVED_AT}"))
    if file.is_file() and publish.digest(file) == publish.digest(staging / name):
        (staging / name).unlink()
        return 0, None
    rows = engine.execute(parquet([staging / name], "count(*)")).fetchall()[0][0]
    everything = ", ".join(columns_but_maps(schema))
    news = f"{parquet([staging / name], everything)} EXCEPT SELECT {everything} FROM lake_{table}"
    first = engine.execute(f"SELECT min(greatest({c.VALID_FROM}, {c.RECEIVED_AT})) FROM ({news})").fetchall()[0][0]
    return int(rows) - _count(engine, f"lake_{table}"), None if first is None else str(first.date())


def columns_but_maps(schema: pa.Schema) -> list[str]:
    """Return the columns that can be compared, maps as text."""
    return [f"{field.name}::VARCHAR AS {field.name}" if pa.types.is_map(field.type) else field.name for field in schema]


def check_source(home: Home, source: str) -> None:
    """Refuse to mix sources: their ids would meet, and the settings of one would judge the other.

    Raises:
        StateError: the lake holds another source.
    """
    if source_file(home).is_file():
        owner = json.loads(source_file(home).read_text(encoding="utf-8"))["source"]
        if owner != source:
            raise StateError(
                f"lake at {home.lake}",
                found=f"a batch from {source}",
                allowed=f"batches from {owner}, whose data it holds",
                hint="give each source a state folder of its own: RELOOP_HOME=FOLDER, or --home FOLDER",
            )


def _sequence(home: Home) -> int:
    file = home.lake / HEAD
    return int(json.loads(file.read_text(encoding="utf-8"))["sequence"]) if file.is_file() else 0


def _count(engine: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(engine.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def _value_and_rows(engine: duckdb.DuckDBPyConnection, table: str) -> tuple[int, Decimal]:
    rows, amount = engine.execute(f"SELECT count(*), {AMOUNT} FROM {table}").fetchall()[0]
    return int(rows), Decimal(amount)


def _fates(judged: Mapping[str, int], offered: int, landed: int) -> dict[str, int]:
    """Return rows by fate: the judge's figures, with what the lake already held moved to duplicates."""
    rows = {"quarantined": 0, "duplicates": 0, **judged, "accepted": landed}
    rows["duplicates"] += offered - landed
    rows["read"] = sum(rows[fate] for fate in FATES[1:])
    return {fate: int(rows[fate]) for fate in FATES}


def _amounts(judged: Mapping[str, Any], offered: Decimal, landed: Decimal) -> dict[str, Decimal]:
    amounts = {fate: Decimal(str(judged.get(fate, 0))) for fate in FATES}
    amounts |= {"accepted": landed, "duplicates": amounts["duplicates"] + offered - landed}
    return amounts | {"read": sum((amounts[fate] for fate in FATES[1:]), Decimal(0))}


def _union(touched: tuple[str, str, str] | None, earlier: LandingReport | None) -> tuple[str, str, str] | None:
    """Return what this landing or the one it supersedes under the same name touched; nobody may have worked in that one yet."""
    if earlier is None or earlier.touched is None or touched is None:
        return touched or (earlier.touched if earlier else None)
    return min(touched[0], earlier.touched[0]), min(touched[1], earlier.touched[1]), max(touched[2], earlier.touched[2])


def _digest(ready: Mapping[str, pa.Table]) -> str:
    sink = hashlib.sha256()
    for name, table in sorted(ready.items()):
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        sink.update(name.encode() + buffer.getvalue().to_pybytes())
    return sink.hexdigest()
