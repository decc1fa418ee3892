"""Published tables, ours beside theirs, each under the protocol and on the split that the figures were printed for.

    ncf       MovieLens-1M, leave-one-out, the held-out item among 99 sampled ones: HR@10, NDCG@10; and ranked among
              all items beside it, because the sampled figures order models otherwise (Krichene and Rendle, KDD 2020)
    sequences MovieLens-1M as SASRec cut it, leave-last-out, all items ranked: HR@10, NDCG@10
    gowalla   LightGCN's split, all items ranked: recall@20, NDCG@20
    beauty    Amazon Beauty as S3-Rec cut it, leave-last-out, all items ranked: HR@10, NDCG@10

Seen items are removed throughout. Knobs were chosen on validation splits that `--validation` shows: the last of
each training sequence, or a random tenth of each user's training events.
The data sets lie under RELOOP_REAL_DATA (../shared/data); figures also go to reports/bench/papers.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import publish
from pipelines.config import REPOSITORY, Home
from pipelines.datasets.interactions import Histories, histories
from pipelines.evaluation import metrics
from pipelines.retrieval.als import Als
from pipelines.retrieval.bpr import Bpr
from pipelines.retrieval.ease import Ease
from pipelines.retrieval.graph_filter import GraphFilter
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.nmf import Nmf
from pipelines.retrieval.popular import Popular
from pipelines.retrieval.protocol import Retriever
from pipelines.retrieval.pure_svd import PureSvd
from pipelines.retrieval.sequence_rules import SequenceRules
from pipelines.retrieval.session_knn import SessionKnn
from pipelines.retrieval.user_knn import UserKnn

sys.path.insert(0, str(REPOSITORY / "tests" / "retrieval"))
import paper_data
from paper_data import Split

USERS_AT_ONCE = 2000


@dataclass(frozen=True)
class Line:
    """A model, what was published for it, and what we set out to reach, as pairs of the table's two metrics."""

    name: str
    model: Retriever
    published: tuple[float | None, float | None] = (None, None)
    target: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Table:
    """A published table: its data, its two metrics and its lines."""

    load: Callable[[Path], Split]
    validation: Callable[[Split], Split]
    metrics: tuple[str, str]
    k: int
    lines: tuple[Line, ...]


def tenth(split: Split) -> Split:
    """Return a random tenth of each user's training events as what is asked for."""
    return paper_data.leave_share_out(split, 0.1, seed=1)


TABLES = {
    "ncf": Table(
        paper_data.ncf_ml_1m,
        paper_data.leave_one_known_out,
        ("HR@10", "NDCG@10"),
        10,
        (
            Line("popular", Popular(), (0.4533, 0.2542)),
            Line("item_knn", ItemKnn(n_neighbours=400, shrinkage=10.0, max_history=5000), (0.6694, 0.3979)),
            Line("user_knn", UserKnn(max_history=5000), (0.6768, 0.4100)),
            Line("pure_svd", PureSvd(n_factors=32, max_history=5000), (0.6937, 0.4303)),
            Line("nmf", Nmf(max_history=5000)),
            Line("bpr", Bpr(max_history=5000), (0.6305, 0.3730)),
            Line("als", Als(n_factors=96, regularization=30.0, frequency_exponent=1.0, alpha=1.0), (0.7109, 0.4382), (0.72, 0.445)),
            Line("ease", Ease(regularization=500.0, n_neighbours=4000, max_history=5000), (0.7192, 0.4494), (0.718, 0.449)),
            Line("graph_filter", GraphFilter(n_neighbours=4000, max_history=5000)),
        ),
    ),
    "sequences": Table(
        paper_data.ml_1m_sequences,
        paper_data.leave_last_known_out,
        ("HR@10", "NDCG@10"),
        10,
        (
            Line("popular", Popular(), (0.0364, 0.0179)),
            Line("bpr", Bpr(max_history=5000), (0.0740, 0.0377)),
            Line("ease", Ease(max_history=5000), (0.1099, 0.0544)),
            Line("sequence_rules", SequenceRules(decay=0.7), (0.2788, 0.1611), (None, 0.161)),
            Line("session_knn", SessionKnn()),
        ),
    ),
    "gowalla": Table(
        paper_data.gowalla,
        tenth,
        ("R@20", "NDCG@20"),
        20,
        (
            Line("popular", Popular(), (0.0416, 0.0317)),
            Line("item_knn", ItemKnn(n_neighbours=400, shrinkage=0.0, max_history=5000), (0.1570, 0.1214)),
            Line(
                "graph_filter",
                GraphFilter(user_exponent=0.5, from_exponent=0.7, to_exponent=0.25, max_history=5000),
                (0.1862, 0.1563),
                (0.186, None),
            ),
        ),
    ),
    "beauty": Table(
        paper_data.beauty,
        paper_data.leave_last_known_out,
        ("HR@10", "NDCG@10"),
        10,
        (
            Line("popular", Popular(), (0.0120, None)),
            Line("sequence_rules", SequenceRules(), target=(None, 0.0531)),
            Line("session_knn", SessionKnn(), target=(None, 0.0531)),
        ),
    ),
}


