"""The feature rows of one day as comparable columns, and the reference that a bundle freezes of them.

Drift compares today's population with the one the ranker learnt from: the marts of the cutoff of its
newest training window. Three things would make an unchanged world look drifted, and are taken out:

- Rows of the long gone. Users count while active in the last seven days, items while they have an
  event in thirty; one row a user, since rows of one user are not independent.
- Clocks. Tenure and age grow by a day a day; cut off at `CLOCK_DAYS` they say how many are new, which
  is stationary in a stationary world. Sums over a lifetime and ranks within the catalogue only say
  how old and how large the shop is, and are left out.
- Youth. A 30-day sum is not comparable while history is shorter than 30 days (`incomparable`), and
  what still moved from week to week before the reference is kept as `movement`, which drift must exceed.
- The week. Each weekday of the week before the reference is counted in the same bins, so that a
  Sunday is compared with a Sunday.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import lake
from pipelines.config import Home
from pipelines.decision_policies import DriftPolicy
from pipelines.errors import StateError
from pipelines.evaluation import psi
from pipelines.window import DAY, floor_day, utc

CLOCKS: Final = {"tenure_days", "age_days"}
CLOCK_DAYS: Final = 14.0
LEFT_OUT: Final = re.compile(r"_lifetime$|^rating_mean$|^popularity_rank")
KEYS: Final = {c.USER_ID, c.ITEM_ID, c.AS_OF, c.AVAILABLE_AT}
ALIVE: Final = {"user_daily": "events_7d", "item_daily": "events_30d"}  # a row counts while this is above zero
LAGS_DAYS: Final = (7, 14, 21, 28)  # whole weeks, so that weekdays compare with themselves
TRAFFIC: Final = "traffic"  # who comes, from where: no mart has it, and the ranker does not read it
LABELS: Final = "labels"  # what a week of a user is, of which labels are made
LABEL_DAYS: Final = 7
YEAR_DAYS: Final = 364  # the same week of last year, on the same weekday

Columns = dict[str, pa.ChunkedArray]


def mart_file(home: Home, mart: str, day: date | datetime) -> Path:
    """Return the file of a mart's rows of one day."""
    return home.features / mart / f"as_of={day:%Y-%m-%d}.parquet"


def columns(home: Home, day: datetime) -> Columns:
    """Return the comparable columns of a day, named mart__column as everywhere; one row an entity, a list where it has several values.

    Raises:
        StateError: the marts of that day were never built.
    """
    found: Columns = {}
    for mart, alive in ALIVE.items():
        file = mart_file(home, mart, day)
        if not file.is_file():
            raise StateError(
                str(file), found="no such file", allowed="the mart of that day", hint=f"reloop features --as-of {day:%Y-%m-%d}"
            )
        table = pq.read_table(file, partitioning=None)
        table = table.filter(pc.greater(table[alive], 0)).sort_by(c.USER_ID if c.USER_ID in table.column_names else c.ITEM_ID)
        for name in table.column_names:
            if name not in KEYS and not LEFT_OUT.search(name):
                found[f"{mart}__{name}"] = _unclocked(name, table[name])
    pairs = mart_file(home, "user_category_daily", day)
    if pairs.is_file():
        found["user_category_daily__category"] = _favourites(home, pairs)
    return found | _traffic(home, day) | _labels(home, day)


def known(home: Home, day: datetime) -> Columns | None:
    """Return the columns of a day whose marts were built, None of one that has none."""
    return columns(home, day) if built(home, day) else None


def built(home: Home, day: date | datetime) -> bool:
    """Tell whether the marts of a day were built."""
    return all(mart_file(home, mart, day).is_file() for mart in ALIVE)


