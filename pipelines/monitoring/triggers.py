"""Is a training run due? A pure function of what is on record, with its reasons in words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipelines import config, cycle
from pipelines.config import Home
from pipelines.datasets.split import planned
from pipelines.decision_policies import RetrainPolicy
from pipelines.errors import NotEnoughData
from pipelines.window import utc


@dataclass(frozen=True)
class Trigger:
    """The decision, and why."""

    due: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Situation:
    """What a retrain decision looks at.

    Attributes:
        as_of: the moment to train for.
        trained: as_of of every finished training, any order.
        requested: why a person or the monitor asked for a training, None if nobody did.
    """

    as_of: datetime
    trained: tuple[datetime, ...] = ()
    requested: str | None = None


def judge(situation: Situation, policy: RetrainPolicy) -> Trigger:
    """Decide whether a training is due. A request does not shorten the cooldown, and nothing is trained twice."""
    as_of = utc(situation.as_of)
    asked = [] if situation.requested is None else [f"requested: {situation.requested}"]
    if as_of in situation.trained:
        return Trigger(due=False, reasons=(f"a training for {as_of:%Y-%m-%d %H:%M} is done already", *asked))
    if newer := [moment for moment in situation.trained if moment > as_of]:
        return Trigger(
            due=False, reasons=(f"a newer training, for {max(newer):%Y-%m-%d}, is done already: {as_of:%Y-%m-%d} is the past", *asked)
        )
    if not situation.trained:
        return Trigger(due=True, reasons=(*asked, "nothing was ever trained"))
    last = max(situation.trained)
    age = (as_of - last) / timedelta(days=1)
    said = f"the last training was {age:.1f} days ago"
    if not age >= policy.cooldown_days:
        return Trigger(due=False, reasons=(f"{said}, within the cooldown of {policy.cooldown_days:g} days", *asked))
    reasons = list(asked)
    if age >= policy.cadence_days:
        reasons.append(f"{said}, and one is due every {policy.cadence_days:g} days")
    if reasons:
        return Trigger(due=True, reasons=tuple(reasons))
    return Trigger(due=False, reasons=(f"{said}, one is due every {policy.cadence_days:g} days, and nobody asked",))


def trained(home: Home) -> tuple[datetime, ...]:
    """Return the as_of of every training that ended in a bundle, oldest first."""
    found = []
    for file in sorted((home.reports / "cycles").glob("*/bundle.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["state"] == "done":
            found.append(utc(datetime.strptime(file.parent.name, "%Y-%m-%dT%H%M%S")))  # noqa: DTZ007 - utc() adds the zone
    return tuple(found)


def decide(home: Home, as_of: datetime, requested: str | None = None) -> Trigger:
    """Decide from the records whether a training for `as_of` is due; recorded as stage `trigger`.

    A lake too young for its folds is no failure: nothing is due until it has grown.

    Args:
        requested: why a person or the monitor asks for it, if one does.
    """
    with cycle.stage(home, as_of, "trigger") as record:
        settings = config.load(home)
        found = judge(Situation(utc(as_of), trained(home), requested or None), settings.retrain)
        if found.due:
            try:
                planned(home, as_of, settings.training)
            except NotEnoughData as young:
                found = Trigger(due=False, reasons=(f"not enough data: {young}", *found.reasons))
        record |= {"due": found.due, "reasons": list(found.reasons), "requested": requested}
    return found
