"""Making the ranker's training rows: rows a second and peak memory as candidates grow, against stock Feast asked for every candidate.

A shop is drawn with as many users as give the candidates asked for (150 a list, two windows): ten events a user, 20,011 items
in 400 categories, daily marts with every declared column, the candidates of three sources one of which has vectors of 64
numbers. `training_set.build` then does all it does in a run: labels, impressions, encoding, every group of features, the sample, the
Parquet files. The peer is what a Feast user would write for the stored features alone: one `get_historical_features` a
window with a row a candidate, through Feast's own DuckDB store; no other feature, no sample, nothing written. Each case is a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from one_run import in_process, measured, publish_page, row

from pipelines import lake, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import positions
from pipelines.features import historical, store
from pipelines.model_settings import FEATURE_GROUPS
from pipelines.ranking import training_set
from pipelines.retrieval import blend, fitting, vectors
from pipelines.tables import EVENTS, ITEMS, TIMESTAMP
from pipelines.window import DAY, micros, utc

AS_OF = utc("2025-03-03")
K, N_ITEMS, N_CATEGORIES, N_BRANDS, N_FACTORS = 150, 20_011, 400, 300, 64
SOURCES = ("popular", "als", "item_knn")
HISTORY, WINDOWS = 7, 3  # events of a user before the first window; one in each window


def filled(schema: pa.Schema, columns: dict[str, object], n: int) -> pa.Table:
    """Return a table of a schema; what is not given is null."""
    return pa.table(
        {f.name: pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema}, schema=schema
    )


def make(home: Home, n_rows: int) -> None:
    """Write the shop, up to the blend."""
    n_users = n_rows // (2 * K)
    rng = np.random.default_rng(0)
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "reloop.toml").write_text(
        f"[training]\nmax_users_per_window = {n_users}\n[retrieval]\nsources = {list(SOURCES)}\n[ranking]\nfeatures = {list(FEATURE_GROUPS)}\n"
    )
    user = np.repeat(np.arange(n_users), HISTORY + WINDOWS)
    first = micros(AS_OF - 7 * WINDOWS * DAY)
    day = micros(utc("2025-01-02")) - micros(utc("2025-01-01"))
    at = first - rng.integers(1, 28 * day, (n_users, HISTORY))
    at = np.concatenate([at, first + np.arange(WINDOWS) * 7 * day + rng.integers(0, 7 * day, (n_users, WINDOWS))], axis=1).ravel()
    item = (N_ITEMS * rng.random(len(user)) ** 2).astype(np.int64)
    ids = np.char.mod("u%07d", np.arange(n_users))
    columns = {
        "event_id": np.char.mod("e%09d", np.arange(len(user))),
        "user_id": ids[user],
        "item_id": np.char.mod("i%05d", item),
        "event_type": np.where(rng.random(len(user)) < 0.2, "purchase", "view"),
        "event_at": pa.array(at).cast(TIMESTAMP),
        "received_at": pa.array(at).cast(TIMESTAMP),
    }
    things = np.arange(N_ITEMS)
    goods = {
        "item_id": np.char.mod("i%05d", things),
        "title": np.char.add(np.char.mod("word%d ", things % 997), np.char.mod("thing%d", things % 2003)),
        "category": np.char.mod("c%03d", things % N_CATEGORIES),
        "brand": np.char.mod("b%03d", things % N_BRANDS),
        "price": (1 + things % 90).astype(float),
        "valid_from": [AS_OF - 90 * DAY] * N_ITEMS,
        "received_at": [AS_OF - 90 * DAY] * N_ITEMS,
    }
    lake.land_tables(home, events=filled(EVENTS, columns, len(user)), items=filled(ITEMS, goods, N_ITEMS))
    marts(home, n_users, rng)
    store.apply(home)
    world = universe.ensure(home, AS_OF)
    facts = {"universe": world.digest, "k_blend": K, "k_per_source": 50, "sources": list(SOURCES)}
    with publish.folder(blend.folder(home, AS_OF), facts) as out:
        for fold in world.folds:
            candidates(out / f"{fold.name}.parquet", world, fold.name, rng)
    for source in SOURCES:
        with publish.folder(fitting.folder(home, AS_OF, source), {"universe": world.digest}) as out:
            for fold in world.folds[:-1] if source == "als" else ():
                query = rng.normal(size=(world.labels(fold.name).n_users, N_FACTORS)).astype(np.float32)
                goods_at = rng.normal(size=(len(world.item_ids), N_FACTORS)).astype(np.float32)
                known = vectors.Vectors(query, np.ones(len(query), bool), goods_at, np.ones(len(goods_at), bool))
                vectors.save(out / f"{fold.name}.vectors.npz", known)


def marts(home: Home, n_users: int, rng: np.random.Generator) -> None:
    """Write every declared column of the marts at the ranker's two cutoffs."""
    users = np.char.mod("u%07d", np.arange(n_users))
    pairs = np.repeat(np.arange(n_users), 4)
    keys = {
        "user_daily": {"user_id": users},
        "item_daily": {"item_id": np.char.mod("i%05d", np.arange(N_ITEMS))},
        "user_category_daily": {
            "user_id": users[pairs],
            "category": np.char.mod("c%03d", (pairs * 7 + np.tile(np.arange(4), n_users) * 31) % N_CATEGORIES),
        },
        "user_brand_daily": {
            "user_id": users[pairs],
            "brand": np.char.mod("b%03d", (pairs * 5 + np.tile(np.arange(4), n_users) * 37) % N_BRANDS),
        },
    }
    given = {
        "item_daily": {
            "category": np.char.mod("c%03d", np.arange(N_ITEMS) % N_CATEGORIES),
            "brand": np.char.mod("b%03d", np.arange(N_ITEMS) % N_BRANDS),
        }
    }
    for mart, key in keys.items():
        n = len(next(iter(key.values())))
        for age in (3, 2):
            columns = {**key, **given.get(mart, {})}
            for spec in store.schema(home):
                name = spec.name.split("__")[1]
                if spec.view == mart and name not in columns:
                    values = pa.array(rng.integers(0, 200, n)) if not pa.types.is_string(spec.dtype) else pa.nulls(n, pa.string())
                    columns[name] = (
                        values.cast(pa.float64()).cast(spec.dtype) if pa.types.is_floating(spec.dtype) else values.cast(spec.dtype)
                    )
            moment = pa.array(np.full(n, micros(AS_OF - 7 * age * DAY))).cast(TIMESTAMP)
            table = pa.table({name: pa.array(value) for name, value in columns.items()} | {"as_of": moment, "available_at": moment})
            publish.write_parquet(home.features / mart / f"as_of={AS_OF - 7 * age * DAY:%Y-%m-%d}.parquet", table)


