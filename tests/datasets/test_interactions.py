"""What the lake gives a model to learn from, and what it must not."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipelines import columns as c
from pipelines import lake, tables
from pipelines.config import TrainingSettings
from pipelines.datasets import interactions, labels
from pipelines.errors import StateError
from pipelines.window import Window, micros, utc

SETTINGS = TrainingSettings()
NOON = utc("2025-03-10T12:00:00")


def events(*rows):
    """Return events from (id, user, item, type, value, days after NOON, days until receipt)."""
    columns = {name: [] for name in tables.EVENTS.names}
    for number, user, item, kind, value, days, lag in rows:
        row = {c.EVENT_ID: number, c.USER_ID: user, c.ITEM_ID: item, c.EVENT_TYPE: kind, c.VALUE: value}
        row |= {c.EVENT_AT: NOON + timedelta(days=days), c.RECEIVED_AT: NOON + timedelta(days=days + lag)}
        for name, column in columns.items():
            column.append(row.get(name))
    return pa.table(columns, schema=tables.EVENTS)


@pytest.fixture
def shop(home):
    lake.land_tables(
        home,
        events=events(
            ("e5", "bea", "pen", c.PURCHASE, 2.5, 0, 0),
            ("e4", "ann", "ink", c.VIEW, None, -1, 0),
            ("e3", "ann", "pen", c.ADD_TO_CART, None, -2, 0),
            ("e2", "ann", "ink", c.PURCHASE, 9.0, -2, 0),  # the same instant as e3: the id decides
            ("e1", "ann", "pad", c.VIEW, None, -3, 4),  # happened before NOON, received after it
            ("e0", "bea", "ink", c.RATING, 2.0, -5, 0),
            ("e6", "bea", "pad", c.RATING, 5.0, -4, 0),
        ),
    )
    return home


def test_events_come_sorted_with_dense_ids_and_gains(shop):
    found = interactions.load(shop, NOON + timedelta(days=2), SETTINGS)
    assert found.user_ids.tolist() == ["ann", "bea"]
    assert found.item_ids.tolist() == ["ink", "pad", "pen"]
    assert [(found.user_ids[u], found.item_ids[i]) for u, i in zip(found.user, found.item, strict=True)] == [
        ("ann", "pad"),
        ("ann", "ink"),
        ("ann", "pen"),
        ("ann", "ink"),
        ("bea", "ink"),
        ("bea", "pad"),
        ("bea", "pen"),
    ]
    assert found.weight.tolist() == [1, 3, 2, 1, 0, 1, 3], "a rating of 2 says nothing for its item"
    np.testing.assert_array_equal(found.value, np.array([np.nan, 9, np.nan, np.nan, 2, 5, 2.5], dtype=np.float32))
    assert [c.EVENT_TYPES[code] for code in found.event_type[:3]] == [c.VIEW, c.PURCHASE, c.ADD_TO_CART]


def test_an_event_counts_only_once_it_has_happened_and_been_received(shop):
    found = interactions.load(shop, NOON, SETTINGS)
    assert len(found.at) == 5, "neither the purchase at that very moment nor the view that was received later"
    assert found.item_ids.tolist() == ["ink", "pad", "pen"]
    assert (found.at < micros(NOON)).all()


def test_events_outside_a_given_catalogue_are_left_out(shop):
    found = interactions.load(shop, NOON, SETTINGS, item_ids=np.array(["ink", "zip"]))
    assert (found.item_ids.tolist(), found.item.tolist()) == (["ink", "zip"], [0, 0, 0])


def test_an_empty_lake_gives_empty_arrays(home):
    found = interactions.load(home, NOON, SETTINGS)
    assert (len(found.at), len(found.user_ids), len(found.item_ids)) == (0, 0, 0)
    assert interactions.histories(found, np.array(["ann"])).lengths().tolist() == [0]


def test_histories_stand_in_the_order_asked_and_strangers_have_empty_rows(shop):
    known = interactions.load(shop, NOON, SETTINGS)
    found = interactions.histories(known, np.array(["zoe", "bea", "ann", "aaa"]))
    rows = [known.item_ids[found.item[found.indptr[r] : found.indptr[r + 1]]].tolist() for r in range(4)]
    assert rows == [[], ["ink", "pad"], ["ink", "pen", "ink"], []]
    assert found.matrix().toarray().tolist() == [[0, 0, 0], [0, 1, 0], [4, 0, 2], [0, 0, 0]]
    earlier = interactions.histories(known, np.array(["bea", "ann"]), NOON - timedelta(days=2))
    assert earlier.lengths().tolist() == [2, 0], "what happened at the very moment is not before it"
    with pytest.raises(StateError, match="as_of"):
        interactions.histories(known, np.array(["ann"]), NOON + timedelta(days=1))


def test_rows_of_histories_are_histories(shop):
    known = interactions.load(shop, NOON, SETTINGS)
    both = interactions.histories(known, known.user_ids)
    second = both.rows(1, 2)
    assert (second.n_users, second.item.tolist(), second.indptr.tolist()) == (1, [0, 1], [0, 2])
    assert both.row_of_event().tolist() == [0, 0, 0, 1, 1]


def test_remapped_histories_drop_what_the_other_catalogue_lacks(shop):
    known = interactions.load(shop, NOON, SETTINGS)
    there = np.array(["aaa", "ink", "pen"])
    found = interactions.remap(interactions.histories(known, known.user_ids), known.item_ids, there)
    assert (found.item.tolist(), found.indptr.tolist(), found.n_items) == ([1, 2, 1, 1], [0, 3, 4], 3)
    nowhere = interactions.remap(found, there, np.array([], dtype="U1"))
    assert (nowhere.indptr.tolist(), nowhere.n_items) == ([0, 0, 0], 0)


def test_labels_keep_the_strongest_gain_and_ratings_below_the_threshold_are_no_positives(shop):
    window = Window(NOON - timedelta(days=6), NOON + timedelta(days=1))
    found = labels.labels(shop, window, SETTINGS, before=NOON + timedelta(days=1), enough=1)
    assert found.user_ids.tolist() == ["ann", "bea"]
    pairs = zip(found.user_ids[found.row_of_label()], found.item_ids[found.item], found.gain.tolist(), strict=True)
    assert list(pairs) == [("ann", "ink", 3), ("ann", "pen", 2), ("bea", "pad", 1), ("bea", "pen", 3)]
    later = labels.labels(shop, window, SETTINGS, before=NOON + timedelta(days=3), enough=1)
    assert ("ann", "pad") in set(zip(later.user_ids[later.row_of_label()], later.item_ids[later.item], strict=True))


def test_a_window_is_half_open(shop):
    day_before = Window(NOON - timedelta(days=1), NOON)
    found = labels.labels(shop, day_before, SETTINGS, before=NOON + timedelta(days=1), enough=1)
    assert found.item_ids[found.item].tolist() == ["ink"], "its first instant counts, its last does not"


def test_labels_of_some_users_are_taken_in_their_order(shop):
    window = Window(NOON - timedelta(days=6), NOON + timedelta(days=1))
    found = labels.labels(shop, window, SETTINGS, before=NOON + timedelta(days=1), enough=1).take(np.array([1, 0]))
    assert (found.user_ids.tolist(), found.indptr.tolist(), found.gain.tolist()) == (["bea", "ann"], [0, 2, 4], [1, 3, 3, 2])


def test_histories_bring_the_ratings_that_were_given_and_no_amounts(shop):
    found = interactions.load(shop, NOON + timedelta(days=2), SETTINGS)
    asked = interactions.histories(found, np.array(["bea", "ann"]))
    np.testing.assert_array_equal(asked.rating, [2.0, 5.0, np.nan] + [np.nan] * 4)
    assert np.isnan(asked.rows(1, 2).rating).all()
    on_pad = interactions.remap(asked, found.item_ids, np.array(["pad"]))
    np.testing.assert_array_equal(on_pad.rating, [5.0, np.nan])
