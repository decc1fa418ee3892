"""How often the gate is wrong, on retrains of a real shop: noise it promotes, gains it finds, harm it lets in.

The real `gate.judge` with its default settings decides on real lists for real labels (`gate_shop`). A decision draws a champion and a
challenger a week among retrains of equal worth, and each week's users with replacement; a user drawn into several weeks is one person in
all of them. What is truly better or worse is made so in the lists: for a share of users the first item they took moves up
a place, or out of the first ten, until the mean over everyone is exactly as much above the champion's as the case says. The peers are the
rules that are in use: "NDCG went up", "by more than 1%", and a test of two means that forgets who the users are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import gate_shop
import numpy as np
import numpy.typing as npt
from gate_plot import curves
from gate_shop import INCUMBENTS, Judged, K, Week
from one_run import machine, write_page
from scipy import stats

from pipelines.config import Home
from pipelines.decision_policies import GatePolicy
from pipelines.evaluation import psi
from pipelines.registry import evidence_lists, gate
from pipelines.registry.evidence_lists import OfLists
from pipelines.registry.gate import Evidence, Verdict
from pipelines.registry.gate_guardrails import Exact, Rates, Timed
from pipelines.registry.gate_windows import Window

POLICY: Final = GatePolicy()
LOOKS: Final = 30
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
        _window(lab, case, first + number, (champion, challengers[number]), rng, fresh=number == case.windows - 1)
        for number in range(case.windows)
    ]
    found = evidence_of(lab, case, first + case.windows - 1, (champion, challengers[-1]), shown)
    return gate.judge(found, policy), found


def _window(
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
        "score_ties": Exact(week.ties[champion], week.ties[challenger]),
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


NAIVE: Final = ("NDCG went up", "NDCG went up by 1%", "unpaired test")


def naive(found: Evidence) -> tuple[bool, bool, bool]:
    """Return what the rules that are in use say of the fresh window."""
    before, after = np.asarray(found.champion), np.asarray(found.challenger)
    change = after.mean() / before.mean() - 1
    return change > 0, change > 0.01, bool(stats.ttest_ind(after, before, equal_var=False, alternative="greater").pvalue < 0.05)


def share(hits: int, n: int) -> tuple[float, float, float]:
    """Return a share with its exact two-sided 95% interval (Clopper and Pearson, 1934)."""
    low = float(stats.beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return hits / n, low, high


def rate(lab: Lab, case: Case, n: int, seed: int, policy: GatePolicy = POLICY) -> tuple[int, npt.NDArray[np.int64], int]:
    """Return how many of n decisions promote by the gate, and by each naive rule, and how many were stopped by guardrails alone."""
    promoted, theirs, guarded = 0, np.zeros(len(NAIVE), np.int64), 0
    for number in range(n):
        verdict, found = decide(lab, case, np.random.default_rng([seed, number]), policy)
        promoted += verdict.promote
        theirs += naive(found)
        lower = verdict.figures.get("change_lower")
        guarded += not verdict.promote and lower is not None and lower > policy.min_effect
    return promoted, theirs, guarded


def sequences(lab: Lab, n_users: int, n: int, seed: int) -> tuple[int, npt.NDArray[np.int64], int]:
    """Return in how many of n reigns of thirty weekly looks the gate, and each naive rule, ever promotes; and how often the gate without spending."""
    dethroned, theirs, unspent = 0, np.zeros(len(NAIVE), np.int64), 0
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        champion, *others = lab.equals(rng)
        case, shown, looks, ever, free = Case(as_they_are, n_users), [], 0, False, False
        rules = np.zeros(len(NAIVE), bool)
        for look in range(LOOKS):
            week, challenger = look % len(lab.judged.weeks), others[look % len(others)]
            shown = [*shown, _window(lab, case, week, (champion, challenger), rng)][-POLICY.windows :]
            found = evidence_of(lab, case, week, (champion, challenger), shown, earlier=looks)
            verdict = gate.judge(found, POLICY)
            looks += verdict.figures["alpha_spent"] > 0
            ever |= verdict.promote
            free = free or gate.judge(replace(found, earlier_decisions=0), POLICY).promote
            rules |= np.array(naive(found))
        dethroned, theirs, unspent = dethroned + ever, theirs + rules, unspent + free
    return dethroned, theirs, unspent


class Page:
    """The table as it grows: every line is printed, and the page written, as soon as it is known."""

    def __init__(self, notes: str) -> None:
        self.notes = notes
        self.rows: list[dict[str, Any]] = []

    def told(
        self,
        case: str,
        hits: int,
        of: int,
        target: str = "",
        *,
        most: float | None = None,
        least: float | None = None,
        peer: float | None = None,
    ) -> None:
        """Add a line: shares in percent. Nothing is divided by the peer, so there is no ratio.

        Args:
            most, least: what the share must not exceed, or must reach.
            peer: the share of "NDCG went up" on the same decisions.
        """
        at, low, high = share(hits, of)
        percent = {"ours": at, "lower": low, "upper": high, "peer": peer}
        met = (most is None or at <= most) and (least is None or at >= least)
        row = {name: None if value is None else round(100 * value, 1) for name, value in percent.items()}
        self.rows.append({"case": case, **row, "unit": f"% of {of} promoted", "ratio": None, "target": target, "met": met})
        print(
            f"  {case:<72} {row['ours']:>5} [{row['lower']}, {row['upper']}] % of {of}, NDCG went up: {row['peer']}  {target}", flush=True
        )
        write_page("gate", self.rows, self.notes)


def noise(lab: Lab, page: Page, n: int, n_users: int, windows: int) -> None:
    """Decide on equal retrains."""
    promoted, theirs, _ = rate(lab, Case(as_they_are, n_users, windows), n, 1)
    page.told(f"equal retrains, {windows} windows of {n_users:,} users", promoted, n, "<= 5%", most=0.05, peer=theirs[0] / n)
    for name, hits in zip(NAIVE, theirs, strict=True):
        page.told(f"the same by the rule: {name}", int(hits), n)
    for least in (0.0, 0.005):
        lax, _, _ = rate(lab, Case(as_they_are, n_users, windows), n, 1, POLICY.model_copy(update={"min_effect": least}))
        page.told(f"the same with a minimum effect of {least:.1%}", lax, n)


def reigns(lab: Lab, page: Page, n: int, n_users: int) -> None:
    """Decide on thirty equal retrains in turn."""
    dethroned, theirs, unspent = sequences(lab, n_users, n, 2)
    page.told(f"reigns of {LOOKS} equal retrains, {n_users:,} users a week", dethroned, n, "<= 5%", most=0.05, peer=theirs[0] / n)
    page.told("the same, every look at the full error", unspent, n)
    for name, hits in zip(NAIVE, theirs, strict=True):
        page.told(f"the same by the rule: {name}", int(hits), n)


def power(lab: Lab, page: Page, n: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Decide on challengers that are truly better; return how often they are found, by users."""
    curve: dict[str, Any] = {}
    for windows in (2, 4):
        for gain in (0.02, 0.03):
            points = []
            for size in sizes:
                promoted, theirs, _ = rate(lab, Case(Truly(lab, gain, throughout=True), size, windows), n, 3)
                points.append({"users": size, "share": promoted / n, "interval": share(promoted, n)[1:]})
                stated = {"target": ">= 80%", "least": 0.8} if size == 20_000 else {}
                page.told(f"truly +{gain:.0%} throughout, {windows} windows of {size:,} users", promoted, n, peer=theirs[0] / n, **stated)
            curve[f"+{gain:.0%}, {windows} windows"] = points
    for gain in (0.02, 0.03):
        promoted, theirs, guarded = rate(lab, Case(Truly(lab, gain), sizes[-1]), n, 3)
        page.told(
            f"truly +{gain:.0%} on average, {guarded / n:.0%} held by a guardrail, 2 windows of {sizes[-1]:,} users",
            promoted,
            n,
            peer=theirs[0] / n,
        )
    return curve


