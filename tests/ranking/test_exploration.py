"""Exploration on paper and in the long run: what is drawn, and that its recorded probability is the true one."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from pipelines.errors import ReloopError
from pipelines.model_settings import ExplorationPolicy
from pipelines.ranking.exploration import ClickRates, explore, uniform

N = 20_000
LISTED = np.arange(5, dtype=np.int32)  # items 0 ... 4 are old, 10 ... 14 new
POOL = np.array([10, 11, 12, 13, 14, -1], dtype=np.int32)
USERS, REQUESTS = [f"u{n % 700}" for n in range(N)], [f"r{n}" for n in range(N)]
METHODS = ("epsilon_greedy", "thompson")


def policy(method, **knobs):
    return ExplorationPolicy(**({"method": method, "slots": (2, 4), "share": 0.5, "epsilon": 0.3, "min_propensity": 0.01} | knobs))


def rates():
    """Return what is believed after unequal evidence: item 12 was never shown, 14 a thousand times."""
    shown, clicked = np.zeros(15), np.zeros(15)
    shown[10:], clicked[10:] = [100, 10, 0, 50, 1000], [3, 1, 0, 2, 30]
    return ClickRates.learnt(shown, clicked, np.full(15, 0.02), 20.0)


def run(chosen, n=N, listed=LISTED, pool=POOL, **knobs):
    return explore(
        np.tile(listed, (n, 1)), np.tile(pool, (n, 1)), chosen, user_ids=USERS[:n], request_ids=REQUESTS[:n], rates=rates(), **knobs
    )


def test_epsilon_greedy_on_paper():
    """Slot 2 deals 10, 12, 14; slot 4 deals 11, 13. The first card has 1 - e + e / n, the others e / n; all times the share."""
    found = run(policy("epsilon_greedy"))
    expected = {2: {1: 0.5, 10: 0.4, 12: 0.05, 14: 0.05}, 4: {3: 0.5, 11: 0.425, 13: 0.075}}
    for slot, of_item in expected.items():
        shown, propensity = found.item[:, slot - 1], found.propensity[:, slot - 1]
        assert set(np.unique(shown)) == set(of_item)
        for item, probability in of_item.items():
            assert propensity[shown == item] == pytest.approx(probability)


@pytest.mark.parametrize("method", METHODS)
def test_items_are_shown_as_often_as_their_propensity_says(method):
    """Pearson's chi-square over everything that may stand at a slot; the seed is fixed, and a bias of a hundredth is far beyond it."""
    found = run(policy(method))
    for slot in (2, 4):
        items, first, counts = np.unique(found.item[:, slot - 1], return_index=True, return_counts=True)
        propensity = found.propensity[first, slot - 1]
        assert propensity.sum() == pytest.approx(1, abs=1e-9), "of all that may stand there"
        assert len(items) > 2
        assert stats.chisquare(counts, N * propensity).pvalue > 1e-3


def test_thompson_gives_the_probability_that_a_beta_draw_is_the_largest():
    """Against drawing from the Beta distributions themselves, not from the table."""
    belief, cards = rates(), np.array([10, 12, 14])
    found = run(policy("thompson", slots=(2,), share=1.0, min_propensity=0.0), pool=cards.astype(np.int32))
    drawn = np.random.default_rng(5).beta(belief.clicked[cards], belief.ignored[cards], (400_000, 3)).argmax(axis=1)
    for place, item in enumerate(cards):
        assert found.propensity[found.item[:, 1] == item, 1][0] == pytest.approx((drawn == place).mean(), abs=0.006)


@pytest.mark.parametrize("method", METHODS)
def test_weighting_by_propensity_makes_a_log_say_what_another_policy_would_earn(method):
    """Inverse propensity scoring of a simulated log is unbiased: the value of always showing item 12 at slot 2 is its click rate."""
    found = run(policy(method))
    truth = np.linspace(0.05, 0.5, 15)
    clicked = np.random.default_rng(3).random(N) < truth[found.item[:, 1]]
    for item in (1, 10, 12, 14):
        weighted = np.where(found.item[:, 1] == item, clicked / found.propensity[:, 1], 0)
        error = weighted.std() / np.sqrt(N)
        assert abs(weighted.mean() - truth[item]) < 3.5 * error
        assert error < 0.03, "else it would prove nothing"


