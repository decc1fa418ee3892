"""Is a training run due? A pure function of what is on record, with its reasons in words.

Several reasons make one training: the requests that came since the last one are answered together, with the widest scope and the
highest priority among them. Whatever asks, nothing is trained on faulty data, nothing twice, nothing within the cooldown, and not
more in a week than the budget. A cause that was answered goes on being seen until models have learnt from what came after it:
sources are judged on the last week, so they have seen nothing of it; within `repeat_days` it is not answered again. Each challenger in a row that failed the gate doubles the cooldown, and after some of them a person
is told: training again on the same world makes the same challenger. So does each training in a row that was begun and came to no
bundle, unless a person asks: what broke it is not mended by the next batch of features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from pipelines import columns as c
from pipelines import config, cycle, lake
from pipelines.config import Home
from pipelines.datasets.split import planned
from pipelines.decision_policies import RetrainPolicy
from pipelines.errors import NotEnoughData
from pipelines.monitoring import triage
from pipelines.monitoring.faults import Fault
from pipelines.registry import gate, releases
from pipelines.window import DAY, utc

Kind = Literal["first", "drift", "quality", "catalogue", "age", "volume", "manual"]
Scope = Literal["all", "catalogue"]

OF_CAUSE: Final[dict[str, Kind]] = {
    triage.CONCEPT_DRIFT: "quality",
    triage.POPULATION_DRIFT: "drift",
    triage.CATALOGUE_CHURN: "catalogue",
}
OF_ITSELF: Final[frozenset[Kind]] = frozenset({"drift", "catalogue"})  # what any whole training answers
USUAL_DAYS: Final = 28  # of which the usual volume is taken


@dataclass(frozen=True)
class Request:
    """Why somebody asks for a training.

    Attributes:
        priority: whether it shortens the cooldown.
    """

    kind: Kind
    reason: str
    priority: bool = False

    @property
    def scope(self) -> Scope:
        """Return what of a release must be made again: `catalogue` keeps the champion's ranker."""
        return "catalogue" if self.kind == "catalogue" else "all"


@dataclass(frozen=True)
class Situation:
    """What a retrain decision looks at.

    Attributes:
        as_of: the moment to train for.
        trained: as_of of every finished training, any order.
        requested: why a person asked for a training, None if nobody did.
        requests: what the monitor asks for.
        faults: of the data a training would learn from.
        failed: as_of of the trainings before this moment that came to no bundle, since the last that did.
        rejected: challengers in a row that failed the gate, up to now.
        answered: kind -> as_of of the last training that answered it, of those that drift, quality or catalogue asked for.
        events: received since the last training; usual_events: in a usual cadence. None where unknown.
    """

    as_of: datetime
    trained: tuple[datetime, ...] = ()
    requested: str | None = None
    requests: tuple[Request, ...] = ()
    faults: tuple[Fault, ...] = ()
    failed: tuple[datetime, ...] = ()
    rejected: int = 0
    answered: Mapping[Kind, datetime] = field(default_factory=dict)
    events: int | None = None
    usual_events: float | None = None

    @property
    def age_days(self) -> float | None:
        """Return the days since the last training, None before the first."""
        return (utc(self.as_of) - max(self.trained)) / DAY if self.trained else None

    @property
    def trained_this_week(self) -> int:
        """Return the trainings of the last seven days."""
        return sum(utc(self.as_of) - 7 * DAY < moment <= utc(self.as_of) for moment in self.trained)


