"""Own contact on a history that can be worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.datasets.interactions import Histories
from pipelines.ranking import contact

DAY = contact.MICROS_PER_DAY
AS_OF = 100 * DAY

# user 0: item 2 (day 72), item 0 (day 86), item 2 (day 99); user 1: nothing; user 2: item 1 (day 90)
HISTORIES = Histories(
    indptr=np.array([0, 3, 3, 4]),
    item=np.array([2, 0, 2, 1], np.int32),
    at=np.array([72, 86, 99, 90]) * DAY,
    weight=np.array([4.0, 2.0, 1.0, 1.0], np.float32),
    n_items=4,
    as_of=AS_OF,
)
ITEM = np.arange(4, dtype=np.int32)


def asked(rows, keys, key_of_item=ITEM):
    return contact.contact(HISTORIES, np.array(rows), np.array(keys, np.int32), key_of_item)


def test_contact_with_an_item_counts_events_and_looks_back_from_as_of():
    found = asked([0, 0, 0], [2, 0, 1])
    assert found.count.tolist() == [2, 1, 0]
    assert found.days_since[:2].tolist() == [1, 14]
    assert np.isnan(found.days_since[2])
    assert found.events_since[:2].tolist() == [0, 1]


def test_weight_halves_every_half_life():
    found = asked([0, 0], [0, 2])
    assert found.weight[0] == pytest.approx(2.0 * 0.5)  # fourteen days ago
    assert found.weight[1] == pytest.approx(4.0 * 0.25 + 1.0 * 2 ** (-1 / 14))
    assert found.share.sum() == pytest.approx(1.0)


def test_a_user_without_history_has_zero_contact_and_no_share():
    found = asked([1], [2])
    assert found.count.tolist() == [0]
    assert np.isnan(found.share[0])
    assert np.isnan(found.days_since[0])


def test_contact_with_a_category_pools_its_items_and_an_unknown_category_is_missing_not_zero():
    category = np.array([0, 1, 0, -1], np.int32)
    found = asked([0, 2, 0], [0, 1, -1], category)
    assert found.count[:2].tolist() == [3, 1]
    assert found.days_since[:2].tolist() == [1, 10]
    assert np.isnan([found.count[2], found.weight[2], found.share[2], found.days_since[2]]).all()


def test_one_users_contact_never_reaches_another():
    found = asked([2, 2, 1, 0], [2, 0, 1, 1])
    assert found.count.tolist() == [0, 0, 0, 0]


def test_contact_of_no_history_at_all_is_empty():
    empty = Histories(np.zeros(3, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32), 4, AS_OF)
    found = contact.contact(empty, np.array([0, 1]), np.array([0, 3], np.int32), ITEM)
    assert found.count.tolist() == [0, 0]
    assert np.isnan(contact.usual_log_price(empty, np.ones(4, np.float32))).all()


def test_usual_price_is_the_decayed_mean_of_log_price_over_priced_items():
    price = np.array([8.0, 5.0, np.nan, 1.0], np.float32)
    usual = contact.usual_log_price(HISTORIES, price)
    assert usual[0] == pytest.approx(np.log(8.0))  # item 2 has no price
    assert np.isnan(usual[1])
    assert usual[2] == pytest.approx(np.log(5.0))


def test_activity_counts_events_and_days_since_the_last():
    events, days = contact.activity(HISTORIES)
    assert events.tolist() == [3, 0, 1]
    assert days[[0, 2]].tolist() == [1, 10]
    assert np.isnan(days[1])


def test_contact_equals_a_naive_loop_on_random_histories():
    rng = np.random.default_rng(5)
    rows = np.sort(rng.integers(0, 7, 60))
    at = rng.integers(50, 100, 60) * DAY
    order = np.lexsort((at, rows))
    histories = Histories(
        np.searchsorted(rows, np.arange(8)), rng.integers(0, 5, 60).astype(np.int32), at[order], rng.random(60).astype(np.float32), 5, AS_OF
    )
    row, item = (axis.ravel() for axis in np.meshgrid(np.arange(7), np.arange(5), indexing="ij"))
    found = contact.contact(histories, row, item.astype(np.int32), np.arange(5, dtype=np.int32))
    met = 0
    for i in range(len(row)):
        mine = range(histories.indptr[row[i]], histories.indptr[row[i] + 1])
        events = [e for e in mine if histories.item[e] == item[i]]
        assert found.count[i] == len(events)
        if events:
            met += 1
            assert found.events_since[i] == histories.indptr[row[i] + 1] - 1 - events[-1]
            weight = sum(histories.weight[e] * 2 ** (-(AS_OF - histories.at[e]) / DAY / 14) for e in events)
            assert found.weight[i] == pytest.approx(weight, rel=1e-5)
    assert met > 10
