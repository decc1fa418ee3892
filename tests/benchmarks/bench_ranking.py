"""Does the second stage earn its place? Two-stage lists against the best single source, week after week.

For each data set the real loop runs (`reloop run`, Dags and all) in a state folder of its own under
reports/bench/ranking/, one training a step; then every judged user of every window stands in one paired
comparison: NDCG@10 of the ranker's list less that of the best single source, the source chosen on the very users it
is judged on. A user of several windows counts once, with the mean of the differences.

    online-retail, retailrocket, movielens-100k   RELOOP_REAL_DATA, the last weeks of each
    simulated                                     the default shop; beside it what an oracle of the week reaches
    sequences                                     MovieLens-1M as SASRec cut it (`ranking_sequences`), from counts alone

A data set whose run is there is read, not run again,
unless `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ranking_oracle
import ranking_sequences
from one_run import write_page

from pipelines import config
from pipelines.config import REPOSITORY, Home
from pipelines.datasets import universe
from pipelines.datasets.split import JUDGE
from pipelines.evaluation import metrics, paired
from pipelines.ranking import judging
from pipelines.sources.request import World
from pipelines.window import utc

CONFIDENCE = 0.95
K = 10


@dataclass(frozen=True)
class DataSet:
    """A source and the days of it that are lived; every cycle trains once.

    Attributes:
        file: under the folder of public data sets; "" for the simulated shop.
        warmup_days: before the first training.
        step_days: between two trainings.
    """

    file: str
    warmup_days: int
    step_days: int = 7


DATA_SETS = {
    "online-retail": DataSet("online-retail/online-retail-dataset.csv.gz", 374 - 77),  # eleven or twelve weeks, to the last day
    "retailrocket": DataSet("retailrocket-sample/events.csv.gz", 139 - 42),
    "movielens-100k": DataSet("movielens-100k", 215 - 56, 14),
    "simulated": DataSet("", 56),
}
SOURCE = {"movielens-100k": "movielens"}


def lived(name: str, folder: Path, real: Path, *, again: bool) -> Home:
    """Return the state folder in which the loop has run on a data set."""
    chosen, home = DATA_SETS[name], Home(folder / name)
    if again or not (home.reports / "run.json").is_file():
        command = [str(Path(sys.prefix) / "bin" / "reloop"), "run", "--source", SOURCE.get(name, name)]
        command += ["--warmup-days", str(chosen.warmup_days), "--step-days", str(chosen.step_days)]
        command += ["--path", str(real / chosen.file)] if chosen.file else []
        subprocess.run(command, env={**os.environ, "RELOOP_HOME": str(home.root)}, check=True)
    return home


@dataclass(frozen=True)
class Compared:
    """Per-user NDCG@10 of every order, a row for each user of each window.

    Attributes:
        window: int [n], counted from the oldest.
        user: str [n].
        ndcg: by order, float64 [n].
    """

    window: np.ndarray
    user: np.ndarray
    ndcg: dict[str, np.ndarray]

    def of(self, chosen: np.ndarray) -> Compared:
        return Compared(self.window[chosen], self.user[chosen], {name: values[chosen] for name, values in self.ndcg.items()})

    def difference(self, ours: str, theirs: str) -> paired.Interval:
        """Return the mean paired difference over users, each counting once."""
        _, user = np.unique(self.user, return_inverse=True)
        n = np.bincount(user)
        return paired.interval(np.bincount(user, self.ndcg[ours] - self.ndcg[theirs]) / n, CONFIDENCE, 7)


def compared(home: Home) -> tuple[Compared, tuple[str, ...]]:
    """Return what the evaluations of a run's cycles measured, and the single sources among them."""
    cycles = [entry["as_of"] for entry in json.loads((home.reports / "run.json").read_text(encoding="utf-8"))]
    tables = [pq.read_table(judging.folder(home, utc(as_of)) / "per_user.parquet") for as_of in cycles]
    ranked = [table for table in tables if "ndcg_at_10__ranked" in table.column_names]
    names = set.intersection(*({name for name in table.column_names if name.startswith("ndcg_at_10__")} for table in ranked))
    window = np.repeat(np.arange(len(ranked)), [len(table) for table in ranked])
    user = np.concatenate([table["user_id"].to_numpy(zero_copy_only=False).astype(str) for table in ranked])
    ndcg = {name.removeprefix("ndcg_at_10__"): np.concatenate([table[name].to_numpy() for table in ranked]) for name in sorted(names)}
    sources = config.load(home).retrieval.sources
    return Compared(window, user, ndcg), tuple(name for name in sources if name in ndcg)


