"""What a client sends is understood through the gate: a request that comes again, and times that no calendar has in UTC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from pipelines.serving import api, realtime
from pipelines.serving.api_gate import Gate
from pipelines.serving.limits import Buckets, Turnstile
from pipelines.serving.metrics import Metrics
from pipelines.serving.realtime import Verdict
from pipelines.serving.schemas import SessionIn
from pipelines.serving_policies import LimitPolicy, LogPolicy
from pipelines.window import micros

EVENT = {"user_id": "u1", "item_id": "i1", "event_type": "purchase", "value": 10}


class Room:
    """Takes events as the intake names them."""

    def __init__(self) -> None:
        self.limits = LimitPolicy(max_late_ms=20000)
        self.turnstile = self.writes = Turnstile(self.limits)
        self.metrics = Metrics()

    def clock(self) -> datetime:
        return datetime.now(UTC)

    def take(self, rows: Sequence[Mapping[str, Any]], request_id: str = "") -> list[Verdict]:
        met: Counter[bytes] = Counter()
        return [Verdict(realtime._completed(row, self.clock(), request_id, met)["event_id"]) for row in rows]


@pytest.fixture
def client() -> TestClient:
    room = Room()
    limits = room.limits
    return TestClient(
        Gate(api.app(cast("api.Room", room), keys=False), limits, LogPolicy(access=False), room.metrics, Buckets(), room.turnstile)
    )


def test_a_request_that_is_sent_again_under_its_name_brings_no_more_events(client: TestClient) -> None:
    def ids(name: str) -> list[str]:
        taken = client.post("/v1/events", json={"events": [EVENT, EVENT]}, headers={"x-request-id": name} if name else {})
        return list(taken.json()["event_ids"])

    first, nameless = ids("order-17"), ids("")
    assert len(set(first)) == 2
    assert ids("order-17") == first
    assert not {*ids("order-18"), *ids(""), *first} & {*nameless}
    assert not {*ids("order-18")} & {*first}


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_utc_does_not_have_is_refused_by_name(client: TestClient, at: str) -> None:
    answer = client.post("/v1/sessions/recommendations", json={"events": [{"item_id": "a", "event_type": "view", "event_at": at}]})
    assert (answer.status_code, answer.json()["field"]) == (422, "body.events.0.event_at")


@pytest.mark.parametrize("at", ["0002-01-01T00:00:00+14:00", "9998-12-31T23:59:59-14:00"])
def test_the_first_and_last_time_that_is_taken_has_its_place_in_a_session(at: str) -> None:
    body = SessionIn.model_validate({"events": [{"item_id": "a", "event_type": "view", "event_at": at}]})
    now = micros(datetime.now(UTC))
    assert api._seen(body.events[0], now, 0).event_us < now
