"""What holds for every list, shop and policy: nothing invented, nothing twice, nothing blocked; and the fast ways equal the plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_world import items, nobody, people, ranked, shop

from pipelines.ranking.rerank import chain, dpp, likeness, mmr
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import RerankSettings

DIVERSE = {name: True for name in chain.RULES if name not in {"mmr", "dpp"}}
CHAINS = [RerankSettings(**{name: True}) for name in chain.RULES]
CHAINS += [RerankSettings(**DIVERSE, **{name: True}, depth=depth) for name in ("mmr", "dpp") for depth in (1, 7, 50)]
CHAINS += [RerankSettings(mmr={"trade_off": 0.0}, likeness={"by": "vectors"}), RerankSettings(dpp=True, likeness={"by": "vectors"})]
WORST = st.sampled_from([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 0.0, -0.0, 1e-45])


@st.composite
def worlds(draw):
    """Draw a shop, some users, and a list for each, with scores that are no numbers and vectors that are none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_items, n_users, m = draw(st.integers(1, 12)), draw(st.integers(0, 4)), draw(st.integers(0, 12))
    m = min(m, n_items)
    item = np.array([rng.permutation(n_items)[:m] for _ in range(n_users)], np.int32).reshape(n_users, m)
    item[rng.random(item.shape) < 0.2] = -1
    score = rng.choice([0.0, 0.5, 1.0, 2.0], item.shape).astype(np.float32)
    for bad in draw(st.lists(WORST, max_size=3)):
        score[rng.random(item.shape) < 0.3] = bad
    vectors = rng.choice([0, 1, -1, 0.5], (n_items, 3)).astype(np.float32)
    vectors[rng.random(n_items) < 0.2] = draw(st.sampled_from([0.0, np.nan, np.inf, 3e38]))
    goods = shop(
        n_items,
        category=rng.integers(-1, 3, n_items),
        brand=rng.integers(-1, 4, n_items),
        seller=rng.integers(-1, 3, n_items),
        available=rng.random(n_items) < draw(st.sampled_from([0.0, 0.7, 1.0])),
        age_days=rng.choice([np.nan, 0, 3, 20, 400, -1], n_items),
        margin=rng.choice([np.nan, 0, 0.4, 1], n_items),
        promoted=rng.random(n_items) < 0.3,
        attention=rng.integers(0, 20, n_items),
    ).with_vectors(vectors)
    lengths = rng.integers(0, 6, n_users)
    users = people(
        *[rng.integers(0, n_items, size).tolist() for size in lengths],
        n_items=n_items,
        kinds=[rng.integers(0, 4, size).tolist() for size in lengths],
        days_ago=[rng.uniform(0.1, 90, size).tolist() for size in lengths],
    )
    return Ranked.of(item, score), goods, users


def bought(users, row):
    events = slice(users.indptr[row], users.indptr[row + 1])
    return set(users.item[events][users.event_type[events] == 3].tolist())


@settings(max_examples=60, deadline=None)
@given(world=worlds(), policy=st.sampled_from(CHAINS))
def test_no_item_is_invented_or_twice_or_blocked_and_none_is_lost(world, policy):
    lists, goods, users = world
    shown, fired = chain.reranked(lists, goods, users, policy)
    assert shown.item.shape == shown.score.shape == fired.shape == lists.item.shape
    assert not np.isnan(shown.score).any()
    with np.errstate(invalid="ignore"):
        assert not (shown.score[:, 1:] > shown.score[:, :-1]).any()
    for row, (before, after) in enumerate(zip(items(lists), items(shown), strict=True)):
        blocked = {item for item in before if policy.availability and not goods.available[item]}
        blocked |= bought(users, row) if policy.purchased else set()
        assert sorted(after) == sorted(set(before) - blocked)
        assert lists.item[row, shown.origin[row, : len(after)]].tolist() == after
        assert (shown.item[row, len(after) :] == -1).all()
        assert (shown.origin[row, len(after) :] == -1).all()


@settings(max_examples=30, deadline=None)
@given(world=worlds(), policy=st.sampled_from(CHAINS))
def test_a_list_does_not_depend_on_whose_lists_come_with_it(world, policy):
    lists, goods, users = world
    shown, fired = chain.reranked(lists, goods, users, policy)
    again, _ = chain.reranked(lists, goods, users, policy)
    assert again.item.tobytes() == shown.item.tobytes()
    for row in range(users.n_users):
        alone = Ranked(lists.item[row : row + 1], lists.score[row : row + 1], lists.origin[row : row + 1])
        found, why = chain.reranked(alone, goods, users.rows(row, row + 1), policy)
        assert found.item[0].tolist() == shown.item[row].tolist()
        assert why[0].tolist() == fired[row].tolist()


