"""What a place in each source's list is worth: weights of the blend, learnt on the ranker's windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import minimize

from pipelines.datasets.interactions import Longs
from pipelines.datasets.labels import Labels
from pipelines.retrieval.merging import RRF_CONSTANT, Doubles, Union, blocks, gains
from pipelines.retrieval.protocol import Candidates

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
        n_lists, n_proposals: users with a positive among their candidates, and what the sources proposed to them.
        loss, loss_of_equals: mean cross-entropy (nats) at the weights, and of the best common weight.
    """

    weights: dict[str, float]
    n_lists: int
    n_proposals: int
    loss: float | None = None
    loss_of_equals: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "lists": self.n_lists,
            "proposals": self.n_proposals,
            "loss": self.loss,
            "loss_of_equals": self.loss_of_equals,
        }


@dataclass(frozen=True)
class _Lists:
    """Proposals of some users, flat: proposal -> pair -> list; `wanted` is the share of a list's gain at each pair."""

    source: Longs
    value: Doubles
    first: Longs  # proposal of each pair
    begin: Longs  # pair of each list
    wanted: Doubles

    def loss(self, weights: Doubles) -> tuple[float, Doubles]:
        """Return the mean cross-entropy of the lists, and its gradient.

        Each pair's chance is the softmax of its score over its list: ListNet's top-one likelihood
        (Cao et al., ICML 2007, section 4.3), which is convex in the weights of a linear score.
        """
        score = np.add.reduceat(weights[self.source] * self.value, self.first)
        length = np.diff(self.begin, append=len(score))
        top = np.maximum.reduceat(score, self.begin)
        likely = np.exp(score - np.repeat(top, length))
        total = np.add.reduceat(likely, self.begin)
        surplus = likely / np.repeat(total, length) - self.wanted
        of_proposal = np.repeat(surplus, np.diff(self.first, append=len(self.source)))
        gradient = np.bincount(self.source, of_proposal * self.value, minlength=len(weights))
        n = len(self.begin)
        cost = float((np.log(total) + top).sum() - self.wanted @ score) / n
        return cost + REGULARIZATION * float(weights @ weights), gradient / n + 2 * REGULARIZATION * weights


def learn(windows: Iterable[tuple[Mapping[str, Candidates], Labels]], seed: int) -> Learnt:
    """Return the weights >= 0 under which what users then did is likeliest to be drawn from the blend.

    The score of a pair is the one that the blend orders by, sum of weight x 61 / (60 + rank). The
    fit is convex and has no randomness but the users drawn from large windows. It is never shown the
    window that models are judged on.

    Args:
        windows: per ranker window what each source proposed, and what users then did.
        seed: of the users drawn where there are more than `MOST_LISTS`, or too many proposals.
    """
    loaded = list(windows)
    names = tuple(loaded[0][0]) if loaded else ()
    parts = list(_flat(loaded, seed))
    n_lists, n_proposals = sum(len(part.begin) for part in parts), sum(len(part.source) for part in parts)
    if n_lists < FEWEST_LISTS:
        return Learnt({}, n_lists, n_proposals)
    pairs = np.cumsum([0, *(len(part.first) for part in parts)])
    proposals = np.cumsum([0, *(len(part.source) for part in parts)])
    together = _Lists(
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.first + at for part, at in zip(parts, proposals, strict=False)]),
        np.concatenate([part.begin + at for part, at in zip(parts, pairs, strict=False)]),
        np.concatenate([part.wanted for part in parts]),
    )
    equal = minimize(lambda w: _common(together, float(w[0]), len(names)), np.ones(1), jac=True, bounds=[(0, None)], method="L-BFGS-B")
    start = np.full(len(names), max(float(equal.x[0]), 1e-3))
    found = minimize(together.loss, start, jac=True, bounds=[(0, None)] * len(names), method="L-BFGS-B", options={"maxiter": ITERATIONS})
    mean = float(found.x.mean())
    if not mean > 0:  # what users did is no likelier high in any list than low in it
        return Learnt({}, n_lists, n_proposals)
    # Four decimals are more than the windows can tell, and hide the last bits of another processor.
    weights = {name: round(float(weight) / mean, 4) for name, weight in zip(names, found.x, strict=True)}
    return Learnt(weights, n_lists, n_proposals, round(float(found.fun), 6), round(float(equal.fun), 6))


def _common(lists: _Lists, weight: float, n: int) -> tuple[float, Doubles]:
    loss, gradient = lists.loss(np.full(n, weight))
    return loss, np.array([gradient.sum()])


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
                value = (RRF_CONSTANT + 1) / (RRF_CONSTANT + 1 + useful.column)
                yield _Lists(useful.source, value, useful.first, begin, gain / total[useful.row])
