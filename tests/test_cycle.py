import json
from datetime import UTC, datetime

import pytest

from pipelines import cycle
from pipelines.config import Home

AS_OF = datetime(2025, 3, 3, tzinfo=UTC)


def test_a_stage_records_what_it_did_and_how_long_it_took(home: Home):
    with cycle.stage(home, AS_OF, "retrieval", "ease") as record:
        record["ndcg_at_10"] = 0.25
    (found,) = cycle.records(home, AS_OF, "retrieval")
    assert found["key"] == "ease"
    assert found["ndcg_at_10"] == 0.25
    assert found["state"] == "done"
    assert found["seconds"] >= 0


def test_a_failed_stage_is_on_record_with_its_error(home: Home):
    with pytest.raises(ValueError, match="no items"), cycle.stage(home, AS_OF, "blend"):
        raise ValueError("no items")
    (found,) = cycle.records(home, AS_OF, "blend")
    assert (found["state"], found["error"]) == ("failed", "ValueError: no items")


def test_a_rerun_replaces_the_record(home: Home):
    for value in (1, 2):
        with cycle.stage(home, AS_OF, "blend") as record:
            record["value"] = value
    assert [record["value"] for record in cycle.records(home, AS_OF, "blend")] == [2]


def test_progress_is_announced_at_the_start_and_at_the_end(home: Home, tmp_path, monkeypatch):
    monkeypatch.setenv("RELOOP_PROGRESS", str(tmp_path / "progress"))
    with cycle.stage(home, AS_OF, "gate"):
        pass
    lines = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert [(line["stage"], line["state"]) for line in lines] == [("gate", "running"), ("gate", "done")]


def test_a_stage_that_did_not_run_has_no_record(home: Home):
    assert cycle.records(home, AS_OF, "drift") == []


def test_forgotten_records_are_gone_and_others_stay(home: Home):
    for name in ("ingest", "gate"):
        with cycle.stage(home, AS_OF, name):
            pass
    cycle.forget(home, AS_OF, "ingest", "validation")
    assert cycle.records(home, AS_OF, "ingest") == []
    assert len(cycle.records(home, AS_OF, "gate")) == 1
