"""What a source costs: training against the library that a user would take instead, and candidates for a million users.

    train     time, memory and quality of each source and its peer on the same file, lists judged on the same held-out items
    ease      EASE at 20,000 items, beside RecTools' if --with-peer-ease is given (it takes some 15 GB)
    everyone  a shop of a million users and 100,000 items: each source fitted, then asked for everybody's candidates
              a block of users at a time (`retrieval.generation`); users a second and peak memory

Each contender runs in a process of its own, with --threads threads. Memory of training is what the peak of the process
lies above what it held before. implicit is the build that Reloop itself installs; RecTools lives in .venv-peers
(`make bench-retrieval-speed` makes it). Session-kNN and sequence rules have no peer: what is published of them
(session-rec, RecPack) is no package, or drags CUDA in, as LensKit does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from one_run import publish_page, row
from retrieval_peers import K, forget_peak_mb, memory_mb

from pipelines.config import REPOSITORY
from pipelines.datasets.interactions import Interactions, histories
from pipelines.evaluation import metrics
from pipelines.retrieval import lineup
from pipelines.retrieval.als import Als
from pipelines.retrieval.bpr import Bpr
from pipelines.retrieval.ease import Ease
from pipelines.retrieval.generation import Wanted, generate
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.popular import Popular
from pipelines.retrieval.protocol import Retriever
from pipelines.retrieval.pure_svd import PureSvd
from pipelines.retrieval.sequence_rules import SequenceRules
from pipelines.retrieval.session_knn import SessionKnn
from pipelines.retrieval.user_knn import UserKnn

PEERS = REPOSITORY / ".venv-peers" / "bin" / "python"
ALL = 5000  # events of a history that take part: no peer has a limit


def models(threads: int) -> dict[str, tuple[Retriever, tuple[str, ...]]]:
    """Return each source with the knobs that its peers have, and who these are."""
    return {
        "popular": (Popular(), ("rectools-popular",)),
        "item_knn": (ItemKnn(shrinkage=0.0, max_history=ALL), ("implicit-cosine", "implicit-bm25")),
        "user_knn": (UserKnn(max_history=ALL), ("implicit-user_knn",)),
        "ease": (Ease(max_history=ALL, max_items=50_000, num_threads=threads), ("rectools-ease",)),
        "pure_svd": (PureSvd(max_history=ALL, num_threads=threads), ("rectools-pure_svd",)),
        "als": (Als(alpha=4.0, num_threads=threads), ("implicit-als",)),
        "bpr": (Bpr(max_history=ALL, num_threads=threads), ("implicit-bpr",)),
        "sequence_rules": (SequenceRules(), ()),
        "session_knn": (SessionKnn(), ()),
    }


def data(name: str) -> tuple[Interactions, Any]:
    """Return what is learnt from and, where something is held out, the split."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "retrieval"))
    import big_shop
    import paper_data

    if name.startswith("shop"):
        n_users, n_items = (int(part) for part in name.split("-")[1:])
        return big_shop.interactions(n_users, n_items, seed=7, n_tastes=max(10, n_items // 200)), None
    real = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY / ".." / "shared" / "data"))
    split = {"ml-1m": paper_data.ml_1m_sequences, "gowalla": paper_data.gowalla, "beauty": paper_data.beauty}[name](real)
    return split.known, split


def ours(name: str, where: str, folder: Path, threads: int) -> dict[str, float]:
    """Fit one source in this process and list everybody's best."""
    known, _ = data(where)
    model = models(threads)[name][0]
    everyone = histories(known, known.user_ids)
    fitted, figures = trained(model, known)
    began = time.process_time()
    found = fitted.retrieve(everyone, K, exclude_seen=True)
    np.savez(folder / f"{name}.npz", item=found.item)
    return {**figures, "list_cpu": time.process_time() - began}


def trained(model: Retriever, known: Interactions) -> tuple[Retriever, dict[str, float]]:
    """Return a fitted source and what it took."""
    held = forget_peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    fitted = model.fit(known)
    return fitted, {
        "fit_seconds": time.perf_counter() - wall,
        "fit_cpu": time.process_time() - cpu,
        "fit_mb": memory_mb("VmHWM") - held,
    }


