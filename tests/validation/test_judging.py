"""Every row has one fate, with its reasons, and the money adds up."""

from datetime import timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_shop import START, catalogue, shop, stage

from pipelines import cycle, lake
from pipelines.config import ValidationSettings
from pipelines.validation import checkpoint
from pipelines.validation.row_rules import table_rules

ROW = shop(1, rows_a_day=5).slice(4, 1).to_pylist()[0]  # a purchase for 10 + i
HOUR = timedelta(hours=1)
SPOILT = {
    "user_id is missing": {"user_id": None},
    "item_id is missing": {"item_id": ""},
    "event_id is missing": {"event_id": None},
    "event_type is missing": {"event_type": None},
    "event_type is not one of view, click, add_to_cart, purchase, rating": {"event_type": "wishlist"},
    "event_at is missing": {"event_at": None},
    "received_at is missing": {"received_at": None},
    "event_at is more than 5 minutes after received_at": {"event_at": ROW["received_at"] + timedelta(minutes=5, seconds=1)},
    "received_at is more than 30 days after event_at": {"received_at": ROW["event_at"] + timedelta(days=30, seconds=1)},
    "event_at is not between 1990 and 2069": {
        "event_at": ROW["event_at"].replace(year=1970),
        "received_at": ROW["event_at"].replace(year=1970),
    },
    "received_at is not between 1990 and 2069": {"received_at": ROW["event_at"].replace(year=2099)},
    "value is negative": {"value": -0.01},
    "value is not a finite number": {"value": float("nan")},
    "quantity is negative": {"quantity": -1.0},
    "quantity is not a finite number": {"quantity": float("inf")},
    "user_id is longer than 256 characters": {"user_id": "u" * 257},
    "item_id holds a control character": {"item_id": "i\n1"},
    "cancelled order": {"reasons": ["cancelled order"]},
}
FINE = {
    "a clock five minutes fast": {"event_at": ROW["received_at"] + timedelta(minutes=5)},
    "thirty days late": {"received_at": ROW["event_at"] + timedelta(days=30)},
    "an id in another script": {"user_id": "用户 7"},
    "free of charge": {"value": 0.0},
    "the longest id": {"item_id": "i" * 256},
    "a leap day": {"event_at": START.replace(year=2024, month=2, day=29), "received_at": START.replace(year=2024, month=2, day=29)},
}


def judge(home, rows: list[dict], batch: str = "b"):
    """Stage rows, judge them, and return (the record of events, accepted rows, quarantined rows)."""
    events = pa.Table.from_pylist([{"reasons": None, **ROW, "event_id": f"e{n}", **row} for n, row in enumerate(rows)], schema=SCHEMA)
    window = stage(home, batch, 1, events=events)
    checkpoint.validate_batch(home, window.end, batch)
    (record,) = cycle.records(home, window.end, "validation")
    accepted = pq.read_table(home.landing / f"{batch}.judged" / "events.parquet").to_pylist()
    return record["tables"]["events"], accepted, pq.read_table(home.quarantine / batch / "events.parquet").to_pylist()


SCHEMA = shop(1, rows_a_day=5).schema.append(pa.field("reasons", pa.list_(pa.string())))


def test_every_rule_refuses_its_row_with_its_reason_and_lets_the_edge_pass(home):
    """A row spoilt in one way is refused for that alone; a row at the edge of what is allowed is accepted."""
    record, accepted, quarantined = judge(home, [{}] * 40 + list(SPOILT.values()) + list(FINE.values()))
    assert len(accepted) == 40 + len(FINE)
    assert {row["reasons"][0]: row["source_row"] for row in quarantined} == {reason: 40 + n for n, reason in enumerate(SPOILT)}
    assert record["reasons"] == dict.fromkeys(SPOILT, 1)


def test_each_rule_of_events_is_tried_above():
    sentences = {rule.reason for rule in table_rules(ValidationSettings())["events"].rules}
    untried = {s for s in sentences - set(SPOILT) if "control character" not in s and "longer than" not in s}
    assert sentences
    assert not untried


def test_a_row_keeps_all_its_reasons_the_readers_first_and_what_could_not_be_read(home):
    row = {"reasons": ["value 'abc' is no number"], "user_id": None, "item_id": None}
    _, _, (refused,) = judge(home, [*[{}] * 20, row])
    assert refused["reasons"] == ["value 'abc' is no number", "user_id is missing", "item_id is missing"]


