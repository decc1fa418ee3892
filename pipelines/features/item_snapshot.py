"""Item features for serving: every view of items alone, as one memory-mapped snapshot of one day.

A request ranks hundreds of items; the online store answers them in tens of milliseconds, this in
tens of microseconds, with the same values. Two files hold the same rows: `numbers.npy`, a float64
row an item (missing is NaN, true is 1), is what a ranker gathers from; `rows.arrow` has the columns
in their own types. Both are mapped, so any number of serving processes share one copy.

A snapshot is a folder named by day and content that never changes; `current.json` names the one to
read and is replaced in one step, so a reader has the old day or the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features.materialization import newest_rows
from pipelines.features.moments import ttl_micros
from pipelines.tables import TIMESTAMP
from pipelines.window import micros, utc

POINTER: Final = "current.json"
NUMBERS: Final = "numbers.npy"
ROWS: Final = "rows.arrow"
MOMENT: Final = "__event_timestamp"  # `<view>__event_timestamp`: the row's own moment
KEPT: Final = 2  # a reader that has just read the pointer still finds what it named

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


class _Index(dict[str, int]):
    """Item id -> place; an unknown id is at the place behind the last, where all is missing."""

    def __missing__(self, item: str) -> int:
        return len(self)


@dataclass(frozen=True)
class ItemSnapshot:
    """What was known of every item on one day.

    Attributes:
        day: the moment up to which it knows the world.
        names: the columns of `numbers`, `<view>__<feature>`: every feature that is a number or a truth value.
        numbers: float64 [n_items + 1, n_names], mapped; NaN where missing, and in all of the last row.
        rows: every feature in its own type, by item; beside them `<view>__event_timestamp`.
        views: of each view its name, its columns in `numbers`, its ttl in microseconds (0 is for ever)
            and its oldest moment in microseconds since the epoch.
    """

    day: datetime
    names: tuple[str, ...]
    numbers: Floats
    rows: pa.Table
    views: tuple[tuple[str, slice, int, int], ...]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _index(self) -> _Index:
        """Made when it is first asked for: who looks up columns of ids needs none."""
        return _Index(zip(self.rows[c.ITEM_ID].to_pylist(), range(len(self.rows)), strict=True))

    def places(self, items: Sequence[str]) -> Places:
        """Return where items are; `len(self)` for one that the snapshot does not know."""
        return np.fromiter(map(self._index.__getitem__, items), np.intp, len(items))

    def gather(self, places: Places, *, as_of: datetime | None = None) -> Floats:
        """Return float64 [len(places), len(names)]; NaN where unknown, or past the view's ttl at `as_of`."""
        found: Floats = self.numbers.take(places, axis=0, mode="clip")
        if as_of is not None:
            now = micros(as_of)
            for view, columns, ttl, oldest in self.views:
                if ttl and oldest < now - ttl:
                    moments = np.append(self.moments(view), np.iinfo(np.int64).min)
                    found[moments[places] < now - ttl, columns] = np.nan
        return found

    def table(self, items: Sequence[str], *, as_of: datetime | None = None) -> pa.Table:
        """Return the features of items in their own types, one row an item asked; null as in `gather`."""
        places = self.places(items)
        at = pa.array(places, mask=places == len(self))
        found = self.rows.drop_columns([c.ITEM_ID]).take(at)
        for view, _, ttl, oldest in self.views:
            if as_of is not None and ttl and oldest < micros(as_of) - ttl:
                old = pa.compute.less(found[f"{view}{MOMENT}"].cast(pa.int64()), micros(as_of) - ttl)
                for place, name in enumerate(found.column_names):
                    if name.startswith(f"{view}__") and name != f"{view}{MOMENT}":
                        found = found.set_column(place, name, pa.compute.if_else(old, pa.scalar(None, found[name].type), found[name]))
        return found.drop_columns([f"{view}{MOMENT}" for view, *_ in self.views])

    def moments(self, view: str) -> npt.NDArray[np.int64]:
        """Return int64 [n_items], microseconds of each row of a view; the least number where it has none."""
        moments: npt.NDArray[np.int64] = self.rows[f"{view}{MOMENT}"].cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy()
        return moments


def folder(home: Home) -> Path:
    """Return where the snapshots of a state folder lie."""
    return home.feast / "items"


