"""The simulated shop: same world, same rows, and behaviour that a recommender can find something in."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines import columns as c
from pipelines import tables
from pipelines.errors import SourceError
from pipelines.sources.request import World
from pipelines.sources.simulator import Shop, catalogue, choice
from pipelines.window import Window

WORLD = World(seed=3, users=1200, items=400, events_per_day=3000)
WEEKS = (("2025-01-20", "2025-01-27"), ("2025-01-27", "2025-02-03"))
SPAN = Window.parse("2025-01-06", "2025-02-17")  # six weeks


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop(WORLD)


@pytest.fixture(scope="module")
def events(shop: Shop) -> pa.Table:
    return shop.events(SPAN)


@pytest.fixture(scope="module")
def frame(events: pa.Table) -> pd.DataFrame:
    """The events in the order in which they happened, with the numbers of users and items in their truth."""
    frame = events.to_pandas().sort_values([c.EVENT_AT, c.EVENT_ID], ignore_index=True)
    return frame.assign(user=frame[c.USER_ID].str[1:].astype(int), item=frame[c.ITEM_ID].str[1:].astype(int))


@pytest.fixture(scope="module")
def versions(shop: Shop) -> pd.DataFrame:
    return shop.items(SPAN).to_pandas()


def views(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame[c.EVENT_TYPE] == c.VIEW]


# --- determinism -------------------------------------------------------------------------------------------------


def test_the_tables_are_canonical_and_ordered_by_receipt(shop: Shop, events: pa.Table) -> None:
    assert events.schema == tables.EVENTS
    assert shop.items(SPAN).schema == tables.ITEMS
    assert shop.users(SPAN).schema == tables.USERS
    assert events.num_rows > 100_000
    order = pc.sort_indices(events, [(c.RECEIVED_AT, "ascending"), (c.EVENT_ID, "ascending")])
    assert order.to_numpy().tolist() == list(range(events.num_rows))
    assert pc.count_distinct(events[c.EVENT_ID]).as_py() == events.num_rows
    for table in (events, shop.items(SPAN), shop.users(SPAN)):
        table.validate(full=True)
        assert not any(table[field.name].null_count for field in table.schema if not field.nullable)


def test_another_process_makes_the_same_rows(shop: Shop) -> None:
    """Hash randomisation, thread counts and import order may not matter."""
    code = (
        "import hashlib; from pipelines.sources.request import World; from pipelines.sources.simulator import Shop;"
        "from pipelines.window import Window; w = Window.parse('2025-01-20', '2025-01-22');"
        "s = Shop(World(seed=3, users=1200, items=400, events_per_day=3000));"
        "print([(t.num_rows, hashlib.sha256(repr(t.to_pylist()).encode()).hexdigest()) for t in (s.events(w), s.items(w), s.users(w))])"
    )
    window = Window.parse("2025-01-20", "2025-01-22")
    here = [
        (t.num_rows, hashlib.sha256(repr(t.to_pylist()).encode()).hexdigest())
        for t in (shop.events(window), shop.items(window), shop.users(window))
    ]
    environment = {**os.environ, "PYTHONHASHSEED": "17", "OMP_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout
    assert min(rows for rows, _ in here) > 0
    assert there.strip() == str(here)


def test_any_tiling_gives_the_same_rows(events: pa.Table) -> None:
    """Weeks backwards in a new shop, and one day in pieces of seven hours, give the rows of the whole."""
    fresh = Shop(WORLD)
    weeks = pa.concat_tables([fresh.events(week) for week in reversed(list(SPAN.split(7)))])
    assert weeks.sort_by([(c.RECEIVED_AT, "ascending"), (c.EVENT_ID, "ascending")]).equals(events)
    day = Window.parse("2025-02-03", "2025-02-04")
    cuts = [day.start + timedelta(hours=h) for h in (0, 7, 14, 21)] + [day.end]
    for kind in (fresh.events, fresh.items, fresh.users, fresh.raw_events):
        whole = kind(day)
        pieces = pa.concat_tables([kind(Window(a, b)) for a, b in itertools.pairwise(cuts)])
        assert whole.num_rows == pieces.num_rows > 0
        assert sorted(map(repr, whole.to_pylist())) == sorted(map(repr, pieces.to_pylist()))


def test_a_day_does_not_depend_on_the_days_asked_for_before(shop: Shop) -> None:
    """Day 40 of a new shop, and day 2 of one that has seen day 100, are those of any other shop."""
    late, early = Window.parse("2025-02-15", "2025-02-16"), Window.parse("2025-01-08", "2025-01-09")
    seasoned = Shop(WORLD)
    seasoned.events(Window.parse("2025-04-15", "2025-04-16"))
    for day in (late, early):
        expected = shop.events(day)
        assert expected.num_rows
        assert Shop(WORLD).events(day).equals(expected)
        assert seasoned.events(day).equals(expected)
        assert seasoned.items(day).equals(shop.items(day))
        assert seasoned.users(day).equals(shop.users(day))


def test_another_seed_is_another_world(shop: Shop) -> None:
    day = Window.parse("2025-01-06", "2025-01-07")
    assert not Shop(WORLD.model_copy(update={"seed": 4})).events(day).equals(shop.events(day))


def test_a_window_holds_what_happened_in_it_and_nothing_happens_before_the_world(shop: Shop) -> None:
    window = Window(datetime(2025, 1, 7, 18, tzinfo=UTC), datetime(2025, 1, 8, 6, tzinfo=UTC))
    at = shop.events(window)[c.EVENT_AT]
    assert window.start <= pc.min(at).as_py() <= pc.max(at).as_py() < window.end
    before = Window.parse("2024-12-01", "2025-01-06")
    assert [shop.events(before).num_rows, shop.items(before).num_rows, shop.users(before).num_rows, shop.raw_events(before).num_rows] == [
        0
    ] * 4
    with pytest.raises(SourceError, match="2024-12-31"):
        shop.truth(date(2024, 12, 31))
    with pytest.raises(SourceError, match="window"):
        shop.events(Window.parse("2060-01-01", "2060-01-02"))


@pytest.mark.parametrize(("users", "items", "events_per_day"), [(1, 1, 1), (2, 9, 40), (50, 3, 10)])
def test_the_smallest_worlds_work(users: int, items: int, events_per_day: int) -> None:
    shop = Shop(World(users=users, items=items, events_per_day=events_per_day))
    rows = shop.events(Window.parse("2025-01-06", "2025-03-16"))
    assert rows.num_rows >= 69
    assert shop.truth(date(2025, 3, 15)).available.any()


# --- the world obeys its own rules -------------------------------------------------------------------------------


def test_the_funnel_narrows_and_each_step_follows_the_one_before(frame: pd.DataFrame) -> None:
    """Views > carts > purchases; every cart has an earlier view of its item in its session, every purchase an earlier cart."""
    counts = frame[c.EVENT_TYPE].value_counts()
    assert counts[c.VIEW] > 3 * counts[c.ADD_TO_CART] > 3 * counts[c.PURCHASE] > 300
    first = {kind: rows.groupby([c.SESSION_ID, c.ITEM_ID])[c.EVENT_AT].min() for kind, rows in frame.groupby(c.EVENT_TYPE)}
    for kind, before in ((c.ADD_TO_CART, c.VIEW), (c.PURCHASE, c.ADD_TO_CART)):
        assert (first[before].reindex(first[kind].index) < first[kind]).all()
    assert frame.groupby(c.SESSION_ID)[c.USER_ID].nunique().max() == 1
    assert frame.groupby(c.SESSION_ID)[c.DEVICE].nunique().max() == 1


def test_a_purchase_is_worth_the_price_of_its_day_times_the_quantity(frame: pd.DataFrame, versions: pd.DataFrame) -> None:
    priced = pd.merge_asof(
        frame,
        versions[[c.ITEM_ID, c.VALID_FROM, c.PRICE]].sort_values(c.VALID_FROM),
        left_on=c.EVENT_AT,
        right_on=c.VALID_FROM,
        by=c.ITEM_ID,
    )
    bought = priced[c.EVENT_TYPE] == c.PURCHASE
    assert versions.groupby(c.ITEM_ID)[c.PRICE].nunique().gt(1).mean() > 0.3
    assert priced[c.PRICE].notna().all()
    np.testing.assert_allclose(priced.loc[bought, c.VALUE], priced.loc[bought, c.PRICE] * priced.loc[bought, c.QUANTITY], atol=0.0051)
    assert priced.loc[~bought, c.VALUE].isna().all()
    assert priced.loc[bought, c.QUANTITY].between(1, 20).all()
    assert priced.loc[priced[c.EVENT_TYPE] == c.VIEW, c.QUANTITY].isna().all()


def test_items_are_seen_between_launch_and_retirement_only(frame: pd.DataFrame, versions: pd.DataFrame) -> None:
    born = versions.groupby(c.ITEM_ID)[c.VALID_FROM].min()
    gone = versions[~versions[c.AVAILABLE]].set_index(c.ITEM_ID)[c.VALID_FROM]
    seen = frame.groupby(c.ITEM_ID)[c.EVENT_AT].agg(["min", "max"])
    assert len(gone) > 10
    assert gone.index.is_unique
    assert (seen["min"] >= born.reindex(seen.index)).all()
    ended = seen["max"].reindex(gone.index).dropna()
    assert len(ended) > 5
    assert (ended < gone.reindex(ended.index)).all()
    assert (versions[c.CREATED_AT] <= versions[c.VALID_FROM]).all()
    assert versions.groupby([c.ITEM_ID, c.VALID_FROM]).size().max() == 1


def test_users_act_after_their_sign_up_and_newcomers_come_at_once(frame: pd.DataFrame, shop: Shop) -> None:
    users = shop.users(SPAN).to_pandas()
    signed_up = users.groupby(c.USER_ID)[c.SIGNED_UP_AT].first()
    first = frame.groupby(c.USER_ID)[c.EVENT_AT].min()
    assert (first > signed_up.reindex(first.index)).all()
    newcomers = signed_up[signed_up >= pd.Timestamp(SPAN.start)]
    assert len(newcomers) > 50
    assert (first.reindex(newcomers.index) - newcomers < pd.Timedelta(hours=1)).all()
    assert (users[c.VALID_FROM] >= users[c.SIGNED_UP_AT]).all()


def test_users_and_items_arrive_every_week_and_number_what_the_world_says() -> None:
    shop, weeks = Shop(WORLD), list(Window.parse("2025-01-06", "2025-03-10").split(7))
    for table, key, total in ((shop.users, c.USER_ID, WORLD.users), (shop.items, c.ITEM_ID, WORLD.items)):
        known: set[str] = set()
        for week in weeks:
            fresh = set(table(week)[key].to_pylist()) - known
            assert fresh
            known |= fresh
        assert len(known) == pytest.approx(total, rel=0.01)


def test_versions_of_users_follow_their_age(shop: Shop) -> None:
    users = shop.users(Window.parse("2025-01-06", "2025-12-31")).to_pandas()
    bands = users.groupby(c.USER_ID)[c.AGE_BAND].agg(list)
    grown = bands[bands.str.len() > 1]
    assert len(grown) > 20
    assert grown.map(lambda band: band == sorted(set(band))).all()


def test_receipt_lags_seconds_mostly_and_never_two_days(frame: pd.DataFrame) -> None:
    lag = (frame[c.RECEIVED_AT] - frame[c.EVENT_AT]).dt.total_seconds()
    assert lag.min() > 0
    assert 1 < lag.median() < 5
    assert 0.002 < (lag > 60).mean() < 0.006
    assert 3600 < lag.max() < 2 * 86_400


# --- the world has something to find -----------------------------------------------------------------------------


def test_traffic_has_the_size_and_the_rhythm_it_was_asked_for(frame: pd.DataFrame) -> None:
    daily = frame.groupby(frame[c.EVENT_AT].dt.date).size()
    assert len(daily) == 42
    assert daily.mean() == pytest.approx(WORLD.events_per_day, rel=0.05)
    weekday = daily.groupby([day.weekday() for day in daily.index]).mean()
    assert weekday[[4, 6]].min() > 1.05 * weekday[[1, 2, 5]].max()
    hour = frame[c.EVENT_AT].dt.hour.value_counts()
    assert hour[20] > 10 * hour[3]


def test_the_year_has_a_season() -> None:
    """Traffic peaks in November, and each category has its own time of the year."""
    shop = Shop(WORLD)
    months = [shop.events(Window.parse(f"2025-{m:02d}-01", f"2025-{m:02d}-08")) for m in (5, 11)]
    assert months[1].num_rows > 1.1 * months[0].num_rows
    swing = shop.catalogue.taxonomy.season(20) / shop.catalogue.taxonomy.season(200)
    assert swing.max() > 1.3
    assert swing.min() < 0.8


def test_activity_and_popularity_are_heavy_tailed(frame: pd.DataFrame) -> None:
    for key in ("user", "item"):
        counts = frame[key].value_counts().to_numpy()
        assert 0.3 < counts[: len(counts) // 10].sum() / counts.sum() < 0.8


def test_people_look_at_what_they_like(frame: pd.DataFrame, shop: Shop) -> None:
    """What a user viewed suits them better than what others viewed on that day: taste, not popularity alone."""
    day = frame[frame[c.EVENT_AT].dt.date == date(2025, 2, 10)]
    seen = views(day)
    truth = shop.truth(date(2025, 2, 10))
    own = truth.utility(seen["user"].to_numpy(), seen["item"].to_numpy())
    others = truth.utility(seen["user"].to_numpy(), np.random.default_rng(0).permutation(seen["item"].to_numpy()))
    assert len(seen) > 1500
    assert own.mean() - others.mean() > 0.8 * others.std()
    bought = day[day[c.EVENT_TYPE] == c.PURCHASE]
    assert truth.utility(bought["user"].to_numpy(), bought["item"].to_numpy()).mean() > own.mean()


def test_taste_is_hierarchical(frame: pd.DataFrame, shop: Shop) -> None:
    """A user's views fall on few categories, and within a category on few brands, more than everybody's do."""
    truth = shop.truth(date(2025, 2, 16))
    seen = views(frame)
    category, brand = truth.categories[seen["item"]], truth.brands[seen["item"]]
    rng = np.random.default_rng(0)

    def sameness(labels: np.ndarray, groups: pd.Series) -> float:
        """Return the chance that two views of one group carry one label."""
        counts = pd.crosstab(groups, labels).to_numpy()
        n = counts.sum(axis=1)
        return float((counts * (counts - 1)).sum() / (n * (n - 1)).sum())

    user = seen["user"].reset_index(drop=True)
    assert sameness(category, user) > 1.5 * sameness(rng.permutation(category), user)
    within = user.astype(str) + category
    shuffled = pd.Series(brand).groupby(category).transform(rng.permutation).to_numpy()
    assert sameness(brand, within) > 1.15 * sameness(shuffled, within)


def test_tastes_drift_slowly(shop: Shop) -> None:
    """After a month a user is still like themselves, no longer the same, and far from others."""
    now, later = shop.truth(date(2025, 1, 6)).tastes[:, :14], shop.truth(date(2025, 2, 6)).tastes[:, :14]
    later = later[: len(now)]
    cosine = (now * later).sum(1) / np.linalg.norm(now, axis=1) / np.linalg.norm(later, axis=1)
    strangers = (now[1:] * later[:-1]).sum(1) / np.linalg.norm(now[1:], axis=1) / np.linalg.norm(later[:-1], axis=1)
    assert 0.7 < cosine.mean() < 0.99
    assert strangers.mean() < 0.4
    assert np.linalg.norm(shop.truth(date(2025, 1, 7)).tastes[: len(now), :14] - now, axis=1).max() < 0.3


def test_the_next_view_depends_on_the_last(frame: pd.DataFrame) -> None:
    """Successors learnt in four weeks hit the next view of the last two far more often than the best sellers do."""
    seen = views(frame).sort_values([c.SESSION_ID, c.EVENT_AT])
    same = seen[c.SESSION_ID].eq(seen[c.SESSION_ID].shift(-1)).to_numpy()
    pairs = pd.DataFrame({"item": seen["item"], "next": seen["item"].shift(-1), "day": seen[c.EVENT_AT].dt.date})[same]
    past, future = pairs[pairs["day"] < date(2025, 2, 3)], pairs[pairs["day"] >= date(2025, 2, 3)]
    ranked = past.groupby("item")["next"].value_counts().groupby(level=0).head(8)
    hits = pd.MultiIndex.from_frame(future[["item", "next"]]).isin(ranked.index).mean()
    best = past["next"].value_counts().index[:8]
    assert hits > 2.5 * future["next"].isin(best).mean()


def test_some_items_are_bought_together(frame: pd.DataFrame) -> None:
    """Two pairs drawn from the baskets coincide more often than from baskets of the same sizes, filled by popularity."""
    bought = frame[frame[c.EVENT_TYPE] == c.PURCHASE]

    def coincidence(items: np.ndarray) -> float:
        basket = pd.DataFrame({"basket": bought[c.SESSION_ID].to_numpy(), "item": items}).drop_duplicates()
        pairs = basket.merge(basket, on="basket")
        counts = pairs[pairs["item_x"] < pairs["item_y"]].groupby(["item_x", "item_y"]).size().to_numpy()
        return float((counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1)))

    assert coincidence(bought["item"].to_numpy()) > 2 * coincidence(np.random.default_rng(0).permutation(bought["item"].to_numpy()))


def test_some_purchases_repeat(frame: pd.DataFrame) -> None:
    bought = frame[frame[c.EVENT_TYPE] == c.PURCHASE]
    days = bought[c.EVENT_AT].dt.date

    def again(items: np.ndarray) -> float:
        bought_on = days.groupby([bought["user"].to_numpy(), items])
        return float((bought_on.max() > bought_on.min()).mean())

    shuffled = np.random.default_rng(0).permutation(bought["item"].to_numpy())
    assert again(bought["item"].to_numpy()) > max(0.02, 2 * again(shuffled))


@pytest.mark.parametrize(
    ("knob", "off", "factor"), [((catalogue, "FEEDBACK"), 0.0, 1.03), ((choice, "PLACE_BIAS"), np.zeros(8, np.float32), 1.08)]
)
def test_popularity_feedback_and_place_in_the_list_concentrate_views(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, knob: tuple[object, str], off: object, factor: float
) -> None:
    """Without either, the most viewed tenth of the items draws fewer of the views."""

    def top_tenth(rows: pd.DataFrame) -> float:
        counts = views(rows)[c.ITEM_ID].value_counts().to_numpy()
        return counts[:40].sum() / counts.sum()

    week = Window.parse("2025-02-03", "2025-02-10")
    biased = top_tenth(frame[(frame[c.EVENT_AT] >= week.start) & (frame[c.EVENT_AT] < week.end)])
    monkeypatch.setattr(*knob, off)
    assert biased > factor * top_tenth(Shop(WORLD).events(week).to_pandas())


def test_a_world_can_be_driven_by_taste_or_by_popularity() -> None:
    """The ten best sellers of a week draw more of the next week's views the less taste decides; a herd's habits are few."""

    def of_best_sellers(**driven_by: float) -> float:
        shop = Shop(World(seed=3, users=1200, items=400, events_per_day=3000, **driven_by))
        before, after = (views(shop.events(Window.parse(*week)).to_pandas()) for week in WEEKS)
        return float(after[c.ITEM_ID].isin(before[c.ITEM_ID].value_counts().index[:10]).mean())

    usual = of_best_sellers()
    assert of_best_sellers(taste=2.0, feedback=0.0) < 0.95 * usual
    assert of_best_sellers(taste=0.1, feedback=2.0, herd=0.8) > 1.5 * usual


def test_most_users_come_back() -> None:
    """In the default world over 6,000 users are active in a week, and most of them in the next."""
    shop = Shop(World())
    weeks = [set(shop.events(Window.parse(a, b))[c.USER_ID].to_pylist()) for a, b in WEEKS]
    assert min(map(len, weeks)) > 6000
    assert len(weeks[0] & weeks[1]) > 0.4 * len(weeks[0])


def test_content_tells_of_taste(shop: Shop) -> None:
    """The colour of an item follows its style, so that a new item can be placed before anybody saw it."""
    items = shop.items(Window.parse("2025-01-06", "2025-01-07")).to_pandas()
    stock = shop.catalogue.stock
    colour = items[c.ATTRIBUTES].map(lambda pairs: dict(pairs)["colour"])
    style = stock.style[items[c.ITEM_ID].str[1:].astype(int)]
    assert pd.Series(style).groupby(colour.to_numpy()).agg(np.ptp).max() <= 1 / 8
    assert items[c.CATEGORY].nunique() == 30
    assert items[c.TITLE].is_unique


@pytest.mark.slow
def test_a_million_users_and_a_hundred_thousand_items_fit_in_three_gigabytes() -> None:
    code = (
        "import resource; from pipelines.sources.request import World; from pipelines.sources.simulator import Shop;"
        "from pipelines.window import Window;"
        "s = Shop(World(users=1_000_000, items=100_000, events_per_day=200_000));"
        "print(s.events(Window.parse('2025-01-10', '2025-01-11')).num_rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    rows, kilobytes = map(int, subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    assert rows > 150_000
    assert kilobytes < 3_000_000
