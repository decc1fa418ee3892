"""Promise 31: team draft favours nobody, whatever users click for reasons other than the order."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.errors import ReloopError
from pipelines.evaluation.interleaving import preference, team_draft

RELEVANCE = np.r_[np.linspace(0.5, 0.02, 30), np.zeros(20)]


def clicked(items: tuple[int, ...], rng: np.random.Generator, taste: np.ndarray) -> np.ndarray:
    """Return which places are clicked: looked at with 1 / place, liked by taste."""
    return rng.random(len(items)) < taste[list(items)] / np.arange(1, len(items) + 1)


def play(a: list[int], b: list[int], n_users: int, *, seed: int, taste: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return clicks for either side, of some users who ask a few times."""
    rng = np.random.default_rng(seed)
    clicks = np.zeros((2, n_users))
    for user in range(n_users):
        for request in range(3):
            drafted = team_draft(a, b, 10, seed=hash((seed, user, request)) % 2**32)
            hit = clicked(drafted.items, rng, taste)
            for side in (0, 1):
                clicks[side, user] += hit[np.array(drafted.sides) == side].sum()
    return clicks[0], clicks[1]


def noisy(order: np.ndarray, rng: np.random.Generator, sd: float) -> list[int]:
    return np.argsort(-(order + rng.normal(0, sd, len(order)))).tolist()


def test_a_draft_on_paper():
    drafted = team_draft(["x", "y", "z"], ["y", "x", "w"], 4, seed=0)
    assert sorted(drafted.items) == ["w", "x", "y", "z"]
    assert sorted(drafted.sides) == [0, 0, 1, 1]
    assert dict(zip(drafted.items, drafted.sides, strict=True))["z"] == 0
    assert drafted == team_draft(["x", "y", "z"], ["y", "x", "w"], 4, seed=0)


def test_every_list_is_without_repeats_of_k_and_each_side_picks_its_best():
    rng = np.random.default_rng(0)
    for seed in range(200):
        a, b = rng.permutation(15)[:8].tolist(), rng.permutation(15)[:8].tolist()
        drafted = team_draft(a, b, 8, seed)
        assert len(drafted.items) == len(set(drafted.items)) == 8
        assert abs(sum(1 if side else -1 for side in drafted.sides)) <= 1
        for at, (item, side) in enumerate(zip(drafted.items, drafted.sides, strict=True)):
            order = (a, b)[side]
            assert item == next(one for one in order if one not in drafted.items[:at])


def test_short_and_empty_orders_end_the_draft():
    assert team_draft([], [], 5, seed=1).items == ()
    assert set(team_draft(["x"], ["y", "z"], 5, seed=1).items) == {"x", "y", "z"}
    with pytest.raises(ReloopError, match="k 0"):
        team_draft(["x"], ["y"], 0, seed=1)


def test_who_picks_first_is_a_fair_coin():
    firsts = np.array([team_draft("ab", "ba", 2, seed).sides[0] for seed in range(4000)])
    assert firsts.mean() == pytest.approx(0.5, abs=0.025)


def test_credit_on_paper():
    # Users: 2 for a of 2 (-1), 1 of each (0), 3 for b of 4 (+.5), none. Mean -1/6; one win each, one tie.
    found = preference([2, 1, 1, 0], [0, 1, 3, 0], min_users=2)
    assert found.score.mean == pytest.approx(-1 / 6)
    assert found.score.n == 3
    assert found.wins == (1, 1, 1)
    assert found.share == 0.5
    assert found.winner is None


def test_one_user_who_clicks_a_thousand_times_is_one_user():
    found = preference(np.r_[np.zeros(300), 1000], np.r_[np.ones(300), 0])
    assert found.wins == (1, 300, 0)
    assert found.winner == "b"


def test_a_better_order_wins_and_its_own_twin_does_not():
    rng = np.random.default_rng(1)
    best, worse = np.argsort(-RELEVANCE).tolist(), noisy(RELEVANCE, rng, 0.6)
    assert preference(*play(worse, best, 1200, seed=2, taste=RELEVANCE)).winner == "b"
    assert preference(*play(best, worse, 1200, seed=2, taste=RELEVANCE)).winner == "a"
    assert preference(*play(best, best, 1200, seed=2, taste=RELEVANCE)).winner is None


def test_random_clicks_crown_nobody():
    rng = np.random.default_rng(1)
    indifferent = np.full(50, 0.3)
    found = preference(*play(noisy(RELEVANCE, rng, 0), noisy(RELEVANCE, rng, 0.3), 1200, seed=3, taste=indifferent))
    assert found.winner is None
    assert found.share == pytest.approx(0.5, abs=0.06)


@pytest.mark.slow
def test_equal_orders_share_the_wins_to_a_hundredth():
    rng = np.random.default_rng(1)
    best = noisy(RELEVANCE, rng, 0)
    assert preference(*play(best, best, 40_000, seed=4, taste=RELEVANCE)).share == pytest.approx(0.5, abs=0.01)
    indifferent = np.full(50, 0.3)
    assert preference(*play(best, noisy(RELEVANCE, rng, 0.3), 40_000, seed=5, taste=indifferent)).share == pytest.approx(0.5, abs=0.01)


def test_no_clicks_and_no_counts():
    found = preference([0, 0], [0, 0])
    assert found.winner is None
    assert np.isnan(found.score.mean)
    assert found.reasons == ("0 users clicked, below 200",)
    for bad in ([-1.0], [np.nan], [1.0, 2.0]):
        with pytest.raises(ReloopError, match="counts of both sides"):
            preference(bad, [1.0])
