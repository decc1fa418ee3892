"""A day's columns against a champion's reference: which have drifted, which have moved, and whether that calls for a training. Pure.

A column has drifted when its PSI exceeds all of
- the policy's threshold, below which nothing is worth a training however sure it is;
- what chance gives for these sample sizes (chi-square, Sidak over all columns; where that would alarm, drawn again by simulation);
- what chance and the usual together give: how far it moved from week to week before the reference, and over the same weeks of last year;
on `persistent` of the last `windows` days, each against the reference of its own weekday. What looks as it did in the same week of
last year is a season. A column that would be drifted above the lower `psi_moved` has moved.

Drift calls for a training when drifted features carry enough of the ranker's gain, or moved ones most of it, or when who comes or what
people do has drifted. What the champion makes of them is told; it calls only where the policy says so (`outputs_call`), for scores
and lists move as a champion grows older, in a world that stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.decision_policies import DriftPolicy
from pipelines.evaluation import distances, psi
from pipelines.registry import population
from pipelines.window import DAY

DRIFT: Final = "drift"
NO_DRIFT: Final = "no drift"
NOT_ENOUGH: Final = "not enough data"
NO_CHAMPION: Final = "no champion"
PEOPLE: Final = ("user_category_daily__category", f"{population.TRAFFIC}__")  # who comes and for what
DEEDS: Final = (f"{population.LABELS}__",)  # what people do
NEAR: Final = 1.5  # times the formula's chance: beyond it no simulation would say otherwise
GONE: Final = "gone"
RETYPED: Final = "of another type"
OUTPUTS: Final = ("scores__", "served__")  # what the champion makes of them


@dataclass(frozen=True)
class Finding:
    """One column's comparison.

    Attributes:
        psi: against the reference.
        threshold: what it had to exceed: the largest of policy, chance, and chance beside what is usual.
        chance: what unchanged columns stay below, all together, in all but `false_alarm_rate` of the checks.
        usual, seasonal: PSI by which it moved from week to week, and over the same weeks of last year; 0 where unknown.
        year_ago: PSI to the same week of last year; NaN where unknown.
        rows, reference_rows: values compared.
        missing, reference_missing: share of them without a value.
        importance: share of the ranker's split gain; 0 where the ranker does not read it.
        days: of the days compared, on how many it exceeded its threshold; and how many were compared.
        moved: whether it moved, if less than drift.
        beside: other distances (`distances.Distances`), for people; p-values adjusted for the number of columns (Holm).
    """

    psi: float
    threshold: float
    rows: int
    reference_rows: int
    missing: float
    reference_missing: float
    importance: float
    chance: float = 0.0
    usual: float = 0.0
    seasonal: float = 0.0
    year_ago: float = math.nan
    days: tuple[int, int] = (1, 1)
    drifted: bool = False
    moved: bool = False
    beside: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; None where there is no number."""
        found = asdict(self) | {"days": list(self.days), "beside": {name: _told(value) for name, value in self.beside.items()}}
        return {name: _told(value) if isinstance(value, float) else value for name, value in found.items()}


@dataclass(frozen=True)
class Check:
    """One day's findings and their verdict.

    Attributes:
        skipped: column -> why it was not compared.
        null_bursts: column -> why its missing, or infinite, values are a fault of the data and no shift of the world.
    """

    verdict: Literal["drift", "no drift", "not enough data", "no champion"]
    reasons: tuple[str, ...]
    features: Mapping[str, Finding]
    skipped: Mapping[str, str]
    null_bursts: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "features": {name: found.to_json() for name, found in self.features.items()},
            "skipped": dict(self.skipped),
            "null_bursts": dict(self.null_bursts),
        }


@dataclass(frozen=True)
class Past:
    """What a day is held against beside the reference.

    Attributes:
        earlier: the days before, newest first, with their columns: is it still so?
        year_ago, reference_year_ago: columns of the same weekday a year before the day and before the reference; empty where unknown.
    """

    earlier: Sequence[tuple[datetime, population.Columns]] = ()
    year_ago: population.Columns = field(default_factory=dict)
    reference_year_ago: population.Columns = field(default_factory=dict)


