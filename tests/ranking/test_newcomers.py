"""From finished lists to what was shown: who counts as new, whose pool holds what, and the rows of the impressions table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipelines import columns as c
from pipelines import tables
from pipelines.datasets import newness, profiles
from pipelines.datasets.interactions import Histories, Interactions
from pipelines.model_settings import ExplorationPolicy, IndexSettings
from pipelines.ranking import newcomers
from pipelines.ranking.protocol import Lists
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.cold_items import ColdItems
from pipelines.window import utc

DAY = 86_400_000_000
NOW = 20_000 * DAY
N_ITEMS = 8
ITEM_IDS = np.array([f"i{n}" for n in range(N_ITEMS)])


@pytest.fixture
def known():
    """Return a shop in which items 0 to 3 are old, 4 had its first event yesterday, 5 and 6 came into the catalogue then; 7 is sold out.

    Even items are ebony, odd ones ivory; users 0 to 9 like even ones.
    """
    events = [(user, item, 50.0, 1.0) for user in range(20) for item in (0, 2) if user < 10]
    events += [(user, item, 50.0, 1.0) for user in range(10, 20) for item in (1, 3)]
    events += [(0, 4, 1.0, 1.0)]
    rows = sorted((user, NOW - int(age * DAY), item, weight) for user, item, age, weight in events)
    user, at, item, weight = (np.array(column) for column in zip(*rows, strict=True))
    created = [None] * 4 + [None] + [NOW - DAY] * 3
    columns = {name: [None] * N_ITEMS for name in profiles.ITEMS}
    columns |= {c.TITLE: ["ebony", "ivory"] * 4, c.AVAILABLE: [True] * 7 + [False], c.CREATED_AT: created}
    schema = pa.schema([tables.ITEMS.field(name) for name in profiles.ITEMS])
    return Interactions(
        user_ids=np.array([f"u{n:02}" for n in range(20)]),
        item_ids=ITEM_IDS,
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        at=at.astype(np.int64),
        weight=weight.astype(np.float32),
        event_type=np.zeros(len(rows), dtype=np.int8),
        value=np.full(len(rows), np.nan, dtype=np.float32),
        as_of=NOW,
        items=pa.table(columns, schema=schema),
    )


def policy(**knobs):
    return ExplorationPolicy(**({"method": "epsilon_greedy", "slots": (2,), "share": 1.0, "epsilon": 0.5, "min_propensity": 0.0} | knobs))


def lists(n=3):
    return Lists(
        user_ids=np.array([f"u{row:02}" for row in range(n)]),
        item_ids=np.tile(np.array(["i0", "i4", ""]), (n, 1)),
        score=np.tile(np.array([2.0, 1.0, -np.inf], dtype=np.float32), (n, 1)),
        sources=np.tile(np.array([1, 1, 0], dtype=np.uint64), (n, 1)),
        source_names=("popular",),
    )


def asking(n=3):
    """Return histories of one event on item 0."""
    item, at = np.zeros(n, dtype=np.int32), np.full(n, NOW - DAY)
    return Histories(np.arange(n + 1), item, at, np.ones(n, dtype=np.float32), N_ITEMS, NOW)


def explored(known, retrievers=None, n=3, **knobs):
    asked = {"item_ids": ITEM_IDS, "users": asking(n), "retrievers": retrievers or {}, "exclude_seen": False}
    asked["fresh"] = newcomers.new_items(known, policy(**knobs))
    return newcomers.explored(lists(n), policy=policy(**knobs), request_ids=[f"r{row}" for row in range(n)], **asked)


def test_days_known_count_from_the_earlier_of_first_event_and_catalogue(known):
    days = newness.known_days(known)
    assert days[:7].tolist() == [50, 50, 50, 50, 1, 1, 1]
    assert np.isnan(newness.known_days(replace(known, items=None))[5])


def test_new_is_young_seldom_met_and_for_sale(known):
    assert np.flatnonzero(newcomers.new_items(known, policy())).tolist() == [4, 5, 6]
    assert np.flatnonzero(newcomers.new_items(known, policy(max_events=0))).tolist() == [5, 6]
    assert np.flatnonzero(newcomers.new_items(known, policy(max_age_days=0.5))).tolist() == []


def test_only_new_items_that_the_list_lacks_take_the_slots(known):
    found = explored(known, n=200, slots=(1, 2))
    assert set(found.item_ids[:, 0]) == {"i5"}, "one card a slot"
    assert set(found.item_ids[:, 1]) == {"i6"}
    assert (found.item_ids[:, 2] == "").all()
    assert found.sources_of(0, 0) == ("exploration",)
    assert (found.score == lists(200).score).all()


def test_forty_sources_and_exploration_are_told_apart(known):
    many = replace(lists(50), source_names=tuple(f"s{n}" for n in range(40)), sources=np.full((50, 3), 1 << 39, dtype=np.uint64))
    asked = {
        "item_ids": ITEM_IDS,
        "users": asking(50),
        "fresh": newcomers.new_items(known, policy()),
        "retrievers": {},
        "exclude_seen": False,
    }
    found = newcomers.explored(many, policy=policy(), request_ids=[f"r{row}" for row in range(50)], **asked)
    assert found.sources_of(0, 0) == ("s39",)
    assert found.sources_of(0, 1) == ("exploration",)


@pytest.mark.parametrize("wrapped", [lambda model: model, lambda model: Indexed(model, IndexSettings(kind="flat"))])
def test_cold_items_decides_who_is_asked_first(known, wrapped):
    """Whoever likes ebony has the ebony newcomer as the favoured card; ivory's lovers the ivory one; behind an index, too."""
    model = wrapped(ColdItems(max_events=5, n_factors=2)).fit(known)
    ivory = replace(asking(2), item=np.array([0, 1], dtype=np.int32))
    found = newcomers.explored(
        lists(2), item_ids=ITEM_IDS, users=ivory, fresh=newcomers.new_items(known, policy()), retrievers={"cold_items": model},
        policy=policy(epsilon=0.0), request_ids=["a", "b"], exclude_seen=False,
    )  # fmt: skip
    assert found.item_ids[:, 1].tolist() == ["i6", "i5"]


