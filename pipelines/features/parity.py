"""Parity: what the online store serves is what a point-in-time join gives at the moment it was materialised to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from pipelines import columns as c
from pipelines import cycle, lake, publish
from pipelines.config import Home
from pipelines.errors import ReloopError, StateError
from pipelines.features import item_snapshot
from pipelines.features.historical import EVENT_TIMESTAMP
from pipelines.features.moments import reading_at
from pipelines.features.repository import materialized_to, open_store
from pipelines.lake.engine import quoted
from pipelines.window import floor_day, stamp, utc

SAMPLE: Final = 2000
EXAMPLES: Final = 3
STRANGERS: Final = 2
ROW: Final = "__row"
Served = tuple[dict[str, list[Any]], list[float]]  # values by `<view>__<feature>`, and of when each row is


@dataclass
class FeatureParity:
    """One feature compared.

    Attributes:
        compared: entities compared.
        mismatches: how many of them differ; a null differs from every value.
        max_difference: largest absolute difference of numbers; None where no two numbers differ.
        examples: the first that differ, with their key, offline and online value.
    """

    compared: int = 0
    mismatches: int = 0
    max_difference: float | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mismatch_rate(self) -> float:
        """The share of values that differ; 0 where nothing was compared."""
        return self.mismatches / self.compared if self.compared else 0.0


@dataclass
class ViewParity:
    """One view compared.

    Attributes:
        at: the moment of both sides, to which the view was materialised.
        entities: sampled; all of the view's where they are no more than the sample.
        newer: sampled entities of a view fed by a stream whose online value is of a later moment: not
            compared. In any other view a later value is a difference like all others.
    """

    at: datetime
    entities: int
    newer: int
    features: dict[str, FeatureParity]

    def record(self) -> dict[str, Any]:
        """Return what the report says."""
        features = {name: {**asdict(found), "mismatch_rate": found.mismatch_rate} for name, found in self.features.items()}
        return {"at": self.at.isoformat(), "entities": self.entities, "newer": self.newer, "features": features}


def report_file(home: Home, as_of: datetime) -> Path:
    """Return where the report of a moment lies."""
    return home.reports / "parity" / f"{stamp(as_of)}.json"


def check(home: Home, as_of: datetime, *, sample: int = SAMPLE, seed: int = 0) -> dict[str, Any]:
    """Compare every view offline and online, at the moment to which the view was materialised, and block on any difference.

    What the item snapshot answers is compared as one more view, `<view> in the item snapshot`. Publishes `reports/parity/<as_of>.json` and records verdict, values compared, mismatch rate and
    largest difference by view. Both sides are asked through Feast's own calls; values older than
    the view's ttl are missing on both.

    Args:
        sample: entities a view, drawn from all that the view may still answer for, the same ones for
            the same `seed`; all of them where they are no more. Two that nobody knows go along.

    Raises:
        ReloopError: a value differs; the message names feature, count and an entity.
        StateError: a view was never materialised, or not up to the day `as_of`.
    """
    if not home.feast.is_dir():
        raise StateError("parity", found=f"no feature store under {home.feast}", allowed="a materialised one", hint="run `reloop features`")
    store = open_store(home)
    # What cannot be compared is refused before it counts as a run of the stage.
    asked = [(view, *_asked(home, view, as_of, sample, seed)) for view in sorted(_views(store), key=lambda view: str(view.name))]
    with cycle.stage(home, as_of, "parity") as record:
        views: dict[str, ViewParity] = {}
        for view, keys, at in asked:
            views[view.name] = _compare(store, view, keys, at, _online(store, view, keys, at))
            if view.join_keys == [c.ITEM_ID] and (found := _snapshot(home, view, keys)) is not None:
                views[f"{view.name} in the item snapshot"] = _compare(store, view, keys, *found)
        wrong = [(f"{view}:{name}", found) for view, parity in views.items() for name, found in parity.features.items() if found.mismatches]
        record["verdict"] = "blocked" if wrong else "equal"
        record["views"] = {name: _figures(parity) for name, parity in views.items()}
        report = {"as_of": utc(as_of).isoformat(), "verdict": record["verdict"], "seed": seed, "views": {}}
        report["views"] = {name: parity.record() for name, parity in views.items()}
        publish.write_json(report_file(home, as_of), report)
        if wrong:
            raise ReloopError(
                f"parity of {', '.join(name for name, _ in wrong[:5])}" + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
                found="; ".join(_said(name, found) for name, found in wrong[:3]),
                allowed="online values equal to the point-in-time join",
                hint=f"see {report_file(home, as_of)}; if the online store is at fault, materialise again",
            )
        return record


def _views(store: Any) -> list[Any]:
    views: list[Any] = [view for view in store.list_feature_views() if view.online]
    if not views:
        raise StateError("parity", found="no feature view in the registry", allowed="applied views", hint="run `reloop features`")
    return views


def _said(name: str, found: FeatureParity) -> str:
    example = found.examples[0]
    return (
        f"{name} differs for {found.mismatches} of {found.compared} entities,"
        f" {example['key']} has {example['offline']!r} offline and {example['online']!r} online"
    )


def _figures(parity: ViewParity) -> dict[str, Any]:
    found = parity.features.values()
    values = sum(feature.compared for feature in found)
    return {
        "at": parity.at.isoformat(),
        "entities": parity.entities,
        "newer": parity.newer,
        "values": values,
        "mismatch_rate": sum(feature.mismatches for feature in found) / values if values else 0.0,
        "max_difference": max((feature.max_difference for feature in found if feature.max_difference is not None), default=None),
    }


def _asked(home: Home, view: Any, as_of: datetime, sample: int, seed: int) -> tuple[pa.Table, datetime]:
    """Return the keys to compare of a view, and the moment: that to which it was materialised."""
    if (at := materialized_to(view)) is None:
        raise StateError(
            f"feature view {view.name}", found="nothing materialised", allowed="a materialised view", hint="run `reloop features`"
        )
    if at < floor_day(as_of):
        raise StateError(
            f"feature view {view.name}",
            found=f"materialised to {at:%Y-%m-%d %H:%M}",
            allowed=f"at least {floor_day(as_of):%Y-%m-%d}",
            hint=f"run `reloop features --as-of {as_of:%Y-%m-%d}`, or verify {at:%Y-%m-%d}",
        )
    return _sampled(home, view, at, sample, seed), at


def _compare(store: Any, view: Any, keys: pa.Table, at: datetime, served: Served) -> ViewParity:
    """Compare what is served of one view with the point-in-time join at a moment."""
    names = [feature.name for feature in view.features]
    offline = _offline(store, [f"{view.name}:{name}" for name in names], keys, at)
    online, moments = served
    current = [row for row in range(len(keys)) if view.stream_source is None or moments[row] <= at.timestamp()]
    parity = ViewParity(at, len(keys), len(keys) - len(current), {})
    known = keys.to_pylist()
    for name in names:
        found = parity.features[name] = FeatureParity(compared=len(current))
        left, right = offline[f"{view.name}__{name}"], online[f"{view.name}__{name}"]
        for row in current:
            if not _same(left[row], right[row]):
                _note(found, known[row], left[row], right[row])
    return parity


def _sampled(home: Home, view: Any, at: datetime, sample: int, seed: int) -> pa.Table:
    """Return keys of the view's rows up to `at`, drawn by their hash, and of strangers."""
    keys: list[str] = list(view.join_keys)
    files = _files(Path(view.batch_source.path).parent, at, view.ttl)
    strangers = pa.table({key: pa.array([f"nobody-{seed}-{n}" for n in range(STRANGERS)]) for key in keys})
    if not files:
        return strangers
    listed, columns = ", ".join(quoted(str(file)) for file in files), ", ".join(keys)
    engine = lake.open_engine(home)
    try:
        query = f"SELECT DISTINCT {columns} FROM read_parquet([{listed}], hive_partitioning = false) ORDER BY hash({columns}, {int(seed)}), {columns} LIMIT {int(sample)}"
        drawn = engine.sql(query).to_arrow_table()
    finally:
        engine.close()
    return pa.concat_tables([drawn.cast(strangers.schema), strangers])


