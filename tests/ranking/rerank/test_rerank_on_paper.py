"""What each rule does to lists small enough for paper."""

from __future__ import annotations

import numpy as np
import pytest
from rerank_world import items, nobody, people, ranked, shop

from pipelines import columns as c
from pipelines.datasets.interactions import remap
from pipelines.errors import ReloopError
from pipelines.ranking.rerank import boosts, calibration, caps, chain, dpp, exposure, greedy, likeness, mmr, popularity, purchased, temporal
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import (
    BoostPolicy,
    CalibrationPolicy,
    CapsPolicy,
    ExposurePolicy,
    LikenessPolicy,
    PopularityPolicy,
    PurchasedPolicy,
    RerankSettings,
    TemporalPolicy,
)

OFF = RerankSettings(availability=None)
VIEW, PURCHASE = c.EVENT_TYPES.index(c.VIEW), c.EVENT_TYPES.index(c.PURCHASE)


def test_what_is_sold_out_is_not_shown_and_the_rest_close_up():
    goods = shop(4, available=[True, False, True, True])
    shown, _ = chain.reranked(ranked([1, 3, 0], [0, 1, -1]), goods, nobody(2, 4), RerankSettings())
    assert items(shown) == [[3, 0], [0]]
    assert shown.score[0, 0] == 0.5  # its own: nothing took another's place
    assert np.isneginf(shown.score[0, 2])


def test_what_was_bought_is_not_shown_what_was_looked_at_is():
    users = people([0, 1, 2], n_items=4, kinds=[[PURCHASE, VIEW, PURCHASE]], days_ago=[[5, 1, 40]])
    lists = ranked([0, 1, 2, 3])
    assert items(purchased.apply(lists, shop(4), users, PurchasedPolicy(), 10)) == [[1, 3]]
    assert items(purchased.apply(lists, shop(4), users, PurchasedPolicy(within_days=30), 10)) == [[1, 2, 3]]


def test_histories_that_do_not_tell_purchases_are_refused():
    users = people([0], n_items=2)
    object.__setattr__(users, "event_type", None)
    with pytest.raises(ReloopError, match="no event types"):
        purchased.apply(ranked([0, 1]), shop(2), users, PurchasedPolicy(), 10)


def test_a_boost_is_bounded_in_amount():
    goods = shop(3, margin=[1.0, np.nan, 0.5], promoted=[True, True, False], age_days=[0, 14, np.nan])
    policy = BoostPolicy(margin=0.05, promotion=0.05, freshness=0.04, half_life_days=14, max_boost=0.1)
    assert boosts.boost(goods, policy) == pytest.approx([0.1, 0.05 + 0.02, 0.025])


def test_a_boost_lifts_what_is_close_and_only_so_many_places():
    goods = shop(5, promoted=[False, False, True, False, True])
    lists = ranked([0, 1, 2, 3, 4])  # relevance 1, .75, .5, .25, 0

    def lifted(**knobs):
        return items(boosts.apply(lists, goods, nobody(1, 5), BoostPolicy(margin=0, freshness=0, **knobs), 5))[0]

    assert lifted(promotion=0.2, max_boost=0.2) == [0, 1, 2, 3, 4]  # .7 and .2 overtake nobody
    assert lifted(promotion=0.3, max_boost=0.3) == [0, 2, 1, 4, 3]
    assert lifted(promotion=1.0, max_boost=1.0) == [2, 0, 4, 1, 3]  # 1.5, then 1 and 1: equals keep their order
    assert lifted(promotion=1.0, max_boost=1.0, max_places=1) == [0, 2, 1, 4, 3]
    assert lifted(promotion=1.0, max_boost=1.0, max_places=0) == [0, 1, 2, 3, 4]


def test_the_list_follows_the_shares_of_the_history():
    """Of ten events nine are of category 0 and one of category 1: so is a list of ten, whatever the ranker put first."""
    goods = shop(20, category=[0] * 10 + [1] * 10)
    users = people([0] * 9 + [10], n_items=20)
    lists = ranked([*range(10, 20), *range(10)])  # all of category 1 first
    shown = calibration.apply(lists, goods, users, CalibrationPolicy(trade_off=1.0), 10)
    assert np.bincount(goods.category[shown.item[0, :10]]).tolist() == [9, 1]


