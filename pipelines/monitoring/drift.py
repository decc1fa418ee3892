"""Has the world moved away from what the champion learnt? PSI of today's features against its frozen reference.

A feature has drifted when its PSI exceeds the policy's threshold, and what chance alone gives for
these sample sizes (Sidak-corrected over all features), and what was usual from week to week when the
reference was taken. The world has drifted when drifted features carry enough of the ranker's gain,
or when who comes has changed (category, device, country). Evidently renders our bins and thresholds
for people; it decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.decision_policies import DriftPolicy
from pipelines.evaluation import psi
from pipelines.monitoring import evidently_page
from pipelines.registry import bundle, population, releases, runs
from pipelines.window import DAY, floor_day, utc

DRIFT: Final = "drift"
NO_DRIFT: Final = "no drift"
NOT_ENOUGH: Final = "not enough data"
NO_CHAMPION: Final = "no champion"
PEOPLE: Final = ("user_category_daily__category", f"{population.TRAFFIC}__")  # who comes and for what


@dataclass(frozen=True)
class Finding:
    """One feature's comparison.

    Attributes:
        psi: against the reference.
        threshold: what it had to exceed: the largest of policy, chance and what is usual.
        rows, reference_rows: entities compared.
        missing, reference_missing: share of them without a value.
        importance: share of the ranker's split gain; 0 where the ranker does not read it.
    """

    psi: float
    threshold: float
    rows: int
    reference_rows: int
    missing: float
    reference_missing: float
    importance: float

    @property
    def drifted(self) -> bool:
        """Tell whether the feature has drifted."""
        return self.psi > self.threshold


@dataclass(frozen=True)
class Check:
    """One day's findings and their verdict.

    Attributes:
        skipped: feature -> why it was not compared.
    """

    verdict: Literal["drift", "no drift", "not enough data", "no champion"]
    reasons: tuple[str, ...]
    features: Mapping[str, Finding]
    skipped: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        features = {name: asdict(found) | {"drifted": found.drifted} for name, found in self.features.items()}
        return {"verdict": self.verdict, "reasons": list(self.reasons), "features": features, "skipped": dict(self.skipped)}


def compare(profile: population.Profile, now: population.Columns, day: datetime, policy: DriftPolicy) -> Check:
    """Compare a day's columns with a profile. Pure."""
    skipped = {name: reason for name, reason in profile.incomparable.items() if name in profile.references}
    skipped |= {name: "the reference does not have it" for name in now if name not in profile.references}
    skipped |= {
        name: "gone: the reference had it, the day has not" for name in profile.references if name not in now and name not in skipped
    }
    wanted = [name for name in profile.references if name in now and name not in skipped]
    counted = {name: psi.counts(profile.references[name], now[name]) for name in wanted}
    for name, counts in counted.items():
        rows = min(int(counts.sum()), profile.references[name].rows)
        if not rows >= policy.min_rows:
            skipped[name] = f"{rows} rows, {policy.min_rows} are needed"
    compared = [name for name in wanted if name not in skipped]
    gap_days = (day - profile.day) / DAY
    features = {}
    for name in compared:
        before, after = profile.references[name].counted, counted[name]
        chance = psi.critical_value(before, after, policy.false_alarm_rate, len(compared))
        features[name] = Finding(
            psi=round(psi.psi(before, after, policy.smoothing), 6),
            threshold=round(max(policy.psi_threshold, chance + profile.usual(name, gap_days)), 6),
            rows=int(after.sum()),
            reference_rows=int(before.sum()),
            missing=round(float(after[-1] / after.sum()), 6),
            reference_missing=round(float(before[-1] / before.sum()), 6),
            importance=profile.importance.get(name, 0.0),
        )
    return _verdict(features, skipped, profile, policy)


def _verdict(features: dict[str, Finding], skipped: dict[str, str], profile: population.Profile, policy: DriftPolicy) -> Check:
    since = f"since {profile.day:%Y-%m-%d}, what the champion learnt from"
    if not features or not all(math.isfinite(found.psi) and math.isfinite(found.threshold) for found in features.values()):
        return Check(NOT_ENOUGH, (f"of {len(profile.references)} features none could be compared: {_some(skipped)}",), features, skipped)
    drifted = {name: found for name, found in features.items() if found.drifted}
    carried = sum(found.importance for found in features.values())
    share = sum(found.importance for found in drifted.values()) / carried if carried > 0 else float(bool(drifted))
    people = [name for name in drifted if name.startswith(PEOPLE)]
    said = [f"{name}: PSI {found.psi:.3f} exceeds {found.threshold:.3f} ({found.rows} rows)" for name, found in _worst(drifted)]
    if not drifted:
        name, found = _worst(features)[0]
        reason = f"none of {len(features)} features moved beyond its threshold {since}; the most was {name}, PSI {found.psi:.3f} of {found.threshold:.3f}"
        return Check(NO_DRIFT, (reason,), features, skipped)
    weight = f"{len(drifted)} of {len(features)} features moved {since}; they carry {share:.0%} of the gain of those compared"
    if share >= policy.min_drifted_importance or people:
        who = [f"who comes has changed: {', '.join(people)}"] if people else []
        return Check(DRIFT, (weight, *who, *said), features, skipped)
    return Check(
        NO_DRIFT, (f"{weight}, less than the {policy.min_drifted_importance:.0%} that calls for a training", *said), features, skipped
    )


def _worst(features: Mapping[str, Finding]) -> list[tuple[str, Finding]]:
    """Return features, the furthest beyond (or the nearest to) its threshold first."""
    return sorted(features.items(), key=lambda entry: (-entry[1].psi / entry[1].threshold, entry[0]))


def _some(skipped: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in sorted(skipped.items())[:3]) or "there is no feature"


def report_file(home: Home, as_of: datetime) -> Path:
    """Return where a day's check is kept."""
    return home.reports / "drift" / f"{utc(as_of):%Y-%m-%d}.json"


def check(home: Home, as_of: datetime) -> Check:
    """Compare the day `as_of` with the champion's reference, and leave the report and Evidently's page.

    Raises:
        StateError: the marts of that day were never built, or the champion's bundle is damaged.
    """
    with cycle.stage(home, as_of, "drift") as record:
        champion = releases.champion(home)
        if champion is None:
            found = Check(NO_CHAMPION, ("nothing was ever released, so there is nothing to compare with",), {}, {})
        else:
            day, policy = floor_day(as_of), config.load(home).drift
            profile = bundle.reference(home, champion.digest)
            now = population.columns(home, day)
            found = compare(profile, now, day, policy)
            evidently_page.render(home, day, profile, now, {name: one.threshold for name, one in found.features.items()})
        publish.write_json(report_file(home, as_of), found.to_json())
        said = found.to_json()
        record |= {
            "verdict": found.verdict,
            "reasons": list(found.reasons),
            "features": {name: {"psi": one["psi"], "threshold": one["threshold"]} for name, one in said["features"].items()},
            "champion": None if champion is None else champion.version,
        }
    runs.log_cycle(home, as_of)
    return found