def _files(folder: Path, at: datetime, ttl: timedelta | None) -> list[Path]:
    """Return the days whose rows may still answer, and of the days before them one at twice, four times ... the distance.

    What is gone from the newest days must be gone online, too, so somebody has to remember it.
    """
    days = {date.fromisoformat(file.stem.removeprefix("as_of=")): file for file in sorted(folder.glob("as_of=????-??-??.parquet"))}
    before = [day for day in days if day <= at.date()]
    if not ttl or not before:
        return [days[day] for day in before]
    chosen = {day for day in before if day >= (at - ttl).date()}
    reach = 2 * ttl
    while before[0] < (limit := (at - reach).date()):
        chosen.add(max(day for day in before if day <= limit))
        reach *= 2
    return [days[day] for day in sorted(chosen)]


def _offline(store: Any, references: Sequence[str], keys: pa.Table, at: datetime) -> dict[str, list[Any]]:
    asked = keys.to_pandas()
    asked[EVENT_TIMESTAMP] = pd.Timestamp(at)
    asked[ROW] = range(len(keys))
    found = store.get_historical_features(entity_df=asked, features=list(references), full_feature_names=True).to_arrow().sort_by(ROW)
    return {name: found[name].to_pylist() for name in found.column_names if name not in {EVENT_TIMESTAMP, ROW, c.AVAILABLE_AT}}


