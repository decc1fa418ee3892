"""Features in and out: the point-in-time join for training, the online store for serving.

Feature columns are called `<view>__<feature>` everywhere. A view that needs the item's `category`
takes it from `item_daily__category` where the rows do not bring one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime, timedelta

import pyarrow.parquet as pq

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features import item_snapshot, request_snapshot
from pipelines.features.historical import EVENT_TIMESTAMP, historical
from pipelines.features.online import online
from pipelines.features.repository import FeatureSpec, declarations, materialized_to, open_store, publish_configuration, schema
from pipelines.window import DAY, floor_day, utc

__all__ = ["EVENT_TIMESTAMP", "FeatureSpec", "apply", "historical", "materialize", "online", "schema"]


def _lock(home: Home, name: str) -> AbstractContextManager[None]:
    """Let one process at a time do something to the store of a state folder."""
    return publish.locked(home.feast / f".{name}.lock")


def apply(home: Home) -> None:
    """Bring the registry to what `feature_repo/` declares; nothing happens if it is there already."""
    publish_configuration(home)
    with _lock(home, "apply"):
        parsed = declarations(home)
        open_store(home).apply([*parsed.entities, *parsed.data_sources, *parsed.feature_views, *parsed.feature_services])


def materialize(home: Home, as_of: datetime) -> dict[str, int]:
    """Bring the online store and the snapshots for requests to the rows of the day `as_of`, and never back from the day they are at.

    The state is the newest row of every entity within the view's ttl; of a view tagged `rows: daily`,
    whose entities have a row every day, that is the newest day. If the store is at a later day already
    (a backfill, a rebuild after late events), that day is written again, corrections and all. One
    process at a time; killed and run again, it ends in the same values. Rows past their ttl are removed.

    Returns and records the rows written by view; also records the last moment at which they are answers.

    Raises:
        StateError: the features of that day were never built.
    """
    with cycle.stage(home, as_of, "materialize") as record, _lock(home, "materialize"):
        store = open_store(home)
        rows, answers_until, reached = {}, {}, floor_day(as_of)
        for view in sorted(store.list_batch_feature_views(), key=lambda view: view.name):
            until = max(floor_day(as_of), materialized_to(view) or floor_day(as_of))
            rows[view.name] = _rows(home, view.name, until)
            instant = timedelta(microseconds=1)
            reach = DAY - instant if view.tags.get("rows") == "daily" else view.ttl + instant
            store.materialize(until - reach, until, feature_views=[view.name])
            reached = max(reached, until)
            answers_until[view.name] = (until + view.ttl).isoformat()
        item_snapshot.publish_snapshot(home, store, reached)
        request_snapshot.publish_snapshot(home, max(utc(as_of), reached))
        record["online"] = rows
        record["answers_until"] = answers_until
        return rows


def _rows(home: Home, mart: str, day: datetime) -> int:
    file = home.features / mart / f"as_of={day:%Y-%m-%d}.parquet"
    if not file.is_file():
        raise StateError(
            f"features {mart} of {day:%Y-%m-%d}", found=f"no file {file}", allowed="a day that was built", hint="run `reloop features`"
        )
    return int(pq.read_metadata(file).num_rows)
