"""What happened, and what to do about it: a fault is not trained on, a shift is. A pure function of evidence, with its reasons in words.

    cause               action          because
    data fault          block           what a model learns from broken data it goes on doing; a person is told
    concept drift       retrain first   the champion's lead over popularity fell on what it knows: every day costs
    population drift    retrain         other people, other features, other scores: the champion may be wrong soon
    catalogue churn     rebuild         new items are not a new taste: sources and cold-start vectors are made again, the ranker stays

The first that holds decides; all that hold are told. Drift of the items alone in a catalogue that was replaced is the catalogue's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.decision_policies import TriagePolicy
from pipelines.monitoring import churn, comparison, drift, faults, quality
from pipelines.monitoring.churn import Churn
from pipelines.monitoring.comparison import Check
from pipelines.monitoring.faults import Fault
from pipelines.monitoring.quality import Fall
from pipelines.registry import bundle, releases
from pipelines.window import floor_day, stamp, utc

Action = Literal["block", "retrain first", "retrain", "rebuild", "nothing"]

DATA_FAULT: Final = "data fault"
CONCEPT_DRIFT: Final = "concept drift"
POPULATION_DRIFT: Final = "population drift"
CATALOGUE_CHURN: Final = "catalogue churn"
NOTHING: Final = "nothing"
ACTIONS: Final[dict[str, Action]] = {
    DATA_FAULT: "block",
    CONCEPT_DRIFT: "retrain first",
    POPULATION_DRIFT: "retrain",
    CATALOGUE_CHURN: "rebuild",
    NOTHING: "nothing",
}
OF_ITEMS: Final = ("item_daily__", *comparison.OUTPUTS)  # what a replaced catalogue moves by itself


@dataclass(frozen=True)
class Evidence:
    """What is known on a day; None where it was not measured.

    Attributes:
        faults: of the data, blocking or not.
        drift: of the day against the champion's reference; day, that of its columns.
        fall: of the champion's quality on fresh labels.
        churn: of the catalogue since the champion's sources saw it.
    """

    faults: tuple[Fault, ...] = ()
    drift: Check | None = None
    fall: Fall | None = None
    churn: Churn | None = None
    day: date | None = None


@dataclass(frozen=True)
class Triage:
    """What happened and what to do.

    Attributes:
        cause: the one that decides.
        causes: every cause that holds, the deciding one first.
        reasons: the sentences of all of them.
        alerts: what a person should know even where nothing is blocked.
    """

    cause: str
    causes: tuple[str, ...]
    reasons: tuple[str, ...]
    alerts: tuple[str, ...] = ()

    @property
    def action(self) -> Action:
        """Return what to do."""
        return ACTIONS[self.cause]

    @property
    def blocked(self) -> bool:
        """Tell whether nothing may be trained on this data."""
        return self.action == "block"

    @property
    def trains(self) -> bool:
        """Tell whether a training is asked for, whole or in part."""
        return self.action in {"retrain first", "retrain", "rebuild"}

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "action": self.action}


def judge(evidence: Evidence, policy: TriagePolicy) -> Triage:
    """Return what happened and what to do. Pure."""
    found: dict[str, list[str]] = {}
    check = evidence.drift
    known = [*evidence.faults, *(() if check is None else broken(check, evidence.day, policy))]
    blocking = [fault for fault in known if fault.blocks]
    told = [fault.says for fault in known if not fault.blocks]
    if blocking:
        found[DATA_FAULT] = [f"{fault.cause}: {fault.says}" for fault in blocking]
    if evidence.fall is not None and evidence.fall.fell(policy):
        found[CONCEPT_DRIFT] = [evidence.fall.says()]
    churned = evidence.churn is not None and evidence.churn.share > policy.max_churn
    if check is not None and check.verdict == comparison.DRIFT and not (churned and _of_items(check)):
        found[POPULATION_DRIFT] = list(check.reasons)
    if churned and evidence.churn is not None:
        found[CATALOGUE_CHURN] = [evidence.churn.says()]
        if check is not None and check.verdict == comparison.DRIFT and _of_items(check):
            found[CATALOGUE_CHURN].append("what drifted is of the items alone: " + ", ".join(_drifted(check)))
    causes = tuple(cause for cause in ACTIONS if cause in found) or (NOTHING,)
    reasons = tuple(f"{cause}: {reason}" for cause in causes if cause in found for reason in found[cause])
    return Triage(causes[0], causes, reasons or (_calm(evidence),), tuple(told))


def broken(check: Check, day: date | None, policy: TriagePolicy) -> tuple[Fault, ...]:
    """Return what of a drift check is a fault: values that went missing, and features that are gone or of another type."""
    found = []
    for name, said in check.null_bursts.items():
        one = check.features.get(name)
        rows, of = (0, 0) if one is None else (round(one.missing * one.rows), one.rows)
        found.append(Fault(faults.NULL_BURST, day, name, rows, of, blocks=True, says=said))
    for name, said in check.skipped.items():
        if said.startswith((comparison.GONE, comparison.RETYPED)) and not name.startswith(comparison.OUTPUTS):
            found.append(Fault(faults.SCHEMA_CHANGE, day, name, 0, 0, blocks=True, says=f"column '{name}' is {said}"))
    return tuple(faults.unless_accepted(fault, policy.accept) for fault in found)


def known_faults(home: Home, as_of: datetime) -> tuple[Fault, ...]:
    """Return every fault for which triage blocks a day, measured now: whoever asks first, monitor or trigger, hears the same.

    Raises:
        StateError: the marts of that day were never built, or the champion's bundle is damaged.
    """
    champion, settings, found = releases.champion_of(home, as_of), config.load(home), faults.found(home, as_of)
    if champion is None:
        return found
    day = floor_day(as_of)
    return (*found, *broken(drift.features(home, champion.digest, day, settings.drift), day.date(), settings.triage))


def _drifted(check: Check) -> list[str]:
    return sorted(name for name, found in check.features.items() if found.drifted)


def _of_items(check: Check) -> bool:
    drifted = _drifted(check)
    return bool(drifted) and all(name.startswith(OF_ITEMS) for name in drifted)


def _calm(evidence: Evidence) -> str:
    parts = [evidence.drift.reasons[0] if evidence.drift is not None and evidence.drift.reasons else ""]
    parts += [evidence.fall.says() if evidence.fall is not None else "", evidence.churn.says() if evidence.churn is not None else ""]
    return "; ".join(part for part in parts if part) or "nothing was measured that calls for anything"


def report_file(home: Home, as_of: datetime) -> Path:
    """Return where a moment's triage is kept."""
    return home.reports / "triage" / f"{stamp(as_of)}.json"


