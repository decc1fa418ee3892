"""The loop, closed: simulated people call the service, answer by their true taste, and the pipeline learns from its own log.

    make demo-loop                     60 days, every policy; goes on where it was stopped
    make demo-loop ARGS='--days 14 --policies reloop popular oracle random'
    make demo-loop ARGS='--turn 28'    everybody's taste turns on the 28th day

Policies begin with the same shop on the same day: `reloop` (weekly through the Dags, with exploration and calibration), `greedy` (the same
without either), `static` (the first model for good, features kept fresh), `popular` (what was taken most in seven days), `random`,
and `oracle`, who knows every taste. Each lives in a world of its own: what people do depends on what they were shown.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import closed_loop
import loop_truth
import matplotlib as mpl
from closed_loop import (
    ASKING,
    WORLD,
    Clock,
    begun,
    by_lot,
    by_truth,
    cycle,
    day_of,
    kept,
    lived,
    popular,
    served,
    written,
)
from one_run import machine, write_page

from pipelines import config, lake
from pipelines.config import Home
from pipelines.cycle import every
from pipelines.features import build, store
from pipelines.monitoring import drift
from pipelines.registry import ledger, releases
from pipelines.sources import reading
from pipelines.sources.request import Request, World
from pipelines.sources.simulator import Shift, Shop
from pipelines.sources.simulator.shoppers import Shoppers
from pipelines.streaming import collecting
from pipelines.validation import checkpoint
from pipelines.window import Window

mpl.use("Agg")
import matplotlib.pyplot as plt

WARM: Final = 28  # days before the first list
WEEK: Final = 7
GREEDY: Final = ()
CAREFUL: Final = ("[exploration]", 'method = "thompson"', "[rerank.calibration]", "trade_off = 0.3")
SETTINGS: Final = {"reloop": CAREFUL, "greedy": GREEDY, "static": GREEDY}
POLICIES: Final = ("oracle", "random", "popular", "static", "greedy", "reloop")
STYLE: Final = {
    "oracle": ("black", ":"),
    "reloop": ("black", "-"),
    "greedy": ("0.35", "--"),
    "static": ("0.5", "-."),
    "popular": ("0.65", (0, (5, 1))),
    "random": ("0.8", "-"),
}


def refreshed(home: Home, request: Request, first: int, end: int) -> None:
    """Take in some days and bring the features up to date, without a training."""
    window = Window(day_of(first), day_of(end))
    collecting.collect(home)
    batch = reading.stage_batch(home, request, window)
    checkpoint.validate_batch(home, window.end, batch)
    lake.land(home, window.end, batch)
    build.build(home, window.end)
    checkpoint.validate_features(home, window.end)
    store.apply(home)
    store.materialize(home, window.end)


def copied(source: Path, target: Path) -> None:
    """Copy a state folder from another process: one that opens and closes the file of a database gives up its own locks on it (POSIX)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def through_the_service(root: Path, name: str, shop: Shop, days: int, request: Request) -> list[dict[str, Any]]:
    """Live with the real service in front, a week at a time; a week that was lived is not lived again."""
    home, found = begun(root / name, request, WARM, SETTINGS[name]), []
    for first in range(WARM, WARM + days, WEEK):
        end = min(first + WEEK, WARM + days)

        def week(first: int = first, end: int = end) -> list[dict[str, Any]]:
            before = root / "weeks" / name / str(first)  # the state at the week's beginning: a week that was killed begins again
            if not before.is_dir():
                shutil.rmtree(root / "weeks" / name, ignore_errors=True)
                copied(home.root, partial := before.with_name("partial"))
                partial.rename(before)
            else:
                shutil.rmtree(home.root)
                copied(before, home.root)
            with served(home, clock := Clock()) as shows:
                lists = [asdict(lived(Shoppers(shop, number, share=ASKING), shows, shows.heard)) for number in range(first, end)]  # type: ignore[attr-defined]
            if name == "static":
                refreshed(home, request, first, end)
            else:
                cycle(home, request, first, end)
                judged(root, name, shop, day_of(end))
            print(
                f"  {name} days {first} to {end - 1}: worth {sum(one['worth'] for one in lists) / len(lists):.4f} {lists[-1]['rungs']} {clock.now:%Y-%m-%d}",
                flush=True,
            )
            return lists

        found += kept(root / "results" / name / f"{first}.json", week)
    return found


