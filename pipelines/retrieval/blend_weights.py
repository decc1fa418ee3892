"""What a place in each source's list is worth: weights of the blend, learnt on the ranker's windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import OptimizeResult, minimize

from pipelines.datasets.interactions import Longs
from pipelines.datasets.labels import Labels
from pipelines.retrieval.merging import RRF_CONSTANT, Doubles, Union, blocks, gains
from pipelines.retrieval.protocol import Candidates

CONSTANTS: Final = (5.0, 10.0, 20.0, 60.0)  # of the reciprocal rank: the smaller, the more the first ranks stand out
REGULARIZATION: Final = 1e-3  # of the squared weights; it only decides between sources that propose the same
MOST_LISTS: Final = 4000
MOST_PROPOSALS: Final = 4_000_000  # held at once: 130 MB
FEWEST_LISTS: Final = 50  # with a positive among the candidates; below it every source counts alike
ITERATIONS: Final = 200


@dataclass(frozen=True)
class Learnt:
    """Weights with what they were learnt from.

    Attributes:
        weights: per source, >= 0, their mean is 1; empty where there was too little to learn from.
        constant: of the reciprocal rank.
        n_lists, n_proposals: users with a positive among their candidates, and what the sources proposed to them.
        loss, loss_of_equals: mean cross-entropy (nats) at the weights, and of plain reciprocal-rank fusion at its best scale.
    """

    weights: dict[str, float]
    constant: float
    n_lists: int
    n_proposals: int
    loss: float | None = None
    loss_of_equals: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "constant": self.constant,
            "lists": self.n_lists,
            "proposals": self.n_proposals,
            "loss": self.loss,
            "loss_of_equals": self.loss_of_equals,
        }


@dataclass(frozen=True)
class _Lists:
    """Proposals of some users, flat: proposal -> pair -> list; `wanted` is the share of a list's gain at each pair."""

    source: Longs
    rank: Longs  # from 1
    first: Longs  # proposal of each pair
    begin: Longs  # pair of each list
    wanted: Doubles

    def loss(self, weights: Doubles, value: Doubles) -> tuple[float, Doubles]:
        """Return the mean cross-entropy of the lists, and its gradient; `value` is that of each proposal's rank.

        Each pair's chance is the softmax of its score over its list: ListNet's top-one likelihood
        (Cao et al., ICML 2007, section 4.3), which is convex in the weights of a linear score.
        """
        score = np.add.reduceat(weights[self.source] * value, self.first)
        length = np.diff(self.begin, append=len(score))
        top = np.maximum.reduceat(score, self.begin)
        likely = np.exp(score - np.repeat(top, length))
        total = np.add.reduceat(likely, self.begin)
        surplus = likely / np.repeat(total, length) - self.wanted
        of_proposal = np.repeat(surplus, np.diff(self.first, append=len(self.source)))
        gradient = np.bincount(self.source, of_proposal * value, minlength=len(weights))
        n = len(self.begin)
        cost = float((np.log(total) + top).sum() - self.wanted @ score) / n
        return cost + REGULARIZATION * float(weights @ weights), gradient / n + 2 * REGULARIZATION * weights


def learn(windows: Iterable[tuple[Mapping[str, Candidates], Labels]], seed: int) -> Learnt:
    """Return the weights >= 0 under which what users then did is likeliest to be drawn from the blend.

    The score of a pair is the one that the blend orders by, the sum of weight / (constant + rank).
    For each constant the fit is convex, and the likeliest of them is kept; there is no randomness but
    the users drawn from large windows. It is never shown the window that models are judged on.

    Args:
        windows: per ranker window what each source proposed, and what users then did.
        seed: of the users drawn where there are more than `MOST_LISTS`, or too many proposals.
    """
    loaded = list(windows)
    names = tuple(loaded[0][0]) if loaded else ()
    parts = list(_flat(loaded, seed))
    n_lists, n_proposals = sum(len(part.begin) for part in parts), sum(len(part.source) for part in parts)
    if n_lists < FEWEST_LISTS:
        return Learnt({}, RRF_CONSTANT, n_lists, n_proposals)
    pairs = np.cumsum([0, *(len(part.first) for part in parts)])
    proposals = np.cumsum([0, *(len(part.source) for part in parts)])
    together = _Lists(
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.rank for part in parts]),
        np.concatenate([part.first + at for part, at in zip(parts, proposals, strict=False)]),
        np.concatenate([part.begin + at for part, at in zip(parts, pairs, strict=False)]),
        np.concatenate([part.wanted for part in parts]),
    )
    equal = _common(together, len(names), worth(together.rank, RRF_CONSTANT))
    fits = {constant: _fit(together, np.full(len(names), equal.x[0]), worth(together.rank, constant)) for constant in CONSTANTS}
    constant = min(fits, key=lambda constant: round(fits[constant].fun, 6))
    mean = float(fits[constant].x.mean())
    if not mean > 0:  # what users did is no likelier high in any list than low in it
        return Learnt({}, RRF_CONSTANT, n_lists, n_proposals)
    # Four decimals are more than the windows can tell, and hide the last bits of another processor.
    weights = {name: round(float(weight) / mean, 4) for name, weight in zip(names, fits[constant].x, strict=True)}
    return Learnt(weights, constant, n_lists, n_proposals, round(float(fits[constant].fun), 6), round(float(equal.fun), 6))


def worth(rank: Longs, constant: float) -> Doubles:
    """Return (constant + 1) / (constant + rank): 1 for the first of a list."""
    value: Doubles = (constant + 1) / (constant + rank.astype(np.float64))
    return value


def _fit(lists: _Lists, start: Doubles, value: Doubles) -> OptimizeResult:
    return minimize(
        lists.loss, start, (value,), jac=True, bounds=[(0, None)] * len(start), method="L-BFGS-B", options={"maxiter": ITERATIONS}
    )


def _common(lists: _Lists, n: int, value: Doubles) -> OptimizeResult:
    """Return the best weight that all sources have in common: reciprocal-rank fusion, as the same likelihood sees it."""

    def loss(weight: Doubles) -> tuple[float, Doubles]:
        cost, gradient = lists.loss(np.full(n, weight[0]), value)
        return cost, gradient.sum(keepdims=True)

    return minimize(loss, np.ones(1), jac=True, bounds=[(1e-3, None)], method="L-BFGS-B")


def _flat(windows: list[tuple[Mapping[str, Candidates], Labels]], seed: int) -> Iterable[_Lists]:
    """Yield the lists that have a positive among their candidates, of users drawn alike from every window."""
    n_users = sum(truth.n_users for _, truth in windows)
    a_list = sum(found.item.shape[1] for found in windows[0][0].values()) if windows else 1
    share = min(1.0, MOST_LISTS / max(n_users, 1), MOST_PROPOSALS / max(n_users * a_list, 1))
    rng = np.random.default_rng(seed)
    for lists, truth in windows:
        drawn = np.sort(rng.choice(truth.n_users, size=int(np.ceil(share * truth.n_users)), replace=False))
        some = {name: Candidates(found.item[drawn], found.score[drawn]) for name, found in lists.items()}
        for rows, block in blocks(some):
            union = Union.of(block)
            gain = gains(union, truth.take(drawn[rows]))
            total = np.bincount(union.row, gain, minlength=union.n_rows)
            useful = union.of_pairs(np.flatnonzero(total[union.row] > 0))
            gain = gain[total[union.row] > 0]
            if len(gain):
                begin = np.flatnonzero(np.diff(useful.row, prepend=-1))
                yield _Lists(useful.source, useful.column + 1, useful.first, begin, gain / total[useful.row])
