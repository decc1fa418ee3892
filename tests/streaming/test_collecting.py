"""What was published on the bus enters the lake once, by the same validation, whatever is killed in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import lake, publish
from pipelines.config import Home
from pipelines.sources import collected, plan, reading
from pipelines.sources.request import Request, Source, World
from pipelines.streaming import bus, collecting
from pipelines.streaming.bus import EventBus
from pipelines.validation import checkpoint
from pipelines.window import Window, utc

SHOP = Request(world=World(users=50, items=30, events_per_day=200))
FIRST, SECOND = Window.parse("2025-01-06", "2025-01-08"), Window.parse("2025-01-08", "2025-01-10")


@pytest.fixture
def member(home: Home) -> Iterator[EventBus]:
    """Return the bus of the state folder, for somebody who publishes."""
    collecting.expect(home)
    member = bus.of(home, group="sessions", consumer="a")
    yield member
    member.close()


def seen(n: int, at: str = "2025-01-07T10:00:00", **other: Any) -> dict[str, Any]:
    moment = utc(at) + timedelta(seconds=n)
    event = {"event_id": f"web{n}", "user_id": "u00000001", "item_id": "i00000002", "event_type": "view"}
    return event | {"event_at": moment, "received_at": moment} | other


def ingested(home: Home, window: Window) -> dict[str, int]:
    collecting.collect(home)
    batch = reading.stage_batch(home, SHOP, window)
    checkpoint.validate_batch(home, window.end, batch)
    lake.land(home, window.end, batch)
    return {name: rows for name, rows in publish.manifest(home.landing / batch).facts["rows"].items() if name == "events"}


def of_the_web(home: Home) -> list[str]:
    with lake.connect(home) as db:
        return [name for (name,) in db.execute("SELECT event_id FROM events WHERE event_id LIKE 'web%' ORDER BY event_at").fetchall()]


def test_events_of_the_bus_land_with_the_window_they_were_received_in(home: Home, member: EventBus):
    member.publish([seen(n) for n in range(5)] + [seen(9, "2025-01-09T00:00:00")])
    ingested(home, FIRST)
    assert of_the_web(home) == [f"web{n}" for n in range(5)]
    assert ingested(home, SECOND)["events"] > 1
    assert of_the_web(home) == [*(f"web{n}" for n in range(5)), "web9"]


def test_an_event_that_comes_after_its_window_has_landed_goes_with_the_next(home: Home, member: EventBus):
    ingested(home, FIRST)
    member.publish([seen(1)])
    ingested(home, SECOND)
    assert of_the_web(home) == ["web1"]


def test_a_bad_event_of_the_bus_is_in_quarantine_with_its_reason(home: Home, member: EventBus):
    member.publish([seen(1), seen(2, event_type="stare"), {"event_id": "web3", "received_at": "noon"} | {"user_id": "u1"}])
    collecting.collect(home)
    batch = reading.stage_batch(home, SHOP, Window.parse("2025-01-06", "2025-01-13"))
    with pq.ParquetFile(home.landing / batch / "events.parquet") as file:
        staged = {row["event_id"]: row for row in file.read().to_pylist() if str(row["event_id"]).startswith("web")}
    assert staged.keys() == {"web1", "web2"}, "what cannot be dated has its turn when the bus took it"
    checkpoint.validate_batch(home, utc("2025-01-13"), batch)
    lake.land(home, utc("2025-01-13"), batch)
    rows = pq.read_table(home.quarantine / batch / "events.parquet").to_pylist()
    assert [(row["event_id"], row["reasons"]) for row in rows if row["event_id"] == "web2"] != []
    assert of_the_web(home) == ["web1"]
    undated = next(
        row for file in collected.folder(home).glob("*.parquet") for row in pq.read_table(file).to_pylist() if row["event_id"] == "web3"
    )
    assert undated["reasons"] == ["received_at could not be read: 'noon'"]
    assert json.loads(undated["raw"])["received_at"] == "noon"


def test_killed_between_segment_and_acknowledgement_nothing_is_lost_or_doubled(home: Home, member: EventBus, monkeypatch):
    member.publish([seen(n) for n in range(5)])
    monkeypatch.setattr("pipelines.streaming.sqlite_bus.SqliteBus.acknowledge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        collecting.collect(home)
    monkeypatch.undo()
    member.publish([seen(5)])
    ingested(home, FIRST)
    assert of_the_web(home) == [f"web{n}" for n in range(6)]


def test_the_same_window_staged_again_has_the_same_bytes(home: Home, member: EventBus):
    member.publish([seen(n) for n in range(5)])
    collecting.collect(home)
    first = publish.manifest(home.landing / reading.stage_batch(home, SHOP, FIRST)).digest
    member.publish([seen(8, "2025-01-09T00:00:00")])
    collecting.collect(home)
    assert publish.manifest(home.landing / reading.stage_batch(home, SHOP, FIRST)).digest == first


def test_a_file_that_is_read_to_its_end_goes_on_while_the_bus_brings_events(home: Home, member: EventBus, tmp_path: Path):
    source, mapping = tmp_path / "log.csv", tmp_path / "map.yml"
    source.write_text("who,what,at\nu1,i1,2025-01-06T10:00:00Z\nu2,i1,2025-01-07T10:00:00Z\n")
    mapping.write_text("events: {user_id: who, item_id: what, event_type: {constant: view}, event_at: at}\n")
    request = Request(source=Source.TABLE, path=source, mapping=mapping)
    assert [str(window) for window in plan.windows(home, request)] == ["2025-01-06..2025-01-08"]
    member.publish([seen(1, "2025-01-09T10:00:00")])
    collecting.collect(home)
    (window,) = plan.windows(home, request)
    assert str(window) == "2025-01-06..2025-01-10"
    batch = reading.stage_batch(home, request, window)
    checkpoint.validate_batch(home, window.end, batch)
    lake.land(home, window.end, batch)
    assert of_the_web(home) == ["web1"]
    assert plan.windows(home, request) == []


def test_where_nobody_publishes_no_bus_is_made(home: Home):
    ingested(home, FIRST)
    assert not home.stream.exists()