def train(where: str, names: list[str], threads: int, repeats: int) -> list[dict[str, Any]]:
    """Return the lines of a data set: each source against each of its peers; costs are medians over the repeats, which alternate."""
    known, split = data(where)
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shape = (len(known.user_ids), len(known.item_ids))
        np.savez(folder / "train.npz", user=known.user, item=known.item, shape=shape)
        for name in names:
            peers = models(threads)[name][1]
            runs: dict[str, list[dict[str, float]]] = {who: [] for who in (name, *peers)}
            for _ in range(repeats):
                runs[name].append(process(sys.executable, __file__, "--step", name, where, str(folder), "--threads", str(threads)))
                for peer in peers:
                    python = sys.executable if peer.startswith("implicit") else str(PEERS)
                    script = str(Path(__file__).with_name("retrieval_peers.py"))
                    runs[peer].append(process(python, script, peer, str(folder), str(threads)))
            quality = {who: judged(folder / f"{who}.npz", split) for who in runs}
            median = {who: {key: float(np.median([run[key] for run in some])) for key in some[0]} for who, some in runs.items()}
            for peer in peers or (name,):
                lines += compared(
                    f"{where} {name}, {peer if peers else 'no peer'}", median[name], median[peer], quality[name], quality[peer]
                )
            for line in lines[-5 * max(len(peers), 1) :]:
                print(line, flush=True)
    return lines


def judged(path: Path, split: Any) -> tuple[float, float]:
    """Return the mean NDCG@10 and recall@10 of some lists on the held-out items."""
    with np.load(path) as arrays:
        found = metrics.judge(arrays["item"], split.indptr, split.item, np.ones(len(split.item), dtype=np.float32))
    return float(np.nanmean(metrics.ndcg(found, K))), float(np.nanmean(metrics.recall(found, K)))


def compared(
    case: str, mine: dict[str, float], theirs: dict[str, float], quality: tuple[float, float], peer: tuple[float, float]
) -> list[dict[str, Any]]:
    """Return the lines of one source and one peer."""
    cost = {
        "fit_cpu": ("fit, CPU", "s"),
        "fit_seconds": ("fit, wall", "s"),
        "fit_mb": ("fit, memory", "MB"),
        "list_cpu": ("lists, CPU", "s"),
    }
    lines = []
    for key, (label, unit) in cost.items():
        target = "ratio >= 1" if key in {"fit_cpu", "fit_mb"} else ""
        met = not target or mine[key] <= theirs[key]
        lines.append(row(f"{case}: {label}", max(mine[key], 0.01), max(theirs[key], 0.01), unit, target, met=met))
    better = row(f"{case}: NDCG@10", quality[0], peer[0], "", "ratio >= 1", met=quality[0] >= peer[0])
    better |= {"ours": round(quality[0], 4), "peer": round(peer[0], 4), "ratio": round(quality[0] / peer[0], 3)}
    return [*lines, better]


def process(*command: str) -> dict[str, float]:
    """Run a step in a process of its own and return what it measured."""
    threads = command[-1]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def everyone(name: str, where: str, users: int, at_once: int, threads: int) -> dict[str, float]:
    """Fit some sources (joined by +) on a shop, and generate candidates for its first `users` users."""
    import big_shop

    known, _ = data(where)
    fitted, fits = {}, {}
    for one in name.split("+"):
        knobs = {"num_threads": threads} if one in {"als", "ease"} else None
        fitted[one], fits[one] = trained(lineup.make(one, knobs), known)
        print(one, {key: round(value, 1) for key, value in fits[one].items()}, file=sys.stderr, flush=True)
    held, users = forget_peak_mb(), min(users, len(known.user_ids))

    def blocks() -> Any:
        for first in range(0, users, at_once):
            yield big_shop.everyone(known, first, min(first + at_once, users))

    folder = Path(tempfile.mkdtemp())
    wall, cpu = time.perf_counter(), time.process_time()
    made = generate(folder / "all", fitted, blocks(), Wanted(k_per_source=50, k=100, exclude_seen=True), {})
    figures = {
        "users": users,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "rows": made.facts["rows"],
        "parquet_mb": sum(entry["bytes"] for entry in made.files.values()) / 2**20,
        "held_mb": held,
        "peak_mb": memory_mb("VmHWM"),
        "fit_cpu": sum(fit["fit_cpu"] for fit in fits.values()),
        "fit_mb": max(fit["fit_mb"] for fit in fits.values()),
    }
    shutil.rmtree(folder)
    return figures


