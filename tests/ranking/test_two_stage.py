"""The model as it runs: what it serves is what was judged, whole or not at all."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import lightgbm
import numpy as np
import pytest
from ranking_world import AS_OF, ITEMS_PER_SHELF, SHELVES, SOURCES

from pipelines import config, publish
from pipelines.datasets import universe
from pipelines.datasets.interactions import Histories, histories, positions
from pipelines.errors import StateError
from pipelines.ranking import newcomers, proposals, training, training_set, trees, two_stage
from pipelines.ranking.lambdarank import LambdaRank
from pipelines.ranking.two_stage import TwoStage
from pipelines.retrieval import blend


@pytest.fixture(scope="module")
def run(shop):
    training_set.build(shop, AS_OF)
    training.train(shop, AS_OF)
    return shop


@pytest.fixture(scope="module")
def model(run):
    return two_stage.of_run(run, AS_OF)


@pytest.fixture(scope="module")
def judged(run):
    world = universe.load(run, AS_OF)
    return world.labels("judge").user_ids, world.fold("judge").cutoff


@pytest.fixture(scope="module")
def lists(run, model, judged):
    return two_stage.rank_users(run, model, *judged, 10)


def favourites(user_ids):
    users = [int(user[1:]) for user in user_ids]
    return np.array([f"i{u % SHELVES * ITEMS_PER_SHELF + u // SHELVES % ITEMS_PER_SHELF:02d}" for u in users])


def test_people_get_what_they_come_back_for_first(lists):
    assert (lists.item_ids[:, 0] == favourites(lists.user_ids)).mean() > 0.9


def test_lists_hold_each_item_once_best_first(lists):
    assert (np.diff(lists.score, axis=1) <= 0).all()
    assert all(len(set(row)) == len(row) for row in lists.item_ids)


def test_every_item_says_who_proposed_it(lists):
    found = {name for row in range(20) for rank in range(10) for name in lists.sources_of(row, rank)}
    assert found == set(SOURCES)
    assert (lists.sources > 0).all()


def test_a_users_list_does_not_depend_on_who_else_is_asked_for(run, model, judged, lists, monkeypatch):
    monkeypatch.setattr(two_stage, "USERS_AT_ONCE", 40)
    user_ids, cutoff = judged
    some = two_stage.rank_users(run, model, user_ids[::-1], cutoff, 10)
    assert some.item_ids[::-1].tolist() == lists.item_ids.tolist()
    assert np.array_equal(some.score[::-1], lists.score)


def test_an_unknown_user_gets_what_is_popular(run, model, judged):
    _, cutoff = judged
    found = two_stage.rank_users(run, model, np.array(["nobody"]), cutoff, 5)
    assert (found.item_ids != "").all()
    assert {name for rank in range(5) for name in found.sources_of(0, rank)} == {"popular", "popular_7d"}


def test_nobody_asked_nothing_listed(run, model, judged):
    assert two_stage.rank_users(run, model, np.empty(0, "U1"), judged[1], 5).item_ids.shape == (0, 5)


def test_a_saved_model_ranks_the_same_to_the_last_bit_and_loads_without_pickle(run, model, judged, lists, tmp_path):
    model.save(tmp_path / "model")
    unpickled = []
    sys.addaudithook(lambda event, _: unpickled.append(event) if event == "pickle.find_class" else None)
    loaded = TwoStage.load(tmp_path / "model")
    assert unpickled == []
    again = two_stage.rank_users(run, loaded, *judged, 10)
    assert again.item_ids.tolist() == lists.item_ids.tolist()
    assert np.array_equal(again.score, lists.score)


def test_a_release_of_before_there_were_several_rankers_ranks_the_same(run, model, judged, lists, tmp_path):
    """Its folder said `ranker: true`, and lambdarank was described by features.json."""
    model.save(tmp_path / "model")
    with publish.folder(tmp_path / "old", {}) as out:
        shutil.copytree(tmp_path / "model", out, dirs_exist_ok=True)
        (out / publish.MANIFEST).unlink()
        facts = json.loads((out / "two_stage.json").read_text())
        (out / "two_stage.json").write_text(publish.to_json(facts | {"ranker": True}))
        said = json.loads((out / "ranker" / "ranker.json").read_text())
        six = ("learning_rate", "num_leaves", "n_rounds", "min_data_in_leaf", "num_threads", "seed")
        described = {
            "features": said["features"],
            "schema_hash": said["schema_hash"],
            "model_sha256": said["files"]["model.txt"],
            "knobs": {knob: said["knobs"][knob] for knob in six},
        }
        (out / "ranker" / "features.json").write_text(publish.to_json(described))
        (out / "ranker" / "ranker.json").unlink()
    again = two_stage.rank_users(run, TwoStage.load(tmp_path / "old"), *judged, 10)
    assert again.item_ids.tolist() == lists.item_ids.tolist()
    assert np.array_equal(again.score, lists.score)


def test_a_request_is_blended_as_the_training_rows_were(run, model, judged, tmp_path):
    model.save(tmp_path / "model")
    assert len(set(model.recipe.weights.values())) > 1, "weights were learnt, and they differ"
    world = universe.load(run, AS_OF)
    known = world.interactions(world.fold("judge").cutoff, config.load(run).training)
    asked = TwoStage.load(tmp_path / "model").propose(histories(known, judged[0]))
    published = proposals.of_table(blend.candidates(run, AS_OF, "judge"), positions(judged[0], world.user_ids))
    for name in ("row", "item", "score", "rank", "blend_score", "blend_rank"):
        np.testing.assert_array_equal(getattr(asked, name), getattr(published, name))


def test_candidates_of_other_settings_are_no_part_of_a_model(run, monkeypatch):
    settings = config.load(run)
    other = settings.model_copy(update={"retrieval": settings.retrieval.model_copy(update={"k_blend": 20})})
    monkeypatch.setattr(config, "load", lambda _: other)
    with pytest.raises(StateError, match="blend again"):
        two_stage.of_run(run, AS_OF)


def test_saving_twice_gives_the_same_bytes_and_never_sweeps_away_other_files(model, tmp_path):
    model.save(tmp_path / "model")
    before = publish.manifest(tmp_path / "model")
    model.save(tmp_path / "model")
    assert publish.manifest(tmp_path / "model", verify=True) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("dear diary")
    with pytest.raises(StateError, match="other files"):
        model.save(tmp_path / "full")
    assert (tmp_path / "full" / "diary.txt").is_file()


@pytest.mark.parametrize(
    "file", ["ranker/model.txt", "ranker/ranker.json", "items.parquet", "two_stage.json", "retrieval/item_knn/state.npz"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
def test_a_damaged_model_is_refused_before_anything_is_parsed(model, tmp_path, monkeypatch, file, damage):
    model.save(tmp_path / "model")
    victim = tmp_path / "model" / file
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(raw if damage == "flip" else raw[: len(raw) // 2])
    monkeypatch.setattr(lightgbm, "Booster", lambda **_: pytest.fail("parsed a damaged model"))
    with pytest.raises(StateError, match=r"differ from its manifest|missing"):
        TwoStage.load(tmp_path / "model")


def test_a_ranker_that_reads_a_feature_nobody_makes_is_refused(run, model, judged):
    state = replace(model.ranker.state, names=("phase_of_the_moon", *model.ranker.state.names[1:]))
    other = replace(model, ranker=replace(model.ranker, state=state))
    with pytest.raises(StateError, match="phase_of_the_moon"):
        two_stage.rank_users(run, other, *judged, 10)


def test_features_made_after_training_are_left_out():
    ranker = LambdaRank(state=trees.Fitted("", ("b", "a"), {}, None))
    matrix = np.array([[1.0, 2.0, 3.0]], np.float32)
    assert two_stage.chosen(matrix, ("a", "new", "b"), ranker).tolist() == [[3.0, 1.0]]


def test_without_a_ranker_the_blend_is_served_in_its_own_order(run, model, judged):
    plain = replace(model, ranker=None, serves="blend")
    user_ids, cutoff = judged
    found = two_stage.rank_users(run, plain, user_ids[:5], cutoff, 24)
    assert (np.diff(found.score[found.item_ids != ""].reshape(-1)) <= 0).mean() > 0.9
    with pytest.raises(StateError, match="serves 'ranked'"):
        replace(model, ranker=None)


def test_a_ranker_that_did_not_earn_its_place_is_no_part_of_the_release(run, model, tmp_path):
    assert model.ranker is not None
    two_stage.of_run(run, AS_OF, serves="blend").save(tmp_path / "model")
    loaded = TwoStage.load(tmp_path / "model")
    assert (loaded.ranker, loaded.serves) == (None, "blend")
    assert not (tmp_path / "model" / "ranker").exists()


def test_no_source_is_served_alone(model):
    with pytest.raises(StateError, match="serves 'item_knn'"):
        replace(model, serves="item_knn")


def test_a_model_holds_nothing_of_any_user(model, tmp_path):
    model.save(tmp_path / "model")
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"u001" in path.read_bytes()]


def test_histories_of_another_catalogue_are_refused(run, model, judged):
    nothing = Histories(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32), 3, 0)
    with pytest.raises(StateError):
        model.recommend(run, np.array(["u000"]), nothing, judged[1], 5)


def test_exploration_is_off_until_the_settings_name_a_method_and_then_the_batch_path_records_propensities(run, model, judged, lists):
    assert lists.propensity is None
    kept = (run.root / "reloop.toml").read_text()
    try:
        knobs = '[exploration]\nmethod = "epsilon_greedy"\nslots = [3]\nshare = 0.5\nmax_age_days = 400\nmax_events = 100000\n'
        (run.root / "reloop.toml").write_text(kept + knobs)
        first, again = (two_stage.rank_users(run, model, *judged, 10) for _ in range(2))
    finally:
        (run.root / "reloop.toml").write_text(kept)
    drawn = np.array([first.sources_of(row, 2) == ("exploration",) for row in range(len(first.user_ids))])
    assert 0.3 < drawn.mean() < 0.7
    assert (first.item_ids == again.item_ids).all()
    assert (np.delete(first.item_ids, 2, axis=1) == np.delete(lists.item_ids, 2, axis=1)).all()
    assert (first.propensity[~drawn, 2] == 0.5).all()
    assert ((first.propensity[drawn, 2] > 0) & (first.propensity[drawn, 2] < 0.5)).all()
    shown = newcomers.impressions(first, request_ids=[judged[1].isoformat()] * len(first.user_ids), shown_at=judged[1])
    assert shown["propensity"].null_count == 0
