"""Online equals offline at the moment of materialisation, for every view; one planted difference blocks."""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from feature_world import END, day

from pipelines import cycle
from pipelines.config import Home
from pipelines.errors import ReloopError, StateError
from pipelines.features import build, item_snapshot, parity, repository, store

SNAPSHOT = "item_daily in the item snapshot"


@pytest.fixture
def lived(lived: Home) -> Home:
    """Return the copy with its own paths in its registry."""
    store.apply(lived)
    return lived


def verdict(home: Home, as_of: datetime = END) -> dict:
    (record,) = cycle.records(home, as_of, "parity")
    return record


def edit(home: Home, mart: str, column: str, change) -> None:
    """Rewrite one feature of the published day END, as a defect after materialisation would."""
    file = home.features / mart / f"as_of={END:%F}.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, table.schema.field(place), change(table[column])), file)


def test_every_view_is_equal_after_materialising_and_the_report_says_so(lived: Home):
    store.materialize(lived, END)
    parity.check(lived, END)
    report = json.loads(parity.report_file(lived, END).read_text())
    assert report["verdict"] == "equal"
    assert set(report["views"]) == {*build.MARTS, SNAPSHOT}
    for name, view in report["views"].items():
        assert view["at"] == END.isoformat()
        rows = pq.read_metadata(lived.features / name.partition(" ")[0] / f"as_of={END:%F}.parquet").num_rows
        assert view["entities"] >= rows + parity.STRANGERS, name
        assert {feature["compared"] for feature in view["features"].values()} == {view["entities"]}
        assert {feature["mismatch_rate"] for feature in view["features"].values()} == {0.0}
    record = verdict(lived)
    assert record["verdict"] == "equal"
    assert sum(view["values"] for view in record["views"].values()) > 1000


def test_a_planted_difference_blocks_and_is_named_with_its_rate_and_size(lived: Home):
    store.materialize(lived, END)
    edit(lived, "user_daily", "events_30d", lambda column: pc.add(column, pa.scalar(3, pa.int32())))
    with pytest.raises(ReloopError, match=r"user_daily:events_30d differs for \d+ of \d+ entities"):
        parity.check(lived, END)
    users = pq.read_metadata(lived.features / "user_daily" / f"as_of={END:%F}.parquet").num_rows
    feature = json.loads(parity.report_file(lived, END).read_text())["views"]["user_daily"]["features"]["events_30d"]
    assert feature["mismatches"] == users
    assert feature["compared"] == users + parity.STRANGERS
    assert feature["mismatch_rate"] == users / (users + parity.STRANGERS)
    assert feature["max_difference"] == 3.0
    assert feature["examples"][0]["online"] + 3 == feature["examples"][0]["offline"]
    record = verdict(lived)
    assert record["state"] == "failed"
    assert record["verdict"] == "blocked"
    assert record["views"]["item_daily"]["mismatch_rate"] == 0.0


def test_a_value_that_is_null_on_one_side_is_a_difference(lived: Home):
    store.materialize(lived, END)
    edit(lived, "item_daily", "price", lambda column: pa.nulls(len(column), pa.float64()))
    with pytest.raises(ReloopError, match=r"item_daily:price .* None offline"):
        parity.check(lived, END)


def test_an_entity_that_lingers_online_is_a_difference(lived: Home):
    """A row that only the online store still has: what was deleted offline must not go on answering."""
    store.materialize(lived, END)
    for file in (lived.features / "item_daily").glob("*.parquet"):
        table = pq.read_table(file)
        kept = pc.not_equal(table["item_id"], "i1") if f"{END:%F}" in file.name else pc.is_valid(table["item_id"])
        pq.write_table(
            table.filter(
                pc.and_(
                    kept,
                    pc.or_(pc.not_equal(table["item_id"], "i1"), pc.less(table["as_of"], pa.scalar(day(20), pa.timestamp("us", "UTC")))),
                )
            ),
            file,
        )
    with pytest.raises(ReloopError, match=r"item_daily"):
        parity.check(lived, END)


def test_a_store_that_is_at_a_later_day_is_compared_at_that_day(lived: Home):
    store.materialize(lived, END)
    parity.check(lived, day(30))
    report = json.loads(parity.report_file(lived, day(30)).read_text())
    assert {view["at"] for view in report["views"].values()} == {END.isoformat()}


def test_a_sample_is_the_same_for_a_seed_and_another_for_another(lived: Home):
    feast = repository.open_store(lived)
    view = feast.get_feature_view("user_category_daily")
    draws = [parity._sampled(lived, view, END, 10, seed).to_pylist() for seed in (1, 1, 2)]
    assert [len(draw) for draw in draws] == [10 + parity.STRANGERS] * 3
    assert draws[0] == draws[1] != draws[2]


def test_a_day_the_store_has_not_reached_is_refused_and_not_certified(lived: Home):
    store.materialize(lived, END)
    with pytest.raises(StateError, match=rf"materialised to {END:%F}"):
        parity.check(lived, day(60))
    assert not parity.report_file(lived, day(60)).exists()
    assert not list(cycle.records(lived, day(60), "parity")), "what was never compared is no run of the stage"


def test_asked_for_more_than_there_is_the_newest_day_is_what_counts(lived: Home):
    """`feast materialize-incremental` up to now, over marts of last year; then the pipeline goes on as if nothing had been."""
    store.materialize(lived, END)
    repository.open_store(lived).materialize_incremental(day(600))
    store.materialize(lived, END)
    parity.check(lived, END)
    report = json.loads(parity.report_file(lived, END).read_text())
    assert {view["at"] for view in report["views"].values()} == {END.isoformat()}
    assert cycle.records(lived, END, "materialize")[0]["online"]["item_daily"] == 12


@pytest.mark.parametrize("copy", ["numbers", "rows"])
def test_an_item_snapshot_that_says_something_else_blocks(lived: Home, copy: str):
    store.materialize(lived, END)
    folder = item_snapshot.folder(lived) / json.loads((item_snapshot.folder(lived) / item_snapshot.POINTER).read_text())["folder"]
    if copy == "numbers":
        numbers = np.load(folder / item_snapshot.NUMBERS)
        numbers[0, 0] += 1
        np.save(folder / item_snapshot.NUMBERS, numbers)
    else:
        rows = pa.ipc.open_file(str(folder / item_snapshot.ROWS)).read_all()
        place = rows.column_names.index("item_daily__category")
        with pa.ipc.new_file(str(folder / item_snapshot.ROWS), rows.schema) as writer:
            writer.write_table(rows.set_column(place, rows.schema.field(place), pa.array(["c9"] * len(rows), pa.string())))
    with pytest.raises(ReloopError, match=f"{SNAPSHOT}:.* differs for"):
        parity.check(lived, END)


def test_what_was_never_materialised_is_an_error(lived: Home):
    with pytest.raises(StateError, match="nothing materialised"):
        parity.check(lived, END)


def test_a_corrupted_online_value_blocks(lived: Home):
    """The fault may as well be the online store's: an hour of another writer's values, moments untouched."""
    store.materialize(lived, END)
    with sqlite3.connect(lived.feast / "online.db") as database:
        (table,) = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'") if "item_daily" in name]
        one = database.execute(f"SELECT value FROM {table} WHERE feature_name = 'popularity_rank_7d' LIMIT 1").fetchone()[0]
        database.execute(f"UPDATE {table} SET value = ? WHERE feature_name = 'popularity_rank_7d'", [one])
    database.close()
    with pytest.raises(ReloopError, match="item_daily:popularity_rank_7d"):
        parity.check(lived, END)
