"""What features are worth: permutation on paper, Shapley values that add up, and both in a shop where one group is known to matter."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from ranking_world import AS_OF

from pipelines import config
from pipelines.datasets import universe
from pipelines.datasets.interactions import histories
from pipelines.ranking import importance, importance_plot, judging, training, training_set, two_stage
from pipelines.ranking.features import assemble


@pytest.fixture(scope="module")
def run(shop):
    training_set.build(shop, AS_OF)
    training.train(shop, AS_OF)
    judging.evaluate(shop, AS_OF)
    return shop


@pytest.fixture(scope="module")
def found(run):
    return json.loads((judging.folder(run, AS_OF) / importance.FILE).read_text())


def test_values_change_places_within_their_list_and_what_a_whole_list_has_between_lists():
    """Column 0 differs within lists, column 1 is one value a list, column 2 is left alone."""
    matrix = np.array([[0, 10, 5], [1, 10, 6], [2, 10, 7], [3, 20, 8], [4, 20, 9], [5, np.nan, 1]], np.float32)
    starts = np.array([0, 3, 5, 6])
    moved = [importance.permuted(matrix, starts, [0, 1], seed) for seed in range(20)]
    for one in moved:
        assert [sorted(one[begin:end, 0]) for begin, end in pairwise(starts)] == [[0, 1, 2], [3, 4], [5]]
        assert all(len(np.unique(one[begin:end, 1])) == 1 for begin, end in pairwise(starts))
        assert np.array_equal(one[:, 2], matrix[:, 2])
    assert any((one[:, 0] != matrix[:, 0]).any() for one in moved)
    assert any(one[0, 1] == 20 for one in moved)


def test_the_columns_of_a_group_move_together():
    rng = np.random.default_rng(0)
    matrix = np.repeat(rng.random((50, 1)), 3, axis=1).astype(np.float32)
    one = importance.permuted(matrix, np.array([0, 20, 50]), [0, 2], 1)
    assert np.array_equal(one[:, 0], one[:, 2])
    assert not np.array_equal(one[:, 0], one[:, 1])


def test_contributions_add_up_to_the_score(run):
    model = two_stage.of_run(run, AS_OF)
    world = universe.load(run, AS_OF)
    cutoff, user_ids = world.fold("judge").cutoff, world.labels("judge").user_ids[:5]
    users = histories(world.interactions(cutoff, config.load(run).training), user_ids)
    asked = model.propose(users)
    matrix, names = assemble(model.context(run, asked, users, user_ids, cutoff), asked)
    assert names == model.ranker.features
    added = importance.contributions(model.ranker, matrix)
    assert added.shape == (len(matrix), len(names) + 1)
    np.testing.assert_allclose(added.sum(axis=1), model.ranker.score(matrix), atol=1e-6)


def test_where_people_come_back_their_own_contact_matters_and_prices_do_not(run, found):
    lost = {one["group"]: one["permuted"] for one in found["groups"]}
    assert set(sorted(lost, key=lost.get)[-2:]) == {"retrieval", "contact"}
    assert lost["contact"] > 0.1
    assert abs(lost["price"]) < 0.02
    assert set(lost) <= set(config.load(run).ranking.features)
    assert sum(one["gain"] for one in found["features"]) == pytest.approx(1, abs=1e-3)
    assert sum(one["permuted"] is not None for one in found["features"]) == importance.N_ALONE


def test_a_request_is_told_feature_by_feature(found):
    request = found["request"]
    told = request["start"] + sum(one["added"] for one in request["told"]) + request["rest"]
    assert told == pytest.approx(request["score"], abs=1e-6)
    assert any(one["feature"].startswith("own_item") for one in request["told"])


def test_the_plots_need_no_colour_and_are_the_same_each_time(run, found):
    for name in importance.PLOTS:
        text = (judging.folder(run, AS_OF) / name).read_text()
        colours = {part[:7] for part in text.split("#")[1:] if len(part) > 6 and all(char in "0123456789abcdef" for char in part[:6])}
        assert all(colour[:2] == colour[2:4] == colour[4:6] for colour in colours), colours
    assert importance_plot.importance(found, "t") == importance_plot.importance(found, "t")
    assert "not tried" in importance_plot.importance(found, "t")
