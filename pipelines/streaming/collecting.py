"""From the bus into the lake: what was published is kept in segments, which the next ingest stages with its own rows.

A segment is written before the bus is told: killed between the two, the same events come again in
another segment, and the lake, which knows every `event_id`, takes them once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import columns as c
from pipelines import publish
from pipelines.config import Home
from pipelines.sources import collected, plan
from pipelines.streaming import bus
from pipelines.streaming.bus import EventBus, Message
from pipelines.streaming.reading import STAGED, decoded, taken
from pipelines.window import micros

GROUP: Final = "lake"
AT_ONCE: Final = 20_000


def expect(home: Home) -> None:
    """Let the bus keep, from now on, what is published until it was collected; called by whoever publishes."""
    member = bus.of(home, group=GROUP, consumer=GROUP)
    member.waiting()
    member.close()


def collect(home: Home) -> int:
    """Take everything that is on the bus now into segments; return how many events. One process at a time.

    Called once, before an ingest cuts its windows: what came in between would have its turn in a window that is staged already.

    Raises:
        StateError: the bus cannot be reached.
    """
    if not bus.exists(home):
        return 0
    with publish.locked(collected.folder(home) / ".lock"):
        landed = plan.landed_until(home)
        member = bus.of(home, group=GROUP, consumer=GROUP)
        try:
            return _drained(home, member, micros(landed) if landed else 0)
        finally:
            member.close()


def _drained(home: Home, member: EventBus, landed_us: int) -> int:
    events = 0
    while messages := member.consume(AT_ONCE, 0.0):
        table = _staged(messages)
        turn = pc.max_element_wise(table[c.RECEIVED_AT].cast(pa.int64()), landed_us)
        content = hashlib.sha256(b"\n".join(message.payload for message in messages)).hexdigest()[:12]
        name = f"{pc.min(turn).as_py():020d}-{pc.max(turn).as_py():020d}-{content}.parquet"
        publish.write_parquet(collected.folder(home) / name, table.append_column(collected.TURN, turn))
        member.acknowledge(messages)
        events += len(messages)
    return events


def _staged(messages: Sequence[Message]) -> pa.Table:
    """Return messages as staged rows; one whose time of receipt cannot be read was received when the bus took it."""
    rows = [decoded(message, position) for position, message in enumerate(messages)]
    for row, message in zip(rows, messages, strict=True):
        row[c.RECEIVED_AT] = row[c.RECEIVED_AT] or taken(message)
    return pa.Table.from_pylist(rows, schema=STAGED)
