"""An index: what is let in, what is chosen, what changes without training, and what is kept on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ann_world import clustered, model, settings, visitors
from retriever_contract import assert_well_formed, everyone, world

from pipelines.datasets.interactions import histories
from pipelines.errors import StateError
from pipelines.model_settings import IndexSettings
from pipelines.retrieval import lineup
from pipelines.retrieval.ann import choosing, hygiene, keeping, plans
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.ann.plans import Plan
from pipelines.retrieval.protocol import Candidates, Vectored

N = 600


@pytest.fixture(scope="module")
def users():
    return visitors(N)


@pytest.fixture(scope="module")
def indexed(users):
    return Indexed(model(clustered(N)), settings("ivf")).over(users)


def test_every_kind_of_bad_vector_is_named_once_and_a_copy_is_not_its_original():
    vector = np.array([[1, 2], [np.nan, 1], [np.inf, np.nan], [0, -0.0], [3e30, 1], [1, 2], [4, 4], [np.nan, 0]], np.float32)
    found = hygiene.inspect(vector, np.array([True] * 7 + [False]))
    assert {kind: items.tolist() for kind, items in found.of_kind.items()} == {
        "nan": [1, 2],
        "infinite": [4],
        "zero": [3],
        "duplicate": [5],
    }
    assert found.facts()["nan"] == {"items": 2, "first": [1, 2]}
    assert found.n_checked == 7, "the last may not be proposed, so nobody minds"
    with pytest.raises(StateError, match=r"item vectors of als: 5 of 7 are bad \(2 nan: items \[1, 2\]; 1 infinite.*at most 0.10%"):
        found.refused_above(0.001, "als")


def test_items_liked_by_the_same_users_may_share_a_vector():
    liked = world([(0, 0, 1, 1), (1, 0, 1, 1), (0, 1, 9, 2), (1, 1, 5, 1), (0, 2, 1, 1), (1, 2, 1, 0)], 2, 3)
    vector = np.ones((3, 2), np.float32)
    evidence = hygiene.liked_by(liked)
    assert evidence[0] == evidence[1] != evidence[2], "when and how much they were liked does not matter, by whom does"
    assert hygiene.inspect(vector, np.ones(3, bool), lambda: evidence).items.tolist() == [2]
    assert not len(hygiene.inspect(vector, np.ones(3, bool), exact=True).items), "ties do no harm where everything is compared"


def test_lifting_turns_the_largest_product_into_the_nearest_vector():
    vector, query = np.array([[3, 0], [0, 1], [1, 1]], np.float32), np.array([[0.1, 1], [1, -1]], np.float32)
    length = plans.length_of(vector, np.ones(3, bool))
    assert length == 3
    lifted, asked = plans.lifted(vector, length), plans.asked(query, length)
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), 3, rtol=1e-6)
    apart = np.linalg.norm(asked[:, None] - lifted[None], axis=2)
    assert np.argsort(apart, axis=1).tolist() == np.argsort(-(query @ vector.T), axis=1).tolist()
    assert plans.length_of(vector[1:2] * [[1], [-1]], np.ones(2, bool)) == 0, "of one length already"


def test_recall_counts_what_scores_as_the_last_of_the_exact_list():
    exact = Candidates(np.array([[3, 1], [2, -1]], np.int32), np.array([[5, 4], [1, -np.inf]], np.float32))
    found = Candidates(np.array([[7, 9], [-1, -1]], np.int32), np.array([[4, 3], [-np.inf, -np.inf]], np.float32))
    assert choosing.recall(exact, exact) == 1
    assert choosing.recall(found, exact) == 0.25, "a tie with item 1, nothing of the second list"


def test_a_small_catalogue_is_compared_one_by_one_and_a_larger_one_is_not():
    assert plans.grid(49_999, IndexSettings()) == [Plan("flat")]
    assert plans.grid(0, IndexSettings(kind="ivf")) == [Plan("flat")]
    assert {plan.kind for plan in plans.grid(50_000, IndexSettings())} == {"ivf", "hnsw", "scan"}
    assert plans.grid(1_000_000, IndexSettings()) == [Plan("ivf", 4096, in_bytes=True), Plan("ivf", 4096), Plan("scan")]


def test_the_cheapest_that_reaches_the_target_is_chosen_and_measured_on_others(indexed):
    trials = [trial for trial in indexed.built.trials if trial["recall_at_100"] >= 0.99]
    assert trials
    chosen = min(trials, key=lambda trial: trial["work"])
    assert (indexed.index.plan.n_lists, indexed.index.plan.in_bytes) == (chosen["n_lists"], chosen["in_bytes"])
    assert indexed.built.recall_at_100 >= 0.98
    assert indexed.built.n_queries == 30, "half of the 60 that were asked"


def test_the_same_vectors_give_the_same_bytes(indexed, users, tmp_path):
    for name in ("first", "second"):
        lineup.save(tmp_path / name, "bpr", replace(indexed).over(users))
    files = {name: {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("first", "second")}
    assert set(files["first"]) == {"knobs.json", "state.npz", "index.json", "index.faiss", "index.npz"}
    assert files["first"] == files["second"]


def test_a_layout_that_did_before_is_taken_again_without_building_others(users):
    again = Indexed(model(clustered(N)), settings("ivf")).over(users, Plan("ivf", 128))
    assert {(trial["n_lists"], trial["in_bytes"]) for trial in again.built.trials} == {(128, False)}


def test_a_layout_that_finds_too_little_fails_the_build_and_says_what_it_reached(users):
    noise = np.random.default_rng(0).standard_normal((N, 8)).astype(np.float32)
    with pytest.raises(StateError, match=r"index of Bpr: recall@100 0\.\d+ .*expected at least 0.98. Hint: .*'flat'"):
        Indexed(model(noise), settings("auto", flat_below=1)).over(users)


def test_vectors_without_any_clusters_are_all_gone_through_in_halves(users):
    noise = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    vector, live, queries = noise, np.ones(len(noise), bool), np.random.default_rng(1).standard_normal((60, 64)).astype(np.float32)
    chosen = choosing.choose("noise", vector, live, queries, IndexSettings(flat_below=1, hnsw_below=1, target_recall=0.99, min_recall=0.98))
    assert chosen.index.plan == Plan("scan")
    assert chosen.recall_at_100 >= 0.98
    of_scan = [trial.work for trial in chosen.trials if trial.plan.kind == "scan"]
    assert min(trial.work for trial in chosen.trials if trial.recall_at_100 >= 0.99) in of_scan
    found, exact = chosen.index.search(queries, np.ones(60, bool), 150), chosen.index.exact(queries, 150)
    assert choosing.recall(found, exact) >= 0.98
    blocked = np.arange(len(noise)) % 2 == 0
    assert (chosen.index.search(queries, np.ones(60, bool), 150, blocked=blocked).item % 2 == 1).all()


def test_a_new_item_is_found_and_a_removed_one_is_not_without_training(indexed, users):
    asked = everyone(users)
    query, told = indexed.model.query_vectors(asked)
    twice = 2 * query[told][:1] / np.linalg.norm(query[told][0])
    changed = indexed.without(np.array([5, 6]), asked).with_items(np.array([5]), twice * 100, asked)
    found = changed.index.search(query[told][:1], np.ones(1, bool), N)
    assert found.item[0, 0] == 5, "by its new vector"
    assert 6 not in found.item
    assert (found.item >= 0).sum() == N - 1
    assert 6 in indexed.index.search(query[told][:1], np.ones(1, bool), N).item, "the index before is as it was"
    assert changed.built.recall_at_100 >= 0.98
    assert changed.built.n_queries == min(told.sum(), 60)


def test_a_change_that_the_layout_cannot_bear_is_refused(indexed, users):
    shell = np.random.default_rng(1).standard_normal((400, 8)).astype(np.float32)
    with pytest.raises(StateError, match=r"changed index of Bpr: recall@100 0\.\d+ over \d+ queries.*build it again"):
        indexed.with_items(np.arange(400), 50 * shell, everyone(users))


@pytest.mark.parametrize(
    ("items", "vector", "said"),
    [
        ([0, 0], np.ones((2, 8)), "distinct items"),
        ([N], np.ones((1, 8)), "distinct items"),
        ([-1], np.ones((1, 8)), "distinct items"),
        ([1], np.ones((1, 16)), r"expected \[1, 8\]"),
        ([1], np.full((1, 8), np.nan), "1 nan"),
        ([1], np.zeros((1, 8)), "1 zero"),
    ],
)
def test_vectors_that_do_not_fit_are_not_added(indexed, users, items, vector, said):
    with pytest.raises(StateError, match=said):
        indexed.with_items(np.array(items), vector.astype(np.float32), everyone(users))


def test_a_catalogue_grows_around_its_items_whatever_their_ids(indexed, users):
    ids, new = users.item_ids, np.array(["", "🦄" * 50, "i0" + "0" * 5000, "zz"])
    larger = np.sort(np.concatenate([ids, new]))
    grown = indexed.grown(ids, larger)
    asked = replace(users, item=np.searchsorted(larger, ids)[users.item].astype(np.int32), item_ids=larger)
    before = indexed.retrieve(everyone(users), 20, exclude_seen=True)
    after = grown.retrieve(everyone(asked), 20, exclude_seen=True)
    assert (np.where(before.item < 0, "", ids[before.item]) == np.where(after.item < 0, "", larger[after.item])).all()
    assert_well_formed(after, len(users.user_ids), 20, N + 4)
    unicorn = np.searchsorted(larger, new[1:2])
    query, told = indexed.model.query_vectors(everyone(users))
    found = grown.with_items(unicorn, query[told][:1] * 10, everyone(asked)).retrieve(everyone(asked), 5, exclude_seen=False)
    assert unicorn[0] in found.item
    with pytest.raises(StateError, match="not in the larger catalogue"):
        indexed.grown(ids, new)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "scan"])
def test_a_changed_index_answers_the_same_after_a_trip_to_disk(kind, users, tmp_path):
    asked = everyone(users)
    fitted = Indexed(model(clustered(N)), settings(kind)).over(users)
    changed = fitted.without(np.array([3]), asked).with_items(np.array([7]), np.ones((1, 8), np.float32), asked)
    lineup.save(tmp_path, "bpr", changed)
    loaded = lineup.load(tmp_path)
    assert isinstance(loaded, Indexed)
    before, after = (one.retrieve(asked, 50, exclude_seen=True) for one in (changed, loaded))
    assert (before.item == after.item).all()
    assert (before.score == after.score).all()
    assert loaded.built == changed.built


def test_no_damaged_byte_reaches_the_parser(indexed, tmp_path, monkeypatch):
    lineup.save(tmp_path, "bpr", indexed)
    content = (tmp_path / "index.faiss").read_bytes()
    monkeypatch.setattr(keeping.faiss, "deserialize_index", lambda _: pytest.fail("parsed before it was checked"))
    rng = np.random.default_rng(0)
    damaged = [content[:end] for end in (0, 1, 100, len(content) - 1)] + [content + b"\0"]
    for place in rng.integers(0, len(content), 50):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(0, 8)
        damaged.append(bytes(flipped))
    for one in damaged:
        (tmp_path / "index.faiss").write_bytes(one)
        with pytest.raises(StateError, match=r"index\.faiss: bytes that differ"):
            lineup.load(tmp_path)
    (tmp_path / "index.faiss").unlink()
    with pytest.raises(StateError, match=r"index\.faiss: missing"):
        lineup.load(tmp_path)


def test_an_index_beside_any_other_tower_is_refused(indexed, tmp_path):
    lineup.save(tmp_path, "bpr", indexed)
    facts = json.loads((tmp_path / "index.json").read_text())
    assert facts["release"] == keeping.release(indexed.model)
    for part in ("factor", "history"):  # the items' side of the product, the users' side
        state = indexed.model.state | {part: indexed.model.state[part] + np.float32(1e-6)}
        with (tmp_path / "state.npz").open("wb") as file:
            np.savez(file, **state)
        with pytest.raises(StateError, match=r"beside a model of release .*an index and a model of one release"):
            lineup.load(tmp_path)


def test_parts_that_do_not_fit_each_other_are_refused(indexed, tmp_path):
    lineup.save(tmp_path, "bpr", indexed)
    facts = json.loads((tmp_path / "index.json").read_text())
    for change in ({"n_factors": 16}, {"length": 0.0}, {"plan": {"kind": "hnsw", "n_lists": 0, "in_bytes": False}}):
        (tmp_path / "index.json").write_text(json.dumps(facts | change))
        with pytest.raises(StateError):
            lineup.load(tmp_path)


@pytest.mark.parametrize("source", ["als", "bpr", "nmf", "pure_svd"])
def test_the_products_of_both_sides_are_the_scores_of_the_source(source):
    users = visitors(120)
    fitted = lineup.make(source, {"n_factors": 8}).fit(users)
    assert isinstance(fitted, Vectored)
    asked = histories(users, users.user_ids)
    vector, live = fitted.item_vectors()
    query, told = fitted.query_vectors(asked)
    found = fitted.retrieve(asked, 5, exclude_seen=False)
    some = told[:, None] & (found.item >= 0)
    assert some.sum() > 100
    product = np.einsum("nd,nkd->nk", query, vector[found.item])
    np.testing.assert_allclose(found.score[some], product[some], rtol=1e-3, atol=1e-6)
    assert live[found.item[some & (product != 0)]].all()


def test_every_source_with_item_vectors_hands_them_out():
    vectored = {name for name, source in lineup.SOURCES.items() if isinstance(source, Vectored)}
    assert vectored >= {"als", "bpr", "pure_svd", "nmf", "two_tower", "lightgcn", "sasrec", "gsasrec", "gru4rec", "bert4rec"}
    assert not vectored & {"popular", "item_knn", "ease", "content"}