@settings(max_examples=40, deadline=None)
@given(world=worlds(), policy=st.sampled_from(CHAINS))
def test_more_places_begin_with_the_fewer(world, policy):
    """Rules fill place by place: what stands on the first page does not depend on how many pages there are."""
    lists, goods, users = world
    few, _ = chain.reranked(lists, goods, users, policy.model_copy(update={"depth": 3}))
    more, _ = chain.reranked(lists, goods, users, policy.model_copy(update={"depth": 6}))
    one_rule = len(chain.active(policy)) <= 2  # a later rule sees what earlier ones did below
    assert not one_rule or few.item[:, :3].tolist() == more.item[:, :3].tolist()


def similarity(seed, m, copies=False):
    """Return a matrix of likenesses, and how the rules are asked for its rows."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(m, 4)).astype(np.float32)
    if copies and m > 1:
        vectors[1] = vectors[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T, likeness.by_vectors(vectors), rng.random(m).astype(np.float32)


def plain_mmr(relevance, alike, k, trade_off):
    chosen = [int(relevance.argmax())]
    while len(chosen) < min(k, len(relevance)):
        left = [i for i in range(len(relevance)) if i not in chosen]
        chosen.append(max(left, key=lambda i: trade_off * relevance[i] - (1 - trade_off) * max(alike[i, j] for j in chosen)))
    return chosen


def plain_dpp(relevance, alike, k, trade_off):
    """Greedy by the determinant itself: each next item maximises t x relevance + (1 - t) x log det."""
    kernel, chosen = alike.astype(np.float64).copy(), []
    np.fill_diagonal(kernel, 1.0)

    def log_det(inside):
        return np.linalg.slogdet(kernel[np.ix_(inside, inside)])[1] if inside else 0.0

    while len(chosen) < min(k, len(relevance)):
        adds = {i: log_det([*chosen, i]) - log_det(chosen) for i in range(len(relevance)) if i not in chosen}
        best = max(adds, key=lambda i: trade_off * relevance[i] + (1 - trade_off) * adds[i])
        if adds[best] < np.log(dpp.SPANNED):
            break
        chosen.append(best)
    return chosen


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 12), k=st.integers(1, 14), trade_off=st.sampled_from([0.1, 0.5, 0.9]))
def test_incremental_mmr_equals_the_plain_one(seed, m, k, trade_off):
    matrix, alike, relevance = similarity(seed, m)
    assert mmr.select(relevance, alike, k, trade_off).tolist() == plain_mmr(relevance, matrix, k, trade_off)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 12), k=st.integers(1, 4), trade_off=st.sampled_from([0.1, 0.5, 0.9]))
def test_fast_dpp_equals_greedy_by_the_determinant(seed, m, k, trade_off):
    """Four dimensions hold four items; a copy is never among them."""
    matrix, alike, relevance = similarity(seed, m, copies=True)
    found = dpp.select(relevance, alike, k, trade_off).tolist()
    assert found == plain_dpp(relevance, matrix, k, trade_off)
    assert not {0, 1} <= set(found)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 30))
def test_likeness_by_attributes_is_that_of_their_indicator_vectors(seed, m):
    rng = np.random.default_rng(seed)
    category, brand = (rng.integers(-1, high, m).astype(np.int32) for high in (3, 5))
    alike = likeness.by_attributes([(category, 0.6), (brand, 0.4)])
    plus, row = rng.random(m).astype(np.float32), np.empty(m, np.float32)
    for j in range(m):
        alike(j, -0.5, plus, row)
        same = 0.6 * ((category == category[j]) & (category >= 0)) + 0.4 * ((brand == brand[j]) & (brand >= 0))
        others = np.arange(m) != j
        assert row[others] == pytest.approx((plus - 0.5 * same)[others], abs=1e-6)


def test_as_many_unlike_items_as_are_asked_for_whatever_the_order_of_relevance():
    """Dpp over attributes never ends early: two items alike in everything shown still differ as items."""
    goods = shop(6, category=[0] * 6, brand=[0] * 6)
    shown, _ = chain.reranked(ranked([5, 4, 3, 2, 1, 0]), goods, nobody(1, 6), RerankSettings(dpp=True))
    assert items(shown) == [[5, 4, 3, 2, 1, 0]]


def test_empty_shops_users_and_lists_pass_through_every_rule():
    for policy in CHAINS:
        for lists, goods, users in (
            (Ranked.of(np.empty((0, 5), np.int32), np.empty((0, 5))), shop(3), nobody(0, 3)),
            (Ranked.of(np.empty((2, 0), np.int32), np.empty((2, 0))), shop(3), nobody(2, 3)),
            (Ranked.of(np.full((2, 4), -1), np.zeros((2, 4))), shop(3), nobody(2, 3)),
            (Ranked.of(np.full((1, 4), -1), np.zeros((1, 4))), shop(0), nobody(1, 0)),
        ):
            shown, fired = chain.reranked(lists, goods.with_vectors(np.zeros((len(goods), 2), np.float32)), users, policy)
            assert (shown.item == lists.item).all()
            assert not fired.any()