def asked(split: Split, users: int | None) -> tuple[np.ndarray, Histories]:
    """Return the rows of users of whom something is asked, at most so many (a seeded draw), and their histories."""
    rows = np.flatnonzero(np.diff(split.indptr))
    if users is not None and users < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, users, replace=False))
    return rows, histories(split.known, split.known.user_ids[rows])


def full_rank(split: Split, fitted: Retriever, k: int, users: int | None) -> tuple[float, float]:
    """Return hit rate (of lists for one item, which is recall) or recall, and NDCG, over all items less the seen ones."""
    rows, known = asked(split, users)
    found = fitted.retrieve(known, k, exclude_seen=True).item
    length = np.diff(split.indptr)[rows]
    indptr = np.concatenate([[0], np.cumsum(length)])
    item = split.item[np.arange(indptr[-1]) + np.repeat(split.indptr[rows] - indptr[:-1], length)]
    judged = metrics.judge(found, indptr, item, np.ones(len(item)))
    return metrics.mean(metrics.recall(judged, k)) or 0.0, metrics.mean(metrics.ndcg(judged, k)) or 0.0


def among_sampled(split: Split, fitted: Retriever, k: int, users: int | None) -> tuple[float, float]:
    """Return HR and NDCG of the held-out item among its 99; an item that ties with it stands above it with chance 1/2."""
    assert split.negatives is not None
    rows, known = asked(split, users)
    hit = gain = 0.0
    for first in range(0, len(rows), USERS_AT_ONCE):
        last = min(first + USERS_AT_ONCE, len(rows))
        found = fitted.retrieve(known.rows(first, last), known.n_items, exclude_seen=True)
        score = np.full((last - first, known.n_items + 1), -np.inf, dtype=np.float32)
        np.put_along_axis(score, np.where(found.item < 0, known.n_items, found.item).astype(np.int64), found.score, axis=1)
        own = np.take_along_axis(score, split.item[split.indptr[rows[first:last]]][:, None], axis=1)
        others = np.take_along_axis(score, split.negatives[rows[first:last]], axis=1)
        rank = (others > own).sum(axis=1) + (others == own).sum(axis=1) / 2
        hit += float((rank < k).sum())
        gain += float(np.where(rank < k, 1 / np.log2(rank + 2), 0).sum())
    return hit / len(rows), gain / len(rows)


def measure(table: Table, line: Line, split: Split, users: int | None) -> dict[str, Any]:
    """Fit one model and return its figures."""
    began = time.perf_counter()
    fitted = line.model.fit(split.known)
    seconds = time.perf_counter() - began
    ours = (among_sampled if split.negatives is not None else full_rank)(split, fitted, table.k, users)
    figures: dict[str, Any] = {
        "model": line.name,
        "knobs": repr(line.model),
        "ours": ours,
        "published": line.published,
        "target": line.target,
    }
    figures |= {"fit_seconds": round(seconds, 2)}
    if split.negatives is not None:
        figures["full_rank"] = full_rank(split, fitted, table.k, users)
    return figures


def main() -> None:
    """Print every table asked for and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="append", choices=sorted(TABLES), help="only this one; may be repeated")
    parser.add_argument("--model", action="append", help="only this one; may be repeated")
    parser.add_argument("--validation", action="store_true", help="on the validation splits that knobs were chosen on")
    parser.add_argument("--users", type=int, help="ask only so many users, a seeded draw")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"no real data at {folder}; set RELOOP_REAL_DATA to a folder that holds it")
    page: dict[str, Any] = {"validation": arguments.validation}
    for name in arguments.table or TABLES:
        table = TABLES[name]
        split = table.load(folder)
        if arguments.validation:
            split = table.validation(split)
        print(f"\n{name}: {table.metrics[0]} / {table.metrics[1]}{' (validation)' if arguments.validation else ''}")
        print(f"  {'model':<16} {'ours':>14} {'published':>15} {'full rank':>15} {'fit s':>8}  target")
        page[name] = []
        for line in table.lines:
            if arguments.model and line.name not in arguments.model:
                continue
            found = measure(table, line, split, arguments.users)
            page[name].append(found)
            met = [None if wanted is None else ours >= wanted for ours, wanted in zip(found["ours"], line.target, strict=True)]
            verdict = "" if not any(line.target) else f"{pair(line.target)} {'met' if all(m is not False for m in met) else 'NOT MET'}"
            print(
                f"  {line.name:<16} {pair(found['ours']):>14} {pair(line.published):>15} {pair(found.get('full_rank', ())):>15}"
                f" {found['fit_seconds']:>8.1f}  {verdict}",
                flush=True,
            )
    publish.write_json(Home.from_environment().reports / "bench" / "papers.json", page)


def pair(values: tuple[float | None, ...]) -> str:
    """Return two figures as people read them in these tables."""
    return "/".join("-" if value is None else f"{value:.4f}".lstrip("0") for value in values)


if __name__ == "__main__":
    main()
