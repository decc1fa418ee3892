"""Experiments: how often a daily reading finds what is not there, what it finds of what is, and whether the intervals hold the truth.

Peeking: users who come back for four weeks at rates and with tastes of their own, read every day by the real two-sample code; the peer is
the t-test of the day. ASOS: the published interim statistics of real experiments, read at every look. Off-policy: logs of a known truth, and ZOZO's
Open Bandit logs. Interleaving: users who click by taste and place, beside an A/B test of the same users; the peer is the A/B test.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from one_run import machine, write_page
from scipy import stats

from pipelines.config import REPOSITORY
from pipelines.evaluation import experiments, two_sample
from pipelines.evaluation.interleaving import preference, team_draft
from pipelines.evaluation.off_policy import value
from pipelines.evaluation.two_sample import Moments, compare, cuped, linearised, moments

DAYS = 28
SHOWN = REPOSITORY / "docs" / "serving"
REAL = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data"))


class Page:
    """The table as it grows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def told(self, case: str, ours: float, peer: float | None, unit: str, target: str = "", *, met: bool = True, less: bool = True) -> None:
        """Add a line and write the page; `less`: smaller is better."""
        ratio = None if peer is None or not ours or not peer else round(peer / ours if less else ours / peer, 3)
        shown = None if peer is None else round(float(peer), 5)
        self.rows.append(
            {"case": case, "ours": round(float(ours), 5), "peer": shown, "unit": unit, "ratio": ratio, "target": target, "met": bool(met)}
        )
        print(f"  {case:<78} ours {ours:>9.4g}  peer {'-' if peer is None else f'{peer:.4g}':>9}  {unit}  {target}", flush=True)
        write_page("experiments", self.rows, __doc__ or "")


def shop(seed: int, n: int, lift: float) -> tuple[list[dict[str, np.ndarray]], np.ndarray, np.ndarray]:
    """Return what each user of two arms saw, clicked and paid up to the end of each day; who is treated; what each paid in two weeks before."""
    rng = np.random.default_rng(seed)
    treated = rng.random(n) < 0.5
    visits, taste, purse = rng.gamma(0.5, 0.4, n), rng.beta(1.0, 12.0, n), rng.lognormal(2.5, 1.0, n)
    buys = rng.beta(1.0, 30.0, n)
    sums = {name: np.zeros(n) for name in ("shown", "clicked", "paid")}
    days = []
    past = rng.binomial(rng.poisson(14 * visits), buys) * purse * rng.lognormal(0, 0.5, n)
    for day in range(DAYS):
        came = rng.poisson(visits * (1.3 if day % 7 >= 5 else 0.9))
        sums["shown"] = sums["shown"] + 10.0 * came
        sums["clicked"] = sums["clicked"] + rng.binomial(10 * came, np.minimum(taste * np.where(treated, 1 + lift, 1), 1))
        sums["paid"] = sums["paid"] + rng.binomial(came, np.minimum(buys * np.where(treated, 1 + lift, 1), 1)) * purse * rng.lognormal(
            0, 0.5, n
        )
        days.append(dict(sums))
    return days, treated, past


