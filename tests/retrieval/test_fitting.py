"""Retrieval of one run from the lake to the candidates: what is published, what is judged, what must not leak."""

import sys
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipelines import columns as c
from pipelines import config, cycle, lake, publish, tables
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.errors import NotEnoughData, ReloopError, StateError
from pipelines.evaluation import metrics
from pipelines.retrieval import blend, fitting, lineup
from pipelines.retrieval.popular import Popular
from pipelines.window import utc

START, AS_OF = utc("2025-01-06"), utc("2025-02-10")  # five weeks: rank_1, rank_2 and judge fit behind two
SOURCES = ("popular", "item_knn", "repeat")


def shop(n_users=60, n_items=30, days=35, seed=0):
    """Return events of a shop in which even users like even items; every fifth event is received two days late."""
    rng = np.random.default_rng(seed)
    n = n_users * days // 2
    user, day = rng.integers(0, n_users, n), np.sort(rng.integers(0, days, n))
    item = rng.integers(0, n_items // 2, n) * 2 + user % 2
    at = [START + timedelta(days=int(d), seconds=int(s)) for d, s in zip(day, rng.integers(0, 86_400, n), strict=True)]
    columns = {name: [None] * n for name in tables.EVENTS.names}
    columns[c.EVENT_ID] = [f"e{number:05}" for number in range(n)]
    columns[c.USER_ID], columns[c.ITEM_ID] = [f"u{x:02}" for x in user], [f"i{x:02}" for x in item]
    columns[c.EVENT_TYPE] = [(c.VIEW, c.PURCHASE)[x] for x in rng.integers(0, 2, n)]
    columns[c.EVENT_AT] = at
    columns[c.RECEIVED_AT] = [moment + timedelta(days=2 * (number % 5 == 0)) for number, moment in enumerate(at)]
    return pa.table(columns, schema=tables.EVENTS)


@pytest.fixture
def run_home(home: Home) -> Home:
    home.root.mkdir(parents=True)
    (home.root / "reloop.toml").write_text(
        f"[retrieval]\nsources = {list(SOURCES)}\nk_per_source = 10\nk_blend = 15\n[training]\nmax_users_per_window = 25\n"
    )
    lake.land_tables(home, events=shop())
    return home


def fit_all(home):
    for source in SOURCES:
        fitting.fit(home, AS_OF, source)
    blend.blend(home, AS_OF)


def test_a_run_publishes_candidates_for_every_fold_that_any_stage_can_join_to_ids_and_labels(run_home):
    fit_all(run_home)
    world = universe.load(run_home, AS_OF)
    assert [fold.name for fold in world.folds] == ["rank_1", "rank_2", "judge"]
    for fold in world.folds:
        truth, table = world.labels(fold.name), blend.candidates(run_home, AS_OF, fold.name)
        assert table.column_names == [
            *("user", "item", "blend_score", "blend_rank"),
            *(f"score__{source}" for source in SOURCES),
            *(f"rank__{source}" for source in SOURCES),
        ]
        assert set(world.user_ids[table["user"].to_numpy()]) <= set(truth.user_ids)
        assert truth.n_users <= 25 or fold.name == "judge"
        ranks = table["blend_rank"].to_numpy()
        assert (np.diff(table["user"].to_numpy()) >= 0).all()
        assert ((np.diff(ranks) == 1) | (ranks[1:] == 1)).all()
        assert ranks.max() == 15
    assert world.labels("rank_1").n_users == 25, "sampled"
    assert world.labels("judge").n_users > 40, "everyone"


def test_the_records_say_what_the_files_say(run_home):
    fit_all(run_home)
    world = universe.load(run_home, AS_OF)
    truth = world.labels("judge")
    records = {record["key"]: record for record in cycle.records(run_home, AS_OF, "retrieval")}
    assert set(records) == set(SOURCES)
    for source in SOURCES:
        found = fitting.candidates(run_home, AS_OF, source, "judge", world.digest)
        judged = metrics.judge(found.item, truth.indptr, truth.item, truth.gain)
        assert records[source]["ndcg_at_10"] == pytest.approx(metrics.ndcg(judged, 10).mean())
        assert records[source]["users"] == truth.n_users
    (blended,) = cycle.records(run_home, AS_OF, "blend")
    assert blended["ceiling"] >= max(record["recall_at_50"] for record in records.values()) > 0


def test_the_published_state_is_the_one_that_made_the_judged_candidates(run_home):
    fitting.fit(run_home, AS_OF, "item_knn")
    world, settings = universe.load(run_home, AS_OF), config.load(run_home)
    known = world.interactions(world.fold("judge").cutoff, settings.training)
    loaded = lineup.load(fitting.folder(run_home, AS_OF, "item_knn"))
    again = loaded.retrieve(fitting.histories(known, world.labels("judge").user_ids), 10, exclude_seen=False)
    assert (again.item == fitting.candidates(run_home, AS_OF, "item_knn", "judge", world.digest).item).all()


def test_nothing_after_a_cutoff_reaches_its_candidates(run_home):
    """Events of the judged window, and earlier ones received in it, may change labels but no candidate."""
    fit_all(run_home)
    world = universe.load(run_home, AS_OF)
    cutoff = world.fold("judge").cutoff
    before = {source: fitting.candidates(run_home, AS_OF, source, "judge", world.digest) for source in SOURCES}
    users = world.labels("judge").user_ids

    planted = shop(seed=9).to_pylist()
    planted = [row for row in planted if row[c.RECEIVED_AT] >= cutoff and row[c.RECEIVED_AT] < AS_OF]
    assert any(row[c.EVENT_AT] < cutoff for row in planted), "some happened before the cutoff"
    for row in planted:
        row[c.EVENT_ID] = "planted " + row[c.EVENT_ID]
    lake.land_tables(run_home, events=pa.Table.from_pylist(planted, schema=tables.EVENTS), batch_id="planted")
    for source in SOURCES:
        fitting.fit(run_home, AS_OF, source)
    changed = universe.load(run_home, AS_OF)
    assert changed.digest != world.digest
    assert (changed.item_ids == world.item_ids).all()
    rows = np.searchsorted(changed.labels("judge").user_ids, users)
    for source in SOURCES:
        after = fitting.candidates(run_home, AS_OF, source, "judge", changed.digest)
        assert (after.item[rows] == before[source].item).all()
        assert (after.score[rows] == before[source].score).all()


def test_running_again_ends_in_the_same_bytes(run_home):
    fit_all(run_home)
    folder = universe.run_folder(run_home, AS_OF)
    first = {str(path): publish.digest(path) for path in folder.rglob("*") if path.is_file()}
    fit_all(run_home)
    assert first == {str(path): publish.digest(path) for path in folder.rglob("*") if path.is_file()}
    assert len(first) > 15


def test_candidates_of_another_universe_are_refused(run_home):
    fitting.fit(run_home, AS_OF, "popular")
    late = shop(n_items=40, seed=3)
    lake.land_tables(run_home, events=late.set_column(0, c.EVENT_ID, pa.array([f"late{n}" for n in range(len(late))])), batch_id="late")
    for source in SOURCES[1:]:
        fitting.fit(run_home, AS_OF, source)
    with pytest.raises(StateError, match="fit every source again"):
        blend.blend(run_home, AS_OF)


def test_too_short_a_history_is_no_failure_of_the_machine(home):
    lake.land_tables(home, events=shop(days=10))
    with pytest.raises(NotEnoughData, match="at least 28 days"):
        fitting.fit(home, START + timedelta(days=10), "popular")
    (record,) = cycle.records(home, START + timedelta(days=10), "retrieval")
    assert record["state"] == "failed"


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("two_tower", "jax", "neural"),
        ("gru4rec", "optax", "neural"),
        ("text_embedding", "onnxruntime", "text"),
        ("spark_als", "pyspark", "spark"),
    ],
)
def test_a_source_whose_extra_is_absent_fails_before_anything_is_read(home, monkeypatch, source, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    home.root.mkdir(parents=True)
    (home.root / "reloop.toml").write_text('[retrieval.parameters.text_embedding]\nencoder = "encoders/any"\n')
    with pytest.raises(ReloopError, match=rf"{package} is not installed; .* `{extra}`.* pip install 'reloop\[{extra}\]'"):
        fitting.fit(home, AS_OF, source)
    (record,) = cycle.records(home, AS_OF, "retrieval")
    assert (record["state"], f"{package} is not installed" in record["error"]) == ("failed", True)
    assert not home.training.exists()


def test_a_sentence_encoder_that_nobody_named_is_asked_for_before_anything_is_read(home):
    with pytest.raises(StateError, match=r"text_embedding: encoder: none is set.*reloop\.toml"):
        fitting.fit(home, AS_OF, "text_embedding")


class Killed(BaseException):
    """As a signal would."""


@dataclass(frozen=True)
class Slow(Popular):
    """Is killed in its first training of a fold, and then goes on from what it left."""

    def resume(self, interactions, checkpoint):
        if not checkpoint.is_file():
            publish.write_text(checkpoint, "half-way")
            raise Killed
        return self.fit(interactions)


def test_a_training_that_was_killed_goes_on_from_its_checkpoint_and_leaves_none_behind(run_home, monkeypatch):
    monkeypatch.setattr(lineup, "SOURCES", {"slow": Slow()})
    kept = fitting.checkpoints(run_home, AS_OF, "slow")
    for fold in ("rank_1", "rank_2", "judge"):
        with pytest.raises(Killed):
            fitting.fit(run_home, AS_OF, "slow")
        assert (kept / f"{fold}.npz").is_file()
    fitting.fit(run_home, AS_OF, "slow")
    assert not kept.exists()
    assert (fitting.folder(run_home, AS_OF, "slow") / "judge.npz").is_file()
