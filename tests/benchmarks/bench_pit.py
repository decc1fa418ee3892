"""Point-in-time joins: ours against stock Feast on DuckDB, and against plain SQL on the same Parquet.

A million entity rows (user, item, category, moment) ask three views with 20 features. The views lie
a file a day for 100 days, once as daily snapshots (all rows of a file at midnight: the store answers
by equality) and once with each row at a moment of its own (the store answers by ASOF). The plain SQL
is what one would write by hand: one statement that joins the entity table with the files,
by ASOF after a semi-join on the keys, or by equality of the day; it heeds no ttl and no correction.
Every contender ends with the same arrow table, and the rows are compared value by value.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from one_run import in_process, measured, publish_page, row

DAYS = 100
VIEWS = {"user_view": (["user_id"], 100_000, 8), "item_view": (["item_id"], 20_000, 6), "pair_view": (["user_id", "category"], 200_000, 6)}
KEYS = {
    "user_view": "'u' || k AS user_id",
    "item_view": "'i' || k AS item_id",
    "pair_view": "'u' || (k // 2) AS user_id, 'c' || (k % 500) AS category",
}
SHAPES = ("snapshots", "moments")


def engine() -> duckdb.DuckDBPyConnection:
    """Return DuckDB as the raw statements use it: two threads, and as much memory as the statement asks for."""
    opened = duckdb.connect(config={"threads": "2", "preserve_insertion_order": "false"})
    opened.execute("SET TimeZone = 'UTC'")
    return opened


def make(folder: Path, rows: int, scale: float) -> None:
    """Write the files of both shapes and the entity rows."""
    opened = engine()
    start = "TIMESTAMPTZ '2025-01-01 00:00:00+00'"
    for name, (_, keys, features) in VIEWS.items():
        count = int(keys * scale)
        values = ", ".join(
            f"(hash(k, d, {n}) % 1000)::INT AS {name}_{n}" if n % 2 else f"(hash(k, d, {n}) % 100000)::DOUBLE / 100 AS {name}_{n}"
            for n in range(features)
        )
        for shape in SHAPES:
            (folder / shape / name).mkdir(parents=True)
            within = "0" if shape == "snapshots" else "(hash(k, d) % 86400000000)::BIGINT"
            for day in range(DAYS):
                moment = f"{start} + to_days({day}) + to_microseconds({within})"
                opened.execute(
                    f"COPY (SELECT {KEYS[name]}, {values}, {moment} AS as_of, {moment} AS available_at FROM (SELECT range AS k, {day} AS d FROM range({count}))"
                    f" ORDER BY 1, 2) TO '{folder}/{shape}/{name}/as_of={day:03}.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 131072)"
                )
    pairs, items = int(VIEWS["pair_view"][1] * scale), int(VIEWS["item_view"][1] * scale)
    opened.execute(
        f"COPY (SELECT n, 'u' || (k // 2) AS user_id, 'i' || (hash(n, 1) % {items}) AS item_id, 'c' || (k % 500) AS category,"
        f" {start} + to_microseconds((hash(n, 2) % {DAYS * 86_400_000_000})::BIGINT) AS event_timestamp"
        f" FROM (SELECT range AS n, (hash(range) % {pairs})::BIGINT AS k FROM range({rows})) ORDER BY n) TO '{folder}/entities.parquet' (FORMAT parquet)"
    )


def store(folder: Path, shape: str, offline: dict[str, Any]) -> Any:
    """Return a Feast store over the files of a shape."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.data_format import ParquetFormat
    from feast.types import Float64, Int32, String
    from feast.value_type import ValueType

    config = RepoConfig(
        project="bench",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder}/{shape}-{offline['type'].rsplit('.', 1)[-1]}.db"},
        offline_store=offline,
        online_store=None,
        entity_key_serialization_version=3,
    )
    entities = {name: Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in ("user_id", "item_id", "category")}
    views = [
        FeatureView(
            name=name,
            entities=[entities[key] for key in keys],
            ttl=timedelta(days=DAYS),
            schema=[Field(name=key, dtype=String) for key in keys]
            + [Field(name=f"{name}_{n}", dtype=Int32 if n % 2 else Float64) for n in range(features)],
            source=FileSource(
                name=f"{name}_source",
                path=str(folder / shape / name / "*.parquet"),
                file_format=ParquetFormat(),
                timestamp_field="as_of",
                created_timestamp_column="available_at",
            ),
        )
        for name, (keys, _, features) in VIEWS.items()
    ]
    opened = FeatureStore(config=config)
    opened.apply([*entities.values(), *views])
    return opened


