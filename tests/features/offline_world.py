"""A Feast repository over a folder whose files a test writes, and random worlds full of the cases that go wrong."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource
from oracle import Asked, Row, joined

from pipelines.features.offline_store import join
from pipelines.features.offline_store.job import Engine
from pipelines.features.offline_store.sources import Source

US = pa.timestamp("us", tz="UTC")
TTL = timedelta(days=2)
SCHEMA = pa.schema(
    [("a", pa.string()), ("b", pa.string()), ("event", US), ("created", US), ("x", pa.int32()), ("w", pa.float64()), ("z", pa.string())]
)
ZONES = [UTC, ZoneInfo("America/New_York"), ZoneInfo("Asia/Kolkata"), ZoneInfo("Pacific/Apia"), ZoneInfo("Europe/Berlin")]
# Clocks change in New York and in Berlin, a leap day, a year's end, and before the epoch.
DAYS = [datetime(*day, tzinfo=UTC) for day in [(2025, 3, 8), (2025, 3, 29), (2025, 10, 25), (2024, 2, 28), (2025, 12, 30), (1969, 12, 30)]]
FEATURES = {"x": "x", "w": "w", "z": "z"}


def features_of(view: str) -> dict[str, str]:
    return {name: f"{view}__{name}" for name in FEATURES}


# What the repository declares, as the oracle needs to know it.
VIEWS: dict[str, dict[str, Any]] = {
    "with_ttl": {"keys": {"a": "a", "b": "b"}, "ttl": TTL, "created": "created"},
    "ageless": {"keys": {"a": "a", "b": "b"}, "ttl": None, "created": "created"},
    "by_one_key": {"keys": {"a": "a"}, "ttl": TTL, "created": "created"},
    "creation_unknown": {"keys": {"a": "a", "b": "b"}, "ttl": TTL, "created": None},
}


def open_store(folder: Path, offline: dict[str, Any] | None = None) -> Any:
    """Return a Feast store with the views above over `folder/facts/*.parquet`; there must be a file when they are applied."""
    from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig
    from feast.types import Float64, Int32, String
    from feast.value_type import ValueType

    ours = {"type": "pipelines.features.offline_store.DuckDBAsofOfflineStore", "threads": 2, "temp_directory": str(folder / "spill")}
    store = FeatureStore(
        config=RepoConfig(
            project="world",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
            offline_store=offline or ours,
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    entities = {name: Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in "ab"}
    views = []
    for name, view in VIEWS.items():
        source = FileSource(
            name=f"{name}_source",
            path=str(folder / "facts" / "*.parquet"),
            timestamp_field="event",
            created_timestamp_column=view["created"] or "",
        )
        fields = [Field(name=key, dtype=String) for key in view["keys"]]
        fields += [Field(name="x", dtype=Int32), Field(name="w", dtype=Float64), Field(name="z", dtype=String)]
        views.append(
            FeatureView(name=name, entities=[entities[key] for key in view["keys"]], ttl=view["ttl"], schema=fields, source=source)
        )
    write(folder, [], "one")
    store.apply([*entities.values(), *views])
    return store


def write(folder: Path, rows: list[Row], layout: str) -> None:
    """Write rows as the source's files: in one, dealt over three, one a day, or one a moment (which makes them snapshots)."""
    facts = folder / "facts"
    shutil.rmtree(facts, ignore_errors=True)
    facts.mkdir(parents=True)
    parts: dict[Any, list[Row]] = defaultdict(list)
    for n, row in enumerate(rows):
        parts[{"one": 0, "dealt": n % 3, "daily": row["event"].date(), "snapshots": row["event"]}[layout]].append(row)
    for n, part in enumerate(parts.values() or [[]]):
        pq.write_table(pa.Table.from_pylist(part, schema=SCHEMA), facts / f"part-{n}.parquet")


def moments(rng: np.random.Generator, day: datetime, count: int) -> list[datetime]:
    """Return moments on a coarse grid and a microsecond beside it, so that they tie and touch every edge."""
    grid = [timedelta(hours=int(hours)) for hours in (0, 1, 2, 6, 24, 25, 48, 49, 50, 54)]
    beside = [timedelta(0), timedelta(0), timedelta(microseconds=1), timedelta(microseconds=-1)]
    return [day + grid[rng.integers(len(grid))] + beside[rng.integers(len(beside))] for _ in range(count)]