def candidates(path: Path, world: universe.Universe, fold: str, rng: np.random.Generator) -> None:
    """Write lists of `K` distinct items for the users of a fold, 0.7 of them with a positive, in random order."""
    truth = world.labels(fold)
    users, writer = positions(truth.user_ids, world.user_ids).astype(np.int32), None
    for begin in range(0, truth.n_users, 8192):
        some = np.arange(begin, min(begin + 8192, truth.n_users))
        item = (rng.integers(0, N_ITEMS, (len(some), 1)) + np.arange(K) * rng.integers(1, N_ITEMS, (len(some), 1))) % N_ITEMS
        label = truth.item[truth.indptr[some]]
        put = (rng.random(len(some)) < 0.7) & ~(item == label[:, None]).any(axis=1)
        item[put, rng.integers(0, K, len(some))[put]] = label[put]
        n = item.size
        columns = {"user": np.repeat(users[some], K), "item": item.ravel().astype(np.int32)}
        columns |= {"blend_score": rng.random(n).astype(np.float32), "blend_rank": np.tile(np.arange(1, K + 1, dtype=np.int32), len(some))}
        for source in SOURCES:
            lacks = rng.random(n) < 0.6
            columns[f"score__{source}"] = np.where(lacks, np.nan, rng.random(n)).astype(np.float32)
            columns[f"rank__{source}"] = np.where(lacks, np.nan, columns["blend_rank"]).astype(np.float32)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def by_feast(home: Home) -> None:
    """Ask stock Feast for the stored features of every candidate of the ranker's windows."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from stock_feast import StockStore

    historical.open_store = StockStore
    world = universe.load(home, AS_OF)
    for fold in world.folds[:-1]:
        table = blend.candidates(home, AS_OF, fold.name)
        asked = {
            "user_id": pa.array(world.user_ids[table["user"].to_numpy()], pa.string()),
            "item_id": pa.array(world.item_ids[table["item"].to_numpy()], pa.string()),
            store.EVENT_TIMESTAMP: pa.array(np.full(table.num_rows, micros(fold.cutoff))).cast(TIMESTAMP),
        }
        assert store.historical(home, pa.table(asked)).num_rows == table.num_rows


def main() -> None:
    """Measure every size, and the peer at those it fits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[500_000, 2_000_000, 5_000_000])
    parser.add_argument("--peer-up-to", type=int, default=500_000, help="candidate rows that the peer is asked to hold")
    parser.add_argument("--step", choices=["make", "ours", "peer"])
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args()
    if arguments.step:
        home = Home(arguments.home)
        steps = {
            "make": lambda: make(home, arguments.rows[0]),
            "ours": lambda: training_set.build(home, AS_OF),
            "peer": lambda: by_feast(home),
        }
        print(json.dumps(measured(steps[arguments.step])))
        return
    rows, said = [], []
    for size in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            asked = ("--home", folder, "--rows", str(size))
            in_process(__file__, "--step", "make", *asked)
            ours = in_process(__file__, "--step", "ours", *asked)
            peer = in_process(__file__, "--step", "peer", *asked) if size <= arguments.peer_up_to else {name: float("nan") for name in ours}
            label = f"{size / 1e6:g}M candidates"
            rows += [
                row(
                    f"{label}, CPU",
                    ours["cpu_seconds"],
                    peer["cpu_seconds"],
                    "s",
                    "ratio >= 1",
                    met=not ours["cpu_seconds"] > peer["cpu_seconds"],
                ),
                row(f"{label}, peak memory", ours["peak_mb"], peer["peak_mb"], "MB", "<= 12000 MB", met=ours["peak_mb"] <= 12_000),
            ]
            said.append(
                f"{label}: {size / ours['cpu_seconds'] / 1000:,.0f} thousand rows a CPU second, {ours['seconds']:.0f} s on the clock"
            )
    for line in rows:  # JSON has no NaN
        line.update({name: None for name in ("peer", "ratio") if line[name] != line[name]})
    publish_page(
        "training-set",
        rows,
        f"Peer: stock Feast, the join of the stored features alone, up to {arguments.peer_up_to:,} rows. {'. '.join(said)}.",
    )


if __name__ == "__main__":
    main()
