"""Has the world moved away from what the champion learnt? Today's features, labels, scores and lists against its frozen reference.

`comparison` says what counts as drift; this stage reads what it compares and leaves the report. Evidently
renders our bins and thresholds for people; it decides nothing.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.decision_policies import DriftPolicy
from pipelines.monitoring import comparison, evidently_page
from pipelines.monitoring.comparison import Check, Past
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle, outputs, population, releases, runs
from pipelines.window import DAY, floor_day, stamp

DRIFT: Final = comparison.DRIFT
NO_DRIFT: Final = comparison.NO_DRIFT
NOT_ENOUGH: Final = comparison.NOT_ENOUGH
NO_CHAMPION: Final = comparison.NO_CHAMPION


def report_file(home: Home, as_of: datetime) -> Path:
    """Return where a moment's check is kept."""
    return home.reports / "drift" / f"{stamp(as_of)}.json"


def check(home: Home, as_of: datetime) -> Check:
    """Compare the day `as_of` with the champion's reference, and leave the report and Evidently's page.

    Raises:
        StateError: the marts of that day were never built, or the champion's bundle is damaged.
    """
    with cycle.stage(home, as_of, "drift") as record:
        champion = releases.champion_of(home, as_of)
        if champion is None:
            found = Check(
                NO_CHAMPION, ("nothing that is still there was released up to this day, so there is nothing to compare with",), {}, {}
            )
        else:
            day, policy = floor_day(as_of), config.load(home).drift
            found, profile, now = _measured(home, champion.digest, day, policy)
            evidently_page.render(home, day, profile, now, {name: one.threshold for name, one in found.features.items()})
        said = found.to_json()
        publish.write_json(report_file(home, as_of), said)
        record |= {
            "verdict": found.verdict,
            "reasons": list(found.reasons),
            "features": {name: {"psi": one["psi"], "threshold": one["threshold"]} for name, one in said["features"].items()},
            "champion": None if champion is None else champion.version,
        }
    runs.log_cycle(home, as_of)
    return found


def measure(home: Home, digest: str, day: datetime, policy: DriftPolicy) -> Check:
    """Compare a day with the reference of any bundle, and leave nothing behind: what a replay asks of champions that never were.

    Raises:
        StateError: the marts of that day were never built, or the bundle is damaged.
    """
    return _measured(home, digest, day, policy)[0]


def features(home: Home, digest: str, day: datetime, policy: DriftPolicy) -> Check:
    """Compare the features of a day alone with the reference of a bundle: the cheap part, which tells what is missing from them.

    Raises:
        StateError: the marts of that day were never built, or the bundle is damaged.
    """
    return comparison.compare(bundle.reference(home, digest), population.columns(home, day), day, policy)


def _measured(home: Home, digest: str, day: datetime, policy: DriftPolicy) -> tuple[Check, population.Profile, population.Columns]:
    profile = bundle.reference(home, digest)
    model = bundle.load(home, digest) if _compares_outputs(profile) else None
    now = _columns(home, model, day, policy)
    found = comparison.compare(profile, now, day, policy)
    if beyond := [name for name, one in found.features.items() if one.drifted or one.moved]:
        shown = model if any(name.startswith(comparison.OUTPUTS) for name in beyond) else None
        found = comparison.compare(profile, now, day, policy, _past(home, profile, shown, day, policy))
    return found, profile, now


def _compares_outputs(profile: population.Profile) -> bool:
    return any(name.startswith(comparison.OUTPUTS) for name in profile.references)


def _columns(home: Home, model: TwoStage | None, day: datetime, policy: DriftPolicy) -> population.Columns:
    """Return the columns of a day, with what the champion makes of its people where that is compared."""
    shown = {} if model is None else outputs.columns(home, model, day, policy.output_users)
    return population.columns(home, day) | shown


def _past(home: Home, profile: population.Profile, model: TwoStage | None, day: datetime, policy: DriftPolicy) -> Past:
    """Return the days before, and last year's, as far as their marts were built."""
    built = [then for then in (day - back * DAY for back in range(1, policy.windows)) if population.built(home, then)]
    year = population.YEAR_DAYS * DAY
    return Past(
        earlier=[(then, _columns(home, model, then, policy)) for then in built],
        year_ago=population.known(home, day - year) or {},
        reference_year_ago=population.known(home, profile.day - year) or {},
    )