def _online(store: Any, view: Any, keys: pa.Table, at: datetime) -> Served:
    """Return online values, and of when each row is in seconds since 1970; 0 where there is none."""
    names = [feature.name for feature in view.features]
    with reading_at(at):
        asked = {"features": [f"{view.name}:{name}" for name in names], "entity_rows": keys.to_pydict(), "full_feature_names": True}
        found = store.get_online_features(**asked).to_dict(include_event_timestamps=True)
    moments = [max(seconds) for seconds in zip(*(found[f"{view.name}__{name}__ts"] for name in names), strict=True)]
    return found, moments


def _snapshot(home: Home, view: Any, keys: pa.Table) -> tuple[datetime, Served] | None:
    """Return the day of the item snapshot and what it answers, as a table and by gathering; None if there is none, as under stock Feast."""
    if (snapshot := item_snapshot.current(home)) is None:
        return None
    items = keys[c.ITEM_ID].to_pylist()
    table, gathered = snapshot.table(items, as_of=snapshot.day), snapshot.gather(snapshot.places(items), as_of=snapshot.day)
    values = {name: table[name].to_pylist() for name in table.column_names if name.startswith(f"{view.name}__")}
    for name, numbers in zip(snapshot.names, gathered.T.tolist(), strict=True):
        if name in values:  # two copies of a number: where they part, the one that rankers read stands for both
            values[name] = [
                left if (left is None and math.isnan(right)) or left == right else right
                for left, right in zip(values[name], numbers, strict=True)
            ]
    return snapshot.day, (values, [0.0] * len(keys))


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _note(found: FeatureParity, key: dict[str, Any], left: Any, right: Any) -> None:
    found.mismatches += 1
    if len(found.examples) < EXAMPLES:
        found.examples.append({"key": key, "offline": left, "online": right})
    differences = [abs(a - b) for a, b in _pairs(left, right)]
    if differences:
        found.max_difference = max([*differences, found.max_difference or 0.0])


def _pairs(left: Any, right: Any) -> list[tuple[float, float]]:
    """Return the numbers that stand in the same place on both sides."""
    if isinstance(left, list) and isinstance(right, list):
        return [pair for two in zip(left, right, strict=False) for pair in _pairs(*two)]
    numbers = [value for value in (left, right) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)]
    return [(float(numbers[0]), float(numbers[1]))] if len(numbers) == 2 else []
