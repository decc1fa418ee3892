"""One universe a run, whoever asks first and however many ask at once."""

import subprocess
import sys
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipelines import columns as c
from pipelines import lake, publish, tables
from pipelines.datasets import universe
from pipelines.errors import StateError
from pipelines.window import utc

START = utc("2025-01-06")
AS_OF = START + timedelta(days=35)
ENSURE = """
import sys
from pathlib import Path
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.window import utc
print(universe.ensure(Home(Path(sys.argv[1])), utc("2025-02-10")).digest)
"""


def week_of(day, user, item, late=timedelta(), request=None):
    """Return one purchase a day for a week, received that much later; a list may have led to it."""
    rows = {name: [None] * 7 for name in tables.EVENTS.names}
    at = [START + timedelta(days=day + n, hours=n) for n in range(7)]
    rows[c.EVENT_ID] = [f"{user}-{item}-{day + n}" for n in range(7)]
    received = [moment + late for moment in at]
    rows |= {c.USER_ID: [user] * 7, c.ITEM_ID: [item] * 7, c.EVENT_TYPE: [c.PURCHASE] * 7, c.EVENT_AT: at, c.RECEIVED_AT: received}
    rows[c.REQUEST_ID] = [request] * 7
    return pa.table(rows, schema=tables.EVENTS)


@pytest.fixture
def shop(home):
    weeks = [week_of(7 * week, f"u{week % 2}", f"i{week}") for week in range(6)]  # the sixth lies after as_of
    lake.land_tables(home, events=pa.concat_tables(weeks))
    return home


def test_it_holds_what_is_known_as_of_the_run_and_nothing_later(shop):
    found = universe.ensure(shop, AS_OF)
    assert (found.user_ids.tolist(), found.item_ids.tolist()) == (["u0", "u1"], ["i0", "i1", "i2", "i3", "i4"])
    truth = found.labels("judge")
    assert (truth.user_ids.tolist(), truth.item_ids[truth.item].tolist(), truth.gain.tolist()) == (["u0"], ["i4"], [3.0])
    with pytest.raises(StateError, match="fold 'rank_9': not in this run"):
        found.labels("rank_9")


@pytest.mark.parametrize(
    ("settings", "judged", "says"),
    [
        ("[gate]\nmin_users = 2", ["u0", "u1"], "judged by what no list led to: 2 of 3 users with a label"),
        ("[gate]\nmin_users = 3", ["led", "u0", "u1"], "2 of 3 users with a label did anything else, 3 are needed (gate.min_users)"),
        ('[gate]\nmin_users = 2\n[training]\njudge_on = "all"', ["led", "u0", "u1"], "training.judge_on is all"),
    ],
)
def test_models_are_judged_by_what_no_list_led_to_where_enough_users_did_that(shop, settings, judged, says):
    """An event that names a request speaks for whoever made the list; the ranker learns from it all the same."""
    (shop.root / "reloop.toml").write_text(settings)
    led = [week_of(21, "led", "i0", request="r0"), week_of(28, "led", "i3", request="r1"), week_of(28, "u0", "i2", request="r2")]
    lake.land_tables(shop, events=pa.concat_tables([*led, week_of(28, "u1", "i1")]), batch_id="led")
    found = universe.ensure(shop, AS_OF)
    truth = found.labels("judge")
    assert truth.user_ids.tolist() == judged
    assert says in found.judged_by
    pairs = set(zip(truth.user_ids[truth.row_of_label()], truth.item_ids[truth.item], strict=True))
    assert (("u0", "i2") in pairs) == ("led" in judged)
    assert {("u0", "i4"), ("u1", "i1")} <= pairs
    assert "led" in found.labels(found.folds[-2].name).user_ids


def test_where_no_event_names_a_request_nothing_is_left_out(shop):
    assert universe.ensure(shop, AS_OF).judged_by == ""


def test_what_was_received_in_the_judged_week_is_no_label_for_the_ranker(shop):
    """Purchases of the ranker's newest week: two days late some are in time, a week late none is."""
    lake.land_tables(shop, events=week_of(21, "late", "i0", late=timedelta(days=2)), batch_id="late")
    found = universe.ensure(shop, AS_OF)
    cutoff = found.fold("judge").cutoff
    newest = found.labels(found.folds[-2].name)
    (row,) = np.flatnonzero(newest.user_ids == "late")
    assert found.folds[-2].window.end == cutoff == START + timedelta(days=28)
    assert newest.gain[newest.indptr[row] : newest.indptr[row + 1]].tolist() == [3.0]

    lake.land_tables(shop, events=week_of(21, "later", "i0", late=timedelta(days=7)), batch_id="later")
    found = universe.ensure(shop, AS_OF)
    assert "later" in found.user_ids
    assert "later" not in found.labels(found.folds[-2].name).user_ids


def test_a_label_on_an_item_no_model_could_know_is_in_the_catalogue(shop):
    found = universe.ensure(shop, AS_OF)
    known = found.interactions(found.fold("judge").cutoff, universe.TrainingSettings())
    new = np.setdiff1d(found.labels("judge").item, known.item)
    assert found.item_ids[new].tolist() == ["i4"]


def test_it_is_kept_until_the_lake_changes(shop):
    first = universe.ensure(shop, AS_OF)
    manifest = first.path / publish.MANIFEST
    written = manifest.stat().st_mtime_ns
    assert universe.ensure(shop, AS_OF).digest == first.digest
    assert manifest.stat().st_mtime_ns == written
    lake.land_tables(shop, events=week_of(0, "u7", "i7"), batch_id="late")
    assert "u7" in universe.ensure(shop, AS_OF).user_ids


def test_sources_that_ask_at_once_get_the_same_one(shop):
    asked = [subprocess.Popen([sys.executable, "-c", ENSURE, str(shop.root)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=120)[0].strip() for process in asked}
    assert [process.returncode for process in asked] == [0, 0, 0]
    assert answers == {universe.load(shop, AS_OF).digest}