def test_a_step_of_calibration_is_steck_s_formula():
    """One place, categories 0 and 1, p = (3/4, 1/4), alpha .2, t = .4; KL by hand for either choice."""
    goods, p, alpha, t = shop(2, category=[0, 1]), np.array([0.75, 0.25]), 0.2, 0.4

    def objective(item, relevance):
        q = (1 - alpha) * np.eye(2)[item] + alpha * p
        return (1 - t) * relevance - t * (p * np.log(p / q)).sum()

    users = people([0, 0, 0, 1], n_items=2)
    taste = greedy.tastes(users, goods.category, None)
    assert taste.tolist() == [[0.75, 0.25]]
    for first, second in ((0, 1), (1, 0)):
        shown = greedy.calibrated(ranked([first, second]), goods.category, taste, trade_off=t, dilution=alpha, depth=1)
        assert items(shown)[0][0] == max((first, second), key=lambda item: objective(item, float(item == first)))


def test_old_events_count_less_towards_a_taste():
    users = people([0, 1], n_items=2, days_ago=[[10, 20]])
    assert greedy.tastes(users, np.array([0, 1], np.int32), 10.0) == pytest.approx(np.array([[2 / 3, 1 / 3]]))


def test_who_has_no_history_keeps_the_order():
    goods = shop(3, category=[0, 1, 0])
    assert items(calibration.apply(ranked([2, 1, 0]), goods, nobody(1, 3), CalibrationPolicy(trade_off=1.0), 3)) == [[2, 1, 0]]


