"""Decisions drawn among retrains of a real shop (`gate_shop`): who champion and challenger are, what is truly different, what the gate is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from gate_shop import INCUMBENTS, Judged, K, Week

from pipelines.decision_policies import GatePolicy
from pipelines.evaluation import psi
from pipelines.registry import evidence_lists, gate
from pipelines.registry.evidence_lists import OfLists
from pipelines.registry.gate import Evidence, Verdict
from pipelines.registry.gate_guardrails import Exact, Rates, Timed
from pipelines.registry.gate_windows import Window

POLICY: Final = GatePolicy()
Doubles = npt.NDArray[np.float64]
Edit = Callable[[Week, int, int, np.random.Generator], tuple[Doubles, Doubles]]


@dataclass(frozen=True)
class Drawing:
    """The users of one week, as rows of the week, and who they are in all weeks."""

    rows: npt.NDArray[np.int64]
    who: npt.NDArray[np.int64]


class Lab:
    """A shop's weeks, and what lists measure in them, measured once a retrain and week."""

    def __init__(self, judged: Judged) -> None:
        self.judged = judged
        self.lists: dict[tuple[int, int, str], OfLists] = {}
        self.up = [_moved(week, up=True) for week in judged.weeks]
        self.down = [_moved(week, up=False) for week in judged.weeks]

    def of(self, week: int, retrain: int, item: npt.NDArray[np.int32] | None = None, name: str = "") -> OfLists:
        """Return what a retrain's lists measure in a week; other lists of the same users under a name of their own."""
        key = (week, retrain, name)
        if key not in self.lists:
            lists = self.judged.weeks[week].item[retrain][:, :K] if item is None else item
            self.lists[key] = evidence_lists.of(lists, self.judged.weeks[week].shop(self.judged.histories[week]))
        return self.lists[key]

    def equals(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return the retrains of one kind in any order: only those are of equal worth, a bootstrap learns from fewer different lists."""
        kind = rng.choice(sorted(set(self.judged.kinds)))
        return rng.permutation(np.flatnonzero(np.array(self.judged.kinds) == kind))

    def draw(self, week: int, n: int, rng: np.random.Generator) -> Drawing:
        """Return n users of a week, drawn with replacement; the k-th draw of somebody is the same person in every week."""
        rows = np.sort(rng.integers(0, len(self.judged.weeks[week].user), n))
        copy = np.arange(n) - np.searchsorted(rows, rows)
        return Drawing(rows, self.judged.weeks[week].user[rows] * 1000 + copy)


def _moved(week: Week, *, up: bool) -> Doubles:
    """Return float64 [R, n], what each user's NDCG would be with the first item taken one place higher, or out of the first ten.

    Upwards the item changes places with the one above it; who took none of the first ten is given the first one taken beyond them
    at the tenth place. Downwards it leaves the list, and what follows moves up.
    """
    gain = week.gain.astype(np.float64)
    discount = np.where(np.arange(gain.shape[2]) < K, 1 / np.log2(np.arange(gain.shape[2]) + 2), 0.0)
    taken = gain > 0
    first = np.where(taken.any(axis=2), taken.argmax(axis=2), -1)
    retrain, user = np.nonzero(first >= 0)
    place = first[retrain, user]
    worth = gain[retrain, user, place]
    change = np.zeros(first.shape)
    if up:
        to = np.where(place >= K, K - 1, np.maximum(place - 1, 0))
        change[retrain, user] = worth * (discount[to] - discount[place]) - gain[retrain, user, to] * (discount[to] - discount[place]) * (
            to != place
        )
    else:
        change[retrain, user] = -worth * discount[place]
    return np.clip(week.ndcg + change / week.ideal, 0, 1)


def as_they_are(week: Week, champion: int, challenger: int, rng: np.random.Generator) -> tuple[Doubles, Doubles]:
    """Return the NDCG of the champion and of the challenger, untouched."""
    return week.ndcg[champion], week.ndcg[challenger]


@dataclass(frozen=True)
class Truly:
    """A challenger that is better than the champion by exactly so much on average over everyone, or over some and the others.

    Attributes:
        gain: relative, over everyone.
        part: a slice that is changed by `within` instead; the others make up for it.
        throughout: better by as much for new, light and all other users, and for tail items; else only on average, and what another training
            does to each of them stays as it is.
    """

    lab: Lab
    gain: float
    part: str | None = None
    within: float = 0.0
    throughout: bool = False

    def __call__(self, week: Week, champion: int, challenger: int, rng: np.random.Generator) -> tuple[Doubles, Doubles]:
        """Return the NDCG of the champion and of the changed challenger."""
        number = next(number for number, one in enumerate(self.lab.judged.weeks) if one is week)
        before, after = week.ndcg[champion], week.ndcg[challenger]
        up, down = self.lab.up[number][challenger], self.lab.down[number][challenger]
        wanted = (1 + self.gain) * before.sum()
        if self.throughout:
            for rows in (week.cold, week.light & ~week.cold, ~week.light & ~week.cold):
                after = _brought(after, up, down, rows, wanted=(1 + self.gain) * before[rows].sum(), rng=rng)
            return before, after
        if self.part is None:
            return before, _brought(after, up, down, np.ones(len(before), bool), wanted=wanted, rng=rng)
        inside = week.light if self.part == "light_users" else week.segments[self.part]
        hurt = (1 + self.within) * before[inside].sum()
        after = _brought(after, up, down, inside, wanted=hurt, rng=rng)
        return before, _brought(after, up, down, ~inside, wanted=wanted - hurt, rng=rng)

    def tail(self, week: Week, champion: int, challenger: int, rng: np.random.Generator) -> tuple[Doubles, Doubles]:
        """Return the same for tail items; NaN for who took none."""
        before, after = week.tail[champion], week.tail[challenger]
        if not self.throughout:
            return before, after
        has = ~np.isnan(before)
        return before, _brought(after, after + 0.3 * (1 - after), 0.5 * after, has, wanted=(1 + self.gain) * before[has].sum(), rng=rng)


def _brought(
    after: Doubles, up: Doubles, down: Doubles, rows: npt.NDArray[np.bool_], *, wanted: float, rng: np.random.Generator
) -> Doubles:
    """Return values with those of a share of some rows replaced, until the rows add up to what is wanted; the last one in part."""
    gap = wanted - after[rows].sum()
    step = (up if gap > 0 else down) - after
    order = rng.permutation(np.flatnonzero(rows & (step * gap > 0)))
    reached = np.cumsum(step[order])
    if not gap:
        return after
    if not len(order) or abs(reached[-1]) < abs(gap):  # all of it, and the rest a little from everyone
        found = after.copy()
        found[order] += step[order]
        rest = wanted - found[rows].sum()
        room = 1 - found[rows] if rest > 0 else found[rows]
        found[rows] += rest * room / room.sum()
        return np.clip(found, 0, 1)
    last = int(np.argmax(np.abs(reached) >= abs(gap)))
    found = after.copy()
    found[order[:last]] += step[order[:last]]
    found[order[last]] += gap - (reached[last - 1] if last else 0.0)
    return np.clip(found, 0, 1)  # sums of doubles may end a hair beyond


@dataclass(frozen=True)
class Lately:
    """What was so in the weeks before, and what is so in the fresh one."""

    before: Truly
    now: Truly


@dataclass(frozen=True)
class Case:
    """What is shown to the gate: how lists were changed, over how many windows and users, and what else is wrong."""

    edit: Edit | Lately
    n: int
    windows: int = 2
    decision: int = 1
    slower: float = 1.0
    narrower: bool = False


def decide(lab: Lab, case: Case, rng: np.random.Generator, policy: GatePolicy = POLICY) -> tuple[Verdict, Evidence]:
    """Draw retrains and users, and ask the gate."""
    weeks = lab.judged.weeks
    champion, *challengers = lab.equals(rng)[: case.windows + 1]
    first = int(rng.integers(0, len(weeks) - case.windows + 1))
    shown = [
        drawn_window(lab, case, first + number, (champion, challengers[number]), rng, fresh=number == case.windows - 1)
        for number in range(case.windows)
    ]
    found = evidence_of(lab, case, first + case.windows - 1, (champion, challengers[-1]), shown)
    return gate.judge(found, policy), found


def drawn_window(
    lab: Lab, case: Case, week: int, pair: tuple[int, int], rng: np.random.Generator, *, fresh: bool = True
) -> tuple[Window, Drawing]:
    edit = case.edit if not isinstance(case.edit, Lately) else case.edit.now if fresh else case.edit.before
    drawn = lab.draw(week, case.n, rng)
    before, after = edit(lab.judged.weeks[week], *pair, rng)
    return Window(f"week {week}", drawn.who, before[drawn.rows], after[drawn.rows]), drawn


def evidence_of(
    lab: Lab, case: Case, number: int, pair: tuple[int, int], shown: list[tuple[Window, Drawing]], *, earlier: int | None = None
) -> Evidence:
    """Return the evidence of a decision: everything that the gate guards, as the stage that measures it would."""
    week, (champion, challenger) = lab.judged.weeks[number], pair
    fresh, drawn = shown[-1]
    rows = drawn.rows
    old, new = lab.of(number, champion), lab.of(number, challenger)
    if case.narrower:
        new = lab.of(number, challenger, narrowed(week, champion, challenger), f"narrow of {champion}")
    measures, silent = evidence_lists.compared(_taken(old, rows), _taken(new, rows), week.shop(lab.judged.histories[number]))
    measures |= {
        "latency": Timed(lab.judged.seconds[champion], lab.judged.seconds[challenger] * case.slower),
        "bundle_size": Exact(lab.judged.bytes_[champion], lab.judged.bytes_[challenger]),
        "null_rates": Rates(lab.judged.features, *week.nulls),
        "score_ties": Exact(0.0, week.ties[challenger]),
        "score_psi": Exact(0.0, psi.psi(week.scores[champion], week.scores[challenger])),
    }
    tails = week.tail[champion], week.tail[challenger]
    if isinstance(case.edit, Truly):
        tails = case.edit.tail(week, champion, challenger, np.random.default_rng(number))
    tail_before, tail_after = tails[0][rows], tails[1][rows]
    has = ~np.isnan(tail_before)
    slices = {
        "light_users": (fresh.champion[week.light[rows]], fresh.challenger[week.light[rows]]),
        "cold_users": (fresh.champion[week.cold[rows]], fresh.challenger[week.cold[rows]]),
        "tail_items": (tail_before[has], tail_after[has]),
    }
    return Evidence(
        challenger=fresh.challenger,
        champion=fresh.champion,
        users=fresh.users,
        as_of=fresh.as_of,
        earlier=tuple(window for window, _ in shown[:-1]),
        incumbents={name: week.incumbents[name][rows] for name in (*INCUMBENTS, "popular")},
        slices=slices,
        segments={name: (fresh.champion[part[rows]], fresh.challenger[part[rows]]) for name, part in week.segments.items()},
        measures=measures,
        inapplicable=silent | {"ece": "lambdarank tells no probabilities"},
        champion_age_days=7.0,
        earlier_decisions=case.decision - 1 if earlier is None else earlier,
    )


def _taken(found: OfLists, rows: npt.NDArray[np.int64]) -> OfLists:
    """Return what lists measure for the users drawn; figures of the whole audience keep the draws of everyone."""
    return replace(found, diversity=found.diversity[rows], miscalibration=found.miscalibration[rows], empty=found.empty[rows])


def narrowed(week: Week, champion: int, challenger: int, share: float = 0.8) -> npt.NDArray[np.int32]:
    """Return the challenger's lists with its rarest items struck out, until they cover so much of what the champion's do."""
    shelf = week.item[challenger]
    goal = int(share * len(np.unique(week.item[champion][:, :K])))
    counts = np.bincount(shelf[:, :K].ravel()[shelf[:, :K].ravel() >= 0], minlength=len(week.head))
    kept = np.zeros(len(counts), bool)
    kept[np.argsort(-counts, kind="stable")[:goal]] = True
    order = np.argsort(~np.where(shelf >= 0, kept[shelf], np.False_), axis=1, kind="stable")
    return np.take_along_axis(np.where((shelf >= 0) & kept[shelf], shelf, -1), order, axis=1)[:, :K]