def harm(lab: Lab, page: Page, n: int, n_users: int) -> None:
    """Decide on challengers that are worse, for all or for some, or that cost too much."""
    many = 4 * n_users
    cases: dict[str, tuple[Case, float]] = {
        "truly -3%": (Case(Truly(lab, -0.03), n_users), 0.05),
        "truly -10%": (Case(Truly(lab, -0.10), n_users), 0.0),
        "truly -10% now, +3% the week before": (Case(Lately(Truly(lab, 0.03), Truly(lab, -0.10)), n_users), 0.0),
        "+2%, -10% for light users": (Case(Truly(lab, 0.02, "light_users", -0.10), many), 0.0),
        f"+2%, -10% in {largest(lab)}": (Case(Truly(lab, 0.02, largest(lab), -0.10), many), 0.0),
        "+3%, a fifth of the coverage lost": (Case(Truly(lab, 0.03, throughout=True), many, narrower=True), 0.05),
        "+3%, half as slow again": (Case(Truly(lab, 0.03, throughout=True), many, slower=1.5), 0.05),
    }
    for name, (case, most) in cases.items():
        promoted, theirs, _ = rate(lab, case, n, 4)
        page.told(
            f"{name}, {case.windows} windows of {case.n:,} users",
            promoted,
            n,
            "never" if not most else "<= 5%",
            most=most,
            peer=theirs[0] / n,
        )


