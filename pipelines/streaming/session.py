r"""What the session of a user is, defined once; `dbt/models/marts/user_session.sql` says the same in SQL.

Let $E_u(t)$ be the events of user $u$ known at $t$: happened and received before $t$, each `event_id` once.
Order events by (event_at, event_id), newest first, and let $e_1$ be the newest. The session at $t$ is

    S = { e among the first 50 of E_u(t) : event_at(e) >= event_at(e_1) - 30 days }

and there is none where $E_u(t)$ is empty or $e_1$ happened more than 30 days before $t$. Features:

- `last_item_ids`, `last_event_types`, `last_event_ids`, `last_event_us`: S, in order.
- `session_events`: the running visit, that is how many events precede the first pause of more than 30
  minutes between neighbours of S; `session_seconds`: from the first to the last of them.
- category affinity, an exponential moving average over time with a half-life of 24 hours: with
  $w(e) = g(e) \cdot 2^{-(event\_at(e_1) - event\_at(e)) / 24h}$, gains $g$ of 3 for a purchase, 2 for a cart, 1 else,

      affinity(c) = sum of w(e) over e in S of category c / sum of w(e) over e in S with a category.

  An event has the category that its item was known to have when it happened. Measured against $e_1$
  and not against the present, the shares do not change while nothing happens, so a value computed
  once stays right until the next event. Sums run from new to old; categories stand by affinity,
  best first, by name where equal, 10 at most, and are null where S has no category.

S depends on a *set*: neither the order in which events arrive nor their repetition shows. Keeping the
50 newest of what was kept and what is new gives S of the whole (the 50 newest are a semilattice), which
is why the stream may forget all else, may be redelivered, and agrees with the batch bit for bit.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from pipelines import columns as c

VIEW: Final = "user_session"
SERVICE: Final = "session_v1"
ITEMS: Final = 50
DAYS: Final = 30
GAP_US: Final = 30 * 60 * 1_000_000
HALF_LIFE_US: Final = 86_400_000_000
GAINS: Final = {c.PURCHASE: 3.0, c.ADD_TO_CART: 2.0}
CATEGORIES: Final = 10
WINDOW_US: Final = DAYS * 86_400_000_000


class SessionEvent(NamedTuple):
    """One event of a session; compares as the session orders.

    Attributes:
        event_us: when it happened, microseconds since 1970 UTC.
        category: of its item then; None where unknown.
    """

    event_us: int
    event_id: str
    item_id: str
    event_type: str
    category: str | None = None


def newest(events: Iterable[SessionEvent]) -> list[SessionEvent]:
    """Return the newest 50 of some events, newest first, each event once."""
    once = {(event.event_us, event.event_id): event for event in events}
    return [once[key] for key in heapq.nlargest(ITEMS, once)]


def features(events: Sequence[SessionEvent], known_us: int) -> dict[str, Any] | None:
    """Return the features of a session, or None where there is none.

    Args:
        events: the newest events of the user, as `newest` gives them.
        known_us: the moment from which all of them were known.
    """
    if not events or events[0].event_us < known_us - WINDOW_US:
        return None
    last = events[0].event_us
    kept = [event for event in events if event.event_us >= last - WINDOW_US]
    visit = next((n for n in range(1, len(kept)) if kept[n - 1].event_us - kept[n].event_us > GAP_US), len(kept))
    categories = _affinities(kept)
    return {
        "last_item_ids": [event.item_id for event in kept],
        "last_event_types": [event.event_type for event in kept],
        "last_event_ids": [event.event_id for event in kept],
        "last_event_us": [event.event_us for event in kept],
        "session_events": visit,
        "session_seconds": (last - kept[visit - 1].event_us) / 1_000_000.0,
        "categories": [category for _, category in categories] or None,
        "category_affinities": [-minus for minus, _ in categories] or None,
        "top_category": categories[0][1] if categories else None,
        "top_category_affinity": -categories[0][0] if categories else None,
    }


def _affinities(events: Sequence[SessionEvent]) -> list[tuple[float, str]]:
    """Return (minus affinity, category), best first; plain additions, new to old, as the SQL adds."""
    weights: dict[str, float] = {}
    total = 0.0
    for event in events:
        if event.category is not None:
            weight = GAINS.get(event.event_type, 1.0) * 2.0 ** (-(events[0].event_us - event.event_us) / HALF_LIFE_US)
            weights[event.category] = weights.get(event.category, 0.0) + weight
            total += weight
    return sorted((-weight / total, category) for category, weight in weights.items())[:CATEGORIES]


def of_row(row: dict[str, Any]) -> list[SessionEvent]:
    """Return the events that a row of the view remembers, without categories; none of a row that holds nothing."""
    columns = [row.get(name) or [] for name in ("last_event_us", "last_event_ids", "last_item_ids", "last_event_types")]
    return [SessionEvent(*values) for values in zip(*columns, strict=True)]