OURS = {"type": "pipelines.features.offline_store.DuckDBAsofOfflineStore", "threads": 2}


REFERENCES = [f"{name}:{name}_{n}" for name, (_, _, features) in VIEWS.items() for n in range(features)]


def by_feast(folder: Path, shape: str, offline: dict[str, Any]) -> Callable[[], pa.Table]:
    """Return the question to a Feast store that stands; stock takes a frame only."""
    entities = pq.read_table(folder / "entities.parquet")
    asked = entities if offline is OURS else entities.to_pandas()
    opened = store(folder, shape, offline)
    return lambda: opened.get_historical_features(asked, REFERENCES, filter_by_created_timestamp=True).to_arrow()


def by_sql(folder: Path, shape: str, how: str) -> Callable[[], pa.Table]:
    """Return a hand-written statement."""
    opened = engine()
    opened.register("entities", pq.read_table(folder / "entities.parquet"))
    statement = "FROM entities e"
    columns = [f"{name}.{name}_{n}" for name, (_, _, features) in VIEWS.items() for n in range(features)]
    for name, (keys, _, _) in VIEWS.items():
        files = f"read_parquet('{folder}/{shape}/{name}/*.parquet', hive_partitioning = false)"
        same = " AND ".join(f"e.{key} = {name}.{key}" for key in keys)
        if how == "equality":
            statement += f" LEFT JOIN {files} {name} ON {same} AND {name}.as_of = date_trunc('day', e.event_timestamp)"
        else:
            pruned = f"(SELECT * FROM {files} {name} WHERE EXISTS (FROM entities e WHERE {same}))"
            statement += f" ASOF LEFT JOIN {pruned} {name} ON {same} AND e.event_timestamp >= {name}.as_of"
    return lambda: opened.sql(f"SELECT e.*, {', '.join(columns)} {statement}").to_arrow_table()


def step(contender: str, folder: Path, shape: str) -> dict[str, float]:
    """Run one contender, measure it, and keep its rows (in the order of n, which is not measured)."""
    kept: list[pa.Table] = []
    actions = {
        "ours": lambda: by_feast(folder, shape, OURS),
        "stock": lambda: by_feast(folder, shape, {"type": "duckdb"}),
        "asof": lambda: by_sql(folder, shape, "asof"),
        "equality": lambda: by_sql(folder, shape, "equality"),
    }
    question = actions[contender]()  # imports, registry and entity rows are there before the clock starts
    figures = measured(lambda: kept.append(question()))
    names = [name for name in kept[0].column_names if name != "event_timestamp"]
    pq.write_table(kept[0].select(names).sort_by("n"), folder / f"{contender}-{shape}.parquet")
    return figures


def persist(folder: Path, rows: int) -> dict[str, float]:
    """Join many entity rows, from a query into a file; only the size of a piece should show in the memory it takes."""
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    opened = store(folder, "snapshots", OURS)
    stride = f"SELECT e.* FROM read_parquet('{folder}/entities.parquet') e, range({rows} // (SELECT count(*) FROM read_parquet('{folder}/entities.parquet'))::INT)"
    target = folder / "saved.parquet"

    def act() -> None:
        opened.get_historical_features(stride, REFERENCES).persist(SavedDatasetFileStorage(str(target)), allow_overwrite=True)

    figures = measured(act)
    assert pq.read_metadata(target).num_rows == rows
    target.unlink()
    return figures


