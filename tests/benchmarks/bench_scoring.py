"""Scoring candidates: our forest against LightGBM's predict and other libraries, one thread, CPU milliseconds a call.

    300 x 63    300 trees of 63 leaves over 40 features of which a tenth is missing; 1 to 5,000 rows at once. Target: 500 in 3.5 ms
    150 x 15    as the default knobs make it
Calls of ours and of LightGBM alternate, since machines are shared and their speed moves; medians. Every score is compared with
LightGBM's own, and a difference ends the benchmark. Other libraries run in .venv-peers (ONNX Runtime, treelite, and tl2cgen with
--compiled), if that is there (`make bench-scoring` makes it).

`--curve HOME --as-of T` also trains models of 7 to 63 leaves on the older windows of a training run, scores its newest, and plots
NDCG@10 against microseconds for 500 rows, for the first m trees of each, to docs/ranking/scoring-curve.svg. NDCG is over the
training rows' lists, whose ignored candidates are a sample: for comparing models, not a figure of the ranker.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from pipelines.config import REPOSITORY, Home
from pipelines.ranking import row_quality, training_set
from pipelines.ranking.forest import Forest
from pipelines.ranking.lambdarank import LambdaRank
from pipelines.ranking.trees import Boosted
from pipelines.window import utc

sys.path.insert(0, str(Path(__file__).parent))
import one_run

SIZES = (1, 10, 100, 500, 5000)
TARGET_MS = 3.5
PEERS = REPOSITORY / ".venv-peers" / "bin" / "python"
LEAVES = (7, 15, 31, 63)
TREES = (5, 10, 20, 40, 75, 150, 300)
MOST_LISTS = 1500  # of the older windows: the curve compares sizes, and 63 leaves of 300 trees take minutes


def alternating_ms(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median CPU milliseconds of each call, asked in turn."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.process_time()
            call()
            taken[name].append(time.process_time() - began)
    return {name: 1000 * float(np.median(values)) for name, values in taken.items()}


def invented(trees: int, leaves: int, n: int = 20_000) -> tuple[lightgbm.Booster, np.ndarray]:
    """Return a model of a given size, and rows for it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 40)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    y = (np.nan_to_num(x[:, :8]).sum(1) + rng.standard_normal(n)).round().clip(0, 4)
    told = {"objective": "lambdarank", "num_leaves": leaves, "num_threads": 1, "verbosity": -1, "label_gain": [0, 1, 3, 7, 15], "seed": 7}
    return lightgbm.train(told, lightgbm.Dataset(x, y, group=[100] * (n // 100)), trees), x


def speed(trees: int, leaves: int, sizes: tuple[int, ...], *, peers: bool, compiled: bool = False) -> list[dict[str, Any]]:
    """Return the lines of one model."""
    booster, x = invented(trees, leaves)
    began = time.process_time()
    forest = Forest.of(booster)
    print(f"{trees} trees of {leaves} leaves; prepared in {1000 * (time.process_time() - began):.0f} ms CPU", flush=True)
    lines = []
    others = asked_peers(booster, x, sizes, compiled=compiled) if peers else {}
    for size in sizes:
        rows = x[:size]
        calls = {"ours": lambda rows=rows: forest.score(rows), "LightGBM": lambda rows=rows: booster.predict(rows, num_threads=1)}
        if not np.array_equal(calls["ours"](), calls["LightGBM"]()):
            sys.exit(f"{size} rows: the scores are not LightGBM's")
        took = alternating_ms(calls, 41 if size <= 500 else 9)
        target = (trees, leaves, size) == (300, 63, 500)
        for name in ("LightGBM", *others):
            theirs = took[name] if name in took else others[name]["ms"][str(size)]
            error = "" if name in took else f", error {others[name]['error']:.0e}"
            goal = f"<= {TARGET_MS} ms" if target else "stated"
            met = bool(took["ours"] <= TARGET_MS) if target else None
            lines.append(line(f"{trees} x {leaves}, {size} rows, {name}{error}", took["ours"], theirs, goal, met=met))
    return lines


def line(case: str, ours: float, peer: float, target: str, *, met: bool | None) -> dict[str, Any]:
    """Return one line of figures, and print it; the ratio is above 1 where ours is faster."""
    ratio = round(peer / ours, 2)
    print(f"  {case:<52} ours {ours:8.3f}  peer {peer:8.3f} ms  ratio {ratio:6.2f}  {target}", flush=True)
    return {"case": case, "ours": round(ours, 4), "peer": round(peer, 4), "unit": "ms", "ratio": ratio, "target": target, "met": met}


def asked_peers(booster: lightgbm.Booster, x: np.ndarray, sizes: tuple[int, ...], *, compiled: bool) -> dict[str, Any]:
    """Return what the other libraries took; nothing where they are not installed."""
    if not PEERS.is_file():
        print(f"  no other libraries: {PEERS} is missing")
        return {}
    with tempfile.TemporaryDirectory() as work:
        booster.save_model(f"{work}/model.txt")
        np.save(f"{work}/x.npy", x[: max(sizes)])
        script = str(Path(__file__).parent / "scoring_peers.py")
        told = [str(PEERS), script, f"{work}/model.txt", f"{work}/x.npy", ",".join(map(str, sizes)), *(["compiled"] if compiled else [])]
        done = subprocess.run(told, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  the other libraries failed: {done.stderr.splitlines()[-1]}")
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def curve(home: Home, as_of: str) -> list[dict[str, Any]]:
    """Return NDCG and milliseconds for 500 rows of models of many sizes, trained on the older windows of a run."""
    rows = training_set.load(home, utc(as_of))
    newest = rows.newest()
    held, older = rows.of_windows(newest), np.flatnonzero(~newest)
    some = np.zeros(len(newest), np.bool_)
    some[np.random.default_rng(7).permutation(older)[:MOST_LISTS]] = True
    learnt_from = rows.of_windows(some)
    sample = held.features[:500]
    points = []
    for leaves in LEAVES:
        ranker: Boosted = LambdaRank(num_leaves=leaves, num_threads=1)
        aim = ranker.aim(learnt_from)
        told = ranker.parameters(aim, rows.names)
        grown = lightgbm.train(told, aim.dataset(learnt_from, slice(None), told), max(TREES))
        for trees in TREES:
            cut = lightgbm.Booster(model_str=grown.model_to_string(num_iteration=trees))
            forest = Forest.of(cut)
            score = forest.score(held.features)
            calls = {"ours": lambda forest=forest: forest.score(sample), "LightGBM": lambda cut=cut: cut.predict(sample, num_threads=1)}
            took = alternating_ms(calls, 21)
            ndcg = float(np.nanmean(row_quality.per_list(score, held)))
            points.append({"leaves": leaves, "trees": trees, "ndcg_at_10": ndcg, **took})
            print(
                f"  {leaves:>3} leaves, {trees:>3} trees: NDCG@10 {ndcg:.4f}, {took['ours']:.2f} ms, LightGBM {took['LightGBM']:.2f} ms",
                flush=True,
            )
    return points


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Draw the curve so that it reads without colour."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "reloop"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    for leaves, marker, dash in zip(LEAVES, "os^D", ("-", "--", "-.", ":"), strict=True):
        some = [point for point in points if point["leaves"] == leaves]
        for who, filled in (("ours", True), ("LightGBM", False)):
            axes.plot(
                [1000 * point[who] for point in some], [point["ndcg_at_10"] for point in some], dash, color="black" if filled else "0.55",
                marker=marker, markerfacecolor="black" if filled else "white", markersize=5, linewidth=1, label=f"{leaves} leaves, {who}",
            )  # fmt: skip
    axes.set(xscale="log", xlabel="CPU microseconds for 500 candidates, one thread", ylabel="NDCG@10, newest window")
    axes.set_title("First 5, 10, 20, 40, 75, 150, 300 trees of each model", fontsize=10)
    axes.legend(fontsize=7, ncols=2)
    axes.grid(color="0.9")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", type=Path, metavar="HOME", help="a state folder with a training run")
    parser.add_argument("--as-of", help="which training run")
    parser.add_argument("--compiled", action="store_true", help="also tl2cgen, whose C takes gcc minutes")
    arguments = parser.parse_args()
    rows = speed(300, 63, SIZES, peers=True, compiled=arguments.compiled) + speed(150, 15, (150, 500), peers=False)
    notes = "CPU milliseconds a call, one thread; ratio is the other's time over ours; scores equal LightGBM's bit for bit"
    if arguments.curve:
        points = curve(Home(arguments.curve.resolve()), arguments.as_of)
        plot(points, REPOSITORY / "docs" / "ranking" / "scoring-curve.svg")
        for point in points:
            case = f"curve, {point['leaves']} leaves, {point['trees']} trees, NDCG@10 {point['ndcg_at_10']:.4f}"
            rows.append(line(case, point["ours"], point["LightGBM"], "stated", met=None))
    one_run.write_page("scoring", rows, notes)


if __name__ == "__main__":
    main()
