"""Models of other libraries, fitted on a file of interactions: the other side of `bench_retrieval_speed.py`.

Run as `python retrieval_peers.py MODEL FOLDER THREADS`, where implicit or RecTools is installed; nothing of Reloop is
imported, so that the memory is the library's own. Training begins with arrays of users and items, as ours does. Prints
one line of JSON, and writes FOLDER/MODEL.npz: the best ten items of each user, seen ones removed. Knobs are those
of Reloop's own model in that benchmark.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy import sparse

K = 10


def main() -> None:
    """Fit one model and ask it for everybody's list."""
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    with np.load(folder / "train.npz") as arrays:
        user, item, shape = arrays["user"], arrays["item"], tuple(arrays["shape"])
    library, _, model = name.partition("-")
    contender = {"implicit": Implicit, "rectools": RecTools}[library](model, user, item, shape, threads)
    held = forget_peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    contender.fit()
    fitted_wall, fitted_cpu = time.perf_counter(), time.process_time()
    peak = memory_mb("VmHWM")
    listed = contender.lists()
    figures = {
        "fit_seconds": fitted_wall - wall,
        "fit_cpu": fitted_cpu - cpu,
        "fit_mb": peak - held,
        "list_cpu": time.process_time() - fitted_cpu,
    }
    np.savez(folder / f"{name}.npz", item=np.asarray(listed, dtype=np.int32))
    print(json.dumps(figures))


def forget_peak_mb() -> float:
    """Forget the highest memory this process ever held, and return what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mb("VmRSS")


def memory_mb(what: str) -> float:
    """Return VmRSS, what this process holds now, or VmHWM, the highest it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


class Implicit:
    """Ben Frederickson's implicit."""

    def __init__(self, model: str, user: np.ndarray, item: np.ndarray, shape: tuple[int, ...], threads: int) -> None:
        """Make a model of implicit."""
        from implicit.cpu.als import AlternatingLeastSquares
        from implicit.cpu.bpr import BayesianPersonalizedRanking
        from implicit.nearest_neighbours import BM25Recommender, CosineRecommender
        from threadpoolctl import threadpool_limits

        threadpool_limits(1, "blas")  # as its own warning asks; it runs threads over rows
        self.events, self.shape, self.name = (user, item), shape, model
        self.model = {
            "als": lambda: AlternatingLeastSquares(factors=64, regularization=10.0, iterations=15, num_threads=threads, random_state=7),
            "cosine": lambda: CosineRecommender(K=200, num_threads=threads),
            "bm25": lambda: BM25Recommender(K=200, num_threads=threads),
            "user_knn": lambda: CosineRecommender(K=100, num_threads=threads),
            "bpr": lambda: BayesianPersonalizedRanking(factors=64, iterations=100, num_threads=threads, random_state=7),
        }[model]()

    def fit(self) -> None:
        """Train, from the events."""
        ones = np.ones(len(self.events[0]), dtype=np.float32)
        self.met = sparse.csr_matrix((ones, self.events), shape=self.shape)
        weighted = self.met.T.tocsr() if self.name == "user_knn" else self.met
        if self.name == "als":
            weighted = self.met.copy()
            weighted.data = 1 + 4 * weighted.data
        self.model.fit(weighted, show_progress=False)

    def lists(self) -> np.ndarray:
        """Return the best items of all users."""
        if self.name != "user_knn":
            found = np.full((self.met.shape[0], K), -1)
            some = np.flatnonzero(np.diff(self.met.indptr))  # it refuses users without any item
            found[some] = self.model.recommend(some, self.met[some], N=K)[0]
            return found
        # It has no user-kNN; its similarities, with the users in the place of items, are half of one.
        parts = []
        for first in range(0, self.met.shape[0], 500):
            block = self.met[first : first + 500]
            scores = (self.model.similarity[first : first + 500] @ self.met).toarray()
            scores[block.nonzero()] = -np.inf
            parts.append(np.argsort(-scores, axis=1)[:, :K])
        return np.concatenate(parts)


class RecTools:
    """MTS's RecTools."""

    def __init__(self, model: str, user: np.ndarray, item: np.ndarray, shape: tuple[int, ...], threads: int) -> None:
        """Make a model of RecTools."""
        import pandas as pd
        import rectools.dataset
        from rectools import Columns
        from rectools.models import EASEModel, PopularModel, PureSVDModel

        columns = {Columns.User: user, Columns.Item: item, Columns.Weight: 1.0, Columns.Datetime: pd.Timestamp("2025-01-01")}
        self.frame, self.construct, self.n_users = pd.DataFrame(columns), rectools.dataset.Dataset.construct, shape[0]
        self.model = {
            "ease": lambda: EASEModel(regularization=500.0, recommend_n_threads=threads),
            "pure_svd": lambda: PureSVDModel(factors=64, recommend_n_threads=threads),
            "popular": PopularModel,
        }[model]()

    def fit(self) -> None:
        """Train, from the events."""
        self.data = self.construct(self.frame)
        self.model.fit(self.data)

    def lists(self) -> np.ndarray:
        """Return the best items of all users."""
        found = self.model.recommend(self.data.user_id_map.external_ids, self.data, k=K, filter_viewed=True)
        listed = np.full((self.n_users, K), -1)
        listed[found["user_id"], found["rank"] - 1] = found["item_id"]
        return listed


if __name__ == "__main__":
    main()
