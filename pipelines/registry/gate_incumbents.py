"""The trivial recommenders that the gate holds a challenger against, by the names of the line-up."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Final

from pipelines.decision_policies import GatePolicy
from pipelines.errors import StateError
from pipelines.retrieval.lineup import SOURCES

OFF: Final = "the source is switched off (retrieval.sources)"


def check(policy: GatePolicy, sources: Collection[str]) -> None:
    """Check that a policy names sources that there are: a misspelt one would guard nothing.

    Args:
        sources: those that are switched on. An incumbent may be off, what the first model must beat may not.

    Raises:
        StateError: one is unknown, or the baseline is off.
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
    if policy.baseline not in sources:
        raise StateError(
            f"gate.baseline {policy.baseline!r}",
            found=f"not among retrieval.sources {list(sources)}",
            allowed="a source that every run fits: the first model is held against it",
            hint=f"add {policy.baseline!r} to retrieval.sources, or name another gate.baseline",
        )
