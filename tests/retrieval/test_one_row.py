"""A request's one row gives what scipy's matrices give, bit for bit and in their order."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from pipelines.datasets.interactions import Histories
from pipelines.retrieval import neighbours, one_row, topk


def history(rng, n_events, n_items=60):
    item = (n_items * rng.random(n_events) ** 3).astype(np.int32)
    return Histories(np.array([0, n_events]), item, np.arange(n_events), rng.random(n_events, np.float32), n_items, n_events)


def weights(rng, n_rows, n_columns, density=0.3):
    found = sparse.random(n_rows, n_columns, density, format="csr", dtype=np.float32, random_state=rng)
    found.data -= np.float32(0.3)
    return found


@pytest.mark.parametrize("n_events", [0, 1, 2, 9, 17, 200, 1000])
def test_events_are_added_as_scipy_adds_them(n_events):
    rng = np.random.default_rng(n_events)
    for _ in range(20):
        asking = history(rng, n_events)
        strength = np.where(rng.random(n_events) < 0.1, 0, rng.standard_normal(n_events)).astype(np.float32)
        row, theirs = one_row.of(asking, strength), asking.weighted(strength)
        assert row.column.tolist() == theirs.indices.tolist()
        assert row.value.tobytes() == theirs.data.tobytes()


@pytest.mark.parametrize("n_events", [0, 1, 9, 300])
def test_products_of_products_come_in_the_order_of_scipy(n_events):
    rng = np.random.default_rng(n_events)
    for k in (1, 5, 1000):
        asking, through, onto = history(rng, n_events), weights(rng, 60, 80), weights(rng, 80, 300)
        row = one_row.of(asking, asking.weight)
        mine, theirs = one_row.times(row, (through.data, through.indices, through.indptr), 80), (asking.matrix() @ through).tocsr()
        assert mine.column.tolist() == theirs.indices.tolist()
        assert mine.value.tobytes() == theirs.data.tobytes()
        near, nearest = one_row.strongest(mine, k), neighbours.strongest(theirs, k)
        assert near.column.tolist() == nearest.indices.tolist()
        last, scores = one_row.times(near, (onto.data, onto.indices, onto.indptr), 300), (nearest @ onto).tocsr()
        assert last.value.tobytes() == scores.data.tobytes()
        for seen in (None, Histories(asking.indptr, asking.item, asking.at, asking.weight, 300, asking.as_of)):
            found, expected = one_row.best(last, k, seen), topk.best_sparse(scores, k, seen)
            assert found.item.tolist() == expected.item.tolist()
            assert found.score.tobytes() == expected.score.tobytes()