def readings(seed: int, n: int, lift: float, metric: str) -> tuple[list[bool], list[bool], float]:
    """Return on which days ours and the t-test call an effect, and what the user's past leaves of revenue's variance."""
    days, treated, past = shop(seed, n, lift)
    ours, theirs, left = [], [], 1.0
    for day in days:
        there = day["shown"] > 0
        top, bottom = (day["clicked"], day["shown"]) if metric == "ctr" else (day["paid"], np.ones(n))
        arms = [linearised(top[there & side], bottom[there & side]) for side in (~treated, treated)]
        if metric == "revenue, CUPED":
            adjusted = cuped(arms, [past[there & side] for side in (~treated, treated)])
            arms, left = adjusted.units, adjusted.variance_factor
        effect = compare(*(moments(one) for one in arms), planned=n // 2)
        enough = min(effect.control.n, effect.treatment.n) >= 200
        ours.append(enough and not effect.always_lower <= 0 <= effect.always_upper)
        theirs.append(effect.p < 0.05)
    return ours, theirs, left


def peeking(page: Page, n_sims: int, n: int) -> dict[str, dict[str, list[float]]]:
    """Read worlds without an effect, and with one, every day; return the curves to draw."""
    curves: dict[str, dict[str, list[float]]] = {}
    for metric in ("ctr", "revenue", "revenue, CUPED"):
        found = [readings(seed, n, 0.0, metric) for seed in range(n_sims)]
        ours, theirs = (np.array([one[side] for one in found]) for side in (0, 1))
        curves[metric] = {"ours": _ever(ours), "t-test": _ever(theirs)}
        page.told(f"A/A, {metric}, {n:,} users, {DAYS} daily looks: ever called", 100 * ours.any(axis=1).mean(), 100 * theirs.any(axis=1).mean(),
                  f"% of {n_sims}", "<= 5", met=ours.any(axis=1).mean() <= 0.05)  # fmt: skip
        page.told(f"the same, called on the last day alone (one look: 5 +- {196 * np.sqrt(0.05 * 0.95 / n_sims):.1f})", 100 * ours[:, -1].mean(),
                  100 * theirs[:, -1].mean(), f"% of {n_sims}")  # fmt: skip
    for metric, lift in (("ctr", 0.1), ("ctr", 0.2), ("revenue", 0.3), ("revenue, CUPED", 0.3)):
        found = [readings(1000 + seed, n, lift, metric) for seed in range(n_sims // 3)]
        ours, theirs = (np.array([one[side] for one in found]) for side in (0, 1))
        if metric == "ctr":
            curves[f"ctr {lift:+.0%}"] = {"ours": _ever(ours), "t-test": list(theirs.mean(axis=0))}
        page.told(f"truly {lift:+.0%} {metric}: called by day {DAYS}; peer: the t-test, looked at once", 100 * ours.any(axis=1).mean(),
                  100 * theirs[:, -1].mean(), f"% of {n_sims // 3}", less=False)  # fmt: skip
        if ours.any(axis=1).mean() > 0.5:
            page.told(
                f"the same: median day of the call, of {DAYS}",
                float(np.median([row.argmax() + 1 if row.any() else DAYS + 1 for row in ours])),
                None,
                "day",
            )
        if metric == "revenue, CUPED":
            page.told("what the past leaves of revenue's variance", float(np.mean([one[2] for one in found])), 1.0, "of it", "< 1")
    return curves


def _ever(called: np.ndarray) -> list[float]:
    return list(np.maximum.accumulate(called, axis=1).mean(axis=0))


def ratios(page: Page) -> None:
    """Deal users out evenly, and not."""
    rng = np.random.default_rng(0)
    for n, share, draws in ((100_000, 0.5, 100_000), (100_000, 0.49, 5_000), (50_000, 0.495, 5_000), (200_000, 0.495, 5_000)):
        got = rng.binomial(n, share, draws)
        alarms = 100 * float((stats.chisquare(np.stack([got, n - got]), axis=0).pvalue < 0.001).mean())
        target, met = ("<= 0.1", alarms <= 0.1 + 0.03) if share == 0.5 else (">= 99", alarms >= 99) if share == 0.49 else ("", True)
        page.told(f"sample ratio: {share:.1%} of {n:,} users for 50% meant, alarms", alarms, None, f"% of {draws:,}", target, met=met)


def asos(page: Page) -> None:
    """Read 39 real experiments at each of their published looks."""
    file = REAL / "asos-experiments" / "asos_half.parquet"
    if not file.is_file():
        print(f"  no {file}: left out")
        return
    rows = pd.read_parquet(file)
    rows = rows[(rows.count_c > 200) & (rows.count_t > 200) & (rows.variance_c > 0) & (rows.variance_t > 0)].sort_values("time_since_start")
    end = rows[rows.metric_id == 1].groupby(["experiment_id", "variant_id"]).tail(1)
    split = {
        (r.experiment_id, r.variant_id): experiments.sample_ratio([int(r.count_c), int(r.count_t)], [1, 1]).p for r in end.itertuples()
    }
    calls = []
    for (experiment, variant, _), looks in rows.groupby(["experiment_id", "variant_id", "metric_id"]):
        if not split[experiment, variant] >= 0.001:  # its counts do not fit an even split: nobody should read it
            continue
        found = [
            compare(
                Moments(int(r.count_c), r.mean_c, r.variance_c),
                Moments(int(r.count_t), r.mean_t, r.variance_t),
                planned=int(looks.count_c.iloc[-1]),
            )
            for r in looks.itertuples()
        ]
        calls.append((any(one.always_p < 0.05 for one in found), any(one.p < 0.05 for one in found), found[-1].p < 0.05))
    ever, peeked, last = np.array(calls).T
    n, quiet = len(ever), int((~last).sum())
    page.told(f"ASOS, {n} comparisons with sound counts: ever called at a look", 100 * ever.mean(), 100 * peeked.mean(), f"% of {n}")
    page.told("ASOS: called on the way, not by the t-test of the last look", 100 * ever[~last].mean(), 100 * peeked[~last].mean(), f"% of {quiet}", "<= 5",
              met=ever[~last].mean() <= 0.05)  # fmt: skip
    page.told(
        "ASOS: called by the last look's t-test, and by ours at any look",
        100 * ever[last].mean(),
        100.0,
        f"% of {int(last.sum())}",
        less=False,
    )
    broken = [p < 0.001 for p in split.values()]
    page.told(
        "ASOS: comparisons whose counts differ by more than an even split explains",
        100 * float(np.mean(broken)),
        None,
        f"% of {len(broken)}",
    )


def off_policy(page: Page, n_logs: int) -> None:
    """Value a policy from logs of another."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))
    from test_off_policy import bandit, coverage, shares

    for n in (5_000, 20_000):
        for name, held in coverage(n_logs, n).items():
            page.told(
                f"off-policy, logs of {n:,} rows: 95% interval of {name} holds the truth",
                100 * held,
                None,
                f"% of {n_logs}",
                ">= 92",
                met=held >= 0.92,
            )
    if not (REAL / "open-bandit-men").is_dir():
        return
    random, bts = bandit(REAL, "random"), bandit(REAL, "bts")
    for case, rows, wanted, target, clip in (
        ("Thompson from random's log", random, shares(random, bts), bts, None),
        ("random from Thompson's log, weights cut at 20", bts, np.full(len(bts), 1 / 34), random, 20.0),
        ("random from Thompson's log", bts, np.full(len(bts), 1 / 34), random, None),
    ):
        found = value(rows.click, wanted, rows.propensity_score, clip=clip)
        if found.refused:
            page.told(
                f"Open Bandit, {case}: refused, effective sample size", found.effective, None, f"of {found.n:,} rows", ">= 1,000 or refused"
            )
            continue
        earned, one = 1000 * float(target.click.mean()), found.snips
        span = f"SNIPS [{1000 * one.lower:.2f}, {1000 * one.upper:.2f}], effective {found.effective:,.0f}, cut {found.clipped:.2%}"
        page.told(f"Open Bandit, {case}: {span}; peer: what it did earn", 1000 * one.value, earned, "clicks a thousand", "interval holds it",
                  met=1000 * one.lower <= earned <= 1000 * one.upper)  # fmt: skip


def interleaved(page: Page, n_sims: int) -> dict[str, list[float]]:
    """Compare two orders by team draft and by an A/B test of the same users."""
    taste = np.r_[np.linspace(0.4, 0.02, 30), np.zeros(20)]
    rng = np.random.default_rng(3)
    best = list(range(50))
    worse = np.argsort(-(taste + rng.normal(0, 0.045, 50))).tolist()
    looked = 1 / np.arange(1, 11)

    def chances(a: list[int], b: list[int], liked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Five tosses decide a draft of ten: every outcome once, so that what is left of a bias is the method's.
        drafts = [team_draft(a, b, 10, seed) for seed in _fair()]
        return np.array([liked[list(one.items)] for one in drafts]) * looked, np.array([one.sides for one in drafts])

    def played(rates: np.ndarray, sides: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        pick = rng.integers(0, len(rates), (n, 3))
        eager = rng.gamma(1.0, 1.0, (n, 1, 1))  # some users click all, some hardly anything
        hit = rng.random((n, 3, 10)) < np.minimum(rates[pick] * eager, 1)
        return (hit & (sides[pick] == 0)).sum(axis=(1, 2)), (hit & (sides[pick] == 1)).sum(axis=(1, 2))

    for case, drafted in (
        ("one order twice", chances(best, best, taste)),
        ("two orders, clicks by place alone", chances(best, worse, np.full(50, 0.2))),
    ):
        clicks = played(*drafted, 200_000, rng)
        found = preference(*clicks)
        page.told(
            f"interleaving, {case}: share of wins, 200,000 users",
            100 * found.share,
            None,
            "% for b",
            "50 +- 1",
            met=abs(found.share - 0.5) <= 0.01,
        )
        crowned = sum(preference(*played(*drafted, 1000, rng)).winner is not None for _ in range(n_sims))
        page.told(
            f"interleaving, {case}: a winner among 1,000 users",
            100 * crowned / n_sims,
            None,
            f"% of {n_sims}",
            "<= 5",
            met=crowned / n_sims <= 0.05,
        )
    drafted = chances(worse, best, taste)
    true = float((taste[best[:10]] * looked).sum() / (taste[worse[:10]] * looked).sum() - 1)
    curve: dict[str, list[float]] = {"users": [], "interleaving": [], "A/B": []}
    for n in (250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000):
        ours = theirs = 0
        for _ in range(n_sims):
            score = preference(*played(*drafted, n, rng), seed=1).score if n >= 2000 else _by_t(*played(*drafted, n, rng))
            ours += (score.lower if hasattr(score, "lower") else score[0]) > 0
            eager = rng.gamma(1.0, 1.0, (n, 1, 1))
            arm = np.arange(n) % 2 == 0
            rates = np.where(arm[:, None, None], (taste[best[:10]] * looked)[None, None], (taste[worse[:10]] * looked)[None, None])
            clicks = (rng.random((n, 3, 10)) < np.minimum(rates * eager, 1)).sum(axis=(1, 2)).astype(float)
            theirs += two_sample.compare(moments(clicks[~arm]), moments(clicks[arm])).lower > 0
        curve["users"].append(n)
        curve["interleaving"].append(ours / n_sims)
        curve["A/B"].append(theirs / n_sims)
        page.told(
            f"a list with {true:+.1%} clicks is found with {n:,} users, one look; peer: A/B test",
            100 * ours / n_sims,
            100 * theirs / n_sims,
            f"% of {n_sims}",
            less=False,
        )
    need = {name: np.interp(0.8, np.maximum.accumulate(curve[name]), np.log(curve["users"])) for name in ("interleaving", "A/B")}
    page.told("users for 80% power (interpolated)", float(np.exp(need["interleaving"])), float(np.exp(need["A/B"])), "users")
    return curve


def _fair() -> list[int]:
    """Return a seed for each outcome of five tosses."""
    found: dict[tuple[int, ...], int] = {}
    seed = 0
    while len(found) < 32:
        coin = np.random.default_rng(seed)
        found.setdefault(tuple(int(coin.integers(2)) for _ in range(5)), seed)
        seed += 1
    return list(found.values())


def _by_t(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the interval by t: quicker than resampling, and the same test as the A/B side's."""
    there = a + b > 0
    score = ((b - a) / np.maximum(a + b, 1))[there]
    reach = stats.t.ppf(0.975, len(score) - 1) * score.std(ddof=1) / np.sqrt(len(score))
    return score.mean() - reach, score.mean() + reach


def plot(curves: dict[str, dict[str, list[float]]], inter: dict[str, list[float]]) -> None:
    """Draw errors and power day by day, and power against users; readable without colour."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    styles = {"ours": ("D", "-"), "t-test": ("o", ":")}
    for axis, metric, title in (
        (axes[0], "ctr", "no effect: ever called by that day"),
        (axes[1], "ctr +10%", "truly +10%: called by that day"),
    ):
        for who, (marker, line) in styles.items():
            label = who if axis is axes[0] else {"ours": "ours, any look", "t-test": "t-test, that day alone"}[who]
            axis.plot(
                range(1, DAYS + 1),
                [100 * one for one in curves[metric][who]],
                color="black",
                marker=marker,
                linestyle=line,
                markersize=3,
                label=label,
            )
        axis.set(title=title, xlabel="day", ylabel="% of experiments")
        axis.legend(frameon=False, fontsize=8)
    axes[0].axhline(5, color="grey", linewidth=0.8)
    for who, (marker, line) in {"interleaving": ("D", "-"), "A/B": ("o", ":")}.items():
        axes[2].plot(
            inter["users"], [100 * one for one in inter[who]], color="black", marker=marker, linestyle=line, markersize=4, label=who
        )
    axes[2].set(title="a better list is found", xlabel="users", ylabel="% of experiments", xscale="log")
    axes[2].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    SHOWN.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "reloop"
    figure.savefig(SHOWN / "experiments.svg", metadata={"Date": None})


def main() -> None:
    """Run everything, or a part of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sims", type=int, default=400)
    parser.add_argument("--users", type=int, default=10_000)
    options = parser.parse_args()
    print(f"experiments, on {machine()}")
    page = Page()
    asos(page)
    ratios(page)
    off_policy(page, max(200, options.sims // 2))
    inter = interleaved(page, options.sims // 2)
    plot(peeking(page, options.sims, options.users), inter)


if __name__ == "__main__":
    main()
