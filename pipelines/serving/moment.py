"""What is known of who asks at the moment of the question: history, profile and stored features, as training would have them.

The history is the snapshot's, then what the session knows since, then what the caller tells; an event that comes by two ways
counts once. All of it lies strictly before the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from pipelines import columns as c
from pipelines import tables
from pipelines.config import TrainingSettings
from pipelines.datasets.interactions import Floats, Histories, Ids, Longs, gains
from pipelines.datasets.profiles import USERS
from pipelines.features.history_snapshot import event_key
from pipelines.features.request_snapshot import RequestSnapshot
from pipelines.features.request_store import Held, RequestStore
from pipelines.lake.codes import device_code
from pipelines.ranking.context import Context, Stored
from pipelines.ranking.memory import Memory
from pipelines.ranking.proposals import Proposals
from pipelines.retrieval.vectors import Vectors
from pipelines.serving.binding import Binding, places
from pipelines.serving.request import Ask
from pipelines.streaming.session import SessionEvent
from pipelines.window import micros

RATING: Final = c.EVENT_TYPES.index(c.RATING)
TYPE_CODE: Final = {name: code for code, name in enumerate(c.EVENT_TYPES)}
PROFILE: Final = pa.schema([tables.USERS.field(name) for name in USERS])


def told(ask: Ask, held: Held | None) -> list[SessionEvent]:
    """Return what the session and the caller know to have happened before the question, oldest first, each event once.

    An event without a known type counts for nothing and is left out.
    """
    events = [SessionEvent(*event) for event in held.session] if held is not None else []
    now, once = micros(ask.as_of), dict[str, SessionEvent]()
    for event in (*events, *ask.events):
        if event.event_us < now and event.event_type in TYPE_CODE:
            once.setdefault(event.event_id, event)
    return sorted(once.values(), key=lambda event: (event.event_us, event.event_id))


def history(ask: Ask, events: Sequence[SessionEvent], binding: Binding, settings: TrainingSettings, item_ids: Ids) -> Histories:
    """Return one row, the history of who asks in a release's items.

    Args:
        events: of `told`.
    """
    snapshot, now = binding.requests, micros(ask.as_of)
    user = snapshot.histories.place(ask.user_id) if ask.user_id is not None else -1
    past = snapshot.histories.past(user, now)
    item = binding.place[past.item]
    at, kind, value, device = past.at, past.event_type, past.value, past.device
    if (item < 0).any():
        kept = item >= 0
        item, at, kind, value, device = item[kept], at[kept], kind[kept], value[kept], device[kept]
    if fresh := _unknown(events, snapshot, past.event):
        place = places(item_ids, [event.item_id for event in fresh])
        new = [(event, int(where)) for event, where in zip(fresh, place, strict=True) if where >= 0]
        at = np.append(at, np.array([event.event_us for event, _ in new], np.int64))
        item = np.append(item, np.array([where for _, where in new], np.int32))
        kind = np.append(kind, np.array([TYPE_CODE[event.event_type] for event, _ in new], np.int8))
        value = np.append(value, np.full(len(new), np.nan, np.float32))
        if len(new) < len(at) and (np.diff(at) < 0).any():
            order = np.argsort(at, kind="stable")
            at, item, kind, value = at[order], item[order], kind[order], value[order]
    known = device_code(ask.device)
    return Histories(
        np.array([0, len(item)], np.int64),
        np.asarray(item, np.int32),
        np.asarray(at),
        gains(kind, value, settings),
        n_items=len(item_ids),
        as_of=now,
        rating=np.where(kind == RATING, value, np.float32(np.nan)),
        users=profile(ask, snapshot, user),
        event_type=np.asarray(kind),
        device=np.array([known if known >= 0 else int(device[-1]) if len(device) else -1], np.int8),
    )


def _unknown(events: Sequence[SessionEvent], snapshot: RequestSnapshot, keys: np.ndarray) -> list[SessionEvent]:
    """Return the events that the snapshot does not hold; what happened since cannot be in it."""
    since = micros(snapshot.as_of)
    if not events or events[0].event_us >= since:
        return list(events)
    held = set(keys[-4 * len(events) - 1000 :].tolist())
    return [event for event in events if event.event_us >= since or event_key(event.event_id) not in held]


def profile(ask: Ask, snapshot: RequestSnapshot, user: int) -> pa.Table:
    """Return one row, what is known of who asks; the country of the request where the profile has none."""
    found = snapshot.histories.profiles.slice(user, 1) if user >= 0 else PROFILE.empty_table()
    if not len(found):
        found = pa.table([pa.nulls(1, field.type) for field in PROFILE], schema=PROFILE)
    if ask.country is not None and found[c.COUNTRY][0].as_py() is None:
        found = found.set_column(found.column_names.index(c.COUNTRY), c.COUNTRY, pa.array([ask.country], pa.string()))
    return found


def context(
    proposed: Proposals,
    users: Histories,
    binding: Binding,
    held: Held,
    store: RequestStore,
    *,
    groups: tuple[str, ...],
    memory: Memory | None,
    vectors: dict[str, Vectors],
) -> Context:
    """Return what features of one list are made of, as `ranking.context.gather` would of the lake and the marts."""
    items = np.sort(proposed.item)
    worth = np.zeros(len(items), np.float32) if binding.encoded is None else binding.encoded[items]
    key = items.astype(np.int64)
    return Context(
        users,
        binding.catalogue,
        user=Stored(np.zeros(1, np.int64), held.user[None].astype(np.float32), store.names()),
        item=Stored(key, binding.item_features(items, users.as_of), binding.names),
        pair=_beside(held, store, c.CATEGORY, binding),
        brand=_beside(held, store, c.BRAND, binding),
        groups=groups,
        encoded=Stored(key, worth[:, None], ("encoded_item",)),
        memory=memory,
        vectors=vectors,
    )


def _beside(held: Held, store: RequestStore, key: str, binding: Binding) -> Stored:
    """Return the stored features of the user with categories, or brands; row 0 times their number plus a code is the code."""
    words, values = held.beside[key]
    codes: Longs = np.array([binding.code_of[key].get(word, -1) for word in words], np.int64)
    order = np.argsort(codes, kind="stable")
    order = order[codes[order] >= 0]
    found: Floats = values[order].astype(np.float32)
    return Stored(codes[order], found, store.names(key))
