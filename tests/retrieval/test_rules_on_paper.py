"""Weights that can be worked out by hand, one source at a time."""

from typing import Literal, get_origin

import numpy as np
import pytest
from retriever_contract import everyone, world

from pipelines import knobs
from pipelines.errors import ReloopError, StateError
from pipelines.model_settings import RetrievalSettings
from pipelines.retrieval import ease, lineup, neighbours
from pipelines.retrieval.ease import Ease
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.popular import Popular
from pipelines.retrieval.repeat import Repeat
from pipelines.retrieval.sequence_rules import SequenceRules


def weights(retriever):
    return neighbours.matrix(retriever.state).toarray()


def test_cosine_is_shared_over_norms_plus_shrinkage():
    # item 0: users 0, 1; item 1: users 0, 1; item 2: user 1
    events = [(0, 0, 1, 1.0), (0, 1, 1, 1.0), (1, 0, 1, 1.0), (1, 1, 1, 1.0), (1, 2, 1, 1.0)]
    found = weights(ItemKnn(shrinkage=3.0, half_life_days=1e9).fit(world(events, 2, 4)))
    one = 1 / (np.sqrt(2) + 3)
    np.testing.assert_allclose(found, [[0, 2 / 5, one, 0], [2 / 5, 0, one, 0], [one, one, 0, 0], [0, 0, 0, 0]], rtol=1e-6)


def test_weightings_are_those_of_paper():
    """Three items, w = 1 but for one 4. User 0 met a (4) and b: idf log(3/3) = 0. User 1 met b alone: log(3/2). User 2 met a: log(3/2)."""
    events = [(0, 0, 1, 4.0), (0, 1, 1, 1.0), (1, 1, 1, 1.0), (2, 0, 1, 1.0), (3, 0, 1, 4.0)]
    users = neighbours.user_item(known := world(events, 4, 3), known.weight, 400)
    idf = np.log(3 / 2)
    np.testing.assert_allclose(ItemKnn(weighting="tfidf")._weighted(users), [0, 0, idf, idf, 2 * idf], rtol=1e-6)
    # lengths: a 9, b 2, c 0; mean 11/3
    a, b = 2 * (0.5 + 0.5 * 9 * 3 / 11), 2 * (0.5 + 0.5 * 2 * 3 / 11)
    wanted = [0, 0, 3 / (1 + b) * idf, 3 / (1 + a) * idf, 12 / (4 + a) * idf]
    np.testing.assert_allclose(ItemKnn(weighting="bm25", k1=2.0, b=0.5)._weighted(users), wanted, rtol=1e-6)


def test_a_dot_product_is_the_shared_weight_itself():
    events = [(0, 0, 1, 4.0), (0, 1, 1, 1.0), (1, 0, 1, 1.0), (1, 1, 1, 1.0)]
    found = weights(ItemKnn(similarity="dot", half_life_days=1e9).fit(world(events, 2, 2)))
    np.testing.assert_allclose(found, [[0, 3], [3, 0]], rtol=1e-6)


def test_rules_count_what_follows_and_fade_with_the_steps():
    # a, b (a run of two), c: b follows a at once, c follows b at once and a after two steps
    events = [(0, 0, 4, 1.0), (0, 1, 3, 1.0), (0, 1, 2, 1.0), (0, 2, 1, 1.0), (1, 2, 2, 1.0), (1, 0, 1, 1.0)]
    found = weights(SequenceRules(window=5, decay=0.5, popularity_exponent=0).fit(world(events, 2, 3)))
    assert found.tolist() == [[0, 1 / 2, 0.5 / 2], [0, 0, 1], [1 / 2, 0, 0]], "a and c were met twice"
    narrow = weights(SequenceRules(window=1, decay=0.5, popularity_exponent=0).fit(world(events, 2, 3)))
    assert narrow.tolist() == [[0, 1 / 2, 0], [0, 0, 1], [1 / 2, 0, 0]]
    fair = weights(SequenceRules(window=1, decay=0.5, popularity_exponent=1).fit(world(events, 2, 3)))
    assert fair.tolist() == [[0, 1 / 2, 0], [0, 0, 1 / 2], [1 / 4, 0, 0]]


def test_the_last_step_of_a_history_speaks_loudest():
    events = [(0, 0, 9, 1.0), (0, 1, 8, 1.0), (1, 2, 9, 1.0), (1, 3, 8, 1.0), (2, 0, 3, 1.0), (2, 2, 2, 1.0)]
    interactions = world(events, 3, 4)
    found = SequenceRules(decay=0.5).fit(interactions).retrieve(everyone(interactions), 2, exclude_seen=True)
    assert found.item[2].tolist() == [3, 1]