def alert_file(home: Home, as_of: datetime) -> Path:
    """Return where what a person should see of a moment is kept; no file, nothing to see."""
    return home.reports / "alerts" / f"{stamp(as_of)}.json"


def check(home: Home, as_of: datetime) -> Triage:
    """Measure drift, quality, churn and faults of a day, and say what to do; leaves the report, and an alert where a person is needed.

    Raises:
        StateError: the marts of that day were never built, or the champion's bundle is damaged.
    """
    checked, fall = drift.check(home, as_of), quality.check(home, as_of)
    with cycle.stage(home, as_of, "triage") as record:
        champion = releases.champion_of(home, as_of)
        replaced = None
        if champion is not None:
            replaced = churn.measure(home, utc(bundle.facts(home, champion.digest)["cutoff"]), as_of)
        evidence = Evidence(faults.found(home, as_of), checked, fall, replaced, floor_day(as_of).date())
        found = judge(evidence, config.load(home).triage)
        details: Mapping[str, Any] = {
            "faults": [fault.to_json() for fault in evidence.faults],
            "churn": None if replaced is None else replaced.to_json(),
        }
        publish.write_json(report_file(home, as_of), {"as_of": utc(as_of).isoformat(), **found.to_json(), **details})
        alert(home, as_of, "triage", [*(found.reasons if found.blocked else ()), *found.alerts], blocks=found.blocked)
        record.update(found.to_json(), **details, champion=None if champion is None else champion.version)
    return found


def alert(home: Home, as_of: datetime, who: str, says: list[str], *, blocks: bool) -> None:
    """Keep what a person should see of a day, each part under who says it; a part that has nothing to say any more goes."""
    file = alert_file(home, as_of)
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["alerts"] if file.is_file() else {}
    kept = {**kept, who: {"blocks": blocks, "says": says}} if says else {name: part for name, part in kept.items() if name != who}
    if kept:
        blocked = any(part["blocks"] for part in kept.values())
        publish.write_json(file, {"as_of": utc(as_of).isoformat(), "blocks": blocked, "alerts": kept})
    else:
        file.unlink(missing_ok=True)
