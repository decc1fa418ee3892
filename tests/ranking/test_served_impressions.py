"""What the service showed feeds the next training: its log, landed, gives the ranker the items that were shown and ignored."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from ranking_world import AS_OF, fill

from pipelines import cycle
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.decision_policies import ImpressionPolicy
from pipelines.ranking import training_set
from pipelines.serving import collecting
from pipelines.serving.journal import Journal
from pipelines.serving.request import FULL, Answer, Ask, Release, Shown, Why
from pipelines.window import DAY

pytestmark = pytest.mark.slow  # a training set of its own


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return the shop whose service showed sixty users four items each in the last training window, and landed its log."""
    home = Home(tmp_path_factory.mktemp("fed"))
    fill(home)
    moment = universe.load(home, AS_OF).folds[-2].window.start + DAY
    journal = Journal(home, ImpressionPolicy())
    for user in range(60):
        items = tuple(Shown(f"i{(7 * user + step) % 48:02d}", step + 1, 1.0, Why("for_you", ""), propensity=0.25) for step in range(4))
        journal(Answer(Ask("home", f"r{user}", moment, user_id=f"u{user:03d}"), items, FULL, Release(1, "d" * 64)))
    journal.close()
    (landed,) = collecting.collect(home, AS_OF)
    assert landed["rows"]["accepted"] == 240
    training_set.build(home, AS_OF)
    return home


def test_what_was_shown_and_ignored_comes_before_any_draw(shop: Home):
    (record,) = cycle.records(shop, AS_OF, "training_set")
    assert record["shown_negatives"] > 0
    rows = pq.read_table(training_set.folder(shop, AS_OF) / "rank_2.parquet")
    position, propensity = rows["position"].to_numpy(), rows["propensity"].to_numpy()
    assert set(np.unique(position).tolist()) <= {0, 1, 2, 3, 4}
    assert (position > 0).sum() > 20
    assert (propensity[position > 0] == 0.25).all()
    assert np.isnan(propensity[position == 0]).all()
    world = universe.load(shop, AS_OF)
    users, items = (world.user_ids[rows["user"].to_numpy()], world.item_ids[rows["item"].to_numpy()])
    for user, item, place in zip(users[position > 0], items[position > 0], position[position > 0], strict=True):
        assert item == f"i{(7 * int(user[1:]) + place - 1) % 48:02d}"


def test_rows_without_impressions_say_so(shop: Home):
    rows = pq.read_table(training_set.folder(shop, AS_OF) / "rank_1.parquet")
    assert (rows["position"].to_numpy() == 0).all()
    assert training_set.load(shop, AS_OF).position is not None
