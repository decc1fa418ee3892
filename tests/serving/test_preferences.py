"""What a newcomer chose is in the next list, until deeds say more."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import served_shop
from full_path import ask, opened, some_users

from pipelines.errors import StateError
from pipelines.serving.deadline import Watch
from pipelines.serving.engine import Engine
from pipelines.serving.preferences import SOURCE, Book, Said, wanted
from pipelines.serving_policies import DeadlinePolicy


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


def test_an_answer_without_a_word_takes_no_ranker_away_and_takes_back_what_was_said(home):
    book, newcomer = Book(home), SimpleNamespace(item=np.array([1, 2, 3, 4, 5]))
    book.put("ann", Said(brands=("b",)))
    assert wanted(book, "ann", newcomer) == Said(brands=("b",))
    assert wanted(book, "ann", SimpleNamespace(item=np.arange(6))) is None
    book.put("ann", Said())
    assert wanted(book, "ann", newcomer) is None


def test_the_newest_answer_counts_in_every_process(home):
    assert Book(home).of("ann") is None
    for said in (Said(brands=("b",)), Said(("tea",), (), ("i1",))):
        Book(home).put("ann", said)
        assert Book(home).of("ann") == said
    assert Book(home).of("bob") is None


def test_a_damaged_file_is_an_error_that_is_named_and_once_removed_it_works_again(home):
    home.serving.mkdir(parents=True, exist_ok=True)
    file, book = home.serving / "preferences.db", Book(home)
    file.write_bytes(b"no database at all" * 100)
    for go in (lambda: book.put("ann", Said(("tea",))), lambda: book.of("ann")):
        with pytest.raises(StateError, match="not a database"):
            go()
    file.unlink()
    book.put("ann", Said(("tea",)))
    assert book.of("ann") == Said(("tea",))


def test_without_what_was_chosen_a_newcomer_gets_a_list_and_a_label(home):
    home.serving.mkdir(parents=True, exist_ok=True)
    (home.serving / "preferences.db").write_bytes(b"no database at all" * 100)
    watch, nobody = Watch(DeadlinePolicy()), SimpleNamespace(item=np.empty(0, np.int32))
    one = SimpleNamespace(knowledge=SimpleNamespace(preferences=Book(home)))
    assert Engine._chosen(one, "ann", nobody, watch) is None
    assert [line.partition(":")[0] for line in watch.degraded] == ["preferences"]