def by_itself(name: str, shop: Shop, days: int) -> list[dict[str, Any]]:
    """Live with somebody who needs no pipeline."""
    shows, heard = popular(shop, WARM) if name == "popular" else ({"oracle": by_truth, "random": by_lot}[name], lambda _: None)
    return [asdict(lived(Shoppers(shop, number, share=ASKING), shows, heard)) for number in range(WARM, WARM + days)]


def decisions(root: Path, name: str) -> dict[str, Any]:
    """Return what an arm trained, released and was alarmed by."""
    home = Home(root / name)
    history = ledger.history(home)
    drift = [(str(moment)[:10], record.get("verdict")) for moment, record in every(home, "drift")]
    return {
        "trained": [str(moment)[:10] for moment, record in every(home, "bundle") if record["state"] == "done"],
        "released": [str(entry["as_of"])[:10] for entry in history if entry["kind"] in ledger.REIGNS],
        "drift": drift,
    }


def drifts(root: Path, name: str, days: int) -> list[tuple[float, float]]:
    """Return, for each week's end, how far the feature, score or list that moved most is from its champion's reference: PSI by threshold.

    The Dags leave it in the record of their cycle. Where no Dag looked (`static`), the day is compared with the first model here.
    """
    home = Home(root / name)
    ends = [day_of(min(first + WEEK, WARM + days)) for first in range(WARM, WARM + days, WEEK)]
    told = {moment: record["features"] for moment, record in every(home, "drift")}
    policy = config.load(home).drift
    found = []
    for day in ends:
        if day not in told and (champion := releases.champion_of(home, day)) is not None:
            told[day] = drift.measure(home, champion.digest, day, policy).to_json()["features"]
        moved = [one["psi"] / one["threshold"] for one in told.get(day, {}).values()]
        if moved:
            found.append(((day - day_of(WARM)).days, max(moved)))
    return found


def plotted(found: dict[str, list[dict[str, Any]]], moved: dict[str, list[tuple[float, float]]], file: Path) -> None:
    """Draw what every policy was worth, in weekly means, how widely it showed the shop, and what drifted."""
    figure, axes = plt.subplots(3, 2, figsize=(10, 10), sharex=True)
    for (what, title), axis in zip(
        {
            "worth": "taste met (0 random, 1 best)",
            "ctr": "taken, per place shown",
            "coverage": "share of the shop shown a day",
            "gini": "Gini of exposure",
            "categories": "categories in a list",
        }.items(),
        axes.flat[:5],
        strict=True,
    ):
        for name, days in found.items():
            values = [one["clicks"] / (10 * one["calls"]) if what == "ctr" else one[what] for one in days]
            weeks = [sum(values[at : at + WEEK]) / len(values[at : at + WEEK]) for at in range(0, len(values), WEEK)]
            colour, line = STYLE[name]
            axis.plot([at + WEEK / 2 for at in range(0, len(values), WEEK)], weeks, color=colour, linestyle=line, label=name, marker=".")
        axis.set_title(title, fontsize=10)
        axis.grid(color="0.9")
    for name, weeks in moved.items():
        colour, line = STYLE[name]
        axes[2][1].plot(*zip(*weeks, strict=True), color=colour, linestyle=line, marker=".")
    axes[2][1].axhline(1, color="0.8")
    axes[2][1].set_title("drift: largest PSI by its threshold", fontsize=10)
    axes[2][1].grid(color="0.9")
    for axis in axes[2]:
        axis.set_xlabel("days since the first list")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("var/bench/loop-closed"), help="where the shops live, a folder a world")
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--turn", type=int, help="day from the first list on which everybody's taste turns; default: it never does")
    parser.add_argument("--plot", type=Path, help="file of the plot; default: closed-loop.svg in --home")
    arguments = parser.parse_args()
    root = arguments.home.resolve()
    turned = () if arguments.turn is None else (f"{Shift.TASTE_SHIFT}@{day_of(WARM + arguments.turn):%Y-%m-%d}",)
    shop = Shop(WORLD.model_copy(update={"shifts": turned}))
    request = written(root / "source", shop, WARM, arguments.days)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.policies:
        print(name, flush=True)
        if name in SETTINGS:
            found[name] = through_the_service(root, name, shop, arguments.days, request)
        else:
            found[name] = kept(root / "results" / f"{name}-{arguments.days}.json", lambda name=name: by_itself(name, shop, arguments.days))
        summary(name, found[name])
    moved = {name: weeks for name in found if name in SETTINGS and (weeks := drifts(root, name, arguments.days))}
    plotted(found, moved, arguments.plot or root / "closed-loop.svg")
    publish_page(root, found, shop.world)