def test_who_likes_the_tail_gets_the_tail():
    goods = shop(6, attention=[50, 30, 10, 5, 3, 2])  # head: 0; torso: 1; tail: the rest
    assert popularity.parts(goods).tolist() == [0, 1, 2, 2, 2, 2]
    lists = ranked([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    users = people([3, 4], [0], n_items=6)
    shown = popularity.apply(lists, goods, users, PopularityPolicy(trade_off=0.9), 2)
    assert [row[:2] for row in items(shown)] == [[2, 3], [0, 1]]


def test_mmr_takes_the_less_relevant_item_that_is_new():
    """Items 0 and 1 are alike, 2 is not: .7 x .5 - .3 x 0 = .35 beats .7 x .75 - .3 x 1 = .225."""
    alike = likeness.by_attributes([(np.array([7, 7, 8], np.int32), 1.0)])
    assert mmr.select(np.array([1, 0.75, 0.5], np.float32), alike, 3, 0.7).tolist() == [0, 2, 1]


def test_mmr_at_its_extremes_is_relevance_or_difference_alone():
    relevance = np.array([1, 0.9, 0.8, 0.7, 0.1], np.float32)
    alike = likeness.by_attributes([(np.array([0, 0, 0, 1, 2], np.int32), 0.6)])
    assert mmr.select(relevance, alike, 5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert mmr.select(relevance, alike, 3, 0.0).tolist() == [0, 3, 4]  # all unlike; equals by place


def test_dpp_leaves_the_copy_and_takes_it_last():
    """A copy of what was taken spans nothing: the set ends there, and the rule puts it after the rest in its old order."""
    goods = shop(3).with_vectors(np.array([[1, 0], [1, 0], [0, 2]], np.float32))
    alike = likeness.by_vectors(goods.vectors)
    assert dpp.select(np.array([1, 0.9, 0.1], np.float32), alike, 3, 0.5).tolist() == [0, 2]
    settings = RerankSettings(dpp={"trade_off": 0.5}, likeness={"by": "vectors"})
    assert items(chain.reranked(ranked([0, 1, 2]), goods, nobody(1, 3), settings)[0]) == [[0, 2, 1]]


def test_dpp_weighs_relevance_against_what_an_item_adds():
    """Likeness .8: the second item adds ln(1 - .64) = -1.02 of log determinant, the third nothing less than 0 costs.

    With t = .5 relevances .9 and .1 differ by .8 < 1.02: the third is taken. With t = .6: .6 x .8 = .48 > .4 x 1.02 = .41, the second.
    """
    vectors = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
    relevance = np.array([1, 0.9, 0.1], np.float32)
    assert dpp.select(relevance, likeness.by_vectors(vectors), 2, 0.5).tolist() == [0, 2]
    assert dpp.select(relevance, likeness.by_vectors(vectors), 2, 0.6).tolist() == [0, 1]


def test_dpp_at_its_extremes_is_relevance_or_difference_alone():
    vectors = np.array([[1, 0], [0.9, np.sqrt(1 - 0.81)], [0, 1]], np.float32)
    relevance = np.array([1, 0.9, 0.1], np.float32)
    assert dpp.select(relevance, likeness.by_vectors(vectors), 3, 1.0).tolist() == [0, 1, 2]
    assert dpp.select(relevance, likeness.by_vectors(vectors), 2, 0.0).tolist() == [0, 2]


def test_no_more_than_so_many_of_a_category_in_any_window():
    goods = shop(7, category=[0, 0, 0, 0, 1, 1, 2], brand=[0, 1, 2, 3, 4, 5, 6])
    shown = caps.apply(ranked([0, 1, 2, 3, 4, 5, 6]), goods, nobody(1, 7), CapsPolicy(window=3, category=2, brand=1), 7)
    # 0 0 | not a third, so 4 | window (0, 1): 0 may again | then (1, 0) and 0 may | (0, 0): 5 | 6
    assert items(shown) == [[0, 1, 4, 2, 3, 5, 6]]


def test_where_no_item_keeps_a_cap_the_best_that_is_over_by_least_stands():
    goods = shop(4, category=[0, 0, 0, 1])
    shown = caps.apply(ranked([0, 1, 2, 3]), goods, nobody(1, 4), CapsPolicy(window=4, category=1, brand=0), 4)
    assert items(shown) == [[0, 3, 1, 2]]


def test_items_of_unknown_category_count_against_no_cap():
    goods = shop(4, category=[-1, -1, -1, 0])
    assert items(caps.apply(ranked([0, 1, 2, 3]), goods, nobody(1, 4), CapsPolicy(window=4, category=1), 4)) == [[0, 1, 2, 3]]


def test_every_beginning_of_the_list_has_its_share_of_new_items():
    goods = shop(6, age_days=[100, 100, 100, 100, 3, 2])
    shown = temporal.apply(ranked([0, 1, 2, 3, 4, 5]), goods, nobody(1, 6), TemporalPolicy(fresh_share=0.4), 6)
    # floor(.4 p) for p = 1..6 is 0 0 1 1 2 2
    assert items(shown) == [[0, 1, 4, 2, 5, 3]]


def test_new_and_lasting_items_share_the_list():
    goods = shop(5, age_days=[50, 50, 50, 3, 300])
    policy = TemporalPolicy(fresh_share=0.5, lasting_share=0.5)
    assert items(temporal.apply(ranked([0, 1, 2, 3, 4]), goods, nobody(1, 5), policy, 5)) == [[0, 3, 4, 1, 2]]


def test_a_quota_that_no_candidate_can_fill_changes_nothing():
    goods = shop(3, age_days=[100, 100, np.nan])
    assert items(temporal.apply(ranked([0, 1, 2]), goods, nobody(1, 3), TemporalPolicy(fresh_share=1.0), 3)) == [[0, 1, 2]]


def test_who_gets_least_attention_is_protected_by_item_brand_or_seller():
    goods = shop(5, attention=[60, 25, 10, 5, 0], brand=[0, 1, 1, 2, -1], seller=[0, 0, 1, 1, 1])
    assert exposure.protected(goods, ExposurePolicy(protected=0.2)).tolist() == [False, False, True, True, True]
    assert exposure.protected(goods, ExposurePolicy(of="brand", protected=0.2)).tolist() == [False, False, False, True, False]
    assert exposure.protected(goods, ExposurePolicy(of="seller", protected=0.2)).tolist() == [False, False, True, True, True]
    assert not exposure.protected(shop(3, attention=[1, 1, 1]), ExposurePolicy(protected=1.0)).any()  # all alike: nobody is poor


def test_protected_items_have_their_share_of_places():
    goods = shop(5, attention=[60, 25, 10, 5, 0])
    assert items(exposure.apply(ranked([0, 1, 2, 3, 4]), goods, nobody(1, 5), ExposurePolicy(share=0.5), 4)) == [[0, 2, 1, 3, 4]]


def test_the_declared_order_is_kept_and_each_rule_says_whom_it_lifted():
    """The cap comes after the quota: what the quota put first may be moved on by it."""
    goods = shop(4, age_days=[100, 100, 100, 1], category=[0, 0, 1, 0], available=[True, True, True, True])
    settings = RerankSettings(temporal={"fresh_share": 0.5}, caps={"window": 2, "category": 1, "brand": 0})
    names = chain.active(settings)
    assert names == ("availability", "temporal", "caps")
    shown, fired = chain.reranked(ranked([0, 1, 2, 3]), goods, nobody(1, 4), settings)
    # availability nothing; temporal 0 3 1 2; caps 0 2 3 1
    assert items(shown) == [[0, 2, 3, 1]]
    assert [[name for bit, name in enumerate(names) if mask >> bit & 1] for mask in fired[0]] == [[], ["caps"], ["temporal"], []]
    assert chain.path(ranked([0, 1, 2, 3]), goods, nobody(1, 4), settings, row=0, item=3) == {
        "ranker": 4,
        "availability": 4,
        "temporal": 2,
        "caps": 3,
    }
    assert items(chain.reranked(ranked([0, 1, 2, 3]), goods, nobody(1, 4), chain.without(settings, "caps"))[0]) == [[0, 3, 1, 2]]


def test_what_a_filter_removed_lifts_nobody():
    goods = shop(3, available=[False, True, True])
    _, fired = chain.reranked(ranked([0, 1, 2]), goods, nobody(1, 3), RerankSettings())
    assert not fired.any()


def test_without_knows_its_rules():
    with pytest.raises(ReloopError, match="brand_cap"):
        chain.without(OFF, "brand_cap")


@pytest.mark.parametrize("score", [[np.nan, 1.0, 0.5], [-np.inf, np.inf, 0.5], [0.5, 0.5, 0.5]])
def test_scores_that_are_no_numbers_order_last_and_stay_comparable(score):
    lists = Ranked.of(np.array([[4, 2, 3]]), np.array([score]))
    assert sorted(items(lists)[0]) == [2, 3, 4]
    assert not np.isnan(lists.score).any()
    relevance = lists.relevance()
    assert ((relevance >= 0) & (relevance <= 1)).all()
    assert items(lists)[0] == ([2, 3, 4])


def test_an_item_twice_in_a_list_is_refused():
    with pytest.raises(ReloopError, match="twice"):
        ranked([1, 1])


def test_a_list_of_items_that_the_shop_lacks_is_refused():
    with pytest.raises(ReloopError, match="item 3"):
        chain.reranked(ranked([3]), shop(3), nobody(1, 3), RerankSettings())


def test_comparing_vectors_needs_vectors():
    with pytest.raises(ReloopError, match="without vectors"):
        likeness.of(shop(2), np.array([0, 1], np.int32), LikenessPolicy(by="vectors"))


def test_kinds_of_events_stay_with_them_in_another_catalogue():
    users = people([0, 1, 2], n_items=3, kinds=[[VIEW, PURCHASE, VIEW]])
    moved = remap(users, np.array(["a", "b", "c"]), np.array(["b", "c"]))
    assert moved.item.tolist() == [0, 1]
    assert moved.event_type.tolist() == [PURCHASE, VIEW]
