"""What was published on the bus enters the lake once, by the same validation, whatever is killed in between."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import lake, publish
from pipelines.config import Home
from pipelines.lake import segments
from pipelines.registry import retention
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


def test_what_the_bus_brought_is_kept_until_its_window_has_landed_and_some_days_more(home: Home, member: EventBus, monkeypatch):
    """Landed until the 8th: what was received on the 6th goes once no day is kept; what waits for its window never does."""
    member.publish([seen(1, "2025-01-06T10:00:00")])
    collecting.collect(home)
    member.publish([seen(2, "2025-01-09T10:00:00")])
    collecting.collect(home)
    old, waiting = sorted(collected.folder(home).glob("*.parquet"))
    assert collected.outlived(home, None, 0) == [], "nothing has landed"
    ingested(home, FIRST)
    monkeypatch.setattr(retention, "_mark", lambda _: 0)
    kept = retention.collect(home)["segments"]
    assert (kept, old.is_file()) == ([], True), "a week of them, unless the settings say otherwise"
    (home.root / "reloop.toml").write_text("[retention]\ncollected_days = 0\n")
    assert retention.collect(home, dry_run=True)["segments"] == [old.name]
    assert old.is_file()
    found = retention.collect(home)
    assert (found["segments"], old.is_file(), waiting.is_file()) == ([old.name], False, True)
    assert found["bytes"] > 0
    assert retention.collect(home)["segments"] == []
    assert ingested(home, SECOND)["events"] > 1
    assert of_the_web(home) == ["web1", "web2"]
    ingested(home, FIRST)  # a window that is read again without them takes nothing away
    assert of_the_web(home) == ["web1", "web2"]


def test_segments_are_taken_one_by_one_so_that_a_kill_leaves_nothing_in_halves(home: Home, member: EventBus, monkeypatch):
    for day in ("2025-01-06", "2025-01-07"):
        member.publish([seen(1, f"{day}T10:00:00", event_id=f"web{day}")])
        collecting.collect(home)
    ingested(home, FIRST)
    monkeypatch.setattr(retention, "_mark", lambda _: 0)
    (home.root / "reloop.toml").write_text("[retention]\ncollected_days = 0\n")
    real, gone = Path.unlink, []

    def once(path: Path, **more: Any) -> None:
        if path.suffix == ".parquet" and gone:
            raise KeyboardInterrupt
        gone.append(path)
        real(path, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", once)
        retention.collect(home)
    assert len(list(collected.folder(home).glob("*.parquet"))) == 1
    retention.collect(home)
    assert list(collected.folder(home).glob("*.parquet")) == []
    assert len(of_the_web(home)) == 2


def test_empty_segments_that_nobody_writes_go_and_no_other_one(home: Home):
    place = segments.folder(home)
    place.mkdir(parents=True)
    for name, text in {
        "999999999-a-0.open": "",
        "999999999-a-1.open": "{}\n",
        f"{os.getpid()}-a-0.open": "",
        "999999999-a-2.jsonl": "",
    }.items():
        (place / name).write_text(text)
    with (place / f"{os.getpid()}-a-0.open").open("a") as written:
        fcntl.flock(written, fcntl.LOCK_EX)
        assert retention.collect(home)["segments"] == ["999999999-a-0.open"]
    assert len(list(place.iterdir())) == 3
