"""What the gate compares with is a source of the line-up, or the settings are refused."""

from __future__ import annotations

import pytest

from pipelines.decision_policies import GatePolicy
from pipelines.errors import StateError
from pipelines.registry import gate_incumbents


def test_the_defaults_and_none_at_all_are_accepted() -> None:
    gate_incumbents.check(GatePolicy())
    gate_incumbents.check(GatePolicy(incumbents=()))


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
        gate_incumbents.check(policy)
    assert said in str(refused.value)
