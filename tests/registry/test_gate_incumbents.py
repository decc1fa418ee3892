"""What the gate compares with is a source of the line-up, or the settings are refused."""

from __future__ import annotations

import pytest

from pipelines.decision_policies import GatePolicy
from pipelines.errors import StateError
from pipelines.model_settings import RetrievalSettings
from pipelines.registry import gate_incumbents

SWITCHED_ON = RetrievalSettings().sources


def test_what_the_first_model_must_beat_is_switched_on_or_the_settings_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(StateError, match=r"not among retrieval\.sources") as refused:
        gate_incumbents.check(GatePolicy(), ("item_knn", "popular_7d"))
    assert "add 'popular' to retrieval.sources" in str(refused.value)
    gate_incumbents.check(GatePolicy(baseline="popular_7d"), ("item_knn", "popular_7d"))


def test_the_defaults_and_none_at_all_are_accepted() -> None:
    gate_incumbents.check(GatePolicy(), SWITCHED_ON)
    gate_incumbents.check(GatePolicy(incumbents=()), SWITCHED_ON)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (GatePolicy(incumbents=("popular_7d", "item_kn")), "did you mean 'item_knn'"),
        (GatePolicy(baseline="popluar"), "did you mean 'popular'"),
        (GatePolicy(incumbents=("zzz",)), "see gate.incumbents in the settings"),
    ],
)
def test_a_misspelt_name_is_refused_and_the_nearest_offered(policy: GatePolicy, said: str) -> None:
    with pytest.raises(StateError, match="unknown") as refused:
        gate_incumbents.check(policy, SWITCHED_ON)
    assert said in str(refused.value)
