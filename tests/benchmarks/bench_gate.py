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
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gate_shop
import numpy as np
import numpy.typing as npt
from gate_lab import POLICY, Case, Lab, Lately, Truly, as_they_are, decide, drawn_window, evidence_of
from gate_plot import curves
from one_run import machine, write_page
from scipy import stats

from pipelines.config import Home
from pipelines.decision_policies import GatePolicy
from pipelines.registry import gate
from pipelines.registry.gate import Evidence

LOOKS: Final = 30


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
            shown = [*shown, drawn_window(lab, case, week, (champion, challenger), rng)][-POLICY.windows :]
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