def publish_snapshot(home: Home, store: Any, as_of: datetime) -> Path:
    """Publish the item features that hold at `as_of`, from the offline store; return the folder.

    Holds for each view the newest row of every item within the view's ttl. The same rows give the
    same folder, so running it again changes nothing.

    Raises:
        StateError: no online view describes items alone.
    """
    views = sorted(
        (view for view in store.list_batch_feature_views() if view.online and view.join_keys == [c.ITEM_ID]), key=lambda v: str(v.name)
    )
    if not views:
        raise StateError(
            "item snapshot", found="no view of items", allowed="an online view whose only key is item_id", hint="`reloop features`"
        )
    held = {view.name: _newest(store, view, utc(as_of)) for view in views}
    ids = pa.compute.unique(pa.chunked_array([chunk for table in held.values() for chunk in table[c.ITEM_ID].chunks], pa.string())).sort()
    rows = pa.table({c.ITEM_ID: ids})
    described = []
    for view in views:
        table = held[view.name]
        places = pa.compute.index_in(ids, table[c.ITEM_ID].combine_chunks())
        found = table.drop_columns([c.ITEM_ID]).take(places)
        for name in found.column_names:
            rows = rows.append_column(name, found[name])
        names = [name for name in found.column_names if _is_number(found[name].type)]
        oldest = pa.compute.min(table[f"{view.name}{MOMENT}"].cast(pa.int64())).as_py() or 0
        described.append({"name": view.name, "names": names, "ttl_us": ttl_micros(view), "oldest_us": oldest})
    rows = rows.combine_chunks()
    numbers = np.full((len(ids) + 1, sum(len(view["names"]) for view in described)), np.nan)
    for place, name in enumerate(name for view in described for name in view["names"]):
        numbers[:-1, place] = rows[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
    content = hashlib.sha256(numbers.tobytes() + json.dumps(described).encode() + repr(rows.schema).encode())
    for column in rows.columns:
        content.update(json.dumps(column.to_pylist(), default=str).encode() if pa.types.is_string(column.type) else b"")
    target = folder(home) / f"as_of={utc(as_of):%Y-%m-%d}-{content.hexdigest()[:12]}"
    if not (target / publish.MANIFEST).is_file():
        facts = {"as_of": utc(as_of).isoformat(), "items": len(ids), "views": described}
        with publish.folder(target, facts) as temporary:
            np.save(temporary / NUMBERS, numbers)
            with pa.ipc.new_file(str(temporary / ROWS), rows.schema) as writer:
                writer.write_table(rows)
    before = _pointed(home)
    publish.write_json(folder(home) / POINTER, {"folder": target.name})
    kept = {target.name, before}
    for old in folder(home).glob("as_of=*"):
        if old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _is_number(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype))


def _newest(store: Any, view: Any, end: datetime) -> pa.Table:
    """Return the newest row of every item within the ttl, features named `<view>__<feature>` and typed as declared."""
    from feast.type_map import feast_value_type_to_pa

    provider = store._get_provider()  # Feast offers no public way to its offline store
    start = end - (view.ttl or timedelta(days=36_500))
    found = newest_rows(view, start, end, config=store.config, offline_store=provider.offline_store, registry=store.registry).to_arrow()
    named = view.batch_source.field_mapping or {}
    found = found.rename_columns([named.get(name, name) for name in found.column_names]).combine_chunks()
    moment = found[view.batch_source.timestamp_field]
    columns = {c.ITEM_ID: found[c.ITEM_ID].cast(pa.string()), f"{view.name}{MOMENT}": _in_utc(moment)}
    columns |= {
        f"{view.name}__{field.name}": found[field.name].cast(feast_value_type_to_pa(field.dtype.to_value_type())) for field in view.features
    }
    return pa.table(columns)


def _in_utc(moment: pa.ChunkedArray) -> pa.ChunkedArray:
    return moment.cast(pa.timestamp("us", moment.type.tz)).cast(pa.int64()).cast(TIMESTAMP)


def _pointed(home: Home) -> str | None:
    file = folder(home) / POINTER
    return str(json.loads(file.read_text(encoding="utf-8"))["folder"]) if file.is_file() else None


def current(home: Home) -> ItemSnapshot | None:
    """Map the current snapshot; None if nothing was ever published."""
    if (name := _pointed(home)) is None:
        return None
    try:
        return _map(folder(home) / name)
    except FileNotFoundError:  # two days were published between reading the pointer and now
        return _map(folder(home) / str(_pointed(home)))


def open_snapshot(home: Home, *, as_of: datetime | None = None) -> ItemSnapshot:
    """Map the current snapshot.

    Args:
        as_of: if given, refuse a snapshot of which every value is past its ttl then.

    Raises:
        StateError: nothing was published, or what was is too old to answer anything.
    """
    if (snapshot := current(home)) is None:
        raise StateError(f"item snapshot under {folder(home)}", found="none", allowed="a published one", hint="run `reloop features`")
    ages = [ttl for _, _, ttl, _ in snapshot.views]
    if as_of is not None and all(ages) and micros(as_of) - max(ages) > micros(snapshot.day):
        raise StateError(
            f"item snapshot under {folder(home)}",
            found=f"it is of {snapshot.day:%Y-%m-%d}",
            allowed=f"one that still answers at {utc(as_of):%Y-%m-%d %H:%M}",
            hint="run `reloop features` for a later day",
        )
    return snapshot


def _map(place: Path) -> ItemSnapshot:
    facts = json.loads((place / publish.MANIFEST).read_text(encoding="utf-8"))["facts"]
    numbers = np.asarray(np.load(place / NUMBERS, mmap_mode="r"))
    rows = pa.ipc.open_file(pa.memory_map(str(place / ROWS))).read_all()
    views, first = [], 0
    for view in facts["views"]:
        views.append((view["name"], slice(first, first + len(view["names"])), view["ttl_us"], view["oldest_us"]))
        first += len(view["names"])
    names = tuple(name for view in facts["views"] for name in view["names"])
    return ItemSnapshot(utc(facts["as_of"]), names, numbers, rows, tuple(views))
