"""How alike descriptions are: on paper."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from pipelines.datasets.interactions import Histories
from pipelines.ranking import likeness
from pipelines.ranking.contact import last_sessions, session

MINUTE = 60_000_000
DAY = 24 * 60 * MINUTE
# Three terms; item 3 says nothing.
VECTORS = sparse.csr_matrix(np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0, 0]], np.float32))
# User 0 met item 0 a day ago, then 1 and 2 within ten minutes; user 1 met item 3 alone; user 2 nothing.
HISTORIES = Histories(
    indptr=np.array([0, 3, 4, 4]),
    item=np.array([0, 1, 2, 3], np.int32),
    at=np.array([0, DAY - 12 * MINUTE, DAY - 2 * MINUTE, 5]),
    weight=np.ones(4, np.float32),
    n_items=4,
    as_of=DAY,
)


def test_a_session_ends_with_a_pause_of_half_an_hour():
    assert last_sessions(HISTORIES).tolist() == [1, 3, 4]
    events, minutes = session(HISTORIES)
    assert events.tolist() == [2, 0, 0]
    assert minutes.tolist() == [12, 0, 0]


def test_cosines_to_the_history_the_session_and_the_last_item():
    history, recent, last = likeness.profiles(HISTORIES, VECTORS)
    row, item = np.array([0, 0, 0, 1, 2]), np.array([0, 1, 3, 0, 0], np.int32)
    missing = [np.nan] * 3
    assert likeness.cosine(last, row, VECTORS, item) == pytest.approx([0.6, 0.8, *missing], nan_ok=True)
    # The session's profile is (0, 1) + (.6, .8) = (.6, 1.8), of length sqrt(3.6).
    assert likeness.cosine(recent, row, VECTORS, item) == pytest.approx([0.6 / 3.6**0.5, 1.8 / 3.6**0.5, *missing], nan_ok=True)
    old = 2 ** (-1 / 14)  # the first event is a day older; the others' ten minutes are nothing
    length = np.hypot(old + 0.6, 1.8)
    assert likeness.cosine(history, row, VECTORS, item) == pytest.approx(
        [(old + 0.6) / length, 1.8 / length, *missing], nan_ok=True, rel=1e-3
    )


def test_a_cosine_is_the_same_whoever_else_is_asked_for(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = likeness._unit(sparse.random(50, 30, 0.2, random_state=1, dtype=np.float32))
    profile = likeness._unit(sparse.random(40, 30, 0.5, random_state=2, dtype=np.float32))
    row, item = np.sort(rng.integers(0, 40, 500)), rng.integers(0, 50, 500).astype(np.int32)
    all_at_once = likeness.cosine(profile, row, vectors, item)
    monkeypatch.setattr(likeness, "DENSE_BYTES", 4 * 30 * 3)
    assert np.array_equal(likeness.cosine(profile, row, vectors, item), all_at_once, equal_nan=True)
    exact = np.asarray(profile[row].multiply(vectors[item]).sum(axis=1)).ravel()
    told = np.isfinite(all_at_once)
    np.testing.assert_allclose(all_at_once[told], exact[told], atol=1e-6)
    assert told.sum() > 400