@pytest.mark.parametrize("method", METHODS)
def test_no_item_that_may_be_drawn_falls_below_the_floor_and_pools_are_cut_to_keep_it(method):
    chosen = policy(method, slots=(1,), share=0.1, epsilon=0.0, min_propensity=0.02)
    assert chosen.cards() == 5
    pool = np.arange(5, 15, dtype=np.int32)
    found = run(chosen, pool=pool)
    drawn = found.explored[:, 0]
    assert set(np.unique(found.item[drawn, 0])) == {5, 6, 7, 8, 9}
    assert found.propensity[drawn, 0].min() >= 0.02 - 1e-12


def test_a_floor_above_the_share_is_refused():
    with pytest.raises(ValidationError, match=r"above exploration\.share"):
        ExplorationPolicy(share=0.1, min_propensity=0.2)


@pytest.mark.parametrize("method", METHODS)
def test_a_request_is_answered_the_same_alone_in_company_and_again(method):
    together = run(policy(method), 500)
    alone = [
        explore(LISTED[None], POOL[None], policy(method), user_ids=[USERS[row]], request_ids=[REQUESTS[row]], rates=rates())
        for row in range(0, 500, 50)
    ]
    for row, one in zip(range(0, 500, 50), alone, strict=True):
        assert (one.item[0] == together.item[row]).all()
        if method == "epsilon_greedy":
            assert (one.propensity[0] == together.propensity[row]).all()
    assert (run(policy(method, salt="other"), 500).item != together.item).any()


def test_only_slots_with_an_item_and_a_card_are_drawn_for():
    short = np.array([0, 1, -1, -1, -1], dtype=np.int32)
    found = run(policy("epsilon_greedy", share=1.0), 200, listed=short)
    assert (found.item[:, 2:] == -1).all()
    assert np.isnan(found.propensity[:, 2:]).all()
    assert (found.propensity[:, 0] == 1).all()
    assert found.explored[:, 1].all()
    one_card = run(policy("epsilon_greedy", share=1.0), 200, pool=np.array([10, -1], dtype=np.int32))
    assert (one_card.item[:, 1] == 10).all()
    assert (one_card.item[:, 3] == 3).all(), "the second slot has no card"
    assert (one_card.propensity == 1).all(), "nothing was left to chance"


def test_slots_and_users_draw_independently():
    found = run(policy("epsilon_greedy", share=1.0, epsilon=1.0))
    table = np.zeros((3, 2))
    np.add.at(table, (np.searchsorted([10, 12, 14], found.item[:, 1]), np.searchsorted([11, 13], found.item[:, 3])), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_off_changes_nothing():
    found = run(ExplorationPolicy(), 50)
    assert (found.item == LISTED).all()
    assert (found.propensity == 1).all()
    assert not found.explored.any()


def test_thompson_needs_rates_and_rates_need_sense():
    with pytest.raises(ReloopError, match="without click rates"):
        explore(LISTED[None], POOL[None], policy("thompson"), user_ids=["u"], request_ids=["r"], rates=None)
    with pytest.raises(ReloopError, match="clicked more than shown"):
        ClickRates.learnt(np.zeros(1), np.ones(1), np.full(1, 0.1), 1.0)
    with pytest.raises(ReloopError, match="a prior outside"):
        ClickRates.learnt(np.ones(1), np.zeros(1), np.full(1, 1.0), 1.0)


def test_the_posterior_is_the_prior_and_what_was_seen():
    """20 impressions' worth of 5%, then 3 clicks of 30: 4 clicked, 46 ignored."""
    found = ClickRates.learnt(np.array([30.0]), np.array([3.0]), np.array([0.05]), 20.0)
    assert (found.clicked[0], found.ignored[0]) == pytest.approx((4, 46))


def test_the_stream_of_numbers_is_uniform():
    drawn = uniform(np.arange(20_000, dtype=np.uint64), 3)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for column in drawn.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.03
