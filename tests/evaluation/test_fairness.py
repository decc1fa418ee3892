"""The fairness report, on paper."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from pipelines.evaluation import fairness
from pipelines.evaluation.fairness import Bound, Lists

N = 40  # users; half of them A, half B


def world(**other) -> Lists:
    """Four items; everyone is shown 0 and 1; A takes 0, B takes 3."""
    a = np.arange(N) < N // 2
    taken = sparse.csr_matrix((np.ones(N), (np.arange(N), np.where(a, 0, 3))), shape=(N, 4))
    known = {
        "item": np.tile([0, 1], (N, 1)).astype(np.int32),
        "ndcg": np.where(a, 1.0, 0.25),
        "taken": taken,
        "popularity": np.array([0.8, 0.4, 0.2, 0.1]),
        "history_popularity": np.where(a, 0.6, 0.2),
        "category": np.array([0, 0, 1, 1]),
        "taste": np.tile([0.5, 0.5], (N, 1)),
        "parts": {"head_items": np.array([True, True, False, False]), "tail_items": np.array([False, False, True, True])},
        "groups": {"a": a, "b": ~a},
        "provider": np.array([0, 0, 1, -1]),
        "providers": np.array(["north", "south"]),
    }
    return Lists(**(known | other))


def test_attention_is_laid_beside_demand():
    found = fairness.report(world(), k=2)["exposure"]
    assert found["head_items"]["exposure"]["value"] == 1.0
    assert found["head_items"]["wanted"]["value"] == 0.5
    assert found["head_items"]["ratio"]["value"] == 2.0
    assert found["tail_items"]["ratio"]["value"] == 0.0
    assert found["head_items"]["catalogue"] == 0.5
    assert found["head_items"]["wanted"]["lower"] < 0.5 < found["head_items"]["wanted"]["upper"]


def test_a_place_further_down_is_less_attention():
    both = world(item=np.tile([0, 3], (N, 1)).astype(np.int32))
    shares = {name: one["exposure"]["value"] for name, one in fairness.report(both, k=2)["exposure"].items()}
    second = 1 / np.log2(3)
    assert shares == {"head_items": pytest.approx(1 / (1 + second)), "tail_items": pytest.approx(second / (1 + second))}


def test_providers_are_named_and_their_distance_told():
    """Attention is all north's; of what is taken from a known provider, too: distance 0. With item 2 taken by B it is a half."""
    assert fairness.report(world(), k=2)["providers"]["distance"]["value"] == 0
    a = np.arange(N) < N // 2
    south = world(taken=sparse.csr_matrix((np.ones(N), (np.arange(N), np.where(a, 0, 2))), shape=(N, 4)))
    found = fairness.report(south, k=2)["providers"]
    assert found["distance"]["value"] == 0.5
    assert (found["south"]["exposure"]["value"], found["south"]["wanted"]["value"]) == (0.0, 0.5)
    assert found["gini"]["value"] == 0.5  # 0 and all: (-1 x 0 + 1 x 1) / 2


def test_popularity_s_lift_is_a_ratio_of_means_for_all_and_by_group():
    lift = fairness.report(world(), k=2)["popularity_lift"]
    assert lift["all"]["value"] == pytest.approx(0.6 / 0.4 - 1)
    assert lift["a"]["value"] == pytest.approx(0.0)
    assert lift["b"]["value"] == pytest.approx(2.0)


def test_the_gap_is_between_the_best_and_the_worst_group():
    quality = fairness.report(world(), k=2)["quality"]
    assert (quality["best"], quality["worst"]) == ("a", "b")
    assert quality["gap"]["value"] == 0.75
    assert quality["relative_gap"]["value"] == 0.75
    assert quality["all"]["value"] == 0.625


def test_groups_of_few_are_not_compared():
    few = world(groups={"a": np.arange(N) < N - 5, "b": np.arange(N) >= N - 5})
    assert "gap" not in fairness.report(few, k=2)["quality"]


def test_bounds_are_kept_broken_or_not_measured():
    found = fairness.report(world(), k=2)
    bounds = {
        "lift": Bound(("popularity_lift", "all"), 0.6, most=True),
        "gap": Bound(("quality", "relative_gap"), 0.5, most=True),
        "tail": Bound(("exposure", "tail_items", "ratio"), 0.2, most=False),
        "sellers": Bound(("providers", "nobody"), 1.0, most=True),
    }
    gap, tail, sellers = fairness.verdict(found, bounds)
    assert gap.startswith("fairness: gap is 0.750 [")
    assert "above 0.5" in gap
    assert "below 0.2" in tail
    assert sellers == "fairness: sellers was not measured"
    assert fairness.verdict(found, {}) == []


def test_nobody_and_nothing_is_reported_as_unmeasured():
    nobody = world(
        item=np.zeros((0, 2), np.int32),
        ndcg=np.zeros(0),
        taken=sparse.csr_matrix((0, 4)),
        history_popularity=np.zeros(0),
        taste=np.zeros((0, 2)),
        groups={},
    )
    found = fairness.report(nobody, k=2)
    assert found["miscalibration"]["value"] is None
    assert fairness.verdict(found, {"lift": Bound(("popularity_lift", "all"), 0.6, most=True)}) == ["fairness: lift was not measured"]


def test_the_same_lists_give_the_same_report():
    assert fairness.report(world(), k=2, seed=3) == fairness.report(world(), k=2, seed=3)
