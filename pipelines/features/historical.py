"""The point-in-time join for training: entity rows in, the features that were known at each row's moment out.

Feature columns are called `<view>__<feature>` everywhere. A view that needs the item's `category`
takes it from `item_daily__category` where the rows do not bring one.
"""

from __future__ import annotations

from itertools import groupby
from typing import Final

import pyarrow as pa

from pipelines import columns as c
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features.repository import FeatureSpec, open_store, schema
from pipelines.tables import TIMESTAMP

EVENT_TIMESTAMP: Final = "event_timestamp"
DERIVED: Final = {c.CATEGORY: "item_daily__category", c.BRAND: "item_daily__brand"}


def historical(home: Home, entity_rows: pa.Table, *, service: str = "ranking_v1") -> pa.Table:
    """Return entity rows with the features that were true and known at each row's `event_timestamp`.

    Same rows in the same order, with one column a feature behind them, in the order of `schema`;
    null where no row is known or the newest is older than the view's ttl. Feast is called once for
    all views whose keys the rows bring, and once more for those whose keys come from other views.

    Args:
        entity_rows: the join keys of the service's views (user_id, item_id) and `event_timestamp`.

    Raises:
        StateError: a key or `event_timestamp` is missing, or the features were never built.
    """
    store, result = open_store(home), entity_rows
    for _, group in groupby(by_view(service), key=lambda pair: _derives(pair[1], entity_rows)):
        views = list(group)
        asked = [key_columns(result, [*specs[0].keys, EVENT_TIMESTAMP], view) for view, specs in views]
        keys = pa.table({name: table[name] for table in asked for name in table.column_names})
        specs = [spec for _, specs in views for spec in specs]
        # The store takes arrow as it is; a frame of a million rows of text costs more than the join.
        found = store.get_historical_features(keys, references(specs), full_feature_names=True, filter_by_created_timestamp=True).to_arrow()
        for spec in specs:
            result = result.append_column(spec.name, found[spec.name].cast(spec.dtype))
    return result.select([*entity_rows.column_names, *(spec.name for spec in schema(home, service))])


def _derives(specs: list[FeatureSpec], rows: pa.Table) -> bool:
    return any(key in DERIVED and key not in rows.column_names for key in specs[0].keys)


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


def references(specs: list[FeatureSpec]) -> list[str]:
    """Return features as Feast names them, `<view>:<feature>`."""
    return [spec.name.replace("__", ":", 1) for spec in specs]
