"""One request's features, 500 items and ten features: the mapped snapshot and one call of the store, against stock Feast.

The peer is Feast's own `get_online_features` on a real Redis on loopback, for the same items and
features, by stock classes. Figures are per call, the median of many; the client's CPU alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from bench_materialize import redis_server
from one_run import in_process, publish_page, row

from pipelines import publish
from pipelines.config import Home
from pipelines.tables import TIMESTAMP
from pipelines.window import utc

DAY = utc("2025-03-03")
FEATURES = [f"f{n}" for n in range(10)]
TARGET_MICROS = 50.0


def store(folder: Path, side: str, redis: str):
    """Return a Feast store with a view of items and one of users on Redis."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, String

    kind = "pipelines.features.online_redis.ConditionalRedisOnlineStore" if side == "ours" else "redis"
    config = {
        "project": "bench",
        "provider": "local",
        "registry": {"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
        "offline_store": {"type": "pipelines.features.offline_store.DuckDBAsofOfflineStore"},
        "online_store": {"type": kind, "connection_string": redis},
        "batch_engine": {"type": "pipelines.features.materialization.ColumnarComputeEngine" if side == "ours" else "local"},
        "entity_key_serialization_version": 3,
    }
    opened = FeatureStore(config=RepoConfig(**config, repo_path=str(folder)))
    if side == "ours":
        objects: list = []
        for name in ("item", "user"):
            entity = Entity(name=name, join_keys=[f"{name}_id"], value_type=ValueType.STRING)
            source = FileSource(name=f"{name}s", path=str(folder / f"{name}s.parquet"), timestamp_field="as_of")
            schema = [Field(name=f"{name}_id", dtype=String), *(Field(name=feature, dtype=Float64) for feature in FEATURES)]
            objects += [entity, FeatureView(name=f"{name}_daily", entities=[entity], ttl=timedelta(days=8), source=source, schema=schema)]
        opened.apply(objects)
    return opened


def make(folder: Path, items: int) -> None:
    """Write the rows of a day."""
    rng = np.random.default_rng(1)
    for name, count in (("item", items), ("user", 1000)):
        columns = {f"{name}_id": pa.array([f"{name}{n:07d}" for n in range(count)])}
        columns |= {feature: pa.array(rng.random(count)) for feature in FEATURES}
        publish.write_parquet(folder / f"{name}s.parquet", pa.table({**columns, "as_of": pa.array([DAY] * count, TIMESTAMP)}))


def per_call(action: Callable[[], object], calls: int, rounds: int = 21) -> dict[str, float]:
    """Return the median microseconds of CPU and of wall time of one call."""
    cpu, wall = [], []
    for _ in range(rounds):
        began, ticked = time.perf_counter(), time.process_time()
        for _ in range(calls):
            action()
        cpu.append((time.process_time() - ticked) / calls * 1e6)
        wall.append((time.perf_counter() - began) / calls * 1e6)
    return {"cpu": statistics.median(cpu), "wall": statistics.median(wall)}


def measure(folder: Path, side: str, redis: str, asked: int) -> dict[str, float]:
    """Return the figures of one side, in this process."""
    from pipelines.features import item_snapshot

    opened = store(folder, side, redis)
    rng = np.random.default_rng(2)
    known = int(json.loads((folder / "size.json").read_text()))
    items = [f"item{n:07d}" for n in rng.choice(known, asked, replace=False)]
    figures: dict[str, float] = {}
    if side == "ours":
        opened.materialize(DAY - timedelta(hours=1), DAY)
        home = Home(folder / "home")
        item_snapshot.publish_snapshot(home, opened, DAY)
        snapshot = item_snapshot.open_snapshot(home)
        places = snapshot.places(items)
        answer = opened.get_online_features([f"item_daily:{name}" for name in FEATURES], entity_rows={"item_id": items}).to_dict()
        gathered = snapshot.gather(places)
        for place, name in enumerate(FEATURES):
            assert gathered[:, place].tolist() == answer[name]
        found = {
            "gather": per_call(lambda: snapshot.gather(places), 2000),
            "ids": per_call(lambda: snapshot.gather(snapshot.places(items)), 500),
            "user": per_call(
                lambda: opened.get_online_features([f"user_daily:{name}" for name in FEATURES], entity_rows={"user_id": ["user0000007"]}),
                50,
            ),
        }
    else:
        found = {
            "items": per_call(
                lambda: opened.get_online_features([f"item_daily:{name}" for name in FEATURES], entity_rows={"item_id": items}), 3, 11
            ),
            "user": per_call(
                lambda: opened.get_online_features([f"user_daily:{name}" for name in FEATURES], entity_rows={"user_id": ["user0000007"]}),
                50,
            ),
        }
    for what, times in found.items():
        figures |= {f"{what}_cpu": times["cpu"], f"{what}_wall": times["wall"]}
    return figures


def main() -> None:
    """Run both sides, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000, help="items in the shop")
    parser.add_argument("--asked", type=int, default=500, help="items in a request")
    parser.add_argument("--step", nargs=4, metavar=("FOLDER", "SIDE", "REDIS", "ASKED"))
    asked = parser.parse_args()
    if asked.step:
        folder, side, redis, count = asked.step
        print(json.dumps(measure(Path(folder), side, redis, int(count))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.items)
        (folder / "size.json").write_text(str(asked.items))
        with redis_server(folder) as address:
            ours = in_process(__file__, "--step", name, "ours", address, str(asked.asked))
            peer = in_process(__file__, "--step", name, "peer", address, str(asked.asked))
    label, target = f"{asked.asked} items x 10", f"<= {TARGET_MICROS:g} us"
    lines = [
        row(f"{label}, by place, CPU", ours["gather_cpu"], peer["items_cpu"], "us", target, met=ours["gather_cpu"] <= TARGET_MICROS),
        row(f"{label}, by id, CPU", ours["ids_cpu"], peer["items_cpu"], "us", target, met=ours["ids_cpu"] <= TARGET_MICROS),
        row(f"{label}, by id, wall", ours["ids_wall"], peer["items_wall"], "us", "", met=True),
        row("1 user x 10, Redis, CPU", ours["user_cpu"], peer["user_cpu"], "us", "", met=True),
    ]
    publish_page("online-read", lines, f"{asked.items:,} items in the shop; the values were compared first and are equal.")


if __name__ == "__main__":
    main()