def test_ease_is_the_closed_form(monkeypatch):
    monkeypatch.setattr(ease, "BLOCK", 3)
    rng = np.random.default_rng(0)
    events = [(user, item, 1.0, 1.0) for user in range(30) for item in range(8) if rng.random() < 0.4]
    interactions = world(events, 30, 8)
    x = (everyone(interactions).matrix().toarray() > 0).astype(float)
    inverse = np.linalg.inv(x.T @ x + 5 * np.eye(8))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights(Ease(regularization=5.0).fit(interactions)), expected, atol=1e-5)


def test_ease_takes_the_most_frequent_items_and_says_how_many_it_left_out(caplog):
    events = [(user, item, 1.0, 1.0) for user in range(5) for item in range(4) if user <= item]
    fitted = Ease(max_items=2, regularization=1.0).fit(world(events, 5, 6))
    assert set(np.flatnonzero(np.abs(weights(fitted)).sum(axis=0))) == {2, 3}
    assert "2 of 4 items with events take part, the most frequent; 2 are left out" in caplog.text


def test_ease_without_regularization_is_refused_where_it_has_no_answer():
    with pytest.raises(ReloopError, match="regularization 0"):
        Ease(regularization=0.0).fit(world([(0, 0, 1.0, 1.0), (0, 1, 1.0, 1.0)], 1, 2))


def test_popularity_of_late_fades_and_ends():
    events = [(0, 0, 1, 1.0), (0, 1, 4, 1.5), (0, 2, 30, 9.0)]
    interactions = world(events, 1, 3)
    found = Popular(window_days=7, half_life_days=3).fit(interactions).retrieve(everyone(interactions), 3, exclude_seen=False)
    assert found.item[0].tolist() == [0, 1, -1]
    np.testing.assert_allclose(found.score[0, :2], [0.5 ** (1 / 3), 1.5 * 0.5 ** (4 / 3)], rtol=1e-6)


def test_however_much_a_user_has_seen_popularity_fills_the_list():
    interactions = world([(0, item, 1, float(9 - item)) for item in range(6)] + [(1, item, 1, 1.0) for item in range(9)], 2, 9)
    found = Popular().fit(interactions).retrieve(everyone(interactions), 3, exclude_seen=True)
    assert found.item.tolist() == [[6, 7, 8], [-1, -1, -1]]


def test_repeat_ranks_by_faded_count_and_never_forgets():
    interactions = world([(0, 0, 14, 1.0), (0, 0, 28, 1.0), (0, 1, 1, 1.0), (0, 2, 9000, 1.0)], 1, 3)
    found = Repeat(half_life_days=14).fit(interactions).retrieve(everyone(interactions), 3, exclude_seen=False)
    assert found.item[0].tolist() == [1, 0, 2]
    np.testing.assert_allclose(found.score[0, :2], [0.5 ** (1 / 14), 0.5 + 0.25], rtol=1e-6)


def test_unknown_sources_and_knobs_are_named():
    with pytest.raises(StateError, match="source 'eaze': unknown; expected one of"):
        lineup.make("eaze")
    with pytest.raises(StateError, match=r"knobs \['lambda'\]; expected some of \['regularization'"):
        lineup.make("ease", {"lambda": 3})
    assert lineup.make("ease", {"regularization": 3.0}) == Ease(regularization=3.0)


def test_every_number_among_the_knobs_has_a_range_that_holds_its_default():
    seen = 0
    for name, source in lineup.SOURCES.items():
        assert lineup.make(name, {knob: getattr(source, knob) for knob in knobs.of(type(source))}) == source
        for knob, (kind, within) in knobs.of(type(source)).items():
            assert within is not None or kind in {str, bool} or get_origin(kind) is Literal, f"{name}.{knob}"
            seen += within is not None
    assert seen > 100


def test_a_setting_that_names_no_source_or_an_impossible_knob_is_refused_for_sources_outside_the_line_up_too():
    with pytest.raises(StateError, match=r"source 'alz': unknown.*did you mean 'als'"):
        lineup.chosen(RetrievalSettings(sources=("popular",), parameters={"alz": {"n_factors": 8}}))
    with pytest.raises(StateError, match="source 'als': knob n_factors: 0"):
        lineup.chosen(RetrievalSettings(sources=("popular",), parameters={"als": {"n_factors": 0}}))
    with pytest.raises(StateError, match="source 'populist': unknown"):
        lineup.chosen(RetrievalSettings(sources=("populist",)))
    assert list(lineup.chosen(RetrievalSettings(sources=("ease", "popular")))) == ["ease", "popular"]


def test_state_with_a_nan_is_refused(tmp_path):
    fitted = Popular().fit(world([(0, 0, 1, 1.0)], 1, 1))
    fitted.state["score"][0] = np.nan
    with pytest.raises(StateError, match="score: NaN"):
        lineup.save(tmp_path, "popular", fitted)