def compare(profile: population.Profile, now: population.Columns, day: datetime, policy: DriftPolicy, past: Past | None = None) -> Check:
    """Compare a day's columns with a profile. Pure."""
    skipped = {name: reason for name, reason in profile.incomparable.items() if name in profile.references}
    skipped |= {name: "the reference does not have it" for name in now if name not in profile.references}
    skipped |= {
        name: f"{GONE}: the reference had it, the day has not" for name in profile.references if name not in now and name not in skipped
    }
    now = {name: _typed(profile.references[name], column) if name in profile.references else column for name, column in now.items()}
    skipped |= {
        name: f"{RETYPED}: {now[name].type}, the reference holds {'numbers' if reference.kind == 'numeric' else 'categories'}"
        for name, reference in profile.references.items()
        if name in now and name not in skipped and not _fits(reference, now[name])
    }
    wanted = [name for name in profile.references if name in now and name not in skipped]
    counted = {name: psi.counts(profile.references[name], now[name]) for name in wanted}
    for name, counts in counted.items():
        rows = min(int(counts.sum()), profile.reference(name, day).rows)
        if not rows >= policy.min_rows:
            skipped[name] = f"{rows} rows, {policy.min_rows} are needed"
    compared = [name for name in wanted if name not in skipped]
    against = _Against(profile, now, day, policy, past or Past(), len(compared))
    features = _adjusted({name: against.held(name, against.today(name, counted[name])) for name in compared})
    bursts = {
        name: f"{name}: {found.missing:.0%} of {found.rows} rows have no value, {found.reference_missing:.0%} had none in the reference"
        for name, found in features.items()
        if found.missing - found.reference_missing > policy.max_null_rise
    }
    bursts |= {
        name: f"{name}: {share:.0%} of {features[name].rows} rows are infinite"
        for name in features
        if (share := _infinite(profile.references[name], now[name])) > policy.max_null_rise
    }
    return _verdict(features, skipped, bursts, profile, policy)


def _fits(reference: psi.Reference, column: pa.ChunkedArray) -> bool:
    """Tell whether a column still holds what the reference held; one without a single value then says nothing of its type."""
    return psi.numeric(column) == (reference.kind == "numeric") or (reference.kind == "categorical" and not reference.categories)


