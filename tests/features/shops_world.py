"""A repository of shops, routes and places, on files small enough for paper."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, RequestSource
from feast.data_format import ParquetFormat
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64
from feast.value_type import ValueType

NOON = datetime(2025, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

# One row each: shop 1 is corrected at 13:00, shop 2 has nothing before noon, shop 3 is old.
SHOPS = [
    {"shop": 1, "at": NOON - HOUR, "made": NOON - HOUR, "sales": 10, "RAW": 0.5},
    {"shop": 1, "at": NOON - HOUR, "made": NOON + HOUR, "sales": 11, "RAW": 0.6},
    {"shop": 2, "at": NOON + HOUR, "made": NOON + HOUR, "sales": 20, "RAW": 0.7},
    {"shop": 3, "at": NOON - 30 * HOUR, "made": NOON - 30 * HOUR, "sales": 30, "RAW": 0.8},
]
ROUTES = [{"place": 1, "other": 11, "at": NOON, "km": 5}, {"place": 11, "other": 1, "at": NOON, "km": 7}]
PLACES = [{"place": 1, "at": NOON, "heat": 20.0}, {"place": 11, "at": NOON, "heat": 30.0}]
GLOBAL = [{"at": NOON - HOUR, "rate": 1.5}, {"at": NOON + HOUR, "rate": 2.5}]


def save(path: Path, rows: list[dict], **types: pa.DataType) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        made = made.set_column(made.schema.get_field_index(name), name, made[name].cast(kind))
    pq.write_table(made, path)
    return str(path)


def declared(folder: Path) -> list[Any]:
    """Return what the repository declares: shops (a renamed column, two times), routes (two keys), places (asked twice), a rate for all."""
    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.INT64)
    place, other = (Entity(name=name, join_keys=[name], value_type=ValueType.INT64) for name in ("place", "other"))
    files = {
        "shops": FileSource(
            name="shops_file",
            path=save(folder / "shops.parquet", SHOPS),
            file_format=ParquetFormat(),
            timestamp_field="at",
            created_timestamp_column="made",
            field_mapping={"RAW": "margin"},
        ),
        "routes": FileSource(name="routes_file", path=save(folder / "routes.parquet", ROUTES), timestamp_field="at"),
        "places": FileSource(name="places_file", path=save(folder / "places.parquet", PLACES), timestamp_field="at"),
        "rates": FileSource(name="rates_file", path=save(folder / "rates.parquet", GLOBAL), timestamp_field="at"),
    }
    shops = FeatureView(
        name="shops",
        entities=[shop],
        ttl=timedelta(hours=24),
        source=files["shops"],
        schema=[Field(name="shop", dtype=Int64), Field(name="sales", dtype=Int64), Field(name="margin", dtype=Float64)],
    )
    pushed = FeatureView(
        name="pushed", entities=[shop], ttl=None, source=PushSource(name="push", batch_source=files["shops"]), schema=shops.schema
    )
    routes = FeatureView(name="routes", entities=[place, other], ttl=None, source=files["routes"], schema=[Field(name="km", dtype=Int64)])
    places = FeatureView(name="places", entities=[place], ttl=None, source=files["places"], schema=[Field(name="heat", dtype=Float64)])
    rates = FeatureView(name="rates", entities=[], ttl=None, source=files["rates"], schema=[Field(name="rate", dtype=Float64)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        @on_demand_feature_view(
            sources=[shops, RequestSource(name="asked", schema=[Field(name="factor", dtype=Int64)])],
            schema=[Field(name="scaled", dtype=Int64)],
            mode="pandas",
        )
        def scaled(inputs: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame({"scaled": (inputs["sales"].fillna(0) * inputs["factor"]).astype("int64")})

        scaled.udf.__module__ = "scaled"
    logged = FeatureService(
        name="logged",
        features=[shops],
        logging_config=LoggingConfig(destination=FileLoggingDestination(path=str(folder / "log")), sample_rate=1.0),
    )
    return [shop, place, other, *files.values(), shops, pushed, routes, places, rates, scaled, logged]


def shops_at(*moments: Any, shop: Any = 1, **more: Any) -> pd.DataFrame:
    return pd.DataFrame({"shop": shop, "event_timestamp": list(moments), **more})


def sales(repo: FeatureStore, entities: Any) -> list[Any]:
    return repo.get_historical_features(entities, ["shops:sales"]).to_arrow()["sales"].to_pylist()