def main() -> None:
    """Run the parts asked for, or one step in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="*", default=["train", "ease", "everyone"])
    parser.add_argument("--data", nargs="*", default=["ml-1m", "gowalla"])
    parser.add_argument("--source", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shop", default="shop-1000000-100000")
    parser.add_argument("--users", type=int, default=1_000_000, help="asked for, of the shop's")
    parser.add_argument("--at-once", type=int, default=20_000)
    parser.add_argument("--with-peer-ease", action="store_true")
    parser.add_argument("--step", nargs="+")
    asked = parser.parse_args()
    if asked.step:
        name, where, *folder = asked.step
        if folder == ["everyone"]:
            found = everyone(name, where, asked.users, asked.at_once, asked.threads)
        elif folder == ["fit"]:
            found = trained(models(asked.threads)[name][0], data(where)[0])[1]
        else:
            found = ours(name, where, Path(folder[0]), asked.threads)
        print(json.dumps(found))
        return
    if not PEERS.exists():
        raise SystemExit(f"{PEERS} is missing; make bench-retrieval-speed installs the peers")
    lines: list[dict[str, Any]] = []
    if "train" in asked.part:
        for where in asked.data:
            # A dense inverse over Gowalla's 40,981 items is what the part `ease` is about.
            names = [name for name in models(1) if (not asked.source or name in asked.source) and (where, name) != ("gowalla", "ease")]
            lines += train(where, names, asked.threads, asked.repeats)
    if "ease" in asked.part:
        lines += at_20k(asked)
    if "everyone" in asked.part:
        for name in asked.source or ["popular", "repeat", "item_knn", "sequence_rules", "als", "ease"]:
            lines += generated(name, asked)
    publish_page(
        "retrieval_speed", lines, f"{asked.threads} thread(s), medians of {asked.repeats}; every contender in a process of its own"
    )


def at_20k(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return EASE's cost at 20,000 items."""
    where = "shop-100000-20000"
    mine = process(sys.executable, __file__, "--step", "ease", where, "fit", "--threads", str(asked.threads))
    lines = [
        row("ease at 20,000 items: fit, memory", mine["fit_mb"], 8192, "MB (limit)", "<= 8192 MB", met=mine["fit_mb"] <= 8192),
        row("ease at 20,000 items: fit, CPU", mine["fit_cpu"], mine["fit_cpu"], "s", "", met=True),
    ]
    if asked.with_peer_ease:
        with tempfile.TemporaryDirectory() as temporary:
            known, _ = data(where)
            np.savez(Path(temporary) / "train.npz", user=known.user, item=known.item, shape=(len(known.user_ids), len(known.item_ids)))
            peer = process(str(PEERS), str(Path(__file__).with_name("retrieval_peers.py")), "rectools-ease", temporary, str(asked.threads))
        for key, unit in (("fit_mb", "MB"), ("fit_cpu", "s")):
            lines.append(row(f"ease at 20,000 items, rectools: {key}", mine[key], peer[key], unit, "", met=mine[key] <= peer[key]))
    return lines


def generated(name: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cost of everybody's candidates by one source, or by the blend of several (joined by +)."""
    options = ("--users", str(asked.users), "--at-once", str(asked.at_once), "--threads", str(asked.threads))
    found = process(sys.executable, __file__, "--step", name, asked.shop, "everyone", *options)
    print(name, found, flush=True)
    case, rate = f"{asked.shop} {name}", found["users"] / found["cpu_seconds"]
    return [
        row(f"{case}: users a CPU second", rate, rate, "users/s", "", met=True),
        row(f"{case}: users a second", found["users"] / found["seconds"], found["users"] / found["seconds"], "users/s", "", met=True),
        row(f"{case}: peak memory", found["peak_mb"], 8192, "MB (limit)", "<= 8192 MB", met=found["peak_mb"] <= 8192),
        row(f"{case}: fit, CPU", max(found["fit_cpu"], 0.01), max(found["fit_cpu"], 0.01), "s", "", met=True),
        row(f"{case}: Parquet", found["parquet_mb"], found["parquet_mb"], "MB", "", met=True),
    ]


if __name__ == "__main__":
    main()