@dataclass(frozen=True)
class Trigger:
    """The decision, and why.

    Attributes:
        kinds: of what asked, in the order of the reasons; empty where nothing did.
        scope: what is to be made again.
        alerts: what a person should know.
        figures: the numbers behind the reasons.
    """

    due: bool
    reasons: tuple[str, ...]
    kinds: tuple[Kind, ...] = ()
    scope: Scope = "all"
    priority: bool = False
    alerts: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, as the ledger keeps them."""
        return asdict(self)


def cooldown_days(policy: RetrainPolicy, failed: int, *, priority: bool) -> float:
    """Return how long after a training none is due: doubled by each in a row that failed, up to `max_backoff_days`.

    >>> [cooldown_days(RetrainPolicy(), n, priority=False) for n in range(5)]
    [1.0, 2.0, 4.0, 7.0, 7.0]
    """
    base = policy.priority_cooldown_days if priority else policy.cooldown_days
    return max(base, min(base * 2.0 ** min(failed, 60), policy.max_backoff_days))


def judge(situation: Situation, policy: RetrainPolicy) -> Trigger:
    """Decide whether a training is due. Pure."""
    every = _asking(situation, policy)
    repeated = [request for request in every if _is_answered(situation, request, policy)]
    asked = [request for request in every if request not in repeated]
    priority = any(request.priority for request in asked)
    wait = cooldown_days(policy, situation.rejected, priority=priority)
    refusal = (
        _never(situation) or _broken(situation, policy, asked) or _not_now(situation, policy, wait, asked=bool(asked), repeated=repeated)
    )
    said = [request.reason if request.kind in {"first", "age", "volume"} else f"requested: {request.reason}" for request in asked]
    return Trigger(
        due=refusal is None,
        reasons=tuple(said if refusal is None else [refusal, *said]),
        kinds=tuple(dict.fromkeys(request.kind for request in asked)),
        scope="catalogue" if asked and all(request.scope == "catalogue" for request in asked) else "all",
        priority=priority,
        alerts=tuple(_alerts(situation, policy)),
        figures={
            "age_days": situation.age_days,
            "cooldown_days": wait,
            "rejected": situation.rejected,
            "failed": len(situation.failed),
            "trained_this_week": situation.trained_this_week,
            "events": situation.events,
            "usual_events": situation.usual_events,
        },
    )


def _never(situation: Situation) -> str | None:
    """Return why there is no training for this moment whoever asks, None if there may be one."""
    as_of, last = utc(situation.as_of), max(situation.trained, default=None)
    if as_of in situation.trained:
        return f"a training for {as_of:%Y-%m-%d %H:%M} is done already"
    if last is not None and last > as_of:
        return f"a newer training, for {last:%Y-%m-%d}, is done already: {as_of:%Y-%m-%d} is the past"
    if blocking := [fault.says for fault in situation.faults if fault.blocks]:
        return f"{triage.DATA_FAULT}, nothing is trained on it: " + "; ".join(blocking)
    return None


def _is_answered(situation: Situation, request: Request, policy: RetrainPolicy) -> bool:
    """Tell whether a training answered the same cause so lately that another would learn little more of it."""
    before = situation.answered.get(request.kind)
    return before is not None and (utc(situation.as_of) - before) / DAY < policy.repeat_days


def _broken(situation: Situation, policy: RetrainPolicy, asked: Sequence[Request]) -> str | None:
    """Return why a training must wait that came to nothing before, None if it need not: a person who asks has seen to it."""
    if not situation.failed or any(request.kind == "manual" for request in asked):
        return None
    last = max(situation.failed)
    wait = cooldown_days(policy, len(situation.failed), priority=any(request.priority for request in asked))
    ago = (utc(situation.as_of) - last) / DAY
    if ago >= wait:
        return None
    row = f", as {len(situation.failed) - 1} before it" if len(situation.failed) > 1 else ""
    return f"the training for {last:%Y-%m-%d %H:%M} came to no bundle{row}; {ago:.1f} days ago, the next is tried after {wait:g}, or when a person asks"


def _not_now(situation: Situation, policy: RetrainPolicy, wait: float, *, asked: bool, repeated: Sequence[Request]) -> str | None:
    """Return why a training must wait, None if it need not; the first training of all waits for nothing."""
    age = situation.age_days
    if age is None:
        return None
    ago = f"the last training was {age:.1f} days ago"
    if repeated and not asked:
        answered = max(situation.answered[request.kind] for request in repeated)
        what = "; ".join(request.reason for request in repeated)
        return f"answered by the training for {answered:%Y-%m-%d}, and again {policy.repeat_days:g} days after it if it is still so: {what}"
    if not asked:
        return f"{ago}, one is due every {policy.cadence_days:g} days, and nobody asked"
    if not age >= wait:
        failed = f" ({situation.rejected} challengers in a row failed the gate)" if situation.rejected else ""
        return f"{ago}, within the cooldown of {wait:g} days{failed}"
    if not situation.trained_this_week < policy.budget_per_week:
        return f"{situation.trained_this_week} trainings in the last 7 days, {policy.budget_per_week} are allowed"
    return None


def _asking(situation: Situation, policy: RetrainPolicy) -> list[Request]:
    """Return every request: those that came, and those that the records make."""
    asked = [Request("manual", situation.requested)] if situation.requested is not None else []
    asked += sorted(set(situation.requests), key=lambda request: (not request.priority, request.kind, request.reason))
    age = situation.age_days
    if age is None:
        return [*asked, Request("first", "nothing was ever trained")]
    if age >= policy.cadence_days:
        asked.append(Request("age", f"the last training was {age:.1f} days ago, and one is due every {policy.cadence_days:g} days"))
    events, usual = situation.events, situation.usual_events
    if events is not None and usual is not None and usual > 0 and events >= policy.volume_factor * usual:
        asked.append(Request("volume", f"{events} events came since the last training, {events / usual:.1f} times the usual {usual:.0f}"))
    return asked


def _alerts(situation: Situation, policy: RetrainPolicy) -> list[str]:
    found = [fault.says for fault in situation.faults if fault.blocks]
    if situation.rejected >= policy.alert_after_rejections:
        found.append(
            f"{situation.rejected} challengers in a row failed the gate; training again will not mend what the world or the data broke"
        )
    if len(situation.failed) >= policy.alert_after_rejections:
        found.append(f"{len(situation.failed)} trainings in a row came to no bundle; reports/failures/ says which task failed, and why")
    return found


def requests_of(found: triage.Triage) -> tuple[Request, ...]:
    """Return the training that a triage asks for: one request, none where it asks for none."""
    if not found.trains:
        return ()
    return (Request(OF_CAUSE[found.cause], "; ".join(found.reasons), priority=found.action == "retrain first"),)


def pending(home: Home, as_of: datetime) -> tuple[Request, ...]:
    """Return what the newest triage of the champion that serves asks for, which no training has answered yet.

    A request that came within the cooldown is so answered once that is over; one that a later triage takes back is not.
    """
    champion = releases.champion(home)
    known = [(moment, record) for moment, record in cycle.every(home, "triage") if moment <= utc(as_of) and record["state"] == "done"]
    if champion is None or not known:
        return ()
    moment, record = max(known, key=lambda entry: entry[0])
    answered = max((done for done in trained(home) if done <= utc(as_of)), default=None)
    if record.get("champion") != champion.version or (answered is not None and moment < answered):
        return ()
    return requests_of(triage.Triage(record["cause"], tuple(record["causes"]), tuple(record["reasons"])))


def trained(home: Home) -> tuple[datetime, ...]:
    """Return the as_of of every training that ended in a bundle, oldest first."""
    return tuple(moment for moment, record in cycle.every(home, "bundle") if record["state"] == "done")


def failed(home: Home, as_of: datetime) -> tuple[datetime, ...]:
    """Return the as_of of every training before a moment that was due and came to no bundle, since the last that did; oldest first."""
    done = [moment for moment in trained(home) if moment < utc(as_of)]
    begun = [moment for moment, record in cycle.every(home, "trigger") if moment < utc(as_of) and record.get("due")]
    return tuple(moment for moment in begun if not done or moment > max(done))


def answered(home: Home, as_of: datetime) -> dict[Kind, datetime]:
    """Return, for each cause that the monitor finds, the newest finished training before a moment that answered it.

    A whole training that any of them asked for has made everything again, so it answers other people and new items as well; a
    champion that falls is its own matter.
    """
    done = {moment for moment in trained(home) if moment < utc(as_of)}
    found: dict[Kind, datetime] = {}
    for moment, record in cycle.every(home, "trigger"):
        if moment in done and record.get("due"):
            asked = {kind for kind in record["kinds"] if kind in OF_CAUSE.values()}
            whole = OF_ITSELF if asked and record.get("scope", "all") == "all" else set()
            found |= dict.fromkeys(asked | whole, moment)
    return found


def rejected(home: Home, as_of: datetime) -> int:
    """Return how many challengers in a row, the newest included, the gate found wanting before a moment.

    Not what a person is asked about or refused, what the settings hold back, or what too few users could tell.
    """
    failed: set[Any] = set()
    for entry in releases.history(home):
        if entry["kind"] in releases.REIGNS:
            failed = set()
        elif entry["kind"] != releases.KEPT or entry.get("verdict") != gate.KEEP:
            continue
        elif entry.get("as_of") and utc(entry["as_of"]) < utc(as_of) and entry.get("champion_before") is not None:
            failed |= {entry.get("challenger")} - {entry["champion_before"], None}  # the champion put forward again is no failure
    return len(failed)


def volume(home: Home, since: datetime, as_of: datetime, cadence_days: float) -> tuple[int, float | None]:
    """Return the events received between two moments, and in a usual cadence of the four weeks before; None where history is younger."""
    begin = utc(since) - USUAL_DAYS * DAY
    with lake.connect(home, before=as_of) as db:
        row = db.execute(
            f"SELECT count(*) FILTER ({c.RECEIVED_AT} >= $1), count(*) FILTER ({c.RECEIVED_AT} < $1), epoch_us(min({c.RECEIVED_AT}))"
            f" FROM events WHERE {c.RECEIVED_AT} >= $2",
            [utc(since), begin],
        ).fetchone()
    now, before, first = row or (0, 0, None)
    young = first is None or utc("1970-01-01") + timedelta(microseconds=first) >= begin + DAY
    return int(now), None if young else before / USUAL_DAYS * cadence_days


def situation(home: Home, as_of: datetime, requested: str | None = None) -> Situation:
    """Read from the records what a decision for a moment looks at."""
    done = trained(home)
    earlier = [moment for moment in done if moment < utc(as_of)]
    events, usual = None, None
    if earlier:
        events, usual = volume(home, max(earlier), as_of, config.load(home).retrain.cadence_days)
    return Situation(
        as_of=utc(as_of),
        trained=done,
        requested=requested or None,
        requests=pending(home, as_of),
        faults=triage.known_faults(home, as_of),
        failed=failed(home, as_of),
        rejected=rejected(home, as_of),
        answered=answered(home, as_of),
        events=events,
        usual_events=usual,
    )


def decide(home: Home, as_of: datetime, requested: str | None = None) -> Trigger:
    """Decide from the records whether a training for `as_of` is due; recorded as stage `trigger`, with an alert where a person is needed.

    A lake too young for its folds is no failure: nothing is due until it has grown.

    Args:
        requested: why a person asks for it, if one does; what the monitor asks for is on record (`pending`).
    """
    settings = config.load(home)
    now = situation(home, as_of, requested)
    if now.as_of in now.trained and any(record.get("due") for record in cycle.records(home, as_of, "trigger")):
        return judge(now, settings.retrain)  # asked again: what the training was made for stays on record, for the ledger to find
    with cycle.stage(home, as_of, "trigger") as record:
        found = judge(now, settings.retrain)
        if found.due:
            try:
                planned(home, as_of, settings.training)
            except NotEnoughData as young:
                found = Trigger(due=False, reasons=(f"not enough data: {young}", *found.reasons), kinds=found.kinds, figures=found.figures)
        record.update(found.to_json(), requested=requested, requests=[asdict(request) for request in now.requests])
        triage.alert(home, as_of, "trigger", list(found.alerts), blocks=not found.due and bool(found.alerts))
    return found
