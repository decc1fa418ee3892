"""Features in and out: the point-in-time join for training, the online store for serving.

Feature columns are called `<view>__<feature>` everywhere. A view that needs the item's `category`
takes it from `item_daily__category` where the rows do not bring one.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import cycle
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features.repository import FeatureSpec, declarations, open_store, publish_configuration, schema
from pipelines.tables import TIMESTAMP
from pipelines.window import DAY, floor_day, utc

__all__ = ["FeatureSpec", "apply", "historical", "materialize", "online", "schema"]

EVENT_TIMESTAMP: Final = "event_timestamp"
DERIVED: Final = {c.CATEGORY: "item_daily__category"}
POSITION: Final = "__position"


@contextmanager
def _lock(home: Home, name: str) -> Iterator[None]:
    """Let one process at a time do something to the store of a state folder."""
    home.feast.mkdir(parents=True, exist_ok=True)
    with (home.feast / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def apply(home: Home) -> None:
    """Bring the registry to what `feature_repo/` declares; nothing happens if it is there already."""
    publish_configuration(home)
    with _lock(home, "apply"):
        parsed = declarations(home)
        open_store(home).apply([*parsed.entities, *parsed.data_sources, *parsed.feature_views, *parsed.feature_services])


def materialize(home: Home, as_of: datetime) -> dict[str, int]:
    """Bring the online store to the rows of the day `as_of`, and never back from the day it is at.

    Every entity has a row a day, so the newest day is the whole state. If the store is at a later
    day already (a backfill, a rebuild after late events), that day is written again, corrections
    and all. One process at a time; killed and run again, it ends in the same values.

    Returns and records the rows written by view.

    Raises:
        StateError: the features of that day were never built.
    """
    with cycle.stage(home, as_of, "materialize") as record, _lock(home, "materialize"):
        store = open_store(home)
        rows = {}
        for view in sorted(store.list_batch_feature_views(), key=lambda view: view.name):
            done = [utc(end) for _, end in view.materialization_intervals]
            until = max([floor_day(as_of), *done])
            rows[view.name] = _rows(home, view.name, until)
            store.materialize(until - DAY + timedelta(microseconds=1), until, feature_views=[view.name])
        record["online"] = rows
        return rows


def _rows(home: Home, mart: str, day: datetime) -> int:
    file = home.features / mart / f"as_of={day:%Y-%m-%d}.parquet"
    if not file.is_file():
        raise StateError(
            f"features {mart} of {day:%Y-%m-%d}", found=f"no file {file}", allowed="a day that was built", hint="run `reloop features`"
        )
    return int(pq.read_metadata(file).num_rows)


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
    for view, specs in _by_view(service):
        keys = [*specs[0].keys, EVENT_TIMESTAMP]
        asked = _keys(result, keys, view)
        wanted = asked.group_by(keys).aggregate([]).drop_null()
        found = _retrieve(store, wanted, specs) if len(wanted) else _nothing(wanted, specs)
        result = _attach(result, asked, found, keys, specs)
    return result.select([*entity_rows.column_names, *(spec.name for spec in schema(home, service))])


def _by_view(service: str) -> list[tuple[str, list[FeatureSpec]]]:
    """Return the features of a service by view; views whose keys other views provide come last."""
    grouped = [(view, list(specs)) for view, specs in groupby(schema(None, service), key=lambda spec: spec.view)]
    return sorted(grouped, key=lambda pair: any(key in DERIVED for key in pair[1][0].keys))


def _keys(rows: pa.Table, keys: list[str], view: str) -> pa.Table:
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
        entity_df=wanted.to_pandas(), features=_references(specs), full_feature_names=True, filter_by_created_timestamp=True
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
    return _add(rows, {spec: found[spec.name].combine_chunks().cast(spec.dtype).take(joined[POSITION]) for spec in specs})


def online(home: Home, rows: pa.Table, service: str = "ranking_v1", *, as_of: datetime | None = None) -> pa.Table:
    """Return rows with the features the online store holds for their keys now, as `historical` names them.

    Args:
        rows: the join keys of the service's views (user_id, item_id).
        as_of: if given, a value older than its view's ttl then is null, as in training; Feast
            itself serves values of any age.
    """
    store, result = open_store(home), rows
    for view, specs in _by_view(service):
        asked = _keys(result, list(specs[0].keys), view)
        if not len(asked):
            result = _add(result, {spec: pa.nulls(0, spec.dtype) for spec in specs})
            continue
        entities = {key: asked[key].fill_null("").to_pylist() for key in asked.column_names}
        answer = store.get_online_features(features=_references(specs), entity_rows=entities, full_feature_names=True)
        found = answer.to_dict(include_event_timestamps=True)
        # Feast answers with the epoch where it holds nothing.
        oldest = 1 if as_of is None else int((utc(as_of) - specs[0].ttl).timestamp())
        fresh = pa.array([moment >= oldest for moment in found[f"{specs[0].name}__ts"]])
        result = _add(result, {spec: pc.if_else(fresh, pa.array(found[spec.name], spec.dtype), None) for spec in specs})
    return result.select([*rows.column_names, *(spec.name for spec in schema(home, service))])


def _add(rows: pa.Table, found: dict[FeatureSpec, pa.Array]) -> pa.Table:
    for spec, values in found.items():
        rows = rows.append_column(spec.name, values)
    return rows


def _references(specs: list[FeatureSpec]) -> list[str]:
    return [spec.name.replace("__", ":", 1) for spec in specs]
