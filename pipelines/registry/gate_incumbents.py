"""The trivial recommenders that the gate holds a challenger against, by the names of the line-up."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from pipelines.decision_policies import GatePolicy
from pipelines.errors import StateError
from pipelines.retrieval.lineup import SOURCES

OFF: Final = "the source is switched off (retrieval.sources)"


def check(policy: GatePolicy) -> None:
    """Check that a policy names sources that there are: a misspelt one would guard nothing.

    Raises:
        StateError: one is unknown.
    """
    for field, names in (("gate.baseline", (policy.baseline,)), ("gate.incumbents", policy.incumbents)):
        for name in names:
            if name not in SOURCES:
                near = get_close_matches(name, SOURCES, n=1)
                raise StateError(
                    f"{field} {name!r}",
                    found="unknown",
                    allowed=f"one of {list(SOURCES)}",
                    hint=f"did you mean {near[0]!r}?" if near else f"see {field} in the settings",
                )
