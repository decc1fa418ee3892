"""The ladder for people of whom little is known: which rung answers whom, worked out on paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from retriever_contract import NOW, described, strangers, world

from pipelines import columns as c
from pipelines import tables
from pipelines.datasets import profiles
from pipelines.datasets.interactions import Histories
from pipelines.errors import ReloopError
from pipelines.retrieval import merging
from pipelines.retrieval.cold_users import ColdUsers, Preferences, alone
from pipelines.retrieval.popular_by_profile import PopularByProfile
from pipelines.retrieval.protocol import Candidates

N_ITEMS = 8


def people(countries):
    return described(tables.USERS, profiles.USERS, {c.COUNTRY: countries}, len(countries)) if countries else None


@pytest.fixture(scope="module")
def shop():
    """Return a shop in which Norwegians (u0 to u3) go from item 0 to 2 and 4, Peruvians (u4 to u6) from 1 to 3; everybody ends with 6.

    Even items are ebony of the category black, odd ones ivory and white. Item 7 was never met.
    """
    walks = [(user, items) for user in range(7) for items in [[0, 2, 4, 6] if user < 4 else [1, 3, 6]]]
    events = [(user, item, 10.0 - step, 1.0) for user, items in walks for step, item in enumerate(items)]
    return replace(world(events, 7, N_ITEMS), users=people(["NO"] * 4 + ["PE"] * 3))


@pytest.fixture(scope="module")
def ladder(shop):
    return ColdUsers(prior=5.0, half_life_days=None).fit(shop)


def asking(items, countries=None):
    """Return histories of people nobody trained on: the items they just looked at, and their country."""
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in items])]).astype(np.int64)
    item = np.array([item for row in items for item in row], dtype=np.int32)
    at = np.arange(NOW - len(item), NOW, dtype=np.int64)
    return Histories(indptr, item, at, np.ones(len(item), dtype=np.float32), N_ITEMS, NOW, users=people(countries))


def test_nothing_known_is_answered_by_what_everybody_likes(ladder):
    found = ladder.answer(strangers(N_ITEMS, 1), 3, exclude_seen=True)
    assert found.rungs() == ["popular"]
    assert found.item.tolist() == [[6, 0, 2]], "7 users met item 6, 4 each item 0, 2 and 4"


def test_a_profile_is_answered_by_those_alike_and_an_unknown_country_by_everybody(ladder):
    found = ladder.answer(asking([[], [], []], ["PE", "NO", "Atlantis"]), 3, exclude_seen=True)
    assert found.rungs() == ["profile", "profile", "popular"]
    assert found.item.tolist() == [[6, 1, 3], [6, 0, 2], [6, 0, 2]]


def test_a_session_of_somebody_new_is_answered_by_what_goes_with_it_and_the_rest_filled_from_the_rungs_below(ladder):
    found = ladder.answer(asking([[0]], ["PE"]), 6, exclude_seen=True)
    assert found.rungs() == ["session"]
    assert found.rung[0].tolist() == [0, 0, 0, 2, 2, -1]
    assert set(found.item[0, :3]) == {2, 4, 6}, "what those who met item 0 met too"
    assert found.item[0, 3:].tolist() == [1, 3, -1], "the profile's, without what stands there already; 5 and 7 nobody met"


def test_what_is_known_of_the_user_outweighs_what_everybody_likes_by_as_much_as_the_weight_says(shop):
    """Item 1 goes with item 3 alone among Peruvians; with a heavy common weight the best seller comes first."""
    light, heavy = (
        ColdUsers(prior=5.0, common_weight=weight).fit(shop).answer(asking([[1]]), 3, exclude_seen=True) for weight in (0.01, 9)
    )
    assert light.item[0, 0] == 3
    assert heavy.item[0, 0] == 6


def test_preferences_are_answered_from_the_chosen_category(ladder):
    wanted = Preferences(categories=("white",))
    found = ladder.answer(strangers(N_ITEMS, 1), 5, exclude_seen=True, preferences=[wanted])
    assert found.rungs() == ["preferences"]
    assert set(found.item[0, :2]) == {1, 3}, "the white items that anybody met"
    assert found.rung[0].tolist() == [1, 1, 3, 3, 3], "then what everybody likes"


def test_chosen_items_bring_their_like_and_their_followers_but_not_themselves(ladder, shop):
    wanted = Preferences.chosen(shop.item_ids, items=["i000", "no such item"])
    assert wanted.items == (0,)
    found = ladder.answer(strangers(N_ITEMS, 1), 3, exclude_seen=True, preferences=[wanted])
    assert set(found.item[0]) == {2, 4, 6}


def test_unknown_or_empty_preferences_fall_to_the_next_rung(ladder):
    wanted = [Preferences(), Preferences(categories=("mauve",), brands=("none",))]
    assert ladder.answer(strangers(N_ITEMS, 2), 3, exclude_seen=True, preferences=wanted).rungs() == ["popular"] * 2


def test_preferences_of_another_number_or_catalogue_are_refused(ladder):
    with pytest.raises(ReloopError, match="one for each of 2 histories"):
        ladder.answer(strangers(N_ITEMS, 2), 3, exclude_seen=True, preferences=[Preferences()])
    with pytest.raises(ReloopError, match="items 8 to 8"):
        ladder.answer(strangers(N_ITEMS, 1), 3, exclude_seen=True, preferences=[Preferences(items=(8,))])


def test_as_a_source_it_leaves_alone_whoever_is_known(shop):
    fitted = ColdUsers(max_events=2).fit(shop)
    found = fitted.retrieve(asking([[0, 2], [0, 2, 4]]), 2, exclude_seen=True)
    assert (found.item[0] >= 0).all()
    assert (found.item[1] == -1).all()
    assert (found.score[0] > 0).all()
    assert np.isneginf(found.score[1]).all()


def test_popularity_by_profile_on_paper(shop):
    """Norwegians' weight is 16, 4 of it on item 0; everybody's is 25. With a prior of 5 the lift of item 0 is (4 / .16 + 5) / 21."""
    fitted = PopularByProfile(prior=5.0).fit(shop)
    state = fitted.state
    place = state["item"].tolist().index(0)
    assert state["values"].tolist() == ["country=NO", "country=PE"]
    assert state["share"][place] == pytest.approx(4 / 25)
    assert np.exp(state["lift"][0, place]) == pytest.approx((4 / 0.16 + 5) / 21)
    assert np.exp(state["lift"][1, place]) == pytest.approx(5 / (9 + 5))


def test_values_multiply_and_dilution_takes_their_mean(shop):
    """Country and a doubling attribute say the same thing twice: diluted by 1 they say it once."""
    table = shop.users
    twice = [[("again", country)] for country in table[c.COUNTRY].to_pylist()]
    both = table.set_column(table.column_names.index(c.ATTRIBUTES), c.ATTRIBUTES, pa.array(twice, table[c.ATTRIBUTES].type))
    once = PopularByProfile(prior=5.0).fit(shop).retrieve(asking([[]], ["PE"]), 5, exclude_seen=False)
    diluted = PopularByProfile(prior=5.0, dilution=1.0).fit(replace(shop, users=both))
    found = diluted.retrieve(replace(asking([[]]), users=both.slice(6, 1)), 5, exclude_seen=False)
    assert (found.item == once.item).all()
    np.testing.assert_allclose(found.score, once.score, rtol=1e-5)


def test_a_field_of_too_many_values_is_no_kind_of_people(shop):
    assert PopularByProfile(max_values=1).fit(shop).state["values"].tolist() == []


def test_in_a_line_up_the_ladders_users_are_left_to_it():
    """Row 0 is a stranger whom the ladder answers, row 1 is known."""
    ladders = Candidates(np.array([[4, 5], [-1, -1]], dtype=np.int32), np.array([[2, 1], [-np.inf, -np.inf]], dtype=np.float32))
    others = Candidates(np.array([[1, 2], [3, 4]], dtype=np.int32), np.ones((2, 2), dtype=np.float32))
    merged = merging.merge(alone({"popular": others, "cold_users": ladders}), 2)
    assert merged.item.tolist() == [[4, 5], [3, 4]]
    assert alone({"popular": others})["popular"] is others, "without the ladder nothing changes"