def _typed(reference: psi.Reference, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column; one that has no type, for all of it is missing, as numbers where the reference has them."""
    return column.cast(pa.float64()) if pa.types.is_null(column.type) and reference.kind == "numeric" else column


def _infinite(reference: psi.Reference, column: pa.ChunkedArray) -> float:
    """Return the share of infinite values; 0 where they were usual in the reference already."""
    usual = any(abs(edge) >= psi.LARGEST for edge in reference.edges)
    if usual or not pa.types.is_floating(column.type) or not len(column):
        return 0.0
    return float((pc.sum(pc.is_inf(column)).as_py() or 0) / len(column))


@dataclass(frozen=True)
class _Against:
    """A day, and all that its columns are held against."""

    profile: population.Profile
    now: population.Columns
    day: datetime
    policy: DriftPolicy
    past: Past
    n_columns: int

    def today(self, name: str, after: psi.Counts) -> Finding:
        """Return the finding of one column, whatever other days were like."""
        policy, reference = self.policy, self.profile.reference(name, self.day)
        before = reference.counted
        effects = (reference.design_effect, psi.design_effect(reference, self.now[name]))
        moved = psi.psi(before, after, policy.smoothing)
        usual = self.profile.usual(name, (self.day - self.profile.day) / DAY)
        chance = psi.critical_value(before, after, policy.false_alarm_rate, self.n_columns, effects)
        if max(min(policy.psi_moved, policy.psi_threshold), chance) < moved < NEAR * chance:  # a close call is not left to an approximation
            drawn = psi.simulated_value(before, after, policy.false_alarm_rate, self.n_columns, effects, smoothing=policy.smoothing)
            chance = max(chance, drawn)
        return Finding(
            psi=round(moved, 6),
            threshold=round(max(policy.psi_threshold, chance + usual), 6),
            chance=round(chance, 6),
            usual=usual,
            rows=int(after.sum()),
            reference_rows=int(before.sum()),
            missing=round(float(after[-1] / after.sum()), 6),
            reference_missing=round(float(before[-1] / before.sum()), 6),
            importance=self.profile.importance.get(name, 0.0),
            beside=asdict(distances.between(reference, after, smoothing=policy.smoothing, effect=effects[1])),
        )

    def held(self, name: str, found: Finding) -> Finding:
        """Return a finding held against last year and the days before: what has drifted, what has moved."""
        policy, past, reference = self.policy, self.past, self.profile.references[name]
        low, seasonal, year_ago = min(policy.psi_moved, policy.psi_threshold), 0.0, math.nan
        if found.psi > max(low, found.chance) and name in past.year_ago and _fits(reference, past.year_ago[name]):
            then = psi.counts(reference, past.year_ago[name])
            year_ago = psi.psi(then, psi.counts(reference, self.now[name]), policy.smoothing)
            if name in past.reference_year_ago and _fits(reference, past.reference_year_ago[name]):
                seasonal = psi.psi(psi.counts(reference, past.reference_year_ago[name]), then, policy.smoothing)
        known = found.chance + max(found.usual, seasonal if seasonal >= 0 else 0.0)
        high, low = max(policy.psi_threshold, known), max(low, known)
        earlier = []
        if found.psi > low:
            for day, columns in past.earlier:
                if name in columns and _fits(reference, columns[name]) and (counted := psi.counts(reference, columns[name])).sum():
                    earlier.append(psi.psi(self.profile.reference(name, day).counted, counted, policy.smoothing))
        days = {level: sum(value > level for value in (found.psi, *earlier)) for level in (low, high)}
        enough = min(policy.persistent, 1 + len(earlier))
        beyond = {level: found.psi > level and days[level] >= enough and not year_ago <= level for level in days}
        return replace(
            found,
            threshold=round(high, 6),
            seasonal=round(seasonal, 6),
            year_ago=round(year_ago, 6),
            days=(days[high], 1 + len(earlier)),
            drifted=beyond[high],
            moved=beyond[low] and not beyond[high],
        )


def _adjusted(features: dict[str, Finding]) -> dict[str, Finding]:
    """Return the findings with p-values adjusted for their number."""
    for p in ("chi_square_p", "ks_p"):
        adjusted = distances.holm({name: found.beside[p] for name, found in features.items()})
        features = {name: replace(found, beside={**found.beside, p: adjusted[name]}) for name, found in features.items()}
    return {
        name: replace(found, beside={which: round(value, 6) for which, value in found.beside.items()}) for name, found in features.items()
    }


def _verdict(
    features: dict[str, Finding],
    skipped: dict[str, str],
    bursts: dict[str, str],
    profile: population.Profile,
    policy: DriftPolicy,
) -> Check:
    since = f"since {profile.day:%Y-%m-%d}, what the champion learnt from"
    if not features or not all(math.isfinite(found.psi) and math.isfinite(found.threshold) for found in features.values()):
        reason = f"of {len(profile.references)} features none could be compared: {_some(skipped)}"
        return Check(NOT_ENOUGH, (reason,), features, skipped, bursts)
    drifted = {name: found for name, found in features.items() if found.drifted}
    moved = {name: found for name, found in features.items() if found.drifted or found.moved}
    if not moved:
        name, found = _worst(features)[0]
        reason = f"none of {len(features)} features moved beyond its threshold {since}; the most was {name}, PSI {found.psi:.3f} of {found.threshold:.3f}"
        return Check(NO_DRIFT, (reason,), features, skipped, bursts)
    weight = f"{len(drifted)} of {len(features)} features drifted {since}; {_carry(drifted, features)}"
    said = [
        f"{name}: PSI {found.psi:.3f} exceeds {found.threshold:.3f} ({found.rows} rows, {found.days[0]} of {found.days[1]} days)"
        for name, found in _worst(drifted)
    ]
    kinds = [("who comes has changed", PEOPLE), ("what people do has changed", DEEDS)]
    seen = ("what the champion makes of them has changed", OUTPUTS)
    calls, told = (
        [f"{what}: {', '.join(there)}" for what, kind in asked if (there := [name for name in drifted if name.startswith(kind)])]
        for asked in ([*kinds, *([seen] if policy.outputs_call else [])], [] if policy.outputs_call else [seen])
    )
    if _read(features) and len(moved) > len(drifted) and _share(moved, features) >= policy.min_moved_importance:
        calls.append(f"{len(moved)} features moved by more than {policy.psi_moved:g}; {_carry(moved, features)}")
    of_world = {name: found for name, found in drifted.items() if not name.startswith(OUTPUTS)}
    if (of_world and _share(of_world, features) >= policy.min_drifted_importance) or calls:
        return Check(DRIFT, (weight, *calls, *told, *said), features, skipped, bursts)
    if not drifted:
        name, found = _worst(moved)[0]
        weight = f"{len(moved)} of {len(features)} features moved {since}, none by as much as drift; the most was {name}, PSI {found.psi:.3f} of {found.threshold:.3f}; {_carry(moved, features)}"
        return Check(NO_DRIFT, (weight,), features, skipped, bursts)
    less = f"{weight}, less than the {policy.min_drifted_importance:.0%} that calls for a training"
    return Check(NO_DRIFT, (less, *told, *said), features, skipped, bursts)


def _share(some: Mapping[str, Finding], features: Mapping[str, Finding]) -> float:
    """Return the share of the ranker's gain that some features carry; of their number where the ranker reads none."""
    carried = sum(found.importance for found in features.values())
    return sum(found.importance for found in some.values()) / carried if carried > 0 else float(bool(some))


def _read(features: Mapping[str, Finding]) -> bool:
    """Tell whether the champion has a ranker that reads any of the features."""
    return any(found.importance > 0 for found in features.values())


def _carry(some: Mapping[str, Finding], features: Mapping[str, Finding]) -> str:
    if not _read(features):
        return "the champion has no ranker that reads any"
    return f"they carry {_share(some, features):.0%} of the gain of those compared"


def _worst(features: Mapping[str, Finding]) -> list[tuple[str, Finding]]:
    """Return features, the furthest beyond (or the nearest to) its threshold first."""
    return sorted(features.items(), key=lambda entry: (-entry[1].psi / max(entry[1].threshold, 1e-9), entry[0]))


def _some(skipped: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in sorted(skipped.items())[:3]) or "there is no feature"


def _told(value: float) -> float | None:
    return value if math.isfinite(value) else None
