"""What is beyond doubt at a glance is what the rules of the lake accept: the short way and the long way give every event one fate."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import columns as c
from pipelines.config import ValidationSettings
from pipelines.streaming import reading
from pipelines.streaming.bus import Message
from pipelines.streaming.reading import Judge, Judged
from pipelines.window import micros

TAKEN = datetime(2025, 3, 1, 12, tzinfo=UTC)
RULES = ValidationSettings()
WORDS = st.one_of(st.sampled_from(["u1", " u1 ", "", "x" * 256, "x" * 257, "é" * 256, "a\x00b", "\x7f", "u\n", "🙂"]), st.text(max_size=3))
TIMES = st.one_of(
    st.sampled_from(["2025-03-01T12:00:00", "1970-01-01T00:00:00+00:00", "2069-12-31T23:59:59Z", "2070-01-01T00:00:00+00:00", "soon", 12]),
    st.timedeltas(timedelta(days=-31), timedelta(minutes=10)).map(lambda ago: (TAKEN + ago).isoformat()),
    st.sampled_from([0, 1, -1]).flatmap(
        lambda off: st.sampled_from([timedelta(minutes=RULES.max_future_minutes), -timedelta(days=RULES.max_lateness_days)]).map(
            lambda edge: (TAKEN + edge + timedelta(microseconds=off)).isoformat()
        )
    ),
)
NUMBERS = st.one_of(st.none(), st.floats(), st.integers(-3, 3), st.booleans(), st.sampled_from(["3", 1e308, -0.0]))
EVENTS = st.lists(
    st.fixed_dictionaries(
        {c.EVENT_ID: WORDS, c.USER_ID: WORDS, c.ITEM_ID: WORDS, c.EVENT_TYPE: st.sampled_from([*c.EVENT_TYPES, "VIEW", "", None])},
        optional={c.EVENT_AT: TIMES, c.RECEIVED_AT: TIMES, c.VALUE: NUMBERS, c.QUANTITY: NUMBERS, c.DEVICE: WORDS, "more": WORDS},
    ),
    min_size=50,
    max_size=200,
)


def told(judged: Judged) -> tuple[list[tuple[str, dict]], list[tuple[str, dict]]]:
    return [(message.position, row) for message, row in judged.accepted], [(message.position, row) for message, row in judged.refused]


@given(EVENTS)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_event_fares_otherwise_by_the_short_way(events):
    messages = [Message(str(n), micros(TAKEN), json.dumps(event).encode()) for n, event in enumerate(events)]
    with closing(Judge(RULES)) as judge, pytest.MonkeyPatch.context() as patch:
        short = told(judge.judge(messages))
        patch.setattr(reading, "plain", lambda row, rules: False)
        long = told(judge.judge(messages))
    assert [(position, repr(row)) for position, row in short[0]] == [(position, repr(row)) for position, row in long[0]]
    assert [(position, repr(row)) for position, row in short[1]] == [(position, repr(row)) for position, row in long[1]]


def test_an_ordinary_event_takes_the_short_way():
    event = {c.EVENT_ID: "e1", c.USER_ID: "u1", c.ITEM_ID: "i1", c.EVENT_TYPE: "view", c.EVENT_AT: TAKEN.isoformat(), c.VALUE: 3.5}
    assert reading.plain(reading.decoded(Message("0", micros(TAKEN), json.dumps(event).encode()), 0), RULES)
