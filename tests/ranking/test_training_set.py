"""The ranker's rows: what is kept, in what order, and that nothing of the window reaches them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranking_world import AS_OF, SOURCES, event_table, fill
from stock_feast import StockStore

from pipelines import config, cycle, lake, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.errors import StateError
from pipelines.features import historical
from pipelines.ranking import training_set
from pipelines.ranking.protocol import schema_hash
from pipelines.retrieval import blend
from pipelines.tables import TIMESTAMP
from pipelines.window import DAY, micros


@pytest.fixture(scope="module")
def built(shop):
    training_set.build(shop, AS_OF)
    return shop


def test_every_kept_list_has_a_positive_and_a_bounded_number_of_others(built):
    rows = training_set.load(built, AS_OF)
    starts = np.concatenate([[0], np.cumsum(rows.group)])
    positives = np.add.reduceat(rows.gain > 0, starts[:-1])
    assert len(rows.group) > 100
    assert positives.min() >= 1
    assert (rows.group - positives).max() == config.load(built).ranking.negatives_per_user
    assert sorted(set(rows.window.tolist())) == [0, 1]


def test_labels_are_graded_by_the_strongest_event(built):
    assert set(np.unique(training_set.load(built, AS_OF).gain)) == {0.0, 1.0, 3.0}


def test_the_record_counts_what_was_written(built):
    (record,) = cycle.records(built, AS_OF, "training_set")
    rows = training_set.load(built, AS_OF)
    assert record["training_rows"] == len(rows.gain)
    assert record["positives"] == int((rows.gain > 0).sum())
    assert record["groups"] == len(rows.group)
    assert record["features"] == len(rows.names) == rows.features.shape[1]


def test_the_manifest_carries_the_schema(built):
    facts = publish.manifest(training_set.folder(built, AS_OF)).facts
    assert facts["schema_hash"] == schema_hash(training_set.load(built, AS_OF).names)
    assert {f"{source}_rank" for source in SOURCES} < set(facts["features"])


def test_training_rows_are_those_of_stock_feast(built, monkeypatch):
    """Joined by Feast's own DuckDB store instead of ours, the training set has the same bytes."""
    before = publish.manifest(training_set.folder(built, AS_OF))
    monkeypatch.setattr(historical, "open_store", StockStore)
    training_set.build(built, AS_OF)
    assert publish.manifest(training_set.folder(built, AS_OF)) == before


def test_the_same_run_gives_the_same_bytes(built):
    before = publish.manifest(training_set.folder(built, AS_OF))
    training_set.build(built, AS_OF)
    assert publish.manifest(training_set.folder(built, AS_OF)) == before


def test_every_block_size_gives_the_same_rows(built, monkeypatch):
    from pipelines.ranking import proposals

    before = training_set.load(built, AS_OF)
    monkeypatch.setattr(proposals.Proposals.blocks, "__defaults__", (7,))
    training_set.build(built, AS_OF)
    after = training_set.load(built, AS_OF)
    assert np.array_equal(before.features, after.features, equal_nan=True)
    assert before.group.tolist() == after.group.tolist()


def test_features_are_those_known_at_the_cutoff(built):
    """Every stored feature of every row equals a count made from the lake, before the cutoff, by hand."""
    world = universe.load(built, AS_OF)
    checked = 0
    for fold in world.folds[:-1]:
        table = pq.read_table(training_set.folder(built, AS_OF) / f"{fold.name}.parquet")
        with lake.connect(built, before=fold.cutoff) as db:
            seven = f"event_at >= TIMESTAMPTZ '{(fold.cutoff - 7 * DAY).isoformat()}'"
            by_user = dict(db.execute(f"SELECT user_id, count(*) FILTER ({seven}) FROM events GROUP BY 1").fetchall())
            by_item = dict(db.execute(f"SELECT item_id, count(*) FROM events WHERE {seven} GROUP BY 1").fetchall())
            shelves = dict(db.execute("SELECT item_id, category FROM items").fetchall())
            by_pair = {
                (user, shelf): n
                for user, shelf, n in db.execute(
                    f"SELECT user_id, category, count(*) FILTER ({seven}) FROM events JOIN items USING (item_id) GROUP BY ALL"
                ).fetchall()
            }
            brands = dict(db.execute("SELECT item_id, brand FROM items").fetchall())
            by_brand = {
                (user, brand): n
                for user, brand, n in db.execute(
                    f"SELECT user_id, brand, count(*) FILTER ({seven}) FROM events JOIN items USING (item_id) WHERE brand IS NOT NULL GROUP BY ALL"
                ).fetchall()
            }
            own = {(u, i): n for u, i, n in db.execute("SELECT user_id, item_id, count(*) FROM events GROUP BY ALL").fetchall()}
        for row in table.to_pylist():
            user, item = str(world.user_ids[row["user"]]), str(world.item_ids[row["item"]])
            assert row["own_item_count"] == own.get((user, item), 0)
            assert row["item_daily__events_7d"] == by_item.get(item, 0)
            for found, known in (
                (row["user_daily__events_7d"], by_user.get(user)),
                (row["user_category_daily__events_30d"], by_pair.get((user, shelves[item]))),
                (row["user_brand_daily__events_30d"], by_brand.get((user, brands[item]))),
            ):
                assert np.isnan(found) if known is None else found == known
            checked += 1
    assert checked > 1000


