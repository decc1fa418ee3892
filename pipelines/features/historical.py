"""The point-in-time join for training: entity rows in, the features that were known at each row's moment out.

Feature columns are called `<view>__<feature>` everywhere. A view that needs the item's `category`
takes it from `item_daily__category` where the rows do not bring one.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, Final

import pyarrow as pa

from pipelines import columns as c
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features.repository import FeatureSpec, open_store, schema
from pipelines.tables import TIMESTAMP

EVENT_TIMESTAMP: Final = "event_timestamp"
DERIVED: Final = {c.CATEGORY: "item_daily__category"}
POSITION: Final = "__position"


def historical(home: Home, entity_rows: pa.Table, *, service: str = "ranking_v1") -> pa.Table:
    """Return entity rows with the features that were true and known at each row's `event_timestamp`.

    Same rows in the same order, with one column a feature behind them, in the order of `schema`;
    null where no row is known or the newest is older than the view's ttl. Each view is asked for
    its distinct keys and moments only, and joined back by equality: the same as one call of
    Feast's `get_historical_features` with all rows, at a fraction of its time and memory.

    Args:
        entity_rows: the join keys of the service's views (user_id, item_id) and `event_timestamp`.

    Raises:
        StateError: a key or `event_timestamp` is missing, or the features were never built.
    """
    store, result = open_store(home), entity_rows
    for view, specs in by_view(service):
        keys = [*specs[0].keys, EVENT_TIMESTAMP]
        asked = key_columns(result, keys, view)
        wanted = asked.group_by(keys).aggregate([]).drop_null()
        found = _retrieve(store, wanted, specs) if len(wanted) else _nothing(wanted, specs)
        result = _attach(result, asked, found, keys, specs)
    return result.select([*entity_rows.column_names, *(spec.name for spec in schema(home, service))])


def by_view(service: str) -> list[tuple[str, list[FeatureSpec]]]:
    """Return the features of a service by view; views whose keys other views provide come last."""
    grouped = [(view, list(specs)) for view, specs in groupby(schema(None, service), key=lambda spec: spec.view)]
    return sorted(grouped, key=lambda pair: any(key in DERIVED for key in pair[1][0].keys))


def key_columns(rows: pa.Table, keys: list[str], view: str) -> pa.Table:
    """Return the key columns of some rows, in canonical types."""
    columns = {}
    for key in keys:
        name = key if key in rows.column_names else DERIVED.get(key, key)
        if name not in rows.column_names:
            raise StateError(f"entity rows for the view {view}", found=f"columns {rows.column_names}", allowed=f"also {key!r}")
        columns[key] = rows[name].cast(TIMESTAMP if key == EVENT_TIMESTAMP else pa.string())
    return pa.table(columns)


def _retrieve(store: Any, wanted: pa.Table, specs: list[FeatureSpec]) -> pa.Table:
    """Ask Feast for the features of one view; only rows that were also available by the moment count."""
    job = store.get_historical_features(
        entity_df=wanted.to_pandas(), features=references(specs), full_feature_names=True, filter_by_created_timestamp=True
    )
    return job.to_arrow()


def _nothing(wanted: pa.Table, specs: list[FeatureSpec]) -> pa.Table:
    return pa.table({**{name: wanted[name] for name in wanted.column_names}, **{spec.name: pa.nulls(0, spec.dtype) for spec in specs}})


def _attach(rows: pa.Table, asked: pa.Table, found: pa.Table, keys: list[str], specs: list[FeatureSpec]) -> pa.Table:
    """Return `rows` with the features found for its keys; a join, then a take, so that order stays."""
    right = pa.table(
        {**{key: found[key].cast(asked.schema.field(key).type) for key in keys}, POSITION: pa.array(range(len(found)), pa.int64())}
    )
    left = asked.append_column("__row", pa.array(range(len(asked)), pa.int64()))
    joined = left.join(right, keys=keys, join_type="left outer").sort_by("__row")
    return add(rows, {spec: found[spec.name].combine_chunks().cast(spec.dtype).take(joined[POSITION]) for spec in specs})


def add(rows: pa.Table, found: dict[FeatureSpec, pa.Array]) -> pa.Table:
    """Return rows with one column a feature behind them."""
    for spec, values in found.items():
        rows = rows.append_column(spec.name, values)
    return rows


def references(specs: list[FeatureSpec]) -> list[str]:
    """Return features as Feast names them, `<view>:<feature>`."""
    return [spec.name.replace("__", ":", 1) for spec in specs]
