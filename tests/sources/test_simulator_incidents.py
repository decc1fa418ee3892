"""Faults and shifts: each does what it says, on the day it says, and the truth names exactly the rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines import columns as c
from pipelines import tables
from pipelines.errors import SourceError
from pipelines.sources.request import World
from pipelines.sources.simulator import Fault, Incident, Shift, Shop, parse
from pipelines.window import Window

WORLD = World(seed=5, users=1500, items=400, events_per_day=4000)
DAY = date(2025, 1, 15)
ON, BEFORE, AFTER = (Window.parse(f"2025-01-{n}", f"2025-01-{n + 1}") for n in (15, 14, 16))


def faulty(*faults: Fault) -> Shop:
    return Shop(WORLD.model_copy(update={"faults": tuple(f"{fault}@{DAY}" for fault in faults)}))


@pytest.fixture(scope="module")
def clean() -> pd.DataFrame:
    return Shop(WORLD).events(ON).to_pandas().set_index(c.EVENT_ID)


# --- names -------------------------------------------------------------------------------------------------------


def test_incidents_are_parsed_and_ordered() -> None:
    assert parse(Fault, ["nulls@2025-02-03", "late@2025-01-20", "nulls@2025-02-03"]) == (
        Incident(date(2025, 1, 20), Fault.LATE),
        Incident(date(2025, 2, 3), Fault.NULLS),
    )
    assert parse(Shift, ["taste_shift@2025-02-03"])[0].name is Shift.TASTE_SHIFT


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Fault, "nulls", "fault 'nulls': no @; expected name@YYYY-MM-DD"),
        (Fault, "taste_shift@2025-02-03", "the name 'taste_shift'; expected one of .*'nulls'"),
        (Shift, "nulls@2025-02-03", "the name 'nulls'; expected one of .*'taste_shift'"),
        (Fault, "nulls@2025-02-30", "the day '2025-02-30'; expected a day of the calendar"),
        (Fault, "nulls@", "the day ''"),
        (Fault, "@2025-02-03", "the name ''"),
    ],
)
def test_what_cannot_be_parsed_is_refused_by_name(kind: type[Fault] | type[Shift], text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse(kind, [text])


def test_a_shop_refuses_incidents_before_its_world() -> None:
    with pytest.raises(SourceError, match="late: the day 2024-01-01; expected a day of the simulated world, 2025-01-06"):
        Shop(WORLD.model_copy(update={"faults": ("late@2024-01-01",)}))


def test_every_fault_and_shift_is_described() -> None:
    descriptions = [member.description for kind in (Fault, Shift) for member in kind]
    assert len(set(descriptions)) == len(Fault) + len(Shift)
    assert all(text.endswith(".") and len(text) > 25 for text in descriptions)


def test_the_names_are_known_without_numpy() -> None:
    """A Dag file lists them in its form, and must parse quickly."""
    import subprocess
    import sys

    code = (
        "import sys; from pipelines.sources.simulator import Fault, Shift, parse; print('numpy' in sys.modules, 'pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split() == ["False", "False"]


# --- faults ------------------------------------------------------------------------------------------------------


def _schema_change(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    assert set(clean.columns) - set(sent.columns) == {c.ITEM_ID, c.DEVICE}
    assert set(sent.columns) - set(clean.columns) == {"product_id"}
    assert sent["product_id"].equals(clean[c.ITEM_ID].rename("product_id"))
    assert ids == set(clean.index)


def _nulls(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    user, item = sent[c.USER_ID].isna(), sent[c.ITEM_ID].isna()
    assert set(sent.index[user ^ item]) == ids
    assert not (user & item).any()
    assert min(user.sum(), item.sum()) > 0.1 * len(clean)
    assert len(ids) == round(0.3 * len(clean))
    pd.testing.assert_frame_equal(sent[~sent.index.isin(ids)], clean[~clean.index.isin(ids)])


def _duplicates(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    twice = sent.index[sent.index.duplicated()]
    assert sorted(twice) == sorted(ids)
    assert len(ids) == round(0.1 * len(clean))
    pd.testing.assert_frame_equal(sent[~sent.index.duplicated()], clean)
    pd.testing.assert_frame_equal(sent[sent.index.duplicated()].sort_index(), clean.loc[sorted(ids)])


def _late(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    delay = sent[c.RECEIVED_AT] - clean[c.RECEIVED_AT].reindex(sent.index)
    assert set(delay.index[delay > pd.Timedelta(0)]) == ids
    assert delay[list(ids)].between(pd.Timedelta(days=2), pd.Timedelta(days=6)).all()
    assert len(ids) == round(0.2 * len(clean))
    assert sent[c.RECEIVED_AT].is_monotonic_increasing


def _out_of_order(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    delay = sent[c.RECEIVED_AT] - clean[c.RECEIVED_AT].reindex(sent.index)
    assert set(delay.index[delay > pd.Timedelta(0)]) == ids
    assert delay.max() < pd.Timedelta(hours=3)
    assert len(ids) == round(0.5 * len(clean))
    position = pd.Series(range(len(sent)), index=sent.index)
    assert abs(np.corrcoef(position, sent[c.RECEIVED_AT].astype("int64"))[0, 1]) < 0.1


def _price_in_cents(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    changed = sent[c.VALUE].ne(clean[c.VALUE]) & sent[c.VALUE].notna()
    assert set(sent.index[changed]) == ids == set(clean.index[clean[c.EVENT_TYPE] == c.PURCHASE])
    np.testing.assert_allclose(sent.loc[changed, c.VALUE], 100 * clean.loc[changed, c.VALUE])


def _bot_burst(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    extra = sent[~sent.index.isin(clean.index)]
    assert set(extra.index) == ids
    assert len(ids) == len(extra) == 3000
    assert extra[c.USER_ID].value_counts().tolist() == [1000] * 3
    assert set(extra[c.EVENT_TYPE]) == {c.VIEW}
    assert set(extra[c.SESSION_ID]).isdisjoint(clean[c.SESSION_ID])
    pd.testing.assert_frame_equal(sent[sent.index.isin(clean.index)], clean)


def _volume_drop(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    assert set(clean.index) - set(sent.index) == ids
    assert len(ids) == round(0.5 * len(clean))
    pd.testing.assert_frame_equal(sent, clean[~clean.index.isin(ids)])


def _enum_add(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    unknown = sent[c.EVENT_TYPE] == "wishlist"
    assert set(sent.index[unknown]) == ids
    assert (clean.loc[list(ids), c.EVENT_TYPE] == c.VIEW).all()
    assert len(ids) == round(0.05 * (clean[c.EVENT_TYPE] == c.VIEW).sum())
    pd.testing.assert_frame_equal(sent[~unknown], clean[~unknown])


def _future_clock(clean: pd.DataFrame, sent: pd.DataFrame, ids: set[str]) -> None:
    ahead = sent[c.EVENT_AT] > sent[c.RECEIVED_AT]
    assert set(sent.index[ahead]) == ids
    assert (sent[c.EVENT_AT] - sent[c.RECEIVED_AT])[ahead].between(pd.Timedelta(days=1), pd.Timedelta(days=30)).all()
    assert len(ids) == round(0.02 * len(clean))
    pd.testing.assert_frame_equal(sent[~ahead], clean[~ahead])


EFFECTS: dict[Fault, Callable[[pd.DataFrame, pd.DataFrame, set[str]], None]] = {
    Fault.SCHEMA_CHANGE: _schema_change,
    Fault.NULLS: _nulls,
    Fault.DUPLICATES: _duplicates,
    Fault.LATE: _late,
    Fault.OUT_OF_ORDER: _out_of_order,
    Fault.PRICE_IN_CENTS: _price_in_cents,
    Fault.BOT_BURST: _bot_burst,
    Fault.VOLUME_DROP: _volume_drop,
    Fault.ENUM_ADD: _enum_add,
    Fault.FUTURE_CLOCK: _future_clock,
}


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_leaves_on_its_day_exactly_what_the_truth_says(fault: Fault, clean: pd.DataFrame) -> None:
    shop = faulty(fault)
    truth = shop.truth(DAY).faults
    assert set(truth) == {fault}
    ids = truth[fault].event_ids.to_pylist()
    assert ids == sorted(ids)
    assert len(ids) == truth[fault].rows == len(set(ids)) > 0
    EFFECTS[fault](clean, shop.raw_events(ON).to_pandas().set_index(c.EVENT_ID), set(ids))


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_touches_no_other_day_and_never_the_clean_events(fault: Fault) -> None:
    shop, calm = faulty(fault), Shop(WORLD)
    assert shop.events(ON).equals(calm.events(ON))
    for window in (BEFORE, AFTER):
        assert calm.events(window).num_rows > 1000
        assert shop.raw_events(window).equals(calm.events(window))
    assert shop.truth(date(2025, 1, 16)).faults == {}


def test_faults_of_one_day_add_up(clean: pd.DataFrame) -> None:
    """Under all of them at once, rows sent = rows happened - dropped + bots + duplicates, whatever the order asked."""
    shop, backwards = faulty(*Fault), faulty(*reversed(Fault))
    rows = {fault: touched.rows for fault, touched in shop.truth(DAY).faults.items()}
    sent = shop.raw_events(ON)
    assert set(rows) == set(Fault)
    assert sent.num_rows == len(clean) - rows[Fault.VOLUME_DROP] + rows[Fault.BOT_BURST] + rows[Fault.DUPLICATES]
    assert sent.equals(backwards.raw_events(ON))
    assert sent["product_id"].null_count > 0


def test_a_clean_shop_sends_the_canonical_table() -> None:
    shop = Shop(WORLD)
    assert shop.raw_events(ON).schema == tables.EVENTS
    assert shop.raw_events(ON).equals(shop.events(ON))


def test_one_file_a_day_keeps_the_days_apart_and_one_table_has_the_columns_of_all() -> None:
    shop, week = faulty(Fault.SCHEMA_CHANGE), Window.parse("2025-01-13", "2025-01-20")
    files = list(shop.raw(week))
    assert [c.ITEM_ID in file.column_names for file in files] == [True, True, False, True, True, True, True]
    together = shop.raw_events(week)
    assert together.num_rows == sum(file.num_rows for file in files)
    assert together[c.ITEM_ID].null_count == files[2].num_rows == shop.truth(DAY).faults[Fault.SCHEMA_CHANGE].rows


# --- shifts ------------------------------------------------------------------------------------------------------

ONSET = date(2025, 1, 20)
WEEKS = {"before": Window.parse("2025-01-13", "2025-01-20"), "after": Window.parse("2025-01-20", "2025-01-27")}


def shifted(shift: Shift) -> Shop:
    return Shop(WORLD.model_copy(update={"shifts": (f"{shift}@{ONSET}",)}))


@pytest.mark.parametrize("shift", list(Shift))
def test_a_shift_changes_nothing_before_its_day_and_everything_after(shift: Shift) -> None:
    shop, calm = shifted(shift), Shop(WORLD)
    past = Window.parse("2025-01-06", str(ONSET))
    for window, same in ((past, True), (WEEKS["after"], False)):
        assert shop.events(window).equals(calm.events(window)) is same
        assert (shop.items(window).equals(calm.items(window)) and shop.users(window).equals(calm.users(window))) is (
            same or shift is Shift.TASTE_SHIFT
        )
    assert shop.truth(date(2025, 1, 19)).shifts == {}
    assert set(shop.truth(ONSET).shifts) == set(shop.truth(date(2025, 3, 1)).shifts) == {shift}


def test_a_taste_shift_turns_tastes_and_moves_the_demand() -> None:
    shop, calm = shifted(Shift.TASTE_SHIFT), Shop(WORLD)
    now, was = shop.truth(ONSET), calm.truth(ONSET)
    cosine = (now.tastes * was.tastes).sum(1) / np.linalg.norm(now.tastes, axis=1) / np.linalg.norm(was.tastes, axis=1)
    assert cosine.mean() < 0.6
    assert (now.tastes[:, -2] < was.tastes[:, -2] - 0.5).all()
    touched = now.shifts[Shift.TASTE_SHIFT]
    assert touched.event_ids.to_pylist() == sorted(shop.events(Window.parse("2025-01-20", "2025-01-21"))[c.EVENT_ID].to_pylist())

    def demand(world: Shop, window: Window) -> pd.Series:
        items = world.events(window)[c.ITEM_ID].to_pandas().str[1:].astype(int)
        return pd.Series(world.truth(date(2025, 1, 26)).categories[items]).value_counts(normalize=True)

    def moved(world: Shop) -> float:
        return float(demand(world, WEEKS["after"]).sub(demand(world, WEEKS["before"]), fill_value=0).abs().sum() / 2)

    assert moved(shop) > 3 * moved(calm)

    def dearness(world: Shop) -> float:
        """Return how dear what is looked at is within its category."""
        items = world.events(WEEKS["after"])[c.ITEM_ID].to_pandas().str[1:].astype(int)
        return float(world.truth(date(2025, 1, 26)).latents[items, -2].mean())

    assert dearness(shop) < dearness(calm) - 0.05


def test_a_catalogue_churn_replaces_a_quarter_of_the_items() -> None:
    shop = shifted(Shift.CATALOGUE_CHURN)
    onset = Window.parse("2025-01-20", "2025-01-21")
    versions, before = shop.items(onset).to_pandas(), shop.truth(date(2025, 1, 19)).available
    touched = shop.truth(ONSET).shifts[Shift.CATALOGUE_CHURN]
    gone = set(versions.loc[~versions[c.AVAILABLE], c.ITEM_ID])
    new = set(versions.loc[versions[c.CREATED_AT] == versions[c.VALID_FROM], c.ITEM_ID])
    listed = set(touched.items.to_pylist())
    calm = Shop(WORLD).items(onset).to_pandas()
    ordinary = set(calm.loc[~calm[c.AVAILABLE], c.ITEM_ID])
    assert gone - ordinary <= listed <= gone | new
    assert len(listed & gone) == pytest.approx(0.25 * before.sum(), rel=0.25)
    assert len(listed & new) >= len(listed & gone)
    later = [world.items(Window.parse("2025-01-21", "2025-02-21")) for world in (shop, Shop(WORLD))]
    launches = [pc.sum(pc.equal(items[c.CREATED_AT], items[c.VALID_FROM])).as_py() for items in later]
    assert launches[0] == pytest.approx(4 * launches[1], rel=0.3)
    retired = [pc.sum(pc.invert(items[c.AVAILABLE])).as_py() for items in later]
    assert retired[0] > 2 * retired[1]


def test_a_catalogue_churn_names_the_events_on_its_items() -> None:
    """On its second day: exactly the events on items that it launched on either day."""
    shop, second = shifted(Shift.CATALOGUE_CHURN), date(2025, 1, 21)
    versions = shop.items(Window.parse("2025-01-20", "2025-01-22")).to_pandas()
    new = set(versions.loc[versions[c.CREATED_AT] == versions[c.VALID_FROM], c.ITEM_ID])
    launched = {item for day in (ONSET, second) for item in shop.truth(day).shifts[Shift.CATALOGUE_CHURN].items.to_pylist()} & new
    events = shop.events(Window.parse("2025-01-21", "2025-01-22")).to_pandas()
    expected = sorted(events.loc[events[c.ITEM_ID].isin(launched), c.EVENT_ID])
    touched = shop.truth(second).shifts[Shift.CATALOGUE_CHURN]
    assert touched.event_ids.to_pylist() == expected
    assert touched.rows == len(expected) > 100


def test_a_traffic_mix_brings_other_people_on_other_devices() -> None:
    shop, calm = shifted(Shift.TRAFFIC_MIX), Shop(WORLD)
    signed_up = [
        users[users[c.SIGNED_UP_AT] >= WEEKS["after"].start]
        for users in (world.users(WEEKS["after"]).to_pandas() for world in (shop, calm))
    ]
    assert len(signed_up[0]) == pytest.approx(4 * len(signed_up[1]), abs=3)
    assert signed_up[0][c.COUNTRY].isin(["BR", "IN", "MX"]).mean() > 0.4
    assert not signed_up[1][c.COUNTRY].isin(["BR", "IN", "MX"]).any()
    share = [pc.mean(pc.equal(world.events(WEEKS["after"])[c.DEVICE], "app").cast(pa.float64())).as_py() for world in (shop, calm)]
    assert share[0] > 0.4
    assert share[1] < 0.2

    brought: set[str] = set()
    for day in pd.date_range("2025-01-20", "2025-01-23"):
        touched = shop.truth(day.date()).shifts[Shift.TRAFFIC_MIX]
        brought |= set(touched.users.to_pylist())
    events = shop.events(Window.parse("2025-01-23", "2025-01-24")).to_pandas()
    ids = set(touched.event_ids.to_pylist())
    hit = events[c.EVENT_ID].isin(ids)
    assert touched.rows == len(ids) == hit.sum()
    assert hit[events[c.USER_ID].isin(brought)].all()
    assert hit.groupby(events[c.SESSION_ID]).nunique().max() == 1
    rest = hit[~events[c.USER_ID].isin(brought)].groupby(events[c.SESSION_ID]).first()
    assert rest.mean() == pytest.approx(0.6, abs=0.06)
