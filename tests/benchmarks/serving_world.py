"""A shop of any size that can be asked over the real path: a lake, snapshots, a loaded online store, sources and a ranker.

Events are `big_shop`'s. The marts are drawn, not computed: what a request costs depends on how many values it reads, not on what they
are. The ranker learns from made-up gains on real candidates with real features, so its trees have the shape that they have.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import config, lake, publish, tables
from pipelines.config import Home
from pipelines.datasets.interactions import load
from pipelines.features import store
from pipelines.model_settings import IndexSettings
from pipelines.ranking import memory, rankers
from pipelines.ranking.lambdarank import LambdaRank
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.target_encoding import Encoding
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry.choosing import Serving
from pipelines.rerank_policies import RerankSettings
from pipelines.retrieval import lineup
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.serving.deadline import Watch
from pipelines.serving.engine import Engine, bound
from pipelines.serving.knowledge import Knowledge
from pipelines.serving.request import Ask
from pipelines.window import utc

sys.path.insert(0, str(Path(__file__).parent))
import big_shop

START = utc("2025-01-06")
DAYS = 90
NOW = START + timedelta(days=DAYS)
SOURCES = ("popular", "popular_7d", "item_knn", "sequence_rules", "user_knn", "als", "repeat")
GROUPS = ("retrieval", "standardised", "embedding", "stored", "contact", "price")
N_CATEGORIES, N_BRANDS = 50, 2000
LISTS = 120  # that the ranker learns from
TOML = """
[retrieval]
k_per_source = {per_source}
k_blend = {blend}
[serving.deadline]
request_ms = 60000
store_ms = 5000
retrieve_by_ms = 60000
rank_by_ms = 60000
"""


@dataclass(frozen=True)
class Size:
    """How large a shop is."""

    items: int
    users: int
    candidates: int = 500
    per_source: int = 150
    features: int = 40
    trees: int = 300
    leaves: int = 63


def land(home: Home, size: Size) -> None:
    """Fill the lake, the marts of one day, the online store and the snapshots."""
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "reloop.toml").write_text(TOML.format(per_source=size.per_source, blend=size.candidates), encoding="utf-8")
    shop = big_shop.interactions(size.users, size.items, 7, n_tastes=max(10, size.items // 200), days=DAYS)
    n, rng = len(shop.user), np.random.default_rng(7)
    at = pa.array(shop.at + int(START.timestamp() * 1e6), pa.int64()).cast(tables.TIMESTAMP)
    kinds = np.array([c.VIEW, c.ADD_TO_CART, c.PURCHASE])[rng.choice(3, n, p=[0.85, 0.1, 0.05])]
    events = {
        c.EVENT_ID: pa.array(np.char.mod("e%09d", np.arange(n))),
        c.USER_ID: pa.array(shop.user_ids[shop.user]),
        c.ITEM_ID: pa.array(shop.item_ids[shop.item]),
        c.EVENT_TYPE: pa.array(kinds),
        c.VALUE: pa.array(np.where(kinds == c.PURCHASE, 10.0, np.nan), from_pandas=True),
        c.EVENT_AT: at,
        c.RECEIVED_AT: at,
        c.DEVICE: pa.array(np.array(["desktop", "mobile"])[rng.integers(0, 2, n)]),
    }
    filled = pa.table({field.name: events.get(field.name, pa.nulls(n, field.type)) for field in tables.EVENTS})
    lake.land_tables(home, events=filled, items=_items(shop.item_ids, rng), users=_users(shop.user_ids, rng), source="invented")
    _marts(home, shop.user_ids, shop.item_ids, rng)
    store.apply(home)
    store.materialize(home, NOW)


def _items(ids: np.ndarray, rng: np.random.Generator) -> pa.Table:
    n = len(ids)
    category, brand = rng.integers(0, N_CATEGORIES, n), rng.integers(0, N_BRANDS, n)
    given = {
        c.ITEM_ID: pa.array(ids),
        c.TITLE: pa.array([f"Thing {a} of {b}" for a, b in zip(ids.tolist(), brand.tolist(), strict=True)]),
        c.CATEGORY: pa.array(np.char.mod("category %02d", category)),
        c.BRAND: pa.array(np.char.mod("brand %04d", brand)),
        c.PRICE: pa.array(np.round(rng.lognormal(3, 1, n), 2)),
        c.AVAILABLE: pa.array(rng.random(n) > 0.02),
        c.VALID_FROM: pa.array([START] * n, tables.TIMESTAMP),
        c.RECEIVED_AT: pa.array([START] * n, tables.TIMESTAMP),
    }
    return pa.table({field.name: given.get(field.name, pa.nulls(n, field.type)) for field in tables.ITEMS})


def _users(ids: np.ndarray, rng: np.random.Generator) -> pa.Table:
    n = len(ids)
    given = {
        c.USER_ID: pa.array(ids),
        c.COUNTRY: pa.array(np.array(["DE", "FR", "GB", "US"])[rng.integers(0, 4, n)]),
        c.AGE_BAND: pa.array(np.array(["18-24", "25-34", "35-44"])[rng.integers(0, 3, n)]),
        c.VALID_FROM: pa.array([START] * n, tables.TIMESTAMP),
        c.RECEIVED_AT: pa.array([START] * n, tables.TIMESTAMP),
    }
    return pa.table({field.name: given.get(field.name, pa.nulls(n, field.type)) for field in tables.USERS})


def _marts(home: Home, users: np.ndarray, items: np.ndarray, rng: np.random.Generator) -> None:
    """Publish the marts of the day with drawn values: 6 categories and 12 brands a user, 5 pairs an item, no session."""
    per_user = {c.CATEGORY: (6, N_CATEGORIES, "category %02d"), c.BRAND: (12, N_BRANDS, "brand %04d")}
    keys: dict[str, dict[str, np.ndarray]] = {"user_daily": {c.USER_ID: users}, "item_daily": {c.ITEM_ID: items}}
    for key, (n, of, name) in per_user.items():
        code = (rng.integers(0, of, len(users))[:, None] + np.arange(n)) % of
        keys[f"user_{key}_daily"] = {c.USER_ID: np.repeat(users, n), key: np.char.mod(name, code.ravel())}
    other = (np.arange(len(items))[:, None] + np.arange(1, 6)) % len(items)
    keys["item_pairs_daily"] = {c.ITEM_ID: np.repeat(items, 5), c.OTHER_ITEM_ID: items[other.ravel()]}
    keys["user_session"] = {c.USER_ID: users[:0]}
    specs = [*store.schema(home), *store.schema(home, "pairs_v1"), *store.schema(home, "session_v1")]
    for mart, columns in keys.items():
        n = len(next(iter(columns.values())))
        table = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        table[c.AS_OF] = table[c.AVAILABLE_AT] = pa.array([NOW] * n, tables.TIMESTAMP)
        for spec in specs:
            name = spec.name.partition("__")[2]
            if spec.view == mart and name not in table:
                table[name] = _drawn(spec.dtype, n, name, rng)
        publish.write_parquet(home.features / mart / f"as_of={NOW:%Y-%m-%d}.parquet", pa.table(table))


def _drawn(dtype: pa.DataType, n: int, name: str, rng: np.random.Generator) -> pa.Array:
    if name.endswith("_rank"):
        return pa.array(np.arange(n) % 5 + 1, pa.int32())
    if pa.types.is_floating(dtype):
        return pa.array(rng.random(n), dtype)
    if pa.types.is_integer(dtype):
        return pa.array(rng.integers(0, 20, n), dtype)
    if pa.types.is_boolean(dtype):
        return pa.array(rng.random(n) > 0.1)
    return pa.nulls(n, dtype)


def sources(home: Home, size: Size) -> TwoStage:
    """Return the default sources fitted on the lake, without a ranker; vectors of many items behind an index."""
    known = load(home, NOW, config.load(home).training)
    models = {}
    for name in SOURCES:
        model = lineup.make(name, {"n_epochs": 3} if name == "als" else {})
        fitted = model.fit(known)
        if name == "als" and size.items > 50_000:
            fitted = Indexed(fitted, IndexSettings(hnsw_below=50_000, n_queries=400)).over(known)
        models[name] = fitted
    return TwoStage(
        item_ids=known.item_ids,
        retrievers=models,
        ranker=None,
        k_per_source=size.per_source,
        k_blend=size.candidates,
        exclude_seen=False,
        serves="blend",
        rerank=RerankSettings(),
        groups=GROUPS,
        memory=memory.of(known, Encoding(prior=0.0, keys={}, values={})),
    )


def ranked(engine: Engine, size: Size, users: list[str]) -> TwoStage:
    """Return the model with a ranker that learnt made-up gains from what requests of some users read."""
    rng = np.random.default_rng(3)
    blocks, names = [], ()
    for user in users[:LISTS]:
        block, names = features(engine, Ask("home", "train", NOW, 10, user))
        blocks.append(block)
    # The features whose values differ most often, so that each is worth asking.
    spread = [len(np.unique(np.concatenate([block[:50, at] for block in blocks[:20]]))) for at in range(len(names))]
    kept = np.sort(np.argsort(-np.array(spread), kind="stable")[: size.features])
    matrix = np.concatenate(blocks)[:, kept]
    filled = np.nan_to_num(matrix)
    signal = (np.argsort(np.argsort(filled[:, :8], axis=0), axis=0) / len(filled)).sum(axis=1) + rng.standard_normal(len(filled))
    gain = np.digitize(signal, np.quantile(signal, [0.8, 0.9, 0.97])).astype(np.float32)
    rows = RankingRows(
        matrix,
        tuple(names[at] for at in kept),
        gain,
        np.array([len(block) for block in blocks], np.int32),
        np.zeros(len(blocks), np.int32),
    )
    ranker = LambdaRank(n_rounds=size.trees, num_leaves=size.leaves, min_data_in_leaf=20, num_threads=1).fit(rows)
    return replace(engine.model, ranker=ranker, serves="ranked")


def features(engine: Engine, ask: Ask) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return every feature of the candidates of a request, and their names."""
    from pipelines.ranking.features import assemble
    from pipelines.serving import moment

    watch = Watch(engine.settings.serving.deadline)
    found = engine.found(ask, watch)
    held = engine.held(ask, engine.knowledge.known, watch)
    vectors = {name: source.asked(engine.model.retrievers[name], found.users)[1] for name, source in engine.placed.items()}
    known = moment.context(
        found.candidates,
        found.users,
        found.binding,
        held,
        engine.knowledge.store(),
        groups=GROUPS,
        memory=engine.model.memory,
        vectors=vectors,
    )
    return assemble(known, found.candidates)


def made(home: Home, size: Size) -> tuple[Engine, list[str]]:
    """Return an engine over the shop, made once a state folder, and some of its users in random order."""
    if not (home.root / "made").is_file():
        land(home, size)
        (home.root / "made").touch()
    knowledge = Knowledge(home, config.load(home).serving)
    ids = knowledge.known.requests.histories.users
    users = [ids[int(at)].as_py() for at in np.random.default_rng(1).permutation(len(ids))[:4000]]
    model = home.root / f"model-{size.candidates}-{size.features}-{size.trees}x{size.leaves}"
    if not model.is_dir():
        plain = home.root / f"sources-{size.candidates}"
        if not plain.is_dir():
            sources(home, size).save(plain)
        engine = bound(knowledge, Serving(0, "plain", TwoStage.load(plain), {}))
        ranked(engine, size, users).save(model)
    return bound(knowledge, Serving(1, "bench", TwoStage.load(model), {})), users


__all__ = ["NOW", "Size", "datetime", "made", "pq", "rankers"]
