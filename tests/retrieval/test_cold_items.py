"""Cold items on paper: what neighbours lend, and what an item's own events add."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from retriever_contract import NOW, everyone, strangers, world

from pipelines import columns as c
from pipelines.datasets.interactions import Histories
from pipelines.retrieval.als import Als
from pipelines.retrieval.cold_items import ColdItems, for_sale, lenders

KNOBS = {"max_events": 5, "n_factors": 4, "num_threads": 1}


def titled(interactions, titles, available=None):
    items = interactions.items.set_column(0, c.TITLE, pa.array(titles))
    items = items.set_column(items.column_names.index(c.CATEGORY), c.CATEGORY, pa.array([None] * len(titles), pa.string()))
    if available is not None:
        items = items.set_column(items.column_names.index(c.AVAILABLE), c.AVAILABLE, pa.array(available))
    return replace(interactions, items=items)


@pytest.fixture
def shop():
    """Return a shop of two tastes: users 0 to 9 like lamps (0, 1), users 10 to 19 vases (2, 3); a lamp and a vase are new."""
    events = [(user, item, 3.0 + item, 1.0) for user in range(20) for item in ([0, 1] if user < 10 else [2, 3])]
    titles = ["red lamp", "blue lamp", "red vase", "blue vase", "green lamp", "green vase", "thing"]
    return titled(world(events, 20, 7), titles)


def test_a_loan_is_the_mean_of_neighbours_by_their_sharpened_cosine(shop):
    """The green lamp shares `lamp` with items 0 and 1 alike and nothing warm with the vases: each lends a half."""
    cold, warm = np.array([0, 0, 0, 0, 1, 1, 1], dtype=bool), np.array([1, 1, 1, 1, 0, 0, 0], dtype=bool)
    share = lenders(shop, cold, warm, 10, 3.0).toarray()
    assert share[4].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0, 0, 0])
    assert share[6].tolist() == [0] * 7, "the thing is like nothing"
    fitted = ColdItems(**KNOBS).fit(shop)
    factor, _ = Als(n_factors=4, num_threads=1).fit(shop).item_vectors()
    assert fitted.state["cold"].tolist() == [4, 5]
    np.testing.assert_allclose(fitted.state["lent"][0], (factor[0] + factor[1]) / 2, rtol=1e-5)


def test_sharpness_decides_between_a_near_and_a_far_neighbour(shop):
    """The red and green lamp shares two words with item 0, one with item 1."""
    near = titled(shop, ["red lamp", "blue lamp", "red vase", "blue vase", "red lamp new", "x", "y"])
    cold, warm = np.array([0, 0, 0, 0, 1, 0, 0], dtype=bool), np.array([1, 1, 0, 0, 0, 0, 0], dtype=bool)
    flat, sharp = (lenders(near, cold, warm, 10, power).toarray()[4, :2] for power in (1.0, 3.0))
    assert flat[0] > flat[1] > 0
    assert sharp[0] / sharp[1] == pytest.approx((flat[0] / flat[1]) ** 3, rel=1e-4)


def test_everybody_is_shown_the_newcomer_of_the_own_taste_first(shop):
    found = ColdItems(**KNOBS).fit(shop).retrieve(everyone(shop), 3, exclude_seen=False)
    assert found.item[:10, 0].tolist() == [4] * 10
    assert found.item[10:, 0].tolist() == [5] * 10
    assert (found.item[:, 2] == -1).all(), "what is like nothing is not proposed, nor is what is warm"


def test_own_events_outweigh_the_loan_as_they_come_in(shop):
    """Two lovers of vases take the new lamp: of 2 + loan_events parts, its own factor makes 2."""
    more = [(10, 4, 1.0, 1.0), (11, 4, 1.0, 1.0)]
    events = [(int(u), int(i), (NOW - at) / 86_400e6, 1.0) for u, i, at in zip(shop.user, shop.item, shop.at, strict=True)]
    taken = replace(world([*events, *more], 20, 7), items=shop.items)
    factor, _ = Als(n_factors=4, num_threads=1).fit(taken).item_vectors()
    expected = (2 * factor[4] + 10 * (factor[0] + factor[1]) / 2) / 12
    np.testing.assert_allclose(ColdItems(**KNOBS).fit(taken).state["lent"][0], expected, rtol=1e-4, atol=1e-6)
    worthless = ColdItems(**KNOBS, loan_events=0.01).fit(taken).state["lent"][0]
    assert np.linalg.norm(worthless - factor[4]) < np.linalg.norm(expected - factor[4]) / 10


def test_an_item_that_sells_already_goes_before_one_that_does_not(shop):
    events = [(int(u), int(i), (NOW - at) / 86_400e6, 1.0) for u, i, at in zip(shop.user, shop.item, shop.at, strict=True)]
    titles = ["red lamp", "blue lamp", "red vase", "blue vase", "green lamp", "black lamp", "thing"]
    sold = titled(world([*events, (0, 5, 1.0, 1.0)], 20, 7), titles)
    taste, rate = (ColdItems(**KNOBS, rate_weight=weight).fit(sold) for weight in (0.0, 1.5))
    asking = Histories(np.array([0, 1]), np.array([0], np.int32), np.array([NOW - 1]), np.ones(1, np.float32), 7, NOW)
    assert rate.retrieve(asking, 2, exclude_seen=False).item.tolist() == [[5, 4]]
    assert set(taste.retrieve(asking, 2, exclude_seen=False).item[0]) == {4, 5}


def test_what_cannot_be_had_is_not_proposed(shop):
    gone = titled(shop, shop.items[c.TITLE].to_pylist(), [True] * 4 + [False, True, None])
    assert for_sale(gone).tolist() == [True] * 4 + [False, True, True]
    found = ColdItems(**KNOBS).fit(gone).retrieve(everyone(gone), 3, exclude_seen=False)
    assert set(found.item.ravel()) == {5, -1}


def test_a_catalogue_without_descriptions_proposes_nothing_and_says_so_with_empty_rows(shop):
    fitted = ColdItems(**KNOBS).fit(replace(shop, items=None))
    assert (fitted.retrieve(everyone(shop), 3, exclude_seen=False).item == -1).all()
    assert (ColdItems(**KNOBS).fit(shop).retrieve(strangers(7), 3, exclude_seen=False).item == -1).all(), "nor to strangers"


def test_an_index_may_answer_for_it(shop):
    """Scores are inner products of the vectors it shows."""
    fitted, users = ColdItems(**KNOBS).fit(shop), everyone(shop)
    items, proposed = fitted.item_vectors()
    asked, _ = fitted.query_vectors(users)
    found = fitted.retrieve(users, 2, exclude_seen=False)
    np.testing.assert_allclose(found.score, np.take_along_axis(asked @ items.T, found.item, axis=1), rtol=1e-5)
    assert np.flatnonzero(proposed).tolist() == [4, 5]
