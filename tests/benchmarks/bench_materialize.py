"""Loading the online store: our engine against stock Feast, on the same Parquet, in processes of their own.

Both sides run `FeatureStore.materialize` on a repository of one view (a string key, ten features:
six doubles, three integers, one string, some of them missing). `first` fills an empty store,
`again` writes the next day over the keys that are there, `older` goes back to the first day, which
must change nothing. CPU is the client's alone: the Redis server's is in the notes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from one_run import in_process, measured, publish_page, row

from pipelines import publish
from pipelines.features.repository import FOLDER
from pipelines.tables import TIMESTAMP
from pipelines.window import DAY, utc

FIRST = utc("2025-03-03")
DAYS = {"first": FIRST, "again": FIRST + DAY, "older": FIRST}
TARGETS = {("redis", "first"): 20.0, ("redis", "again"): 10.0, ("sqlite", "first"): 4.0, ("sqlite", "again"): 4.0}


def make(folder: Path, size: int) -> None:
    """Write the rows of two days."""
    for n, day in enumerate((DAYS["first"], DAYS["again"])):
        rng = np.random.default_rng(n)
        columns: dict[str, pa.Array] = {"user_id": pa.array([f"u{key:08d}" for key in range(size)])}
        for feature in range(6):
            columns[f"amount_{feature}"] = pa.array(rng.lognormal(3, 1, size).round(2), mask=rng.random(size) < 0.05)
        for feature in range(3):
            columns[f"count_{feature}"] = pa.array(rng.geometric(0.05, size).astype(np.int32) - 1)
        columns["favourite"] = pa.array(rng.integers(0, 40, size)).cast(pa.string())
        columns["as_of"] = pa.array([day] * size, TIMESTAMP)
        columns["available_at"] = columns["as_of"]
        publish.write_parquet(folder / "features" / f"as_of={day:%F}.parquet", pa.table(columns))


def store(folder: Path, side: str, kind: str, redis: str):
    """Return a Feast store of the one view: stock, or with the plug-ins that `feature_repo/feature_store.yaml` names."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int32, String

    declared = yaml.safe_load((FOLDER / "feature_store.yaml").read_text())
    plugged = "pipelines.features.online_redis.ConditionalRedisOnlineStore" if kind == "redis" else declared["online_store"]["type"]
    place = {"connection_string": redis} if kind == "redis" else {"path": str(folder / f"{side}.db")}
    config = {
        "project": "bench",
        "provider": "local",
        "registry": {"registry_type": "sql", "path": f"sqlite:///{folder}/{side}-{kind}.registry.db"},
        "offline_store": {"type": "duckdb"} if side == "peer" else declared["offline_store"],
        "online_store": {"type": plugged if side == "ours" else kind, **place},
        "entity_key_serialization_version": 3,
    }
    if side == "ours":
        config["batch_engine"] = declared["batch_engine"]
    opened = FeatureStore(config=RepoConfig(**config, repo_path=str(folder)))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    source = FileSource(
        name="rows", path=str(folder / "features" / "*.parquet"), timestamp_field="as_of", created_timestamp_column="available_at"
    )
    schema = [Field(name="user_id", dtype=String), Field(name="favourite", dtype=String)]
    schema += [Field(name=f"amount_{n}", dtype=Float64) for n in range(6)] + [Field(name=f"count_{n}", dtype=Int32) for n in range(3)]
    opened.apply(
        [user, FeatureView(name="user_daily", entities=[user], ttl=timedelta(days=8), source=source, schema=schema, tags={"rows": "daily"})]
    )
    return opened


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run a Redis of our own on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(shutil.which("redis-server")), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL) as server:
        time.sleep(0.5)
        yield f"127.0.0.1:{port}"
        server.terminate()


def server_seconds(address: str) -> float:
    """Return the CPU seconds a Redis server has used."""
    from redis import Redis

    used = Redis(port=int(address.split(":")[1])).info("cpu")
    return used["used_cpu_user"] + used["used_cpu_sys"]