def test_an_exact_repetition_is_a_duplicate_whatever_becomes_of_the_row(home):
    good, bad = {"event_id": "good"}, {"event_id": "bad", "user_id": None}
    record, accepted, quarantined = judge(home, [{}] * 20 + [good, bad, good, bad, bad])
    assert record["rows"] == {"read": 25, "accepted": 21, "quarantined": 1, "duplicates": 3}
    assert [row["source_row"] for row in quarantined] == [21]
    assert sum(row["event_id"] == "good" for row in accepted) == 1


def test_of_rows_that_share_an_id_the_first_received_acceptable_one_stays(home):
    later = {"event_id": "x", "received_at": ROW["received_at"] + HOUR, "device": "later"}
    first = {"event_id": "x", "device": "first"}
    spoilt = {"event_id": "x", "received_at": ROW["received_at"] - timedelta(seconds=1), "user_id": None}
    record, accepted, quarantined = judge(home, [{}] * 400 + [later, first, spoilt])
    assert [row["device"] for row in accepted if row["event_id"] == "x"] == ["first"]
    assert quarantined == []
    assert record["rows"]["duplicates"] == 2


def test_revenue_by_fate_adds_up_to_the_cent(home):
    """Ten thousand rows of 0.1 + 0.2 drift in floats; by fate they must not."""
    rows = [{"value": 0.1 if n % 2 else 19.99, "user_id": None if n % 5 == 0 else "u"} for n in range(2000)]
    judge(home, [*rows, {"event_id": "e1", "value": 0.1, "user_id": "u"}])
    report = lake.land(home, START + timedelta(days=1), "b")
    assert report.rows == {"read": 2001, "accepted": 1600, "quarantined": 400, "duplicates": 1}
    exact = {"read": Decimal("20090.10"), "accepted": Decimal("16072.00"), "quarantined": Decimal("4018.00"), "duplicates": Decimal("0.10")}
    assert {fate: Decimal(str(amount)) for fate, amount in report.value.items()} == exact


def test_what_is_landed_by_overlapping_batches_still_adds_up(home):
    judge(home, [{}] * 60)
    lake.land(home, START + timedelta(days=1), "b")
    stage(home, "again", 1, events=pq.read_table(home.landing / "b" / "events.parquet").drop_columns(["source_row", "reasons", "raw"]))
    checkpoint.validate_batch(home, START + timedelta(days=1), "again")
    report = lake.land(home, START + timedelta(days=1), "again")
    assert report.rows == {"read": 60, "accepted": 0, "quarantined": 0, "duplicates": 60}
    assert report.value["read"] == report.value["duplicates"] > 0


def test_items_and_users_are_judged_too(home):
    items = catalogue().to_pylist()
    items += [{**items[0], "item_id": None}, {**items[0], "item_id": "dear", "price": -1.0}, items[0]]
    window = stage(home, "b", 1, events=shop(1), items=pa.Table.from_pylist(items, schema=catalogue().schema))
    checkpoint.validate_batch(home, window.end, "b")
    (record,) = cycle.records(home, window.end, "validation")
    assert record["tables"]["items"] == {
        "rows": {"read": 33, "accepted": 30, "quarantined": 2, "duplicates": 1},
        "reasons": {"item_id is missing": 1, "price is negative": 1},
    }


def test_judging_again_gives_the_same_bytes(home):
    judge(home, [{}] * 60 + list(SPOILT.values()) + [{"event_id": "e1"}])
    files = [*(home.landing / "b.judged").iterdir(), *(home.quarantine / "b").iterdir()]
    assert len(files) == 8
    before = {file: file.read_bytes() for file in files}
    checkpoint.validate_batch(home, START + timedelta(days=1), "b")
    assert {file: file.read_bytes() for file in files} == before


@pytest.mark.parametrize("missing", ["item_id", "received_at"])
def test_a_staged_file_without_a_column_is_refused_by_name(home, missing):
    from pipelines import publish
    from pipelines.errors import StateError

    window = stage(home, "b", 1, events=shop(1))
    file = home.landing / "b" / "events.parquet"
    publish.write_parquet(file, pq.read_table(file).drop_columns([missing]))
    with pytest.raises(StateError, match=rf"events.parquet: column '{missing}': missing"):
        checkpoint.validate_batch(home, window.end, "b")
