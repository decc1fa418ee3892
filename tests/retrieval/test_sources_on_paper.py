"""Sessions, baskets, trends, segments and descriptions that can be worked out by hand."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from retriever_contract import NOW, described, everyone, strangers, world

from pipelines import columns as c
from pipelines import tables
from pipelines.datasets import profiles
from pipelines.datasets.interactions import Histories
from pipelines.errors import ReloopError
from pipelines.retrieval import content, neighbours
from pipelines.retrieval.content import Content
from pipelines.retrieval.popular_by_segment import PopularBySegment
from pipelines.retrieval.session_knn import SessionKnn
from pipelines.retrieval.together import Together
from pipelines.retrieval.trending import Trending

MINUTE = 1 / 1440


def weights(retriever):
    return neighbours.matrix(retriever.state).toarray()


def visits(*sessions):
    """Return events of user n from its sessions, a day apart, a minute between the items of one."""
    return [
        (user, item, 9 - number - step * MINUTE, 1.0)
        for user, mine in enumerate(sessions)
        for number, items in enumerate(mine)
        for step, item in enumerate(items)
    ]


def asking(*items, n_items):
    """Return one user who met some items, a minute apart."""
    n = len(items)
    at = NOW - np.arange(n, 0, -1, dtype=np.int64) * 60_000_000
    return Histories(np.array([0, n]), np.array(items, dtype=np.int32), at, np.ones(n, dtype=np.float32), n_items, NOW)


def test_silence_ends_a_session_and_a_long_one_is_cut_from_its_end():
    fitted = SessionKnn(gap_minutes=30, max_length=2).fit(world(visits([[0, 1, 2], [3]], [[4, 5]]), 2, 6))
    sessions = np.split(fitted.state["item"], fitted.state["indptr"][1:-1])
    assert [session.tolist() for session in sessions] == [[1, 2], [4, 5]], "0 and 3 stand alone and say nothing"


def test_a_session_is_similar_by_the_late_items_it_holds_and_proposes_what_stood_near_the_latest():
    # session of user 0: 0, 1, 2, 3; of user 1: 4, 0. Asked with 0, then 1: weights 1/2 and 1.
    known = world(visits([[0, 1, 2, 3]], [[4, 0]]), 2, 5)
    model = SessionKnn(gap_minutes=30, decay=0.5, distance_decay=0.5, backward=0.25, popularity_exponent=0)
    found = model.fit(known).retrieve(asking(0, 1, n_items=5), 5, exclude_seen=True)
    first, second = 1.5 / 4**0.5, 0.5 / 2**0.5
    expected = {2: first, 3: first * 0.5, 4: second * 0.25}  # after 1; two steps after 1; before 0
    assert dict(zip(found.item[0, :3].tolist(), found.score[0, :3].tolist(), strict=True)) == pytest.approx(expected)
    assert found.item[0, 3] == -1
    fair = replace(model, popularity_exponent=1.0).fit(world([*visits([[0, 1, 2, 3]], [[4, 0]]), (2, 2, 1, 1.0)], 3, 5))
    assert fair.retrieve(asking(0, 1, n_items=5), 1, exclude_seen=True).score[0, 0] == pytest.approx(first / 2), "2 was met twice"


def test_baskets_pair_what_one_visit_held_of_one_type():
    known = world(visits([[0, 1, 1], [0, 2]], [[0, 1]]), 2, 3)
    confidence = Together(c.VIEW, gap_minutes=30, shrinkage=0, from_exponent=1, to_exponent=0)
    np.testing.assert_allclose(weights(confidence.fit(known)), [[0, 2 / 3, 1 / 3], [1, 0, 0], [1, 0, 0]], rtol=1e-6)
    cosine = Together(c.VIEW, gap_minutes=30, shrinkage=1, min_baskets=2)
    shrunk = 2 / (6**0.5 + 1)
    np.testing.assert_allclose(weights(cosine.fit(known)), [[0, shrunk, 0], [shrunk, 0, 0], [0, 0, 0]], rtol=1e-6)
    assert not weights(Together(c.PURCHASE).fit(known)).any(), "nobody bought"
    with pytest.raises(ReloopError, match="event_type 'wish'"):
        Together("wish").fit(known)


def test_the_last_step_asks_loudest_for_what_goes_with_it():
    known = world(visits([[0, 1]], [[2, 3]]), 2, 4)
    model = Together(c.VIEW, gap_minutes=30, decay=0.5, shrinkage=0).fit(known)
    found = model.retrieve(asking(0, 2, n_items=4), 2, exclude_seen=True)
    assert found.item[0].tolist() == [3, 1]
    np.testing.assert_allclose(found.score[0], [1, 0.5])
    narrow = replace(model, window=1).retrieve(asking(0, 2, n_items=4), 2, exclude_seen=True)
    assert narrow.item[0].tolist() == [3, -1]


def test_trending_is_the_late_rate_over_the_usual_one_and_a_prior():
    # a day each of window, ten of baseline: item 0 from 1 to 4 a day, item 1 from 0 to 2, item 2 ended
    events = [(0, 0, 0.5, 4.0), (0, 0, 5, 10.0), (0, 1, 0.5, 2.0), (0, 2, 11, 5.0)]
    known = world(events, 1, 3)
    found = Trending(window_days=1, baseline_days=10, prior=1.0).fit(known).retrieve(everyone(known), 3, exclude_seen=False)
    assert found.item[0].tolist() == [0, 1, -1]
    np.testing.assert_allclose(found.score[0, :2], [4 / (1 + 3), 2 / (0 + 3)], rtol=1e-6)
    eager = Trending(window_days=1, baseline_days=10, prior=0.1).fit(known).retrieve(everyone(known), 2, exclude_seen=False)
    assert eager.item[0].tolist() == [1, 0]


def test_a_segment_has_its_own_popularity_and_leans_on_everybody_where_it_is_small():
    # Norway: item 0 x 6, item 1 x 2; Peru: item 1 x 2; a user of no country: item 2 x 10
    events = [(0, 0, 1, 6.0), (0, 1, 1, 2.0), (1, 1, 1, 2.0), (2, 2, 1, 10.0)]
    known = world(events, 3, 3)
    known = replace(known, users=pa.table({c.COUNTRY: ["NO", "PE", None], c.AGE_BAND: ["a", "a", "b"]}))
    found = PopularBySegment(prior=10.0).fit(known).retrieve(everyone(known), 3, exclude_seen=False)
    share = np.array([6, 4, 10]) / 20
    norway, peru = (np.array([6, 2, 0]) + 10 * share) / 18, (np.array([0, 2, 0]) + 10 * share) / 12
    assert found.item.tolist() == [[0, 2, 1], [2, 1, 0], [2, 0, 1]]
    np.testing.assert_allclose(found.score, [norway[[0, 2, 1]], peru[[2, 1, 0]], share[[2, 0, 1]]], rtol=1e-6)
    own = PopularBySegment(prior=0.0).fit(known)
    assert own.retrieve(everyone(known), 3, exclude_seen=True).item.tolist() == [[-1] * 3, [-1] * 3, [0, 1, -1]]
    assert own.retrieve(strangers(3, 1), 3, exclude_seen=True).item.tolist() == [[2, 0, 1]], "nothing known: everybody's"
    by_age = PopularBySegment(segment=c.AGE_BAND, prior=0.0).fit(known)
    assert by_age.retrieve(everyone(known), 2, exclude_seen=False).item.tolist() == [[0, 1], [0, 1], [2, -1]]
    with pytest.raises(ReloopError, match="segment 'shoe_size'"):
        PopularBySegment(segment="shoe_size").fit(known)


def catalogue(**columns):
    n_rows = len(next(iter(columns.values())))
    return described(tables.ITEMS, profiles.ITEMS, columns, n_rows)


def test_descriptions_are_alike_by_the_rare_terms_they_share():
    items = catalogue(title=["Red pen", "red pad!", None, "blue"], brand=["Bic", None, None, "Bic"])
    found = content.tfidf(items, 4, 100).toarray()
    # terms: red (2 items), pen (1), brand=Bic (2), pad (1), blue (1); idf = ln(5 / (1 + n)) + 1
    two, one = np.log(5 / 3) + 1, np.log(5 / 2) + 1
    lengths = np.sqrt([2 * two**2 + one**2, two**2 + one**2, two**2 + one**2])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(found[0] @ found[1], two**2 / (lengths[0] * lengths[1]), rtol=1e-6)
    np.testing.assert_allclose(found[0] @ found[3], two**2 / (lengths[0] * lengths[2]), rtol=1e-6)
    assert found[1] @ found[3] == 0
    rare = content.tfidf(items, 4, 1).toarray()
    assert rare[0] @ rare[1] == 0, "a term of two items is too common"


def test_a_new_item_is_proposed_by_what_it_says():
    known = world([(0, 0, 1, 1.0), (0, 1, 2, 1.0)], 1, 4)
    attributes = [None, None, [("ink", "green")], [("ink", "red")]]
    known = replace(known, items=catalogue(title=["pen", "pad", "pen", "quill"], category=["a", "b", "a", None], attributes=attributes))
    found = Content().fit(known).retrieve(everyone(known), 3, exclude_seen=True)
    assert found.item[0].tolist() == [2, -1, -1]
    bare = Content().fit(replace(known, items=None))
    assert (bare.retrieve(everyone(known), 3, exclude_seen=False).item == -1).all()
