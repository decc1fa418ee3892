"""The splits that published tables are computed on are cut as they were printed."""

import numpy as np
import paper_data
import pytest


def test_the_last_of_each_sequence_is_held_out():
    split = paper_data.leave_last_out(np.array([0, 0, 0, 1, 1]), np.array([4, 2, 3, 1, 0]), 2, 5)
    assert (split.known.user.tolist(), split.known.item.tolist()) == ([0, 0, 1], [4, 2, 1])
    assert (split.indptr.tolist(), split.item.tolist()) == ([0, 1, 2], [3, 0])
    again = paper_data.leave_last_known_out(split)
    assert (again.known.item.tolist(), again.item.tolist()) == ([4], [2, 1])


def test_a_share_of_each_users_events_is_held_out_and_nothing_is_lost():
    user, item = np.repeat(np.arange(20), 30), np.tile(np.arange(30), 20)
    whole = paper_data.Split(paper_data.interactions(user, item, 20, 30), np.zeros(21, dtype=np.int64), np.zeros(0, dtype=np.int64))
    part = paper_data.leave_share_out(whole, 0.2, seed=1)
    assert 60 < len(part.item) < 180
    for row in range(20):
        held = part.item[part.indptr[row] : part.indptr[row + 1]]
        assert sorted([*held, *part.known.item[part.known.user == row]]) == list(range(30))


def test_one_of_each_users_items_is_ranked_among_99_that_it_never_met():
    rng = np.random.default_rng(0)
    met = [np.sort(rng.choice(200, 20, replace=False)) for _ in range(10)]
    user, item = np.repeat(np.arange(10), 20), np.concatenate(met)
    whole = paper_data.Split(paper_data.interactions(user, item, 10, 200), np.zeros(11, dtype=np.int64), np.zeros(0, dtype=np.int64))
    part = paper_data.leave_one_known_out(whole)
    assert len(part.item) == 10
    for row in range(10):
        assert sorted([part.item[row], *part.known.item[part.known.user == row]]) == met[row].tolist()
        assert len(np.unique(part.negatives[row])) == 99
        assert not np.isin(part.negatives[row], met[row]).any()


@pytest.mark.slow
def test_the_public_files_have_the_published_sizes(real_data):
    sizes = {
        paper_data.ml_1m_sequences: (6040, 3416, 999_611 - 6040, 6040),
        paper_data.beauty: (22_363, 12_101, 198_502 - 22_363, 22_363),
        paper_data.gowalla: (29_858, 40_981, 810_128, 217_242),
        paper_data.ncf_ml_1m: (6040, 3706, 994_169, 6040),
    }
    for load, size in sizes.items():
        split = load(real_data)
        assert (len(split.known.user_ids), len(split.known.item_ids), len(split.known.item), len(split.item)) == size
