"""A LightGBM model scored many rows at a time, by numpy alone: rows are bits, and a tree is a few ANDs.

Each distinct question of a model ("is feature f <= t?") is asked once of all rows, and its answers become one line of bits, a
row a bit: 512 rows are 64 bytes. The rows that reach a node are a line, too: those that go on to its left child are
`reach & line`, those to its right child the others. So a node costs two operations for all rows, with no branch to predict;
and all nodes of one depth of all trees are one numpy call. Each row ends in one leaf a tree. The leaf's number is read off bit
by bit (the rows that reached a leaf whose number has bit b), its value looked up, and the trees are added in their order.

The idea of row masks is bit-slicing; QuickScorer (Lucchese et al., SIGIR 2015) and RapidScorer (Ye et al., KDD 2018) put the
*leaves* into the bits instead, which costs a scan of all false nodes a row.

The scores are LightGBM's, bit for bit, for float32 features:
- For a double t, let t32 be the largest float32 <= t. A float32 x is <= t exactly where it is <= t32.
- LightGBM reads |x| <= 1e-35f as 0; thresholds within that range are moved to its edge, on their side.
- Leaves are added in double, the first tree first, as LightGBM does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats
from pipelines.errors import StateError
from pipelines.ranking import forest_text
from pipelines.ranking.forest_text import Doubles, Indices, Trees, Unsupported

log = logging.getLogger(__name__)

ROWS: Final = 1024  # scored at once: more are cheaper a row, and 300 trees of 63 leaves take 8 MB then
WORD: Final = 64
FEWEST: Final = 48  # rows below which LightGBM's walk costs less
MOST_LEAVES: Final = 256  # a leaf's number is one byte
ZERO: Final = np.float32(1e-35)  # LightGBM's kZeroThreshold
NAN_RIGHT, NAN_LEFT, ZERO_RIGHT, ZERO_LEFT = range(4)  # where a node sends what is missing


@dataclass(frozen=True)
class Level:
    """What is to be done for the nodes of one depth, of all trees: m nodes have 2m children, the left ones first."""

    line: Indices  # [m], which question each node asks
    inner: Indices  # which children are nodes; the next level's nodes, in this order
    leaves: Indices  # which children are leaves
    slots: Indices  # and where those belong: leaf * n_trees + tree


@dataclass(frozen=True)
class Layout:
    """A model as `score` walks it.

    Attributes:
        used: features that any node asks for.
        columns: [(place in `used`, where missing goes, t32 [k, 1] ascending)], the distinct questions.
        levels: top down.
        values: float64 [n_trees * width], the leaves.
        width: leaves of the largest tree, rounded up to a power of two.
    """

    used: Indices
    columns: list[tuple[int, int, Floats]]
    levels: list[Level]
    values: Doubles
    width: int
    n_trees: int


@dataclass(frozen=True)
class Forest:
    """A fitted booster with the fastest way to score it that gives its own scores.

    Attributes:
        booster: scores few rows, other types than float32, and all of a model that has no layout.
        layout: None where the model holds something that `forest_text` does not know.
        why: what that is; empty otherwise.
        num_threads: of LightGBM's predictor. Ours runs in the caller's thread, starts none, and shares no buffer, so
            any number of threads may score at once.
    """

    booster: lightgbm.Booster
    layout: Layout | None
    why: str
    n_features: int
    num_threads: int = 1

    @classmethod
    def of(cls, booster: lightgbm.Booster, *, text: str | None = None, num_threads: int = 1) -> Forest:
        """Return the scorer of a booster. Everything is prepared here, nothing in a request; about 0.1 s for 300 trees.

        Args:
            text: the booster's own, if it is at hand; its digest was checked by whoever parsed it.
        """
        try:
            trees, why = forest_text.read(str(booster.model_to_string()) if text is None else text), ""
            layout = layout_of(trees)
        except Unsupported as reason:
            layout, why = None, str(reason)
            log.warning("LightGBM's own predictor scores this model, slower than ours: it has %s", why)
        return cls(booster, layout, why, int(booster.num_feature()), num_threads)

    def score(self, matrix: npt.NDArray[np.floating[Any]]) -> Doubles:
        """Return float64 [n], the summed leaves: `booster.predict(matrix, raw_score=True)`, bit for bit.

        Args:
            matrix: [n, n_features]; float32 is scored by bits, another type by LightGBM.

        Raises:
            StateError: the matrix has another width.
        """
        if matrix.ndim != 2 or matrix.shape[1] != self.n_features:
            raise StateError("feature matrix", found=f"shape {matrix.shape}", allowed=f"[n, {self.n_features}], as the model was trained")
        n = len(matrix)
        if not n:
            return np.zeros(0)
        if self.layout is None or n < FEWEST or matrix.dtype != np.float32:
            return np.asarray(self.booster.predict(matrix, raw_score=True, num_threads=self.num_threads), dtype=np.float64)
        return np.concatenate([_score(self.layout, matrix[first : first + ROWS]) for first in range(0, n, ROWS)])


def layout_of(trees: Trees) -> Layout:
    """Return how to walk some trees.

    Raises:
        Unsupported: a tree has more than `MOST_LEAVES` leaves.
    """
    n_trees, largest = len(trees.n_leaves), int(trees.n_leaves.max())
    if largest > MOST_LEAVES:
        raise Unsupported(f"a tree of {largest} leaves, more than {MOST_LEAVES}")
    width = 1 << max(largest - 1, 0).bit_length()
    used, columns, line = _questions(trees)
    tree = np.repeat(np.arange(n_trees), trees.n_leaves - 1)
    first_node = np.cumsum(trees.n_leaves - 1) - (trees.n_leaves - 1)

    levels = []
    nodes = first_node[trees.n_leaves > 1]  # a tree of one leaf has none, and no leaf but number 0
    while len(nodes):
        child = np.concatenate([trees.left[nodes], trees.right[nodes]])
        whose = np.concatenate([tree[nodes], tree[nodes]])
        inner, leaves = np.flatnonzero(child >= 0), np.flatnonzero(child < 0)
        levels.append(Level(line[nodes], inner, leaves, ~child[leaves] * n_trees + whose[leaves]))
        nodes = (child + first_node[whose])[inner]

    values = np.zeros((n_trees, width))
    first_leaf = np.cumsum(trees.n_leaves) - trees.n_leaves
    of_tree = np.repeat(np.arange(n_trees), trees.n_leaves)
    values[of_tree, np.arange(len(trees.leaf)) - first_leaf[of_tree]] = trees.leaf
    return Layout(used, columns, levels, values.ravel(), width, n_trees)


def _questions(trees: Trees) -> tuple[Indices, list[tuple[int, int, Floats]], Indices]:
    """Return the features asked for, the questions by feature and treatment of what is missing, and [n_nodes] which one each node asks."""
    t = trees.threshold
    with np.errstate(over="ignore"):
        t32 = t.astype(np.float32)
    t32 = np.where(t32.astype(np.float64) > t, np.nextafter(t32, np.float32(-np.inf)), t32)
    zero = float(ZERO)
    t32 = np.where((t >= 0) & (t <= zero), ZERO, np.where((t < 0) & (t >= -zero), np.nextafter(-ZERO, np.float32(-np.inf)), t32))
    nan_left = np.where(trees.missing == forest_text.MISSING_IS_NAN, trees.default_left, t >= 0)
    is_zero = trees.missing == forest_text.MISSING_IS_ZERO
    rule = np.where(is_zero, np.where(trees.default_left, ZERO_LEFT, ZERO_RIGHT), np.where(nan_left, NAN_LEFT, NAN_RIGHT))

    order = np.lexsort((t32, rule, trees.feature))
    if not len(order):
        return order, [], order
    feature, rule, t32 = trees.feature[order], rule[order], t32[order]
    other_column = np.append(True, (feature[1:] != feature[:-1]) | (rule[1:] != rule[:-1]))
    fresh = other_column | np.append(True, t32[1:] != t32[:-1])
    line = np.empty(len(order), np.intp)
    line[order] = np.cumsum(fresh) - 1
    feature, rule, t32 = feature[fresh], rule[fresh], t32[fresh]
    starts = np.flatnonzero(other_column[fresh])
    ends = [*starts[1:], len(t32)]
    used, place = np.unique(feature, return_inverse=True)
    return used, [(int(place[a]), int(rule[a]), t32[a:b, None].copy()) for a, b in zip(starts, ends, strict=True)], line


def _lines(layout: Layout, block: Floats, rows: int) -> npt.NDArray[np.uint64]:
    """Return uint64 [n_questions, rows / 64]: bit r of a line is set where row r goes left."""
    x = np.zeros((len(layout.used), rows), np.float32)
    x[:, : len(block)] = block.T[layout.used]
    low = np.where(np.isnan(x), np.float32(-np.inf), x)  # NaN is below nothing, -inf below everything
    parts = []
    for feature, rule, t32 in layout.columns:
        value = (low if rule == NAN_LEFT else x)[feature]
        if rule in {ZERO_RIGHT, ZERO_LEFT}:
            missing = np.isnan(value) | (np.abs(value) <= ZERO)
            value = np.where(missing, np.float32(-np.inf if rule == ZERO_LEFT else np.nan), value)
        parts.append(np.packbits(value <= t32, axis=1))
    return np.concatenate(parts).view(np.uint64)


def _score(layout: Layout, block: Floats) -> Doubles:
    """Return float64 [n], the scores of at most `ROWS` rows."""
    words = -(-len(block) // WORD)
    reached = np.zeros((layout.width * layout.n_trees, words), np.uint64)  # [leaf * n_trees + tree]
    if layout.levels:
        lines = _lines(layout, block, words * WORD)
        reach = np.full((len(layout.levels[0].line), words), ~np.uint64(0))
    for level in layout.levels:
        m = len(level.line)
        child = np.empty((2 * m, words), np.uint64)
        np.bitwise_and(reach, lines.take(level.line, axis=0), out=child[:m])
        np.bitwise_xor(reach, child[:m], out=child[m:])
        reached[level.slots] = child.take(level.leaves, axis=0)
        reach = child.take(level.inner, axis=0)

    number = np.zeros((layout.n_trees, words * WORD), np.uint8)
    half, halves = layout.width, reached.reshape(layout.width, -1)
    while half > 1:
        half //= 2
        # Which leaves have this bit: the upper half. Folding it onto the lower asks the same of the next bit.
        bit = np.bitwise_or.reduce(halves[half:], axis=0)
        number |= np.unpackbits(bit.view(np.uint8)).reshape(number.shape) * np.uint8(half)
        halves = halves[:half] | halves[half:]
    at = number + np.arange(0, layout.n_trees * layout.width, layout.width)[:, None]
    # Along the first axis numpy adds one tree after the other, as LightGBM does.
    return np.asarray(layout.values.take(at).sum(axis=0)[: len(block)])
