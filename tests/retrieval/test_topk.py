"""The best k, exactly."""

import numpy as np
import pytest
from scipy import sparse

from pipelines.datasets.interactions import Histories
from pipelines.retrieval import neighbours, topk


def naive(scores, k):
    """Return the best k of each row, one by one."""
    rows = []
    for row in scores:
        order = [i for i in sorted(range(len(row)), key=lambda i: (-row[i], i)) if row[i] > -np.inf][:k]
        rows.append(order + [-1] * (k - len(order)))
    return np.array(rows).reshape(len(scores), k)


@pytest.mark.parametrize("k", [0, 1, 3, 10, 50])
def test_ties_at_the_cut_go_to_the_lower_index(k):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scores = rng.integers(-1, 3, (6, rng.integers(0, 20))).astype(np.float32)
        scores[rng.random(scores.shape) < 0.2] = -np.inf
        assert (topk.best(scores, k).item == naive(scores, k)).all()


def test_nan_is_never_proposed():
    scores = np.array([[np.nan, 1, np.nan, 3], [np.nan] * 4, [2, np.nan, 5, 1]], dtype=np.float32)
    assert topk.best(scores, 2).item.tolist() == [[3, 1], [-1, -1], [2, 0]]
    assert topk.best(scores, 6).item[:, :4].tolist() == [[3, 1, -1, -1], [-1] * 4, [2, 0, 3, -1]]


@pytest.mark.parametrize("share", [0.01, 0.5])  # packed, dense
def test_sparse_rows_give_their_positive_values_as_dense_ones_do(share):
    rng = np.random.default_rng(2)
    dense = np.where(rng.random((50, 300)) < share, rng.integers(-2, 6, (50, 300)), 0).astype(np.float32)
    dense[7] = rng.integers(1, 6, 300)
    found = topk.best_sparse(sparse.csr_matrix(dense), 9)
    assert (found.item == naive(np.where(dense > 0, dense, -np.inf), 9)).all()
    assert (found.item[7] >= 0).all()


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_the_strongest_weights_of_a_row_are_kept_with_their_sign(share):
    rng = np.random.default_rng(3)
    dense = np.where(rng.random((40, 200)) < share, rng.normal(size=(40, 200)), 0).astype(np.float32)
    for weights in (dense, sparse.csr_matrix(dense)):
        kept = neighbours.strongest(weights, 5).toarray()
        for row, before in zip(kept, dense, strict=True):
            wanted = np.argsort(-np.abs(before), kind="stable")[: min(5, np.count_nonzero(before))]
            assert sorted(np.flatnonzero(row)) == sorted(wanted)
            assert (row[wanted] == before[wanted]).all()


@pytest.mark.parametrize("k", [1, 3])
def test_a_row_so_wide_that_it_is_looked_over_in_groups_first_gives_the_same(k):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        width = int(rng.integers(2, 5) * topk.GROUPS * k + rng.integers(0, 50))
        scores = rng.integers(-3, 40, (5, width)).astype(np.float32)  # ties at the cut, some of them beyond the last group
        scores[rng.random(scores.shape) < 0.1] = -np.inf
        scores[rng.random(scores.shape) < 0.05] = np.nan
        scores[3] = -np.inf
        scores[4, : width - 1] = -np.inf
        place, indptr = topk.contenders(scores, k)
        assert len(place) < scores.size / 2, "most of the row is never ranked"
        assert indptr[-1] == len(place)
        assert (topk.best(scores, k).item == naive(np.nan_to_num(scores, nan=-np.inf, neginf=-np.inf), k)).all()


def test_minus_zero_ties_with_zero():
    assert topk.best(np.array([[-1.0, -0.0, 0.0, -0.0]], dtype=np.float32), 3).item.tolist() == [[1, 2, 3]]


def test_what_a_user_met_is_left_out_of_a_sparse_row_however_its_values_lie(monkeypatch):
    rng = np.random.default_rng(5)
    dense = np.where(rng.random((30, 80)) < 0.3, rng.integers(1, 6, (30, 80)), 0).astype(np.float32)
    rows = sparse.csr_matrix(dense)
    for row in range(30):  # indices in falling order, as a product may leave them
        own = slice(rows.indptr[row], rows.indptr[row + 1])
        rows.indices[own], rows.data[own] = rows.indices[own][::-1].copy(), rows.data[own][::-1].copy()
    rows.has_sorted_indices = False
    length = rng.integers(0, 40, 30)
    item = rng.integers(0, 80, length.sum()).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(length)])
    seen = Histories(indptr, item, np.zeros(len(item), dtype=np.int64), np.zeros(len(item), dtype=np.float32), 80, 1)
    hidden = np.where(dense > 0, dense, -np.inf)
    hidden[seen.row_of_event(), item] = -np.inf
    assert (topk.best_sparse(rows, 6, seen).item == naive(hidden, 6)).all()
    monkeypatch.setattr(topk, "BLOCK", 200)
    assert (topk.best_sparse(rows, 6, seen).item == naive(hidden, 6)).all()
