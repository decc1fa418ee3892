"""Two orders in one list: what a user clicks says which order was better, without splitting users.

Team draft (Radlinski, Kurup, Joachims, "How does clickthrough data reflect retrieval quality?", CIKM 2008, section 3.2): the two sides
pick in turns, each its best item that is not in the list yet; who picks first is drawn by lot in every round. Clicks count for the side
that picked the item. Were both orders equal in worth, either side would get half of the clicks, whatever place they stand at.

A user's score is (clicks for b - clicks for a) / clicks, so that one who clicks much counts once; users without clicks say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.errors import ReloopError
from pipelines.evaluation import paired, sequential
from pipelines.evaluation.paired import Interval

Doubles: TypeAlias = npt.NDArray[np.float64]
SIDES: Final = ("a", "b")
TEAM: Final = "team:"  # before the side's name, among an impression's sources


@dataclass(frozen=True)
class Drafted:
    """A list made of two.

    Attributes:
        items: as shown, none twice.
        sides: 0 where side a picked the item, 1 where side b did.
    """

    items: tuple[Any, ...]
    sides: tuple[int, ...]


def team_draft(a: Sequence[Any], b: Sequence[Any], k: int, seed: int) -> Drafted:
    """Return a list of at most k items drafted from two orders; the same seed gives the same list.

    Both sides must have been asked for k items at least, under the same filters, or the shorter one is at a loss.

    Raises:
        ReloopError: k is below 1.

    >>> team_draft("abc", "abc", 3, seed=1).items
    ('a', 'b', 'c')
    """
    if k < 1:
        raise ReloopError("interleaving", found=f"k {k}", allowed="1 or more")
    coin = np.random.default_rng(seed)
    items: dict[Any, int] = {}
    places, orders = [0, 0], (a, b)
    while len(items) < k:
        first = int(coin.integers(2))
        before = len(items)
        for side in (first, 1 - first):
            order = orders[side]
            while places[side] < len(order) and order[places[side]] in items:
                places[side] += 1
            if places[side] < len(order) and len(items) < k:
                items[order[places[side]]] = side
        if len(items) == before:
            break
    return Drafted(tuple(items), tuple(items.values()))


@dataclass(frozen=True)
class Preference:
    """Which side users prefer.

    Attributes:
        score: mean over users of (b - a) / (a + b), in [-1, 1], with the interval of a single look.
        wins: (for a, for b, ties), users.
        share: of the users with a preference, those who prefer b; NaN without any.
        always_lower, always_upper, always_p: hold however often one looks.
        winner: "b" or "a" where the always-valid interval leaves 0 out, else None; never on few users.
        reasons: why.
    """

    score: Interval
    wins: tuple[int, int, int]
    share: float
    always_lower: float
    always_upper: float
    always_p: float
    winner: Literal["a", "b"] | None
    reasons: tuple[str, ...]


def preference(
    clicks_a: npt.ArrayLike,
    clicks_b: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    planned: int = 5_000,
    min_users: int = 200,
    seed: int = 0,
) -> Preference:
    """Return which side users prefer.

    Args:
        clicks_a, clicks_b: [n_users], clicks on items that the side picked.
        planned: users with clicks for whom the always-valid interval is tightest; said before.
        min_users: with clicks, before anyone wins.

    Raises:
        ReloopError: lengths differ, or a count is negative or not finite.
    """
    a, b = np.asarray(clicks_a, dtype=np.float64), np.asarray(clicks_b, dtype=np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all() and (a >= 0).all() and (b >= 0).all()):
        raise ReloopError(
            "interleaving", found="clicks that are no counts, or of other users", allowed="counts of both sides for every user"
        )
    clicked = a + b > 0
    scores: Doubles = (b - a)[clicked] / (a + b)[clicked]
    score = paired.interval(scores, confidence, seed)
    squared = score.standard_error**2
    tau = sequential.reach_at(squared * score.n, planned, 1 - confidence)
    width = sequential.half_width(squared, tau, 1 - confidence)
    lower, upper = score.mean - width, score.mean + width
    wins = (int((scores < 0).sum()), int((scores > 0).sum()), int((scores == 0).sum()))
    share = wins[1] / (wins[0] + wins[1]) if wins[0] + wins[1] else float("nan")
    winner, reason = _winner(score.n, lower, upper, min_users)
    return Preference(score, wins, share, lower, upper, sequential.p_value(score.mean, squared, tau), winner, (reason,))


def _winner(n: int, lower: float, upper: float, min_users: int) -> tuple[Literal["a", "b"] | None, str]:
    if not n >= min_users:
        return None, f"{n:,} users clicked, below {min_users:,}"
    span = f"score [{lower:+.4f}, {upper:+.4f}] at any look, {n:,} users"
    if lower > 0:
        return "b", f"b is preferred: {span}"
    if upper < 0:
        return "a", f"a is preferred: {span}"
    return None, f"no preference shown: {span}"
