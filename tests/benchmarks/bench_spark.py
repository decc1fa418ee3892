"""ALS fitted by Spark MLlib beside ALS fitted by `implicit`: what a list is worth, seconds, CPU seconds and memory.

Each fit has a process of its own (Spark's one more, whose JVM counts with it), 64 factors, 15 epochs, two threads; `als` with
frequency_exponent 1, the nearest to MLlib's regularisation. Knobs: the regularization of each that was best on a validation
split (`--validation` shows one); NDCG@10 over all items, seen ones removed, of
    ml-100k    MovieLens-100K, the last rating of each user held out
    ml-1m      MovieLens-1M as the NCF protocol cuts it
Needs the extra `spark` and Java 17. The data lies under RELOOP_REAL_DATA (../shared/data); figures also go to reports/bench/spark.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from one_run import in_process, write_page

from pipelines.config import REPOSITORY
from pipelines.datasets.interactions import histories
from pipelines.evaluation import metrics
from pipelines.retrieval import lineup

sys.path.insert(0, str(REPOSITORY / "tests" / "retrieval"))
import paper_data

KNOBS: dict[str, dict[str, dict[str, Any]]] = {
    "ml-100k": {"als": {"frequency_exponent": 1.0, "regularization": 10.0}, "spark_als": {"regularization": 10.0}},
    "ml-1m": {"als": {"frequency_exponent": 1.0, "regularization": 10.0}, "spark_als": {"regularization": 10.0}},
}


def split(name: str, folder: Path) -> paper_data.Split:
    """Return a data set and what is held out of it."""
    if name == "ml-1m":
        return paper_data.ncf_ml_1m(folder)
    table = np.loadtxt(folder / "movielens-100k" / "u.data", dtype=np.int64)
    table = table[np.lexsort((table[:, 1], table[:, 3], table[:, 0]))]
    return paper_data.leave_last_out(table[:, 0] - 1, table[:, 1] - 1, 943, 1682)


def run(name: str, source: str, knobs: dict[str, Any], folder: Path, *, validation: bool) -> dict[str, float]:
    """Fit in this process, judge, and return the figures of it and of its children."""
    given = split(name, folder)
    if validation:
        given = paper_data.leave_last_known_out(given)
    endless = {"half_life_days": 1e9, "recency_half_life_days": 1e9}
    with tempfile.TemporaryDirectory() as work:
        model = lineup.make(source, endless | knobs | ({"work_folder": work} if source == "spark_als" else {}))
        others = Others(work)
        began, cpu = time.perf_counter(), time.process_time()
        fitted = model.fit(given.known)
        seconds, own = time.perf_counter() - began, time.process_time() - cpu
        others.stop()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + sum(others.peak_mb.values())
    rows = np.flatnonzero(np.diff(given.indptr))
    found = fitted.retrieve(histories(given.known, given.known.user_ids[rows]), 10, exclude_seen=True)
    truth = given.item[given.indptr[rows]]
    judged = metrics.judge(found.item, np.arange(len(rows) + 1), truth, np.ones(len(rows)))
    ndcg = metrics.ndcg(judged, 10)
    figures = {"ndcg_at_10": float(ndcg.mean()), "error": float(ndcg.std() / len(ndcg) ** 0.5), "seconds": seconds}
    return figures | {"cpu_seconds": own + sum(others.cpu_seconds.values()), "peak_mb": peak}


class Others(threading.Thread):
    """What the processes cost whose command line names a folder: nobody waits for Spark's JVM, so no rusage holds it."""

    def __init__(self, folder: str) -> None:
        super().__init__(daemon=True)
        self.folder, self.over = folder.encode(), threading.Event()
        self.cpu_seconds: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if self.folder not in (process / "cmdline").read_bytes():
                        continue
                    times = (process / "stat").read_text().rpartition(")")[2].split()
                    status = (process / "status").read_text().partition("VmHWM:")[2].split()
                except OSError:
                    continue  # it ended meanwhile
                self.cpu_seconds[process.name] = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
                self.peak_mb[process.name] = int(status[0]) / 1024 if status else self.peak_mb.get(process.name, 0.0)

    def stop(self) -> None:
        """End the watching."""
        self.over.set()
        self.join()


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", action="append", choices=sorted(KNOBS), help="only this one; may be repeated")
    parser.add_argument("--validation", action="store_true", help="the last but one of each user is held out instead")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"no real data at {folder}; set RELOOP_REAL_DATA to a folder that holds it")
    if arguments.run:
        name, source, knobs = arguments.run
        print(json.dumps(run(name, source, json.loads(knobs), folder, validation=arguments.validation)))
        return
    rows = []
    print(f"{'data':<9} {'source':<10} {'NDCG@10':>8} {'+-':>6} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}")
    for name in arguments.dataset or KNOBS:
        found = {}
        for source, knobs in KNOBS[name].items():
            flags = ["--validation"] if arguments.validation else []
            found[source] = in_process(__file__, "--run", name, source, json.dumps(knobs), *flags)
            one = found[source]
            print(
                f"{name:<9} {source:<10} {one['ndcg_at_10']:>8.4f} {one['error']:>6.4f} {one['seconds']:>8.1f} {one['cpu_seconds']:>8.1f}"
                f" {one['peak_mb']:>8.0f}",
                flush=True,
            )
        ours, peer = found["spark_als"], found["als"]
        least = peer["ndcg_at_10"] - 2 * peer["error"]
        rows.append(line(name, "ndcg_at_10", "", ours, peer) | {"target": f">= {least:.4f}", "met": ours["ndcg_at_10"] >= least})
        rows += [line(name, key, unit, ours, peer) for key, unit in (("seconds", "s"), ("cpu_seconds", "s"), ("peak_mb", "MB"))]
    write_page("spark", rows, f"ours: spark_als, peer: als; knobs: {KNOBS}")


def line(name: str, key: str, unit: str, ours: dict[str, float], peer: dict[str, float]) -> dict[str, Any]:
    """Return one figure beside its peer; above 1 is better than the peer. Costs have no target: they are stated."""
    ratio = ours[key] / peer[key] if key == "ndcg_at_10" else peer[key] / ours[key]
    figures = {"case": f"{name}, {key}", "ours": round(ours[key], 4), "peer": round(peer[key], 4), "unit": unit}
    return figures | {"ratio": round(ratio, 4), "target": "stated", "met": None}


if __name__ == "__main__":
    main()
