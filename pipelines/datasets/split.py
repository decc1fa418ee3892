"""The global time split: which past each model may learn from, and which days it is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pipelines import lake
from pipelines.config import Home, TrainingSettings
from pipelines.errors import NotEnoughData
from pipelines.window import DAY, Window, floor_day, utc

JUDGE: Final = "judge"


@dataclass(frozen=True)
class Fold:
    """A moment at which lists are made, and the days that say whether they were good.

    Attributes:
        name: `rank_1` ... `rank_N`, oldest first, on which the ranker learns; then `judge`.
        cutoff: retrievers see only events that happened and were received before it.
        window: `horizon_days` long; begins `label_gap_days` after the cutoff.
    """

    name: str
    cutoff: datetime
    window: Window


def folds(as_of: datetime, settings: TrainingSettings, *, first: datetime | None = None) -> list[Fold]:
    """Return the folds of a training run, oldest first; the judged window ends at `as_of`.

    >>> from pipelines.config import TrainingSettings
    >>> for fold in folds(utc("2025-03-29"), TrainingSettings(horizon_days=7, ranker_windows=2)):
    ...     print(fold.name, f"{fold.cutoff:%m-%d}", fold.window)
    rank_1 03-08 2025-03-08..2025-03-15
    rank_2 03-15 2025-03-15..2025-03-22
    judge 03-22 2025-03-22..2025-03-29

    Args:
        first: when history begins; its whole day counts. Given it, the oldest ranker windows that would leave less than
            `min_history_days` before their cutoff are dropped, so there may be fewer than
            `ranker_windows` (at least one; `rank_1` is always the oldest kept). None means
            history is long enough.

    Raises:
        NotEnoughData: not even one ranker window and the judged one fit behind `min_history_days`.
    """
    as_of, horizon, gap = utc(as_of), timedelta(days=settings.horizon_days), timedelta(days=settings.label_gap_days)
    windows = [Window(as_of - (age + 1) * horizon, as_of - age * horizon) for age in range(settings.ranker_windows + 1)]
    if first is not None:
        earliest = floor_day(first) + settings.min_history_days * DAY
        windows = [window for window in windows if window.start - gap >= earliest]
    if len(windows) < 2:
        needed = settings.min_history_days + settings.label_gap_days + 2 * settings.horizon_days
        raise NotEnoughData(
            f"training as of {as_of:%Y-%m-%d}",
            found="no event before it" if first is None else f"history from {utc(first):%Y-%m-%d}, {(as_of - utc(first)) / DAY:.1f} days",
            allowed=f"at least {needed} days: {settings.min_history_days} of history, then a ranker window and a judged window of "
            f"{settings.horizon_days} days each",
            hint="ingest more days, or lower training.min_history_days or training.horizon_days",
        )
    names = [JUDGE, *(f"rank_{n}" for n in range(len(windows) - 1, 0, -1))]
    return [Fold(name, window.start - gap, window) for name, window in zip(names, windows, strict=True)][::-1]


def planned(home: Home, as_of: datetime, settings: TrainingSettings) -> list[Fold]:
    """Return the folds that the lake's history allows.

    Raises:
        NotEnoughData: the lake is empty or too young.
    """
    with lake.connect(home, before=as_of) as db:
        (first,) = db.execute("SELECT epoch_us(min(event_at)) FROM events").fetchone() or (None,)
    if first is None:
        raise NotEnoughData(
            f"training as of {utc(as_of):%Y-%m-%d}", found="no event before it", allowed="a lake with events", hint="run `reloop ingest`"
        )
    return folds(as_of, settings, first=utc("1970-01-01") + timedelta(microseconds=first))
