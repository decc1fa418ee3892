"""What a newcomer chose is in the next list, until deeds say more."""

from __future__ import annotations

import pytest
import served_shop
from full_path import ask, opened, some_users

from pipelines.serving.preferences import SOURCE, Book, Said


@pytest.fixture(scope="module")
def shop(served, tmp_path_factory):
    """Return a copy of the shop and an engine over it."""
    home = served_shop.copied(served, tmp_path_factory.mktemp("choosing") / "var")
    return home, opened(home)


def test_the_next_list_of_a_newcomer_follows_the_choice_and_says_so(shop):
    home, engine = shop
    before = engine.answer(ask(user_id="new here"))
    Book(home).put("new here", Said(categories=("tea",)))
    after = engine.answer(ask(user_id="new here"))
    tea = [sum(shown.about["category"] == "tea" for shown in answer.items) for answer in (before, after)]
    assert tea[1] > tea[0]
    chosen = [shown for shown in after.items if SOURCE in shown.sources]
    assert {shown.why.kind for shown in chosen} == {"chosen"}
    assert engine.answer(ask(user_id="somebody else")).items == before.items


def test_items_like_the_chosen_ones_are_proposed_and_the_chosen_ones_are_not(shop):
    home, engine = shop
    liked = str(engine.model.item_ids[3])
    Book(home).put("likes one", Said(item_ids=(liked, "no such thing")))
    answer = engine.answer(ask(user_id="likes one"))
    by_choice = [shown.item_id for shown in answer.items if SOURCE in shown.sources]
    assert by_choice
    assert liked not in by_choice


def test_who_is_known_by_deeds_is_not_asked_what_was_said(shop):
    home, engine = shop
    user = some_users(home, 5)[2]
    before = engine.answer(ask(user_id=user))
    Book(home).put(user, Said(categories=("tea",)))
    assert engine.answer(ask(user_id=user)).items == before.items


def test_the_newest_answer_counts_in_every_process(home):
    assert Book(home).of("ann") is None
    for said in (Said(brands=("b",)), Said(("tea",), (), ("i1",))):
        Book(home).put("ann", said)
        assert Book(home).of("ann") == said
    assert Book(home).of("bob") is None