def judged(root: Path, name: str, shop: Shop, as_of: datetime) -> None:
    """Print what each kind of label says of a challenger, and what it is truly worth; kept, for bundles are collected."""
    home = Home(root / name)
    file = root / "results" / name / f"judged-{as_of:%Y-%m-%d}.json"
    if not file.is_file() and (both := loop_truth.pair(home, as_of)) is None:
        return
    for kind, one in kept(file, lambda: loop_truth.compared(home, shop, as_of, *both)).items():
        said = f"{one['champion']:.4f} -> {one['challenger']:.4f}, {one['gain %']:+.2f}% +- {one['half interval %']:.2f}"
        print(f"  {name} {as_of:%Y-%m-%d} by {kind:<34} {one['users']:>5} users  {said}", flush=True)


def summary(name: str, days: list[dict[str, Any]]) -> None:
    """Print what an arm's first and last weeks were."""
    for label, part in (("first week", days[:WEEK]), ("last week", days[-WEEK:])):
        shown = sum(one["calls"] for one in part)
        print(
            f"  {name:<8} {label:<10} taste met {sum(one['worth'] for one in part) / len(part):.4f}  taken a place {sum(one['clicks'] for one in part) / shown / 10:.4f}"
            f"  coverage a day {sum(one['coverage'] for one in part) / len(part):.3f}  Gini {sum(one['gini'] for one in part) / len(part):.3f}"
            f"  categories a list {sum(one['categories'] for one in part) / len(part):.2f}  revenue {sum(one['revenue'] for one in part):.0f}",
            flush=True,
        )


def publish_page(root: Path, found: dict[str, list[dict[str, Any]]], world: World) -> None:
    """Write the figures: each policy's last two weeks beside Reloop's, and Reloop's own first week."""
    rows = []

    def mean(days: list[dict[str, Any]], what: str) -> float:
        return sum(one[what] for one in days) / len(days)

    ours = found.get("reloop")
    for name, days in found.items():
        if name in SETTINGS:
            print(f"  {name}: {decisions(root, name)}")
        if ours is None or name == "reloop":
            continue
        last, peer = mean(ours[-2 * WEEK :], "worth"), mean(days[-2 * WEEK :], "worth")
        below = name == "oracle"
        rows.append(
            {
                "case": f"taste met in the last two weeks, beside {name}",
                "ours": round(last, 4),
                "peer": round(peer, 4),
                "unit": "share of what could be met",
                "ratio": round(last / peer, 3) if abs(peer) > 0.02 else None,
                "target": "a bound" if below else "> 1",
                "met": below or last > peer,
            }
        )
    if ours is not None:
        for what, better in (("worth", "more"), ("coverage", "within 10%"), ("gini", "within .05")):
            begin, end = mean(ours[: 2 * WEEK], what), mean(ours[-2 * WEEK :], what)
            met = {"more": end > begin, "within 10%": end >= 0.9 * begin, "within .05": end <= begin + 0.05}[better]
            rows.append(
                {
                    "case": f"reloop: {what}, last two weeks beside the first two",
                    "ours": round(end, 4),
                    "peer": round(begin, 4),
                    "unit": what,
                    "ratio": round(end / begin, 3),
                    "target": better,
                    "met": met,
                }
            )
    for one in rows:
        print(f"  {'ok  ' if one['met'] else 'MISS'} {one['case']}: {one['ours']} / {one['peer']}  target {one['target']}")
    shape = f"{world.users:,} users, {world.items} items, {world.events_per_day:,} events a day, {' '.join(world.shifts) or 'no shift'}; {ASKING:.0%} of the visits see lists of {closed_loop.K}"
    write_page("loop", rows, f"{shape}; first model after {WARM} days; {len(next(iter(found.values())))} days lived; on {machine()}")


if __name__ == "__main__":
    main()
