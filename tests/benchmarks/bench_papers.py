"""Published tables, ours beside theirs, each under the protocol and on the split that the figures were printed for.

    ncf       MovieLens-1M, leave-one-out, the held-out item among 99 sampled ones: HR@10, NDCG@10; and ranked among
              all items beside it, because the sampled figures order models otherwise (Krichene and Rendle, KDD 2020)
    sequences MovieLens-1M as SASRec cut it, leave-last-out, all items ranked: HR@10, NDCG@10
    gowalla   LightGCN's split, all items ranked: recall@20, NDCG@20
    beauty    Amazon Beauty as S3-Rec cut it, leave-last-out, all items ranked: HR@10, NDCG@10

Seen items are removed throughout. Knobs were chosen on validation splits that `--validation` shows: the last of
each training sequence, or a random tenth of each user's training events. A model that draws is fitted with `--seeds`
seeds, and its mean is shown; a neural one with one, unless `--neural-seeds` says more, because it takes an hour or two
on two cores. Its training goes on from where it stood when this was killed.
The data sets lie under RELOOP_REAL_DATA (../shared/data); figures also go to reports/bench/papers.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from one_run import write_page
from paper_tables import TABLES, Line, Pair, Table

from pipelines.config import REPOSITORY, Home
from pipelines.datasets.interactions import Histories, histories
from pipelines.evaluation import metrics
from pipelines.retrieval.neural.training import Training
from pipelines.retrieval.protocol import Resumable, Retriever

sys.path.insert(0, str(REPOSITORY / "tests" / "retrieval"))
from paper_data import Split

USERS_AT_ONCE = 2000
FIRST_SEED = 7


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
        others = np.take_along_axis(score, split.negatives[rows[first:last]], axis=1)  # -1 reads the last column, which nothing scores
        rank = (others > own).sum(axis=1) + (others == own).sum(axis=1) / 2
        hit += float((rank < k).sum())
        gain += float(np.where(rank < k, 1 / np.log2(rank + 2), 0).sum())
    return hit / len(rows), gain / len(rows)


def seeded(model: Retriever, n_seeds: int) -> Iterator[Retriever]:
    """Yield the model once, or with each seed where it draws."""
    drawn = cast("Any", model)
    yield from (replace(drawn, seed=FIRST_SEED + n) for n in range(n_seeds)) if hasattr(model, "seed") else [model]


def measure(table: Table, line: Line, split: Split, options: argparse.Namespace, kept: Path) -> dict[str, Any]:
    """Fit one model, once for each seed, and return its figures."""
    ours, full, seconds = [], [], []
    for model in seeded(line.model, options.neural_seeds if isinstance(line.model, Training) else options.seeds):
        began = time.perf_counter()
        checkpoint = kept / f"{line.name}-{getattr(model, 'seed', 0)}.npz"
        fitted = model.resume(split.known, checkpoint) if isinstance(model, Resumable) else model.fit(split.known)
        seconds.append(time.perf_counter() - began)
        ours.append((among_sampled if split.negatives is not None else full_rank)(split, fitted, table.k, options.users))
        if split.negatives is not None:
            full.append(full_rank(split, fitted, table.k, options.users))
        checkpoint.unlink(missing_ok=True)
    return {
        "model": line.name,
        "knobs": repr(line.model),
        "ours": tuple(np.mean(ours, axis=0)),
        "spread": tuple(np.std(ours, axis=0)),
        "seeds": len(ours),
        "full_rank": tuple(np.mean(full, axis=0)) if full else (),
        "fit_seconds": float(np.median(seconds)),
    }


def figures(name: str, table: Table, line: Line, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row of the page for each metric of a line."""
    return [
        {
            "case": f"{name}, {line.name}, {metric}",
            "ours": round(float(ours), 4),
            "peer": published,
            "unit": metric,
            "ratio": None if published is None else round(float(ours) / published, 3),
            "target": "" if target is None else f">= {target:g}",
            "met": None if target is None else bool(ours >= target),
            "seeds": found["seeds"],
            "spread": round(float(spread), 4),
            "fit_seconds": round(found["fit_seconds"], 1),
            "full_rank": None if not found["full_rank"] else round(float(found["full_rank"][n]), 4),
            "knobs": found["knobs"],
        }
        for n, (metric, ours, spread, published, target) in enumerate(
            zip(table.metrics, found["ours"], found["spread"], line.published, line.target, strict=True)
        )
    ]


def main() -> None:
    """Print every table asked for and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="append", choices=sorted(TABLES), help="only this one; may be repeated")
    parser.add_argument("--model", action="append", help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="leave out the neural models")
    parser.add_argument("--seeds", type=int, default=3, help="of a model that draws (3)")
    parser.add_argument("--neural-seeds", type=int, default=1, help="of a neural model (1)")
    parser.add_argument("--validation", action="store_true", help="on the validation splits that knobs were chosen on")
    parser.add_argument("--users", type=int, help="ask only so many users, a seeded draw")
    options = parser.parse_args()
    folder = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"no real data at {folder}; set RELOOP_REAL_DATA to a folder that holds it")
    rows: list[dict[str, Any]] = []
    for name in options.table or TABLES:
        table = TABLES[name]
        split = table.load(folder)
        if options.validation:
            split = table.validation(split)
        kept = Home.from_environment().reports / "bench" / "checkpoints" / f"{name}{'-validation' if options.validation else ''}"
        kept.mkdir(parents=True, exist_ok=True)
        print(f"\n{name}: {table.metrics[0]} / {table.metrics[1]}{' (validation)' if options.validation else ''}")
        print(f"  {'model':<16} {'ours':>14} {'published':>15} {'full rank':>15} {'seeds':>5} {'+-':>6} {'fit s':>8}  target")
        for line in table.lines:
            if (options.model and line.name not in options.model) or (options.quick and isinstance(line.model, Training)):
                continue
            found = measure(table, line, split, options, kept)
            rows += figures(name, table, line, found)
            met = all(wanted is None or ours >= wanted for ours, wanted in zip(found["ours"], line.target, strict=True))
            verdict = f"{pair(line.target)} {'met' if met else 'NOT MET'}" if any(line.target) else ""
            print(
                f"  {line.name:<16} {pair(found['ours']):>14} {pair(line.published):>15} {pair(found['full_rank']):>15}"
                f" {found['seeds']:>5} {found['spread'][1]:>6.4f} {found['fit_seconds']:>8.1f}  {verdict}",
                flush=True,
            )
    write_page("papers", rows, notes="validation splits" if options.validation else "test splits; knobs chosen on validation splits")


def pair(values: Pair | tuple[()]) -> str:
    """Return two figures as people read them in these tables."""
    return "/".join("-" if value is None else f"{value:.4f}".lstrip("0") for value in values)


if __name__ == "__main__":
    main()