def whole(folder: Path, rows: int) -> dict[str, float]:
    """Join many entity rows, all in memory at once, into one arrow table."""
    entities = pq.read_table(folder / "entities.parquet")
    many = pa.concat_tables([entities] * (rows // len(entities)))
    opened = store(folder, "snapshots", OURS)

    def act() -> None:
        assert len(opened.get_historical_features(many, REFERENCES).to_arrow()) == rows

    return measured(act)


def main() -> None:
    """Run every contender, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--scale", type=float, default=1.0, help="1 means 10, 2 and 20 million rows in the views")
    parser.add_argument("--many", type=int, nargs="*", default=[10_000_000], help="entity rows of the runs that show memory")
    parser.add_argument("--without-stock", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the data there")
    parser.add_argument("--step", nargs="+")
    asked = parser.parse_args()
    if asked.step:
        what, folder, *more = asked.step
        if what == "make":
            make(Path(folder), asked.rows, asked.scale)
            print("{}")
        elif what in {"persist", "whole"}:
            print(json.dumps({"persist": persist, "whole": whole}[what](Path(folder), int(more[0]))))
        else:
            print(json.dumps(step(what, Path(folder), more[0])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        if not (folder / "entities.parquet").exists():
            in_process(__file__, "--rows", str(asked.rows), "--scale", str(asked.scale), "--step", "make", str(folder))
        publish_page("pit", compare(folder, asked), notes(asked))


def compare(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of every contender, after checking that all gave the same rows."""
    lines = []
    label = f"{asked.rows / 1e6:g}M"
    for shape in SHAPES:
        peers = ["asof", *(["equality"] if shape == "snapshots" else []), *([] if asked.without_stock else ["stock"])]
        figures = {who: in_process(__file__, "--step", who, str(folder), shape) for who in ["ours", *peers]}
        ours = pq.read_table(folder / f"ours-{shape}.parquet")
        for who in peers:
            theirs = pq.read_table(folder / f"{who}-{shape}.parquet").select(ours.column_names).cast(ours.schema)
            assert theirs.equals(ours), f"{who} and ours differ on {shape}"
            wanted = {"stock": 25.0 if shape == "snapshots" else 12.0, "asof": 1 / 1.1, "equality": 1 / 1.1}[who]
            lines += lines_of(f"{label} {shape}, {who}", figures["ours"], figures[who], wanted)
    for rows in asked.many:
        for what in ("whole", "persist"):
            found = in_process(__file__, "--step", what, str(folder), str(rows))
            name = f"{rows / 1e6:g}M {'to arrow' if what == 'whole' else 'query to file'}"
            lines.append(row(f"{name}, peak", found["peak_mb"], 6000, "MB (limit)", "<= 6000 MB", met=found["peak_mb"] <= 6000))
            lines.append(row(f"{name}, CPU", found["cpu_seconds"], found["cpu_seconds"], "s", "", met=True))
    return lines


def lines_of(name: str, ours: dict[str, float], peer: dict[str, float], wanted: float) -> list[dict[str, Any]]:
    """Return the figures of ours against one peer."""
    ratio = peer["cpu_seconds"] / ours["cpu_seconds"]
    return [
        row(f"{name}, CPU", ours["cpu_seconds"], peer["cpu_seconds"], "s", f"ratio >= {wanted:.3g}", met=ratio >= wanted),
        row(f"{name}, wall", ours["seconds"], peer["seconds"], "s", "", met=True),
        row(f"{name}, peak", ours["peak_mb"], peer["peak_mb"], "MB", "", met=True),
    ]


def notes(asked: argparse.Namespace) -> str:
    """Return what the figures are of."""
    sizes = ", ".join(f"{int(keys * asked.scale) * DAYS / 1e6:g}M" for _, keys, _ in VIEWS.values())
    return f"{asked.rows} entity rows, views of {sizes} rows, 20 features. Identical rows: checked. Each run in a process of its own."


if __name__ == "__main__":
    main()
