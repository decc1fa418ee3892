"""A repository of one small view with every type of feature, over Parquet written by hand, on any online store."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.tables import TIMESTAMP
from pipelines.window import utc

START = utc("2025-03-03")
TTL = timedelta(days=8)
PLUGGED = {
    "redis": "pipelines.features.online_redis.ConditionalRedisOnlineStore",
    "sqlite": "pipelines.features.online_sqlite.ConditionalSqliteOnlineStore",
}
OFFLINE = "pipelines.features.offline_store.DuckDBAsofOfflineStore"
ENGINE = "pipelines.features.materialization.ColumnarComputeEngine"
COLUMNS = {
    "name": pa.string(),
    "count": pa.int32(),
    "total": pa.int64(),
    "amount": pa.float64(),
    "share": pa.float32(),
    "is_new": pa.bool_(),
    "seen_at": TIMESTAMP,
    "raw": pa.binary(),
    "names": pa.list_(pa.string()),
    "counts": pa.list_(pa.int32()),
    "totals": pa.list_(pa.int64()),
    "amounts": pa.list_(pa.float64()),
    "shares": pa.list_(pa.float32()),
    "flags": pa.list_(pa.bool_()),
}


def day(n: float) -> datetime:
    """Return the moment `n` days after the world began."""
    return START + timedelta(days=n)


def full_row(user: str, n: int) -> dict[str, Any]:
    """Return a row with a value of every type, all of them told by `n`; every fifth has none at all."""
    values: dict[str, Any] = {
        "name": f"n{n}é" * (n % 4),
        "count": n - 3,
        "total": n * 10**12 - 5,
        "amount": n / 7 - 1,
        "share": n / 4,
        "is_new": bool(n % 2),
        "seen_at": START - timedelta(days=n, microseconds=n),
        "raw": bytes([n % 256, 0, 255]),
        "names": [f"a{n}", ""][: n % 3],
        "counts": [n, -n][: n % 3],
        "totals": [n * 2**40, 0][: n % 3],
        "amounts": [n / 3, -0.5][: n % 3],
        "shares": [n / 8, 1.0][: n % 3],
        "flags": [True, False][: n % 3],
    }
    return {"user_id": user, **(dict.fromkeys(values) if n % 5 == 4 else values)}


def rows_at(moment: datetime, rows: list[dict[str, Any]], *, created: datetime | None = None) -> pa.Table:
    """Return rows as the source holds them, of one event time and one created time."""
    columns = {name: pa.array([row.get(name) for row in rows], dtype) for name, dtype in {"user_id": pa.string(), **COLUMNS}.items()}
    columns["as_of"] = pa.array([moment] * len(rows), TIMESTAMP)
    columns["available_at"] = pa.array([created or moment] * len(rows), TIMESTAMP)
    return pa.table(columns)


def counting(users: int, n: int) -> list[dict[str, Any]]:
    """Return one row a user in which every number is `n`, so that a torn entity shows."""
    return [{"user_id": f"u{user}", "count": n, "total": n, "amount": float(n), "name": str(n), "counts": [n]} for user in range(users)]


class World:
    """The Parquet of the view, and Feast stores over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "rows").mkdir(parents=True)

    def publish(self, name: str, table: pa.Table) -> None:
        """Write one file of the source; the same name replaces it."""
        pq.write_table(table, self.folder / "rows" / f"{name}.parquet")

    def store(
        self,
        kind: str,
        address: str = "",
        *,
        plugged: bool = True,
        name: str = "",
        registry: str = "",
        tags: dict[str, str] | None = None,
        project: str = "shelf",
        **settings: Any,
    ):
        """Return a Feast store with the view applied: stock, or with our engine and online store."""
        from feast import FeatureStore, RepoConfig

        engine = settings.pop("engine", {})
        name = name or f"{kind}-{'ours' if plugged else 'stock'}"
        place = {"connection_string": address} if kind == "redis" else {"path": str(self.folder / f"{name}.db")}
        config = {
            "project": project,
            "provider": "local",
            "registry": {"registry_type": "sql", "path": f"sqlite:///{self.folder / (registry or name)}.registry.db"},
            "offline_store": {"type": OFFLINE if plugged else "duckdb"},
            "online_store": {"type": PLUGGED[kind] if plugged else kind, **place, **settings},
            "entity_key_serialization_version": 3,
        }
        if plugged and kind == "redis":
            config["online_store"].setdefault("read_timeout_ms", 1000)  # the default is a request's, not that of two busy test processes
        if plugged:
            config["batch_engine"] = {"type": ENGINE, **engine}
        store = FeatureStore(config=RepoConfig(**config, repo_path=str(self.folder)))
        user, view = self._view(tags or {})
        store.apply([user, view])
        return store

    def _view(self, tags: dict[str, str]):
        from feast import Entity, FeatureView, Field, FileSource, ValueType
        from feast.type_map import pa_to_feast_value_type
        from feast.types import from_value_type

        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
        source = FileSource(
            name="rows", path=str(self.folder / "rows" / "*.parquet"), timestamp_field="as_of", created_timestamp_column="available_at"
        )
        types = {name: pa_to_feast_value_type(str(dtype)) for name, dtype in COLUMNS.items()}
        schema = [Field(name=name, dtype=from_value_type(kind)) for name, kind in {"user_id": ValueType.STRING, **types}.items()]
        return user, FeatureView(name="user_shelf", entities=[user], ttl=TTL, source=source, schema=schema, tags=tags)


def read(store: Any, users: list[str], *names: str) -> list[dict[str, Any]]:
    """Return what a store answers, one dict a user."""
    names = names or tuple(COLUMNS)
    answer = store.get_online_features(features=[f"user_shelf:{name}" for name in names], entity_rows={"user_id": users}).to_dict()
    return [{name: answer[name][n] for name in names} for n in range(len(users))]