def test_neighbours_met_more_often_promise_more_clicks(known):
    busy = replace(known, weight=np.where(known.item % 2 == 0, 3, 1).astype(np.float32))
    rates = newcomers.expected_rates(ColdItems(max_events=5, n_factors=2).fit(busy), N_ITEMS, policy(base_rate=0.02))
    assert rates[6] / rates[5] == pytest.approx(3, rel=1e-4)
    assert rates[0] == 0.02, "an old item is expected as the base rate says"
    assert (newcomers.expected_rates(None, 3, policy(base_rate=0.02)) == 0.02).all()


def test_what_was_shown_becomes_rows_with_their_propensity(known):
    found = explored(known, n=50, share=0.5)
    table = newcomers.impressions(found, request_ids=[f"r{row}" for row in range(50)], shown_at=utc("2025-03-01"), model_version="7")
    assert table.schema.equals(tables.IMPRESSIONS)
    assert table.num_rows == 100, "pads are not shown"
    rows = table.to_pylist()
    drawn = [row for row in rows if row["sources"] == ["exploration"]]
    kept = [row for row in rows if row["rank"] == 2 and row["sources"] == ["popular"]]
    assert 10 < len(drawn) < 40
    assert {row["propensity"] for row in rows if row["rank"] == 1} == {1.0}
    assert {row["propensity"] for row in kept} == {0.5}
    assert {row["propensity"] for row in drawn} == {0.5 * 0.75, 0.5 * 0.25}
    assert {row["item_id"] for row in drawn} == {"i5", "i6"}


def test_lists_that_nothing_was_drawn_for_are_shown_with_certainty():
    table = newcomers.impressions(lists(1), request_ids=["r"], shown_at=utc("2025-03-01"))
    assert table["propensity"].to_pylist() == [1.0, 1.0]


def test_what_was_seen_is_no_card_where_it_must_not_be_shown_again(known):
    fresh = newcomers.new_items(known, policy())
    seen = replace(asking(1), item=np.array([5], dtype=np.int32))
    common, listed = np.array([4, 5, 6], dtype=np.int32), np.array([[4, 0]], dtype=np.int32)
    personal = np.empty((1, 0), dtype=np.int32)
    assert newcomers.pools(personal, common, listed, 3, fresh=fresh, seen=seen).tolist() == [[6, -1, -1]]
    assert newcomers.pools(personal, common, listed, 3, fresh=fresh, seen=None).tolist() == [[5, 6, -1]]
