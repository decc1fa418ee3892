"""LightGBM's own text of a model, read into arrays: every node of every tree, exactly as its predictor sees them.

LightGBM prints thresholds and leaves with 17 digits, so the doubles read here are the doubles it holds. Whoever hands
a text in has checked its digest; what this reader does not know is refused by name, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Indices: TypeAlias = npt.NDArray[np.intp]
Doubles: TypeAlias = npt.NDArray[np.float64]

CATEGORICAL: Final = 1  # bits of a node's `decision_type` (LightGBM, include/LightGBM/tree.h)
DEFAULT_LEFT: Final = 2
MISSING_SHIFT: Final = 2
MISSING_IS_ZERO, MISSING_IS_NAN = 1, 2  # 0: nothing is missing, NaN counts as 0


class Unsupported(Exception):
    """What a model holds that this reader does not know; LightGBM's own predictor must score it."""


@dataclass(frozen=True)
class Trees:
    """All trees of a model, their nodes one after the other.

    Attributes:
        n_features: width of the matrix the model reads.
        n_leaves: [n_trees]; a tree has one node less, so a tree of one leaf has none.
        feature, threshold, default_left, missing: [n_nodes], a node sends x left where x <= threshold.
        left, right: [n_nodes], a node counted within its tree, or ~leaf where negative.
        leaf: float64, the leaves' values, one tree after the other.
    """

    n_features: int
    n_leaves: Indices
    feature: Indices
    threshold: Doubles
    default_left: npt.NDArray[np.bool_]
    missing: Indices
    left: Indices
    right: Indices
    leaf: Doubles


def read(text: str) -> Trees:
    """Return the trees of a model's text.

    Raises:
        Unsupported: several scores a row, averaged trees, linear leaves, categorical splits, or an unknown layout.
    """
    head, *parts = text.partition("\nend of trees")[0].split("\nTree=")
    facts = _fields(head)
    if facts.get("version") != "v4":
        raise Unsupported(f"model text of version {facts.get('version')!r}")
    if facts.get("num_tree_per_iteration") != "1":
        raise Unsupported(f"{facts.get('num_tree_per_iteration')} scores a row")
    if "average_output" in head.splitlines():
        raise Unsupported("trees that are averaged, not summed")
    try:
        trees = [_tree(_fields(part)) for part in parts]
        n_features = int(facts["max_feature_idx"]) + 1
    except (KeyError, ValueError) as error:
        raise Unsupported(f"a model text without a readable {error}") from error
    if not trees:
        raise Unsupported("a model without trees")
    joined = {name: np.concatenate([tree[name] for tree in trees]) for name in trees[0]}
    kinds = joined.pop("decision_type")
    if (kinds & CATEGORICAL).any():
        raise Unsupported("categorical splits")
    if np.isnan(joined["threshold"]).any():
        raise Unsupported("thresholds that are no numbers")
    n_leaves = np.array([len(tree["leaf"]) for tree in trees], np.intp)
    return Trees(n_features, n_leaves, default_left=kinds & DEFAULT_LEFT > 0, missing=kinds >> MISSING_SHIFT & 3, **joined)


def _fields(lines: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines.splitlines() if "=" in line)


def _tree(said: dict[str, str]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of one tree."""
    if said.get("is_linear", "0") != "0":
        raise Unsupported("linear leaves")
    n = int(said["num_leaves"])
    kinds = {"feature": "split_feature", "decision_type": "decision_type", "left": "left_child", "right": "right_child"}
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.array(said.get(key, "").split() if n > 1 else [], dtype=np.intp) for name, key in kinds.items()
    }
    arrays["threshold"] = np.array(said.get("threshold", "").split() if n > 1 else [], dtype=np.float64)
    arrays["leaf"] = np.array(said["leaf_value"].split(), dtype=np.float64)
    if any(len(array) != n - (name != "leaf") for name, array in arrays.items()):
        raise Unsupported("a tree whose arrays do not fit its leaves")
    return arrays
