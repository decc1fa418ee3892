"""Features at serving time: one call, two paths. Items come from the mapped snapshot, all else from the online store.

The store is asked once a request, whatever number of views and rows (on Redis: one round trip), and
for distinct keys only. What it answers is what `get_online_features` answers; the tests hold the two
together. A value is missing where nobody knows the key, or, given `as_of`, where it is past its ttl.
"""

from __future__ import annotations

from datetime import datetime
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import columns as c
from pipelines.config import Home
from pipelines.features import item_snapshot
from pipelines.features.historical import by_view, key_columns, references
from pipelines.features.item_snapshot import ItemSnapshot
from pipelines.features.moments import reading_at
from pipelines.features.repository import open_store, schema


class OnlineFeatures:
    """A reader of one service; opens store, registry and snapshot once, and follows the snapshot's pointer.

    Raises:
        StateError: no item snapshot was published.
    """

    def __init__(self, home: Home, service: str = "ranking_v1") -> None:
        self.home, self.service = home, service
        self._store = open_store(home)
        self._names = [spec.name for spec in schema(home, service)]
        views = by_view(service)
        self._of_items = [specs for _, specs in views if specs[0].keys == (c.ITEM_ID,)]
        self._of_store = [specs for _, specs in views if specs[0].keys != (c.ITEM_ID,)]
        self._seen: int | None = None
        self._snapshot: ItemSnapshot | None = None

    @property
    def items(self) -> ItemSnapshot:
        """The current item snapshot; a pointer that moved is followed, at the cost of one `stat`."""
        pointer = item_snapshot.folder(self.home) / item_snapshot.POINTER
        seen = pointer.stat().st_mtime_ns if pointer.exists() else None
        if self._snapshot is None or seen != self._seen:
            self._snapshot, self._seen = item_snapshot.open_snapshot(self.home), seen
        return self._snapshot

    def read(self, rows: pa.Table, *, as_of: datetime | None = None) -> pa.Table:
        """Return rows with every feature of the service behind them, in the order of `schema`.

        Args:
            rows: the join keys of the service's views; `category` may be left out, it is the item's.
            as_of: a value older than its view's ttl then is null, as in training. None: values of any age.

        Raises:
            StateError: a key is missing.
        """
        result = rows
        if self._of_items:
            asked = key_columns(rows, [c.ITEM_ID], self._of_items[0][0].view)[c.ITEM_ID]
            found = self.items.table(asked.fill_null("").to_pylist(), as_of=as_of)
            found = found.select([spec.name for specs in self._of_items for spec in specs])
            result = _beside(result, _blanked(found, asked.is_null()))
        if self._of_store:
            result = _beside(result, self._from_store(result, as_of))
        return result.select([*rows.column_names, *self._names])

    def _from_store(self, rows: pa.Table, as_of: datetime | None) -> pa.Table:
        """Return the features of all views but the items', one row a row, by one call of Feast over distinct keys."""
        specs = [spec for group in self._of_store for spec in group]
        names = list(dict.fromkeys(key for spec in specs for key in spec.keys))
        if not len(rows):
            return pa.table({spec.name: pa.nulls(0, spec.dtype) for spec in specs})
        asked = key_columns(rows, names, self._of_store[0][0].view)
        missing = {name: asked[name].is_null() for name in names}
        asked = pa.table({name: asked[name].fill_null("") for name in names})
        distinct = asked.group_by(names, use_threads=False).aggregate([]).combine_chunks()
        with reading_at(as_of):
            answer = self._store.get_online_features(features=references(specs), entity_rows=distinct.to_pydict(), full_feature_names=True)
        found = answer.to_dict()
        columns = pa.table({spec.name: pa.array(found[spec.name], spec.dtype) for spec in specs}).take(_places(asked, distinct))
        views = [
            _blanked(columns.select([spec.name for spec in group]), reduce(pc.or_, [missing[key] for key in group[0].keys]))
            for group in self._of_store
        ]
        return reduce(_beside, views)


def _places(asked: pa.Table, distinct: pa.Table) -> pa.Array:
    """Return for every row which distinct row it is."""
    known = {key: place for place, key in enumerate(zip(*(column.to_pylist() for column in distinct.columns), strict=True))}
    return pa.array([known[key] for key in zip(*(column.to_pylist() for column in asked.columns), strict=True)])


def _blanked(features: pa.Table, missing: pa.ChunkedArray) -> pa.Table:
    """Return features, null in the rows that had no key: Feast can only be asked for "", which may be somebody's name."""
    if not pc.any(missing).as_py():
        return features
    return features.take(pc.if_else(missing, None, pa.array(range(len(features)), pa.int64())))


def _beside(left: pa.Table, right: pa.Table) -> pa.Table:
    for name in right.column_names:
        left = left.append_column(name, right[name])
    return left


def online(home: Home, rows: pa.Table, service: str = "ranking_v1", *, as_of: datetime | None = None) -> pa.Table:
    """Return rows with the features that serving has for their keys now, as `historical` names them.

    Opens the store for this one call; whoever asks again and again holds an `OnlineFeatures`.
    """
    return OnlineFeatures(home, service).read(rows, as_of=as_of)