def largest(lab: Lab) -> str:
    """Return the largest country but one: what happens there does not show in the mean."""
    found = {name: int(part.sum()) for name, part in lab.judged.weeks[-1].segments.items() if name.startswith("country:")}
    return sorted(found, key=lambda name: -found[name])[1 if len(found) > 1 else 0]


def main() -> None:
    """Train, train again, decide, and publish the page and the plot."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--decisions", type=int, default=400)
    asked.add_argument("--cases", type=int, default=100, help="decisions of every other kind, and reigns")
    asked.add_argument("--retrains", type=int, default=48)
    asked.add_argument("--users", type=int, default=5000, help="drawn a window")
    asked.add_argument("--shop", type=Path, default=None, help="where the trained shop is kept")
    asked.add_argument(
        "--size", type=int, nargs=3, default=(6000, 500, 9000), metavar=("USERS", "ITEMS", "EVENTS"), help="of the shop; events a day"
    )
    asked.add_argument("--plot", type=Path, default=None, help="folder of the plots")
    options = asked.parse_args()
    begun = time.process_time()
    folder = options.shop or Home.from_environment().root / "tmp" / "bench-gate"
    home = gate_shop.trained(folder, *options.size)
    judged = gate_shop.judged(home, options.retrains)
    means = np.stack([week.ndcg.mean(axis=1) for week in judged.weeks])
    apart = means.std(axis=1, ddof=1) / means.mean(axis=1)
    people = [len(week.user) for week in judged.weeks]
    notes = (
        f"{len(judged.kinds)} real retrains ({', '.join(f'{judged.kinds.count(kind)} by {kind}' for kind in dict.fromkeys(judged.kinds))}), "
        f"{len(people)} weeks of {min(people)} to {max(people)} users, NDCG@10 {means.mean():.4f}; retrains differ by {100 * apart.mean():.2f}% (one standard deviation). "
        f"Default gate settings. Peer: promote if NDCG went up. Intervals: Clopper and Pearson, 95%."
    )
    print(f"gate, on {machine()}\n{notes}", flush=True)
    lab, page = Lab(judged), Page(notes)
    noise(lab, page, options.decisions, options.users, 2)
    harm(lab, page, options.cases, options.users)
    curve = power(lab, page, options.cases, (2500, 5000, 10_000, 20_000))
    reigns(lab, page, options.cases, options.users)
    noise(lab, page, options.decisions, options.users, 4)
    page.notes += f" Processor seconds: {time.process_time() - begun:.0f}."
    write_page("gate", page.rows, page.notes)
    if options.plot:
        curves(page.rows, curve, options.plot)


if __name__ == "__main__":
    main()
