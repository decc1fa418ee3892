"""Knobs that settings name are checked before a model is made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from pipelines import knobs
from pipelines.errors import StateError
from pipelines.knobs import Range


@dataclass(frozen=True)
class Model:
    n_factors: int = 8
    n_rounds: Annotated[int, Range(0, 3)] = 1
    half_life_days: float | None = None
    dropout: float = 0.1
    shrinkage: float = 1.0
    loss: Literal["softmax", "bpr"] = "softmax"
    folder: str = ""
    exact: bool = False
    decay: tuple[float, ...] = ()
    regularization: dict[str, float] = field(default_factory=dict)
    state: dict[str, int] | None = None


def changed(**given: Any) -> Model:
    return knobs.changed("source 'toy'", Model(), given, where="retrieval.parameters")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"n_factors": 0}, r"source 'toy': knob n_factors: 0; expected a whole number at least 1 and at most 4096"),
        ({"n_factors": -3}, "knob n_factors: -3"),
        ({"n_factors": "64"}, "knob n_factors: '64'; expected a whole number"),
        ({"n_factors": 8.5}, r"knob n_factors: 8\.5"),
        ({"n_factors": True}, "knob n_factors: True"),
        ({"n_rounds": 4}, "expected a whole number at least 0 and at most 3"),
        ({"half_life_days": 0}, "knob half_life_days: 0; expected a number above 0"),
        ({"dropout": 1}, "expected a number at least 0 and below 1"),
        ({"shrinkage": float("nan")}, "knob shrinkage: nan"),
        ({"shrinkage": float("inf")}, "knob shrinkage: inf"),
        ({"shrinkage": 10**400}, "knob shrinkage: 1000"),
        ({"loss": "hinge"}, r"knob loss: 'hinge'; expected one of \['softmax', 'bpr'\]"),
        ({"folder": 3}, "knob folder: 3; expected a string"),
        ({"exact": 1}, "knob exact: 1; expected true or false"),
        ({"decay": [0.5, 2.0]}, "expected a list, each a number at least 0 and at most 1"),
        ({"decay": 0.5}, "expected a list"),
        ({"regularization": {"u": -1}}, "expected a table, each value a number at least 0"),
        ({"n_factor": 3}, r"knobs \['n_factor'\]; expected some of .*did you mean 'n_factors'"),
        ({"state": {}}, r"knobs \['state'\]"),
    ],
)
def test_a_knob_that_cannot_be_is_refused_with_its_model_what_was_found_and_what_is_allowed(given, complaint):
    with pytest.raises(StateError, match=complaint):
        changed(**given)


def test_equal_settings_make_equal_knobs():
    made = changed(shrinkage=2, decay=[1, 0.5], half_life_days=3, regularization={"u": 1}, n_rounds=0, loss="bpr", exact=True)
    assert made == Model(shrinkage=2.0, decay=(1.0, 0.5), half_life_days=3.0, regularization={"u": 1.0}, n_rounds=0, loss="bpr", exact=True)
    assert isinstance(made.shrinkage, float)
    assert changed() == Model()
