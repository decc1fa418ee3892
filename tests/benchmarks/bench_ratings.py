"""Explicit ratings on MovieLens-100K: RMSE and MAE of each model, over all held-out ratings, predictions cut to [1, 5].

    random    five folds of a fifth each, as GroupLens' u1 ... u5 and as published tables cut it: what a rating among
              others is. The future helps to predict the past here.
    time      the last fifth by time is asked for, users as they were known at the cut: most are new, so most of what can be
              said is the film's mean
    so far    the same fifth, no model refitted, but each rating predicted from all that its user had rated before that second:
              what a fold-in is for

Published for five random folds (Surprise 1.1, its default knobs, RMSE / MAE): biases .944/.748, SVD .934/.737, SVD++ .920/.722.
Knobs were chosen on a fifth of the training ratings of another random split. `--folds 1` is quicker.
The data lies under RELOOP_REAL_DATA (../shared/data); figures also go to reports/bench/ratings.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from one_run import write_page

from pipelines import columns as c
from pipelines.config import REPOSITORY
from pipelines.datasets.interactions import Histories, Interactions, histories
from pipelines.evaluation import metrics, rating
from pipelines.retrieval.biased_mf import BiasedMf
from pipelines.retrieval.svdpp import SvdPp

MODELS = {
    "biases": BiasedMf(n_factors=1, regularization=1e9),
    "biased_mf": BiasedMf(),
    "svdpp": SvdPp(),
}
PUBLISHED = {"biases": (0.944, 0.748), "biased_mf": (0.934, 0.737), "svdpp": (0.920, 0.722)}


def interactions(table: np.ndarray) -> Interactions:
    """Return ratings (user, item, rating, seconds) of MovieLens-100K as a model learns from them."""
    table = table[np.lexsort((table[:, 1], table[:, 3], table[:, 0]))]
    value = table[:, 2].astype(np.float32)
    return Interactions(
        user_ids=np.array([f"{n:04}" for n in range(943)]),
        item_ids=np.array([f"{n:04}" for n in range(1682)]),
        user=table[:, 0].astype(np.int32),
        item=table[:, 1].astype(np.int32),
        at=table[:, 3] * 1_000_000,
        weight=(value >= 4).astype(np.float32),
        event_type=np.full(len(table), c.EVENT_TYPES.index(c.RATING), dtype=np.int8),
        value=value,
        as_of=int(table[:, 3].max() + 1) * 1_000_000,
    )


def so_far(everything: Interactions, asked: np.ndarray) -> Histories:
    """Return for each rating asked for a row with all that its user rated in the seconds before."""
    begin = np.searchsorted(everything.user, asked[:, 0])
    order = everything.user.astype(np.int64) * (1 << 52) + everything.at
    end = np.searchsorted(order, asked[:, 0] * (1 << 52) + asked[:, 3] * 1_000_000)
    length = end - begin
    indptr = np.concatenate([[0], np.cumsum(length)])
    take = np.arange(indptr[-1]) - np.repeat(indptr[:-1], length) + np.repeat(begin, length)
    return Histories(
        indptr,
        everything.item[take],
        everything.at[take],
        everything.weight[take],
        len(everything.item_ids),
        everything.as_of,
        everything.value[take],
    )


def errors(predicted: np.ndarray, given: np.ndarray) -> tuple[float, float]:
    """Return RMSE and MAE over all ratings."""
    whole, cut = np.array([0, len(given)]), np.clip(predicted, 1, 5)
    return metrics.mean(rating.rmse(whole, cut, given)) or 0.0, metrics.mean(rating.mae(whole, cut, given)) or 0.0


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5, help="random folds to measure, of five")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"no real data at {folder}; set RELOOP_REAL_DATA to a folder that holds it")
    table = np.loadtxt(folder / "movielens-100k" / "u.data", dtype=np.int64)
    table[:, :2] -= 1
    fold = np.random.default_rng(0).permutation(len(table)) % 5
    cut = np.sort(table[:, 3])[len(table) * 4 // 5]
    old, new = table[table[:, 3] < cut], table[table[:, 3] >= cut]
    print(f"{'':<10} {'random':>13} {'published':>13} {'time':>13} {'so far':>13} {'fit s':>7}")
    rows: list[dict[str, Any]] = []
    before: dict[str, tuple[float, float]] = {}
    for name, model in MODELS.items():
        found, seconds = [], []
        for number in range(arguments.folds):
            known, asked = interactions(table[fold != number]), table[fold == number]
            began = time.perf_counter()
            fitted = model.fit(known)
            seconds.append(time.perf_counter() - began)
            found.append(errors(fitted.predict(histories(known, known.user_ids), asked[:, 0], asked[:, 1]), asked[:, 2]))
        known = interactions(old)
        fitted = model.fit(known)
        by_time = errors(fitted.predict(histories(known, known.user_ids), new[:, 0], new[:, 1]), new[:, 2])
        later = errors(fitted.predict(so_far(interactions(table), new), np.arange(len(new)), new[:, 1]), new[:, 2])
        ours = {"random": (np.mean(found, axis=0)[0], np.mean(found, axis=0)[1]), "time": by_time, "so far": later}
        cells = " ".join(f"{pair(one):>13}" for one in (ours["random"], PUBLISHED[name], by_time, later))
        print(f"{name:<10} {cells} {np.median(seconds):>7.1f}", flush=True)
        for split, figures in ours.items():
            peers, of = (PUBLISHED[name], "published") if split == "random" else (before.get(split, figures), "the model above")
            rows += [line(f"{name}, {split}, {kind}", *both, of) for kind, *both in zip(("RMSE", "MAE"), figures, peers, strict=True)]
        before = ours
    known_before = np.isin(np.unique(new[:, 0]), old[:, 0]).mean()
    write_page("ratings", rows, f"MovieLens-100K; {known_before:.0%} of the users of the last fifth had rated before; knobs: {MODELS}")


def line(case: str, ours: float, peer: float, of: str) -> dict[str, Any]:
    """Return one figure beside its peer."""
    measured = {"case": case, "ours": round(float(ours), 4), "peer": round(float(peer), 4), "unit": "stars"}
    return measured | {"ratio": round(float(peer / ours), 4), "target": f"<= {of}", "met": bool(ours <= peer)}


def pair(values: tuple[float, float]) -> str:
    """Return RMSE and MAE as people read them."""
    return "/".join(f"{value:.4f}".lstrip("0") for value in values)


if __name__ == "__main__":
    main()