def _unclocked(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.min_element_wise(column, CLOCK_DAYS, skip_nulls=False) if name in CLOCKS else column


def _favourites(home: Home, pairs: Path) -> pa.ChunkedArray:
    """Return each active user's favourite category of the last thirty days, in order of users."""
    with lake.open_engine(home) as db:
        db.register("pairs", pq.read_table(pairs, partitioning=None))
        found = db.sql(
            """SELECT arg_max(category, (events_30d, -days_since_last_event, category)) AS category
            FROM pairs WHERE events_30d > 0 AND days_since_last_event < 7 GROUP BY user_id ORDER BY user_id"""
        ).to_arrow_table()
    return found["category"]


def _traffic(home: Home, day: datetime) -> Columns:
    """Return device and country of the users of the last seven days, one row a user; nothing where a source has neither."""
    with lake.connect(home, before=day) as db:
        found = db.sql(
            """WITH active AS (
                SELECT user_id, arg_max(device, (event_at, event_id)) AS device FROM events WHERE event_at >= ? GROUP BY user_id
            ), known AS (
                SELECT user_id, arg_max(country, struct_pack(valid_from, received_at)) AS country FROM users GROUP BY user_id
            )
            SELECT device, country FROM active LEFT JOIN known USING (user_id) ORDER BY user_id""",
            params=[utc(day) - timedelta(days=7)],
        ).to_arrow_table()
    return {f"{TRAFFIC}__{name}": found[name] for name in found.column_names if found[name].null_count < len(found)}


def _labels(home: Home, day: datetime) -> Columns:
    """Return what the users of the last seven days did: the types of their events, a list a user, and how many items they met."""
    with lake.connect(home, before=day) as db:
        found = db.sql(
            """SELECT list(event_type ORDER BY event_type) AS event_mix, count(DISTINCT item_id) AS items
            FROM events WHERE event_at >= ? GROUP BY user_id ORDER BY user_id""",
            params=[utc(day) - timedelta(days=LABEL_DAYS)],
        ).to_arrow_table()
    return {f"{LABELS}__{name}": found[name] for name in found.column_names if len(found)}


@dataclass(frozen=True)
class Profile:
    """What a bundle remembers of the population it learnt from.

    Attributes:
        day: of the marts.
        references: column -> frozen bins and counts.
        movement: column -> {lag in days -> PSI between that long before and `day`}, what is usual.
        incomparable: column -> why it is left out.
        importance: column -> share of the ranker's split gain.
        weekdays: ISO weekday -> column -> counts of that weekday of the week up to `day`, in the same bins.
    """

    day: datetime
    references: dict[str, psi.Reference]
    movement: dict[str, dict[int, float]]
    incomparable: dict[str, str]
    importance: dict[str, float]
    weekdays: dict[int, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    def reference(self, column: str, day: datetime) -> psi.Reference:
        """Return the reference of a column for a day: of the same weekday where that is known, for a week has its rhythm."""
        found = self.references[column]
        same = self.weekdays.get(utc(day).isoweekday(), {}).get(column)
        return found if same is None else found.like(np.asarray(same), found.design_effect)

    def usual(self, column: str, gap_days: float) -> float:
        """Return the largest movement of a column that was usual over at most `gap_days` (at least the shortest lag known)."""
        known = self.movement.get(column, {})
        return max((value for lag, value in known.items() if lag <= max(gap_days, LAGS_DAYS[0])), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "day": self.day.isoformat(),
            "references": psi.to_json(self.references),
            "movement": {name: {str(lag): value for lag, value in lags.items()} for name, lags in self.movement.items()},
            "incomparable": self.incomparable,
            "importance": self.importance,
            "weekdays": {str(day): {name: list(counts) for name, counts in found.items()} for day, found in sorted(self.weekdays.items())},
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Profile:
        """Read a profile back."""
        return cls(
            day=utc(found["day"]),
            references=psi.from_json(found["references"]),
            movement={name: {int(lag): value for lag, value in lags.items()} for name, lags in found["movement"].items()},
            incomparable=dict(found["incomparable"]),
            importance=dict(found["importance"]),
            weekdays={
                int(day): {name: tuple(counts) for name, counts in columns.items()} for day, columns in found.get("weekdays", {}).items()
            },
        )


def profile(
    home: Home,
    moment: datetime,
    importance: Mapping[str, float],
    policy: DriftPolicy,
    outputs: tuple[Columns, Columns] = ({}, {}),
) -> Profile:
    """Freeze the population of the day of `moment`, its weekdays, and how much it had been moving.

    Args:
        importance: column -> share of the ranker's gain.
        outputs: what the model makes of its newest people, and of those of a week before (`outputs.with_week_before`).
    """
    day = floor_day(moment)
    now = columns(home, day)
    references = {name: psi.reference(column, policy.bins) for name, column in now.items()}
    movement: dict[str, dict[int, float]] = {name: {} for name in now}
    for lag in LAGS_DAYS:
        earlier = day - lag * DAY
        if (then := known(home, earlier)) is None:
            break
        for name, column in then.items():
            if _counted(references, name, column) and not _too_young(home, name, earlier):
                moved = psi.psi(psi.counts(references[name], column), references[name].counted, policy.smoothing)
                if moved >= 0:
                    movement[name][lag] = round(moved, 6)
    weekdays = {}
    for back in range(1, 7):
        if (then := known(home, day - back * DAY)) is not None:
            counted = {name: psi.counts(references[name], column) for name, column in then.items() if _counted(references, name, column)}
            weekdays[(day - back * DAY).isoweekday()] = {name: tuple(int(n) for n in counts) for name, counts in counted.items()}
    young = {name: reason for name in now if (reason := _too_young(home, name, day))}
    shown = {name: psi.reference(column, policy.bins) for name, column in outputs[0].items()}
    for name in shown.keys() & outputs[1].keys():
        moved = psi.psi(psi.counts(shown[name], outputs[1][name]), shown[name].counted, policy.smoothing)
        movement[name] = {LAGS_DAYS[0]: round(moved, 6)} if moved >= 0 else {}
    weights = {name: share for name, share in importance.items() if name in now}
    return Profile(day, references | shown, movement, young, weights, weekdays)


def _counted(references: Mapping[str, psi.Reference], name: str, column: pa.ChunkedArray) -> bool:
    """Tell whether an earlier day's column says something of today's: one of another type, since accepted, does not."""
    return name in references and psi.fits(references[name], column)


def _too_young(home: Home, column: str, day: datetime) -> str | None:
    """Return why a sum over some days does not yet mean that on `day`, None where it does."""
    found = re.search(r"_(\d+)d$", column)
    known = lake.days(home)
    have = (day.date() - known[0]).days if known else 0
    if found and have < int(found[1]):
        return f"sums {found[1]} days, but history had only {have} on {day:%Y-%m-%d}"
    return None