def test_what_happens_or_arrives_after_the_cutoffs_changes_no_row_but_labels(built, tmp_path):
    """Plant events inside the windows and corrections that arrive late: features, scores and ranks stay, to the bit."""
    first = universe.load(built, AS_OF).folds[0].cutoff
    inside = pa.array([micros(first) + hour * 3_600_000_000 for hour in range(1, 201)], pa.int64()).cast(TIMESTAMP)
    late = pa.array([micros(first - 3 * DAY)] * 200, pa.int64()).cast(TIMESTAMP)
    users, things = [f"u{n % 120:03d}" for n in range(200)], [f"i{n % 48:02d}" for n in range(200)]
    happened = event_table(users, things, ["view"] * 200, inside, prefix="future")
    corrected = event_table(users, things, ["purchase"] * 200, late, received=inside, prefix="late")
    other = Home(tmp_path / "planted")
    fill(other, pa.concat_tables([happened, corrected]))
    training_set.build(other, AS_OF)
    for path in (blend.folder(built, AS_OF), blend.folder(other, AS_OF)):
        assert (path / "rank_1.parquet").is_file()
    keys = ["user", "item"]
    before = pq.read_table(training_set.folder(built, AS_OF) / "rank_1.parquet").to_pandas().set_index(keys)
    after = pq.read_table(training_set.folder(other, AS_OF) / "rank_1.parquet").to_pandas().set_index(keys)
    shared = before.index.intersection(after.index)
    assert len(shared) > 0.5 * len(before)
    features = [name for name in before.columns if name not in training_set.KEYS]
    assert np.array_equal(before.loc[shared, features].to_numpy(), after.loc[shared, features].to_numpy(), equal_nan=True)
    assert (before.loc[shared, "gain"] != after.loc[shared, "gain"]).any()  # the plant was seen where it should be


def test_no_candidates_at_all_make_no_rows_but_the_same_columns(built, monkeypatch):
    """Nobody's positives are among the candidates: there is nothing to learn, and nothing fails."""
    names = training_set.load(built, AS_OF).names
    with monkeypatch.context() as patched:
        patched.setattr(blend, "batches", lambda home, as_of, fold, _: [blend.candidates(home, as_of, fold)[:0]])
        training_set.build(built, AS_OF)
    rows = training_set.load(built, AS_OF)
    assert rows.names == names
    assert (len(rows.gain), len(rows.group)) == (0, 0)
    training_set.build(built, AS_OF)


def test_candidates_of_another_universe_are_refused(built, tmp_path):
    other = Home(tmp_path / "moved")
    fill(other)
    moment = pa.array([micros(AS_OF - DAY)], pa.int64()).cast(TIMESTAMP)
    lake.land_tables(other, events=event_table(["u000"], ["i00"], ["view"], moment, prefix="new"))
    universe.ensure(other, AS_OF)
    with pytest.raises(StateError, match="of universe"):
        training_set.build(other, AS_OF)


def test_a_changed_file_is_refused(built):
    training_set.build(built, AS_OF)
    file = training_set.folder(built, AS_OF) / "rank_1.parquet"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(StateError, match="differ from its manifest"):
        training_set.load(built, AS_OF)
    training_set.build(built, AS_OF)
