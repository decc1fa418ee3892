"""Landing: a lake is the set of the rows it was given, whatever their order, repetition and cut into batches."""

import hashlib
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_shop import START, catalogue, shop, stage, with_column

from pipelines import cycle, lake
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.validation import checkpoint


def tables_digest(home: Home) -> dict[str, str]:
    """Return the digest of every table file of the lake; never empty."""
    files = [
        *(home.lake / "events").rglob("*.parquet"),
        *(home.lake / "items").rglob("*.parquet"),
        *(home.lake / "users").rglob("*.parquet"),
    ]
    assert files
    return {str(file.relative_to(home.lake)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def redelivered(events: pa.Table, hours: int) -> pa.Table:
    """Return the same events as a second delivery would bring them."""
    later = pc.add(events["received_at"].cast(pa.int64()), hours * 3_600_000_000)
    return with_column(events, "received_at", later.cast(pa.timestamp("us", tz="UTC")).combine_chunks())


GIVEN = shop(4, rows_a_day=15)


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> dict[str, str]:
    """Return the digests of a lake that got every event once, in order."""
    home = Home(tmp_path_factory.mktemp("golden"))
    lake.land_tables(home, events=GIVEN, items=catalogue())
    return tables_digest(home)


def scrambled(home: Home, seed: int) -> None:
    """Land `GIVEN` permuted, partly delivered again later, and cut anyhow into batches."""
    rng = np.random.default_rng(seed)
    everything = pa.concat_tables([GIVEN, redelivered(GIVEN.take(rng.integers(0, len(GIVEN), rng.integers(0, 40))), 1), GIVEN.slice(0, 5)])
    everything = everything.take(rng.permutation(len(everything)))
    cuts = [0, *sorted(rng.integers(0, len(everything) + 1, rng.integers(0, 4)).tolist()), len(everything)]
    items = catalogue().take(rng.permutation(30))
    for number, (start, end) in enumerate(pairwise(cuts)):
        lake.land_tables(home, events=everything.slice(start, end - start), items=items, batch_id=f"cut-{number}")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_any_order_repetition_and_cut_gives_the_same_bytes(seed, golden, tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("scrambled"))
    scrambled(home, seed)
    assert tables_digest(home) == golden


@pytest.mark.slow
def test_any_order_repetition_and_cut_gives_the_same_bytes_for_500_seeds(golden, tmp_path):
    for seed in range(500):
        home = Home(tmp_path / str(seed))
        scrambled(home, seed)
        assert tables_digest(home) == golden, seed


def test_the_same_batch_again_changes_no_byte_and_reports_the_same(home):
    first = lake.land_tables(home, events=GIVEN, items=catalogue())
    before = {file: file.read_bytes() for file in home.lake.rglob("*") if file.is_file()}
    assert lake.land_tables(home, events=GIVEN, items=catalogue()) == first
    assert {file: file.read_bytes() for file in home.lake.rglob("*") if file.is_file()} == before


def test_rows_of_another_batch_that_are_known_are_counted_as_duplicates(home):
    lake.land_tables(home, events=GIVEN)
    report = lake.land_tables(home, events=shop(5, rows_a_day=15), batch_id="overlapping")
    assert report.rows == {"read": 75, "accepted": 15, "quarantined": 0, "duplicates": 60}
    assert report.value["read"] == pytest.approx(report.value["accepted"] + report.value["duplicates"], abs=1e-9)


def test_a_day_file_is_sorted_and_holds_its_utc_day_alone(home):
    lake.land_tables(home, events=GIVEN.take(list(reversed(range(len(GIVEN))))))
    files = lake.event_files(home)
    assert [file.parent.name for file in files] == [f"event_date=2025-01-{day:02}" for day in (6, 7, 8, 9)]
    for file, day in zip(files, lake.days(home), strict=True):
        rows = pq.read_table(file)
        keys = list(zip(rows["event_at"].to_pylist(), rows["event_id"].to_pylist(), strict=True))
        assert keys == sorted(keys)
        assert {at.date() for at, _ in keys} == {day}


def test_a_late_event_lands_on_the_day_it_happened_and_the_ledger_says_so(home):
    lake.land_tables(home, events=GIVEN.slice(1), batch_id="week")
    late = redelivered(GIVEN.slice(0, 1), 24 * 9)
    lake.land_tables(home, events=late, batch_id="late")
    assert lake.days(home)[0] == START.date()
    (landing,) = lake.landings(home, after=1)
    assert (landing.batch_id, {table: str(day) for table, day in landing.shown.items()}) == ("late", {"events": "2025-01-15"})
    assert lake.reports(home)[-1].touched == ("2025-01-15", str(START.date()), str(START.date()))
    assert lake.received_since(home, (START + timedelta(days=9)).date()) == [START.date()]
    assert lake.received_since(home, (START + timedelta(days=10)).date()) == []
    assert lake.landings(home, after=lake.head(home)) == []


def test_of_two_versions_of_an_event_the_one_received_first_stays_whichever_lands_first(tmp_path):
    """The later delivery claims another day; its file disappears again when the first delivery arrives."""
    event = GIVEN.slice(0, 1)
    moved = with_column(redelivered(event, 48), "event_at", [START + timedelta(days=1)])
    digests = []
    for order in ((event, moved), (moved, event)):
        home = Home(tmp_path / str(len(digests)))
        reports = [lake.land_tables(home, events=rows, batch_id=f"b{n}") for n, rows in enumerate(order)]
        digests.append(tables_digest(home))
        assert reports[1].rows["duplicates" if order[0] is event else "accepted"] == 1
        assert lake.days(home) == [START.date()]
    assert digests[0] == digests[1]
    assert reports[1].replaced == 1
    assert reports[1].touched is not None
    assert reports[1].touched[2] == str((START + timedelta(days=1)).date())


def test_versions_of_items_accumulate_and_equal_ones_do_not(home):
    lake.land_tables(home, events=GIVEN, items=catalogue())
    before = tables_digest(home)["items/items.parquet"]
    turned = with_column(catalogue(), "attributes", [[("colour", "red"), ("size", "1")]] * 30)
    assert lake.land_tables(home, events=GIVEN, items=turned, batch_id="turned").versions["items"] == 0
    assert tables_digest(home)["items/items.parquet"] == before
    dearer = catalogue(price=2.0, first=START + timedelta(days=2))
    assert lake.land_tables(home, events=GIVEN, items=dearer, batch_id="dearer").versions["items"] == 30
    with lake.connect(home, before=START + timedelta(days=2)) as engine:
        assert engine.sql("SELECT count(*), max(price) FROM items").fetchall() == [(30, 39.0)]


def test_a_correction_stands_beside_what_it_corrects_and_shows_from_its_receipt(home):
    """Same item, same moment, another price, learnt five days later; and a version announced ahead of its day."""
    lake.land_tables(home, events=GIVEN, items=catalogue())
    learnt = START + timedelta(days=5, hours=3)
    corrected = with_column(catalogue(price=2.0), "received_at", [learnt] * 30)
    assert lake.land_tables(home, events=GIVEN, items=corrected, batch_id="corrected").versions["items"] == 30
    assert lake.landings(home)[-1].shown == {"items": learnt.date()}
    for before, dearest in ((learnt, 39.0), (learnt + timedelta(seconds=1), 78.0)):
        with lake.connect(home, before=before) as engine:
            assert engine.sql("SELECT max(price) FROM items").fetchall() == [(dearest,)]
    announced = with_column(catalogue(first=START + timedelta(days=20)), "received_at", [START] * 30)
    lake.land_tables(home, events=GIVEN, items=announced, batch_id="announced")
    assert lake.landings(home)[-1].shown == {"items": (START + timedelta(days=20)).date()}


def test_an_empty_lake_has_empty_views_of_the_right_columns(home):
    with lake.connect(home) as engine:
        for view, columns in {"events": 11, "items": 10, "users": 7}.items():
            assert engine.sql(f"SELECT * FROM {view}").fetchall() == []
            assert len(engine.sql(f"SELECT * FROM {view}").columns) == columns
    assert lake.days(home) == []
    assert lake.landings(home) == []


def test_a_view_before_a_moment_knows_only_what_had_happened_and_had_been_received(home):
    late = redelivered(GIVEN.slice(0, 1), 48)
    lake.land_tables(home, events=pa.concat_tables([late, GIVEN.slice(1)]))
    with lake.connect(home, before=START + timedelta(days=1)) as engine:
        assert engine.sql("SELECT count(*) FROM events").fetchall() == [(14,)]
    with lake.connect(home, before=START + timedelta(days=3)) as engine:
        assert engine.sql("SELECT count(*) FROM events").fetchall() == [(45,)]


def test_a_reader_sees_the_lake_as_it_was_when_it_connected(home):
    lake.land_tables(home, events=GIVEN)
    with lake.connect(home) as engine:
        lake.land_tables(home, events=shop(4, rows_a_day=30, seed=1, first=START + timedelta(hours=1)), batch_id="more")
        assert engine.sql("SELECT count(*) FROM events").fetchall() == [(60,)]
    with lake.connect(home) as engine:
        assert engine.sql("SELECT count(*) FROM events").fetchall()[0][0] > 60


def test_a_lake_refuses_the_batches_of_another_source(home):
    lake.land_tables(home, events=GIVEN, source="shop")
    with pytest.raises(StateError, match=r"a batch from films; expected batches from shop.*RELOOP_HOME"):
        lake.land_tables(home, events=GIVEN, source="films")


def test_only_a_judged_batch_lands(home):
    window = stage(home, "b", 1, events=shop(1))
    with pytest.raises(StateError, match=r"no judged tables.*validate it first"):
        lake.land(home, window.end, "b")
    assert not (home.lake / "events").exists()


def test_a_landing_is_recorded_for_the_cycle_and_the_source_is_remembered(home):
    window = stage(home, "b", 2, events=shop(2), items=catalogue(), facts={"settings": {"ranking": {"seed": 3}}})
    checkpoint.validate_batch(home, window.end, "b")
    report = lake.land(home, window.end, "b")
    (record,) = cycle.records(home, window.end, "ingest")
    assert (record["rows"], record["key"], record["source"], record["state"]) == (report.rows, "b", "shop", "done")
    assert report.rows == {"read": 400, "accepted": 400, "quarantined": 0, "duplicates": 0}
    assert report.window == [window.start.isoformat(), window.end.isoformat()]
    assert (
        home.lake / "_source.json"
    ).read_text() == '{\n  "settings": {\n    "ranking": {\n      "seed": 3\n    }\n  },\n  "source": "shop"\n}\n'