def judged(name: str, found: Compared, sources: tuple[str, ...]) -> list[dict[str, Any]]:
    """Print the windows of a data set and all of them together, and return the rows of the page."""
    print(f"\n{name}\n  {'window':>8} {'users':>6}  {'ranked':>7} {'blend':>7}  best single       difference [95%]")
    rows = []
    for number in [*np.unique(found.window), "all"]:
        part = found if number == "all" else found.of(found.window == number)
        mean = {order: float(values.mean()) for order, values in part.ndcg.items()}
        best = max(sources, key=lambda source: mean[source])
        gap = part.difference("ranked", best)
        blend = f"{mean['blend']:.4f}"
        print(
            f"  {number!s:>8} {gap.n:>6}  {mean['ranked']:>7.4f} {blend:>7}  {best:<10} {mean[best]:.4f}  {gap.mean:+.4f} [{gap.lower:+.4f}, {gap.upper:+.4f}]"
        )
        if number == "all":
            rows.append(line(f"{name}: two stages over the best source ({best})", mean["ranked"], mean[best], gap, "lower bound > 0"))
            over_blend = part.difference("ranked", "blend")
            rows.append(line(f"{name}: two stages over the blend", mean["ranked"], mean["blend"], over_blend, ""))
            for baseline in ("logistic", "rrf"):
                if baseline in mean:
                    gap = part.difference("ranked", baseline)
                    rows.append(line(f"{name}: two stages over {baseline}", mean["ranked"], mean[baseline], gap, "lower bound > 0"))
    for row in rows:
        print(f"  {row['case']}: {row['ours']:.4f} over {row['peer']:.4f}, {row['interval']}")
    return rows


def line(case: str, ours: float, peer: float, gap: paired.Interval, target: str) -> dict[str, Any]:
    """Return one line of the page."""
    return {
        "case": case,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "unit": "NDCG@10",
        "ratio": round(ours / peer, 3) if peer else 0.0,
        "target": target,
        "met": gap.lower > 0 if target else True,
        "interval": f"{gap.mean:+.4f} [{gap.lower:+.4f}, {gap.upper:+.4f}], {gap.n} users",
    }


def oracle(home: Home, found: Compared, copies: int) -> list[dict[str, Any]]:
    """Return how much of what can be reached the two stages reach in the shop's last window."""
    settings = config.load(home)
    as_of = utc(json.loads((home.reports / "run.json").read_text(encoding="utf-8"))[-1]["as_of"])
    world = universe.load(home, as_of)
    fold, truth = world.fold(JUDGE), world.labels(JUDGE)
    days, gains = (fold.window.end - fold.window.start).days, dict(settings.training.gains)
    expected = ranking_oracle.expected_gains(
        World(), truth.user_ids, world.item_ids, first=fold.window.start.date(), days=days, gains=gains, copies=copies
    )
    best = metrics.ndcg(metrics.judge(ranking_oracle.ranked(expected, K), truth.indptr, truth.item, truth.gain), K)
    last = found.of(found.window == found.window.max())
    rows = []
    for order in ("ranked", "blend"):
        ours = float(last.ndcg[order].mean())
        gap = paired.interval(last.ndcg[order] - best, CONFIDENCE, 7)
        rows.append({**line(f"simulated: {order} of what an oracle reaches", ours, float(best.mean()), gap, ""), "met": True})
        print(f"  {order}: {ours:.4f} of {best.mean():.4f} ({copies} copies of the week), {ours / best.mean():.1%}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-set", action="append", choices=[*DATA_SETS, "sequences"], help="one of them; all by default")
    parser.add_argument("--again", action="store_true", help="run the loop again where it has run")
    parser.add_argument("--copies", type=int, default=100, help="sessions a user and day that the oracle draws")
    arguments = parser.parse_args()
    here = Home.from_environment()
    real = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name in arguments.data_set or [*DATA_SETS, "sequences"]:
        if name == "sequences":
            rows[name] = ranking_sequences.measured(real)
            continue
        home = lived(name, here.reports / "bench" / "ranking", real, again=arguments.again)
        found, sources = compared(home)
        rows[name] = judged(name, found, sources)
        if name == "simulated":
            rows[name] += oracle(home, found, arguments.copies)
    write_page("ranking", [row for part in rows.values() for row in part], __doc__ or "")


if __name__ == "__main__":
    main()
