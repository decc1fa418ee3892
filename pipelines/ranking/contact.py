"""A user's own past contact with a candidate, its category and its brand, from the history alone.

These are the freshest features there are: the history reaches up to the request, while a mart row
ends at a midnight. All work on flat candidate rows: `row` [n] is the row of `histories`, `item` [n]
the dense item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipelines.datasets.interactions import Floats, Histories, Ints, Longs

MICROS_PER_DAY: Final = 86_400_000_000
HALF_LIFE_DAYS: Final = 14.0
SESSION_GAP: Final = 30 * 60 * 1_000_000  # microseconds without an event after which a new session begins


@dataclass(frozen=True)
class Contact:
    """What users had to do with some key (an item, a category, a brand); float32 [n] each.

    Attributes:
        count: events, 0 without any.
        weight: summed strength of the events, halved every `HALF_LIFE_DAYS`.
        share: `weight` over that of all the user's events; NaN for a user without history.
        days_since: days from the last such event to `as_of`; NaN without any.
        events_since: the user's events after the last such one; NaN without any.
    """

    count: Floats
    weight: Floats
    share: Floats
    days_since: Floats
    events_since: Floats


def rows_of(histories: Histories) -> Longs:
    """Return int64 [n_events], the history row of each event."""
    return np.repeat(np.arange(histories.n_users, dtype=np.int64), np.diff(histories.indptr))


def decayed(histories: Histories) -> Floats:
    """Return float32 [n_events], each event's weight halved every `HALF_LIFE_DAYS` before `as_of`."""
    days = (histories.as_of - histories.at) / MICROS_PER_DAY
    return (histories.weight * np.exp2(-days / HALF_LIFE_DAYS)).astype(np.float32)


def contact(histories: Histories, row: Longs, key: Ints, key_of_item: Ints, width: int | None = None) -> Contact:
    """Return the contact of user `row` with `key` for each candidate.

    Args:
        row: int64 [n], rows of `histories`.
        key: int32 [n], what is asked about; -1 where unknown, which gives NaN throughout.
        key_of_item: int32 [n_items], the key that an event with an item counts for; -1 for none.
        width: above every key; found in `key_of_item` when None, which takes a look at the whole catalogue.
    """
    n, width = len(row), int(key_of_item.max(initial=0)) + 1 if width is None else width
    event_row, event_key, weight = rows_of(histories), key_of_item[histories.item].astype(np.int64), decayed(histories)
    position = np.arange(len(event_row), dtype=np.int64)
    total = np.bincount(event_row, weights=weight, minlength=histories.n_users)

    pair = event_row * width + event_key
    known = event_key >= 0
    order = np.argsort(pair[known], kind="stable")  # stable: the last of a run is the newest event
    pair, weight, newest = pair[known][order], weight[known][order], position[known][order]
    starts = np.flatnonzero(np.diff(pair, prepend=-1))
    ends = np.append(starts[1:], len(pair))

    count, decay, share = (np.zeros(n, np.float32) for _ in range(3))
    days, after = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    if len(starts):
        asked = row.astype(np.int64) * width + key
        at = np.minimum(np.searchsorted(pair[starts], asked), len(starts) - 1)
        met = (pair[starts][at] == asked) & (key >= 0)
        run = at[met]
        last = newest[ends[run] - 1]
        count[met] = (ends - starts)[run]
        decay[met] = np.add.reduceat(weight, starts)[run]
        days[met] = (histories.as_of - histories.at[last]) / MICROS_PER_DAY
        after[met] = histories.indptr[row[met] + 1] - 1 - last
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(total[row] > 0, decay / total[row], np.nan).astype(np.float32)
    unknown = key < 0
    for column in (count, decay, share):
        column[unknown] = np.nan
    return Contact(count, decay, share, days, after)


def usual_log_price(histories: Histories, price: Floats) -> Floats:
    """Return float32 [n_users], the decayed mean of log price over a user's events; NaN where none has a price."""
    met = price[histories.item]
    log_price = np.log(np.where(met > 0, met, np.nan))
    weight = np.where(np.isnan(log_price), 0.0, decayed(histories))
    row = rows_of(histories)
    weights = np.bincount(row, weights=weight, minlength=histories.n_users)
    sums = np.bincount(row, weights=weight * np.nan_to_num(log_price), minlength=histories.n_users)
    return np.where(weights > 0, sums / np.where(weights > 0, weights, 1.0), np.nan).astype(np.float32)


def activity(histories: Histories) -> tuple[Floats, Floats]:
    """Return float32 [n_users] each: events in the history, and days since the last one (NaN without any)."""
    events = np.diff(histories.indptr).astype(np.float32)
    days = np.full(histories.n_users, np.nan, np.float32)
    some = events > 0
    days[some] = (histories.as_of - histories.at[histories.indptr[1:][some] - 1]) / MICROS_PER_DAY
    return events, days


def last_sessions(histories: Histories) -> Longs:
    """Return int64 [n_users], where in the events each user's last session begins; where the next user's do for one without any.

    A session is a run of events with no pause over `SESSION_GAP`.
    """
    starts = np.diff(histories.at, prepend=histories.at[:1]) > SESSION_GAP
    filled = histories.lengths() > 0
    starts[histories.indptr[:-1][filled]] = True
    begin = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
    found = histories.indptr[:-1].copy()
    found[filled] = begin[histories.indptr[1:][filled] - 1]
    return found


def session(histories: Histories) -> tuple[Floats, Floats]:
    """Return float32 [n_users] each: events of the session under way at `as_of`, and minutes since it began; 0 where none is."""
    begin, end = last_sessions(histories), histories.indptr[1:]
    events, minutes = np.zeros(histories.n_users, np.float32), np.zeros(histories.n_users, np.float32)
    on = np.zeros(histories.n_users, bool)
    filled = histories.lengths() > 0
    on[filled] = histories.as_of - histories.at[end[filled] - 1] <= SESSION_GAP
    events[on] = (end - begin)[on]
    minutes[on] = (histories.as_of - histories.at[begin[on]]) / 60e6
    return events, minutes