def facts(rng: np.random.Generator, count: int, day: datetime, *, late: float) -> list[Row]:
    """Return rows with ties in one and both times, corrections, duplicates, nulls, and keys whose digits run together."""
    rows = []
    events = moments(rng, day, count)
    for n in range(count):
        delay = moments(rng, DAYS[0], 1)[0] - DAYS[0] if rng.random() < late else timedelta(0)
        if rng.random() < late / 2:
            delay = -abs(delay)  # known before it holds, as a price of tomorrow is
        rows.append(
            {
                "a": _maybe(rng, str(rng.choice(["1", "11", "111"]))),
                "b": _maybe(rng, str(rng.choice(["1", "11"]))),
                "event": events[n],
                "created": _maybe(rng, events[n] + delay, 0.03),
                "x": _maybe(rng, int(rng.integers(0, 3)), 0.1),
                "w": float(n),
                "z": str(rng.choice(["p", "q"])),
            }
        )
        if rng.random() < 0.1:
            rows.append({**rows[-1], **({} if rng.random() < 0.5 else {"z": "r"})})
    return rows


def _maybe(rng: np.random.Generator, value: Any, missing: float = 0.05) -> Any:
    return None if rng.random() < missing else value


def askers(rng: np.random.Generator, count: int, day: datetime) -> list[Row]:
    """Return entity rows: known and unknown keys, duplicates, keys and moments that are missing."""
    rows: list[Row] = []
    for n, moment in enumerate(moments(rng, day, count)):
        if n and rng.random() < 0.1:
            rows.append({**rows[-1], "n": n})
            continue
        a, b = _maybe(rng, str(rng.choice(["1", "11", "111", "9"]))), _maybe(rng, str(rng.choice(["1", "11"])))
        rows.append({"a": a, "b": b, "event_timestamp": _maybe(rng, moment, 0.03), "n": n})
    return rows


def table(entities: list[Row], zone: Any = UTC) -> pa.Table:
    """Return entity rows as a table whose clock shows the time of a zone."""
    kind = pa.timestamp("us", tz=str(zone) if zone is not UTC else "UTC")
    schema = pa.schema([("a", pa.string()), ("b", pa.string()), ("event_timestamp", kind), ("n", pa.int64())])
    return pa.Table.from_pylist(entities, schema=schema)


def references(views: Iterable[str] = VIEWS) -> list[str]:
    return [f"{view}:{name}" for view in views for name in FEATURES]


def expected(rows: list[Row], entities: list[Row], views: Iterable[str] = VIEWS) -> list[Row]:
    """Return what the oracle says of the views."""
    return joined([Asked(rows, features=features_of(view), **VIEWS[view]) for view in views], entities)


def found(store: Any, entities: Any, views: Iterable[str] = VIEWS) -> list[Row]:
    """Return what the store says of the views."""
    answer = store.get_historical_features(entities, references(views), full_feature_names=True).to_arrow()
    at = answer.schema.get_field_index("event_timestamp")
    return answer.set_column(at, "event_timestamp", answer["event_timestamp"].cast(US)).to_pylist()


def looked_up(engine: Any, folder: Path, entities: pa.Table, views: Iterable[str] = VIEWS, *, equality: bool = True) -> list[Row]:
    """Return what the join says of the views, without Feast around it: a tenth of the time for small worlds.

    Without `equality`, ASOF answers all rows, as where a key has many rows a slice.
    """
    answer = entities.set_column(2, "event_timestamp", entities["event_timestamp"].cast(US))
    for name in views:
        declared = VIEWS[name]
        source = Source.open(FileSource(path=str(folder / "facts" / "*.parquet")), None, event="event", created=declared["created"])
        view = join.View(source, declared["keys"], features_of(name), declared["ttl"], answered=float(equality))
        found = join.look_up(engine, view, entities, "event_timestamp")
        for column in found.column_names:
            answer = answer.append_column(column, found[column])
    return answer.to_pylist()


@contextmanager
def engine(folder: Path) -> Iterator[Any]:
    """Yield the DuckDB that the store would open."""
    with Engine(2, "1GB", folder / "spill", 1 << 20).open() as opened:
        yield opened


def random_world(seed: int, facts_count: int = 40, askers_count: int = 30) -> tuple[list[Row], list[Row], str]:
    """Return rows, entity rows and a layout; every layout and degree of lateness comes up."""
    rng = np.random.default_rng(seed)
    day = DAYS[seed % len(DAYS)]
    rows = facts(rng, facts_count if seed % 4 else facts_count // 5, day, late=[0.0, 0.3, 0.9][seed % 3])
    return rows, askers(rng, askers_count, day), ["snapshots", "dealt", "daily", "one"][seed // 3 % 4]


def digest(answers: list[list[Row]]) -> str:
    """Return what tells answers apart; a moment's zone has many names and does not count."""
    values = [[value for name, value in row.items() if name != "event_timestamp"] for rows in answers for row in rows]
    return hashlib.sha256(repr(values).encode()).hexdigest()