def load(folder: Path, side: str, kind: str, what: str, redis: str) -> None:
    """Materialize one day in this process, see that the first and the last user hold it, and print what it cost."""
    rows = pq.read_metadata(next((folder / "features").glob("*.parquet"))).num_rows
    opened, day = store(folder, side, kind, redis), DAYS[what]
    opened.materialize(FIRST - timedelta(days=400), FIRST - timedelta(days=399))  # imports and connections are nobody's speed
    before = server_seconds(redis) if kind == "redis" else 0.0
    figures = measured(lambda: opened.materialize(day - timedelta(hours=1), day))
    figures["server"] = server_seconds(redis) - before if kind == "redis" else 0.0
    held = max(day, DAYS["again"]) if what == "older" else day
    answer = opened.get_online_features(["user_daily:count_0"], entity_rows={"user_id": ["u00000000", f"u{rows - 1:08d}"]})
    moments = answer.to_dict(include_event_timestamps=True)["count_0__ts"]
    assert moments == [int(held.timestamp())] * 2, f"the load left {moments}"
    print(json.dumps(figures))


def compare(folder: Path, kind: str, size: int, peer_size: int) -> tuple[list[dict], str]:
    """Return the lines of one kind of store."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for side, rows, steps in (("ours", size, DAYS), ("peer", peer_size, ("first", "again"))):
        place = folder / side / kind
        make(place, rows)
        with redis_server(place) as address:
            for what in steps:
                found[side, what] = in_process(__file__, "--step", str(place), side, kind, what, address)
        shutil.rmtree(place)
    scale, lines = size / peer_size, []
    label = f"{kind} {size / 1e6:g}M"
    for what in ("first", "again"):
        ours, peer, target = found["ours", what], found["peer", what], TARGETS[kind, what]
        cpu = peer["cpu_seconds"] * scale
        lines.append(
            row(
                f"{label} {what}, client CPU",
                ours["cpu_seconds"],
                cpu,
                "s",
                f"ratio >= {target:g}",
                met=cpu / ours["cpu_seconds"] >= target,
            )
        )
        lines.append(row(f"{label} {what}, wall", ours["seconds"], peer["seconds"] * scale, "s", "", met=True))
        lines.append(row(f"{label} {what}, peak memory", ours["peak_mb"], peer["peak_mb"], "MB", "<= 1000 MB", met=ours["peak_mb"] <= 1000))
    older = found["ours", "older"]
    note = f"{kind}: going back a day took ours {older['cpu_seconds']:.2f} s of client CPU."
    if kind == "redis":
        servers = ", ".join(
            f"{what} {found['ours', what]['server']:.1f} (stock {found['peer', what]['server'] * scale:.1f})" for what in ("first", "again")
        )
        note += f" Server CPU seconds: {servers}."
    return lines, note


def main() -> None:
    """Run both stores, or one step of one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--peer-size", type=int, default=100_000, help="rows stock Feast loads; its figures are scaled up, memory is not")
    parser.add_argument("--stores", nargs="+", default=["redis", "sqlite"])
    parser.add_argument("--step", nargs=5, metavar=("FOLDER", "SIDE", "STORE", "WHAT", "REDIS"))
    asked = parser.parse_args()
    if asked.step:
        folder, side, kind, what, redis = asked.step
        load(Path(folder), side, kind, what, redis)
        return
    lines, notes = [], [f"Stock Feast loaded {asked.peer_size:,} rows; its times are scaled to {asked.size:,}, its memory is not."]
    with tempfile.TemporaryDirectory() as folder:
        for kind in asked.stores:
            more, note = compare(Path(folder), kind, asked.size, min(asked.peer_size, asked.size))
            lines += more
            notes.append(note)
    publish_page("materialize", lines, " ".join(notes))


if __name__ == "__main__":
    main()
