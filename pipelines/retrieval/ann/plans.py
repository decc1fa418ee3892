"""How vectors can be laid out for search, in FAISS: in lists around centroids, or in a graph of neighbours.

Both search by Euclidean distance, so vectors get one coordinate more, sqrt(M^2 - |x|^2), with M the longest of
them, and queries a zero: then the nearest has the largest inner product (Bachrach et al., RecSys 2014, eq. 2). Where
all have one length already, as under a cosine, nothing is added.

Lists and graphs need vectors that lie in clusters. Those of a catalogue that few events tell of do not, and then every list must be
looked into. For them all vectors are gone through after all, but in half the bytes (bfloat16); the best by these are scored on floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import faiss
import numpy as np

from pipelines.datasets.interactions import Bools, Floats
from pipelines.model_settings import IndexSettings

POINTS_PER_LIST: Final = 64  # that centroids are learnt from
N_ROUNDS: Final = 10  # of k-means
N_LINKS: Final = 32  # of a node of the graph
EF_CONSTRUCTION: Final = 100
EFFORTS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# What a distance costs, in distances between vectors that lie side by side; see tests/benchmarks/bench_ann.py.
AT_RANDOM: Final = 9.0
IN_BYTES: Final = 0.75
IN_HALVES: Final = 0.46
LANES: Final = 16
FETCHED: Final = 20.0  # for one found by halves: put aside, then scored


@dataclass(frozen=True)
class Plan:
    """A layout.

    Attributes:
        kind: `flat` compares with every vector, which is exact.
            `scan` goes through all of them in halves of floats, and scores `effort` times as many as are asked for.
        n_lists: of `ivf`; a search scans as many of them as its effort says.
        in_bytes: whether lists hold a byte a coordinate instead of a float; candidates are scored on floats in any case.
    """

    kind: Literal["flat", "ivf", "hnsw", "scan"]
    n_lists: int = 0
    in_bytes: bool = False

    def efforts(self) -> tuple[int, ...]:
        """Return the efforts worth trying, rising: lists scanned, nodes kept while walking the graph, or candidates scored for one asked."""
        if self.kind == "scan":
            return (1, 2, 4, 8)
        if self.kind == "ivf":
            return (*(effort for effort in EFFORTS if effort < self.n_lists), self.n_lists)
        return tuple(effort for effort in EFFORTS if effort >= 64)

    def parameters(self, effort: float, chosen: Any) -> Any:
        """Return FAISS's parameters of one search.

        Args:
            chosen: an `IDSelector` of what may be found; None for all.
        """
        if self.kind == "scan":
            return faiss.SearchParameters(sel=chosen)
        if self.kind == "ivf":
            return faiss.SearchParametersIVF(nprobe=int(min(np.ceil(effort), self.n_lists)), sel=chosen)
        return faiss.SearchParametersHNSW(efSearch=int(np.ceil(effort)), sel=chosen)


def grid(n_vectors: int, settings: IndexSettings) -> list[Plan]:
    """Return the layouts worth building for so many vectors; nothing but `flat` below the settings' size."""
    if settings.kind in ("flat", "none") or n_vectors == 0 or (settings.kind == "auto" and n_vectors < settings.flat_below):
        return [Plan("flat")]
    if settings.kind == "scan":
        return [Plan("scan")]
    wide = _power_of_two(min(4 * n_vectors**0.5, n_vectors / 4))
    sizes = [wide] if n_vectors >= settings.hnsw_below else [wide, max(1, wide // 2)]
    plans = [Plan("ivf", n_lists, in_bytes) for n_lists in dict.fromkeys(sizes) for in_bytes in (True, False)]
    if settings.kind == "ivf":
        return plans
    if settings.kind == "hnsw":
        return [Plan("hnsw")]
    return [*plans, *([Plan("hnsw")] if n_vectors < settings.hnsw_below else []), Plan("scan")]


def _power_of_two(n: float) -> int:
    return int(2 ** max(0, round(np.log2(max(n, 1)))))


def length_of(vector: Floats, live: Bools) -> float:
    """Return M, to which vectors are lifted; 0 where all that are live have one length."""
    size = np.linalg.norm(vector[live], axis=1)
    return 0.0 if not len(size) or np.ptp(size) <= 1e-4 * size.max() else float(size.max())


def lifted(vector: Floats, length: float) -> Floats:
    """Return float32 [n, d + 1], or [n, d] where the length is 0."""
    if not length:
        return np.ascontiguousarray(vector, dtype=np.float32)
    short = length**2 - np.einsum("nd,nd->n", vector, vector, dtype=np.float64)
    return np.column_stack([vector, np.sqrt(np.maximum(short, 0))]).astype(np.float32)


def asked(query: Floats, length: float) -> Floats:
    """Return queries as the index takes them: as long as the vectors, so that the nearest centroids are the right ones."""
    size = np.maximum(np.linalg.norm(query, axis=1, keepdims=True), np.float32(1e-30))
    scaled = (query / size * np.float32(length or 1)).astype(np.float32)
    return np.column_stack([scaled, np.zeros(len(query), np.float32)]) if length else np.ascontiguousarray(scaled)


def padded(width: int) -> int:
    """Return the next multiple of what the processor multiplies at once: FAISS goes number by number through vectors of other widths."""
    return -(-width // LANES) * LANES


def widened(rows: Floats, width: int) -> Floats:
    """Return rows with zeros behind them, where they are shorter."""
    return rows if rows.shape[1] == width else np.pad(rows, ((0, 0), (0, width - rows.shape[1])))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let FAISS use so many threads."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def centroids_of(points: Floats, n_lists: int, seed: int) -> Any:
    """Return `n_lists` centroids of some lifted vectors, by k-means on a seeded sample of them."""
    width = points.shape[1]
    with threads(1):
        means = faiss.Kmeans(width, n_lists, niter=N_ROUNDS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=POINTS_PER_LIST)
        means.train(points)
    found = faiss.IndexFlatL2(width)
    found.add(means.centroids)
    return found


def built(plan: Plan, points: Floats, centroids: Any) -> Any:
    """Return a FAISS index of some lifted vectors; one thread, so the same vectors give the same bytes.

    Args:
        centroids: of `centroids_of`, for a plan of lists.

    Returns:
        None where the plan is flat: vectors are compared with as they are.
    """
    if plan.kind == "flat":
        return None
    width = points.shape[1]
    with threads(1):
        if plan.kind == "hnsw":
            graph = faiss.IndexHNSWFlat(width, N_LINKS)
            graph.hnsw.efConstruction = EF_CONSTRUCTION
            graph.add(points)
            return graph
        if plan.kind == "scan":
            halves = faiss.IndexScalarQuantizer(padded(width), faiss.ScalarQuantizer.QT_bf16, faiss.METRIC_INNER_PRODUCT)
            halves.add(widened(points, halves.d))
            return halves
        if plan.in_bytes:
            lists = faiss.IndexIVFScalarQuantizer(centroids, width, plan.n_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2)
        else:
            lists = faiss.IndexIVFFlat(centroids, width, plan.n_lists, faiss.METRIC_L2)
        lists.train(points)  # the centroids are there; what is learnt is the range of the bytes
        lists.add(points)
        return lists
