"""What is known of items and users at a moment, and what must not be."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipelines import columns as c
from pipelines import lake, tables
from pipelines.config import TrainingSettings
from pipelines.datasets import interactions, universe
from pipelines.window import utc

START = utc("2025-01-06")
AS_OF = START + timedelta(days=35)


def table(schema, *rows):
    return pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)


def purchase(day, user, item):
    at = START + timedelta(days=day)
    return {c.EVENT_ID: f"{day}{user}", c.USER_ID: user, c.ITEM_ID: item, c.EVENT_TYPE: c.PURCHASE, c.EVENT_AT: at, c.RECEIVED_AT: at}


def version(day, lag=0, **columns):
    return {**columns, c.VALID_FROM: START + timedelta(days=day), c.RECEIVED_AT: START + timedelta(days=day + lag)}


@pytest.fixture
def shop(home):
    events = [purchase(day, f"u{day % 2}", f"i{day % 3}") for day in range(35)]
    items = [
        version(0, item_id="i0", title="red pen", attributes={"ink": "red"}),
        version(20, item_id="i0", title="blue pen"),
        version(5, lag=20, item_id="i2", title="pad", category="paper"),
    ]
    users = [version(0, user_id="u1", country="NZ"), version(30, user_id="u1", country="AU")]
    lake.land_tables(home, events=table(tables.EVENTS, *events), items=table(tables.ITEMS, *items), users=table(tables.USERS, *users))
    return home


def titles(found):
    return dict(zip(found.item_ids.tolist(), found.items[c.TITLE].to_pylist(), strict=True))


def test_of_each_item_the_version_holds_that_was_true_and_known_before_the_moment(shop):
    early = interactions.load(shop, START + timedelta(days=20), TrainingSettings())
    assert titles(early) == {"i0": "red pen", "i1": None, "i2": None}, "i2 was learnt twenty days late, i1 never"
    assert early.items[c.ATTRIBUTES].to_pylist()[0] == [("ink", "red")]
    late = interactions.load(shop, START + timedelta(days=26), TrainingSettings())
    assert titles(late) == {"i0": "blue pen", "i1": None, "i2": "pad"}


def test_each_fold_knows_what_was_known_at_its_cutoff(shop):
    world = universe.ensure(shop, AS_OF)
    known = {fold.name: world.interactions(fold.cutoff, TrainingSettings()) for fold in world.folds}
    assert titles(known["judge"]) == {"i0": "blue pen", "i1": None, "i2": "pad"}
    first = world.folds[0]
    assert first.cutoff < START + timedelta(days=20)
    assert titles(known[first.name]) == {"i0": "red pen", "i1": None, "i2": None}
    assert known["judge"].users[c.COUNTRY].to_pylist() == [None, "NZ"], "AU holds from day 30, the cutoff is day 28"


def test_histories_bring_what_is_known_of_their_users_in_the_order_asked(shop):
    found = interactions.load(shop, AS_OF, TrainingSettings())
    asked = interactions.histories(found, np.array(["u1", "nobody", "u0", "u1"]))
    assert asked.users[c.COUNTRY].to_pylist() == ["AU", None, None, "AU"]
    assert asked.rows(2, 4).users[c.COUNTRY].to_pylist() == [None, "AU"]
    assert interactions.remap(asked, found.item_ids, found.item_ids[:1]).users is asked.users
