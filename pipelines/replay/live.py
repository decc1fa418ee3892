"""Past time, cycle by cycle, as if it were now: the real stages, without a scheduler between them.

What a cycle knows is what had been received before its `as_of`: every stage from the features on asks
for that and no more, so the lake may hold the whole span before the first cycle trains, and the marts
of all days are built in two goes instead of one a week. Bundle, decision and ledger entry are those
that the day would have had. Every cycle trains, whether or not a training would have been due: the
counterfactuals need every model. Only what serves the present is left out, the online store and its
parity check: nobody asks for a recommendation in the past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from pipelines import cycle, lake
from pipelines.config import Home
from pipelines.features import build, store
from pipelines.monitoring import drift, retraining
from pipelines.registry import promotion
from pipelines.sources import plan, reading
from pipelines.sources.request import Request
from pipelines.validation import checkpoint
from pipelines.window import Window

Tell = Callable[[str, datetime], None]  # what begins, of which cycle


def silent(what: str, as_of: datetime) -> None:
    """Tell nobody."""


def live(home: Home, request: Request, windows: Sequence[Window], *, batch_days: int = 7, tell: Tell = silent) -> list[datetime]:
    """Live through some cycles and return their as_of; those that are done already are left as they are.

    Args:
        windows: what each cycle reads, oldest first; it is trained for as of their ends.

    Raises:
        ValidationBlocked: a batch may not enter.
        StateError: the lake holds another source.
    """
    todo = [window for window in windows if not done(home, window.end)]
    for window in todo:
        if (plan.landed_until(home) or window.start) < window.end:
            tell("ingest", window.end)
            ingest(home, request, window, batch_days)
    for end in dict.fromkeys([windows[0].end, todo[-1].end] if todo else []):  # the first build reaches back, later ones only add days
        tell("features", end)
        build.build(home, end)
        checkpoint.validate_features(home, end)
        store.apply(home)
    for window in todo:
        tell("training", window.end)
        retraining.train(home, window.end)
        tell("decision", window.end)
        decide(home, window.end)
    return [window.end for window in windows]


def done(home: Home, as_of: datetime) -> bool:
    """Tell whether a cycle was lived through to its end: the drift check is its last stage."""
    return any(record["state"] == "done" for record in cycle.records(home, as_of, "drift"))


def cycles(home: Home) -> dict[datetime, str]:
    """Return the as_of of every training of a state folder, oldest first, and the digest of its bundle."""
    return {moment: str(record["digest"]) for moment, record in cycle.every(home, "bundle") if record["state"] == "done"}


def ingest(home: Home, request: Request, window: Window, batch_days: int) -> None:
    """Stage, judge and land what a window of the source holds."""
    cycle.forget(home, window.end, "ingest", "validation")
    for part in plan.windows(home, request, start=window.start, end=window.end, batch_days=batch_days):
        batch = reading.stage_batch(home, request, part)
        checkpoint.validate_batch(home, window.end, batch)
        lake.land(home, window.end, batch)


def decide(home: Home, as_of: datetime) -> None:
    """Put the challenger before the gate, then look whether the world has moved away from the champion."""
    promotion.decide(home, as_of)
    drift.check(home, as_of)


def seconds(home: Home, moments: Iterable[datetime]) -> dict[datetime, float]:
    """Return the seconds of each cycle's training, as its stages were clocked; the copy on record, not measured again."""
    names = {"retrieval", "blend", "training_set", "search", "ranker", "ranking", "bundle"}
    return {moment: sum(record["seconds"] for name in sorted(names) for record in cycle.records(home, moment, name)) for moment in moments}
